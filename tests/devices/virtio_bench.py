"""The bench of a virtio device for the promise suite: a driver that keeps nothing in mind.

Whatever this driver knows is in guest memory, which travels to a twin, or a constant; so original
and twin are driven alike.  The rings may be overwritten by anything: promises hold for hostile
guests as well.
"""

from __future__ import annotations

import struct
from random import Random

from tests.devices.promises import Rig
from vmm.devices.pci_function import PciFunction, Window
from vmm.devices.virtio_pci import VirtioPci
from vmm.ram import MIB, Ram

SIZE = 16
RINGS = 0x1000
BUFFERS = 0x2_0000
BUFFER = 0x800


def config_window(function: PciFunction) -> Window:
    """Configuration space as the host bridge shows it: no access leaves its double word."""

    def place(offset: int, size: int) -> tuple[int, int]:
        size = min(size, 4)
        return offset & 0xFF & -size, size

    def write(offset: int, size: int, value: int) -> None:
        at, width = place(offset, size)
        function.config_write(at, width, value & (1 << 8 * width) - 1)

    return Window(lambda offset, size: function.config_read(*place(offset, size)), write)


def bring_up(device: VirtioPci, features: int) -> None:
    """Steps of 3.1.1 with fixed rings: queue n has 4 KiB at RINGS."""

    def put(offset: int, size: int, value: int) -> None:
        device.registers_write(offset, size, value)

    device.config_write(0x04, 2, 7)
    for status in (0, 1, 3):
        put(0x14, 1, status)
    for half in (0, 1):
        put(0x08, 4, half)
        put(0x0C, 4, features >> 32 * half & 0xFFFF_FFFF)
    put(0x14, 1, 0xB)
    for index in range(len(device.queues)):
        base = RINGS + 0x1000 * index
        put(0x16, 2, index)
        put(0x18, 2, SIZE)
        put(0x1A, 2, index + 1)
        for register, address in ((0x20, base), (0x28, base + 0x400), (0x30, base + 0x800)):
            put(register, 8, address)
        put(0x1C, 2, 1)
    put(0x14, 1, 0xF)


def offer(ram: Ram, index: int, readable: bytes, writable: int, place: int) -> None:
    """One more buffer in queue ``index``: what the device reads, how much it may write."""
    base = RINGS + 0x1000 * index
    buffer = BUFFERS + BUFFER * (2 * place + 32 * index)
    following = (place + 1) % SIZE
    flags = 1 if writable and readable else 0
    if readable:
        ram.write(buffer, readable)
        ram.write(base + 16 * place, struct.pack("<QIHH", buffer, len(readable), flags, following))
    if writable:
        at = following if readable else place
        ram.write(base + 16 * at, struct.pack("<QIHH", buffer + BUFFER, writable, 2, 0))
    (available,) = struct.unpack("<H", ram.read(base + 0x402, 2))
    ram.write(base + 0x404 + 2 * (available % SIZE), place.to_bytes(2, "little"))
    ram.write(base + 0x402, (available + 1 & 0xFFFF).to_bytes(2, "little"))


def bench(rig: Rig, device: VirtioPci, ram: Ram, features: int) -> None:
    """Give ``rig`` the device's windows, its memory, and the driver's moves that all types share."""
    rig.device = device
    registers = Window(device.registers_read, device.registers_write)
    doorbells = Window(lambda offset, size: 0, device.notify)
    rig.views = {
        "config": (config_window(device), 256),
        "registers": (registers, 0x310),
        "msix": (device.msix, 0x40),
        "doorbells": (doorbells, 12),
    }
    rig.world = {"ram": (lambda: ram.read(0, MIB), lambda data: ram.write(0, data))}

    def scribble(rng: Random) -> None:
        ram.write(RINGS + rng.randrange(0x3000), rng.randbytes(2))

    def start(rng: Random) -> None:
        if rng.random() < 0.5 and device.state.status == 0xF:
            return
        ram.write(RINGS, bytes(0x3000))
        bring_up(device, features if rng.random() < 0.5 else 1 << 32)

    def unmask(rng: Random) -> None:
        device.msix.write(16 * rng.randrange(device.msix.vectors) + 12, 4, rng.randrange(2))

    rig.actions = {
        "start": start,
        "scribble": scribble,
        "unmask": unmask,
        "ring": lambda rng: device.notify(4 * rng.randrange(len(device.queues)), 2, 0),
    }
    rig.observe = lambda: ram.read(RINGS, 0x3000)
