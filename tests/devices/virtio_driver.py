"""A guest's side of virtio, for tests: a board with buses, and a driver that follows the specification.

Nothing here reaches into a device.  Configuration goes through ports 0xCF8 and 0xCFC, registers
through the buses at the addresses that the BARs hold, buffers through RAM (VIRTIO 1.2: 3.1.1 for
the order of steps, 4.1.5.1 for discovery, 2.7.13 and 2.7.14 for the rings).
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field

import numpy as np

from vmm.bus import Bus
from vmm.cpu import compile as native
from vmm.cpu.control import ControlBlock
from vmm.cpu.ring import Rings
from vmm.devices.pci import PciHost
from vmm.devices.pci_function import PciFunction
from vmm.ram import PAGE_SIZE, Ram

NEXT, WRITE, INDIRECT = 1, 2, 4
EVENT_IDX, INDIRECT_DESC, VERSION_1 = 1 << 29, 1 << 28, 1 << 32
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40
SLOT = 3
ARENA = range(0x10_0000, 0x40_0000)
MSI_ADDRESS = 0xFEE0_0000


class Wire:
    """A line that remembers every change of its level."""

    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self.changes.append(level)


class RingsWithoutProcessor(Rings):
    """The compiled work on rings of ``ram``, and which pages it takes for code."""

    def __init__(self, ram: Ram) -> None:
        self.block = ControlBlock()
        self.code = np.zeros(ram.size // PAGE_SIZE, np.uint8)
        self.block["CODE_PAGES"], self.block["CODE_PAGES_COUNT"] = int(self.code.ctypes.data), len(self.code)
        super().__init__(ram, native.callbacks(), self.block.address)
        ram.rings = self


COMPILED = False
"""Whether boards have that; fixture ``ways`` sets it."""


@dataclass
class Board:
    """RAM, two buses, the host bridge; messages and the interrupt pin are recorded."""

    ram: Ram = field(default_factory=lambda: Ram(4))
    irq: Wire = field(default_factory=Wire)
    messages: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if COMPILED:
            RingsWithoutProcessor(self.ram)
        self.io = Bus("io")
        self.mmio = Bus("mmio")
        self.host = PciHost(self.io, self.mmio)
        self.io.claim(0xCF8, 8, self.host, "PCI configuration mechanism #1")

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def plug(self, function: PciFunction, slot: int = SLOT) -> None:
        self.host.plug(slot, function)
        self.host.assign()

    def config_read(self, offset: int, size: int = 4, slot: int = SLOT) -> int:
        self.io.write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        return self.io.read(0xCFC + (offset & 3), size)

    def config_write(self, offset: int, size: int, value: int, slot: int = SLOT) -> None:
        self.io.write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        self.io.write(0xCFC + (offset & 3), size, value)

    def capabilities(self, slot: int = SLOT) -> list[tuple[int, int]]:
        """``(id, offset)`` of every capability, in list order."""
        found: list[tuple[int, int]] = []
        at = self.config_read(0x34, 1, slot)
        while at and len(found) < 48:
            found.append((self.config_read(at, 1, slot), at))
            at = self.config_read(at + 1, 1, slot)
        return found


class DriverQueue:
    """The driver's half of one split queue; buffers come from an arena used in a circle."""

    def __init__(self, board: Board, index: int, size: int, base: int, features: int) -> None:
        self.ram = board.ram
        self.index = index
        self.size = size
        self.desc = base
        self.driver = base + 16 * size
        self.device = (self.driver + 6 + 2 * size + 3) & ~3
        self.end = (self.device + 6 + 8 * size + 15) & ~15
        self.event_idx = bool(features & EVENT_IDX)
        self.added = self.kicked = self.seen = 0
        self.free = list(range(size))
        self.chains: dict[int, tuple[list[tuple[int, int, int]], list[int]]] = {}
        self.arena = ARENA.start + 0x4_0000 * index

    def on(self, ram: Ram) -> DriverQueue:
        """The same driver, in a copy of its memory."""
        twin = copy.copy(self)
        twin.ram, twin.free, twin.chains = ram, list(self.free), dict(self.chains)
        return twin

    def u16(self, address: int) -> int:
        return int.from_bytes(self.ram.read(address, 2), "little")

    def put16(self, address: int, value: int) -> None:
        self.ram.write(address, (value & 0xFFFF).to_bytes(2, "little"))

    def put_descriptor(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        self.ram.write(self.desc + 16 * index, struct.pack("<QIHH", address, length, flags, following))

    def alloc(self, length: int) -> int:
        start = ARENA.start + 0x4_0000 * self.index
        if self.arena + length > ARENA.stop:
            self.arena = start
        at, self.arena = self.arena, self.arena + (length + 15 & ~15)
        return at

    def add(self, readable: list[bytes], writable: list[int], indirect: bool = False) -> int:
        """Make one buffer available (not yet told); the head of its chain."""
        parts: list[tuple[int, int, int]] = []
        for data in readable:
            at = self.alloc(len(data))
            self.ram.write(at, data)
            parts.append((at, len(data), 0))
        parts += [(self.alloc(length), length, WRITE) for length in writable]
        if indirect:
            head = self.free.pop(0)
            table = self.alloc(16 * len(parts))
            for index, (at, length, flags) in enumerate(parts):
                more = NEXT if index + 1 < len(parts) else 0
                self.ram.write(table + 16 * index, struct.pack("<QIHH", at, length, flags | more, index + 1))
            self.put_descriptor(head, table, 16 * len(parts), INDIRECT)
            used = [head]
        else:
            used = [self.free.pop(0) for _ in parts]
            for index, (at, length, flags) in enumerate(parts):
                more = NEXT if index + 1 < len(parts) else 0
                following = used[index + 1] if more else 0
                self.put_descriptor(used[index], at, length, flags | more, following)
        self.chains[used[0]] = parts, used
        self.offer(used[0])
        return used[0]

    def offer(self, head: int) -> None:
        """Put any value in the available ring."""
        self.put16(self.driver + 4 + 2 * (self.added % self.size), head)
        self.added += 1

    def publish(self) -> bool:
        """Show the device what was added; does it want to be told?"""
        self.put16(self.driver + 2, self.added)
        new, old, self.kicked = self.added, self.kicked, self.added
        if self.event_idx:
            event = self.u16(self.device + 4 + 8 * self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self.u16(self.device) & 1

    def want_interrupt(self, wanted: bool) -> None:
        if self.event_idx:
            self.put16(self.driver + 4 + 2 * self.size, self.seen if wanted else self.seen - 1)
        else:
            self.put16(self.driver, 0 if wanted else 1)

    def collect(self) -> list[tuple[int, bytes]]:
        """Used buffers since the last time: head, and what the device wrote."""
        done = []
        while self.seen & 0xFFFF != self.u16(self.device + 2):
            element = self.device + 4 + 8 * (self.seen % self.size)
            head, written = struct.unpack("<II", self.ram.read(element, 8))
            self.seen += 1
            parts, used = self.chains.pop(head)
            data = b"".join(self.ram.read(at, length) for at, length, flags in parts if flags & WRITE)
            self.free += used
            done.append((head, data[:written]))
        if self.event_idx:
            self.put16(self.driver + 4 + 2 * self.size, self.seen)
        return done


class VirtioDriver:
    """Finds the structures of the function in ``slot`` and brings the device up."""

    def __init__(self, board: Board, slot: int = SLOT) -> None:
        self.board = board
        self.slot = slot
        self.queues: list[DriverQueue] = []
        self.where: dict[int, tuple[int, int, int]] = {}
        self.multiplier = 0
        for kind, at in board.capabilities(slot):
            if kind == 0x11:
                self.msix_at = at
            elif kind == 9:
                structure = board.config_read(at + 3, 1, slot)
                bar = board.config_read(at + 4, 1, slot)
                offset, length = board.config_read(at + 8, 4, slot), board.config_read(at + 12, 4, slot)
                if structure not in self.where:  # a driver takes the first one it can use
                    self.where[structure] = (bar, offset, length)
                    if structure == 2:
                        self.multiplier = board.config_read(at + 16, 4, slot)

    # Registers.

    def bar(self, index: int) -> tuple[Bus, int]:
        value = self.board.config_read(0x10 + 4 * index, 4, self.slot)
        return (self.board.io, value & ~3) if value & 1 else (self.board.mmio, value & ~15)

    def read(self, structure: int, offset: int, size: int) -> int:
        bar, base, _ = self.where[structure]
        bus, address = self.bar(bar)
        return bus.read(address + base + offset, size)

    def write(self, structure: int, offset: int, size: int, value: int) -> None:
        bar, base, _ = self.where[structure]
        bus, address = self.bar(bar)
        bus.write(address + base + offset, size, value)

    @property
    def status(self) -> int:
        return self.read(1, 0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write(1, 0x14, 1, value)

    @property
    def isr(self) -> int:
        """Reading acknowledges."""
        return self.read(3, 0, 1)

    def offered(self) -> int:
        features = 0
        for half in (0, 1):
            self.write(1, 0, 4, half)
            features |= self.read(1, 4, 4) << 32 * half
        return features

    # Steps of 3.1.1.

    def negotiate(self, features: int) -> bool:
        """Reset to FEATURES_OK; did the device agree?"""
        self.status = 0
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        for half in (0, 1):
            self.write(1, 8, 4, half)
            self.write(1, 0xC, 4, features >> 32 * half & 0xFFFF_FFFF)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        return bool(self.status & FEATURES_OK)

    def start(self, features: int | None = None, msix: bool = False, size: int | None = None) -> None:
        """All steps; ``features`` defaults to everything that is offered."""
        features = self.offered() if features is None else features | VERSION_1
        assert self.negotiate(features)
        if msix:
            self.enable_msix()
        base = 0x1000
        self.queues = []
        for index in range(self.read(1, 0x12, 2)):
            self.write(1, 0x16, 2, index)
            if size is not None:
                self.write(1, 0x18, 2, size)
            queue = DriverQueue(self.board, index, self.read(1, 0x18, 2), base, features)
            self.board.ram.write(base, bytes(queue.end - base))
            base = queue.end
            self.queues.append(queue)
            self.set_up(queue, index + 1 if msix else 0xFFFF)
        self.status = self.status | DRIVER_OK

    def set_up(self, queue: DriverQueue, vector: int) -> None:
        self.write(1, 0x16, 2, queue.index)
        self.write(1, 0x1A, 2, vector)
        for register, address in ((0x20, queue.desc), (0x28, queue.driver), (0x30, queue.device)):
            self.write(1, register, 4, address & 0xFFFF_FFFF)
            self.write(1, register + 4, 4, address >> 32)
        self.write(1, 0x1C, 2, 1)

    def enable_msix(self) -> None:
        """Vector n sends datum 0x40 + n; vector 0 is the configuration's."""
        control = self.board.config_read(self.msix_at + 2, 2, self.slot)
        bus, table = self.bar(self.board.config_read(self.msix_at + 4, 4, self.slot) & 7)
        for vector in range((control & 0x7FF) + 1):
            for at, value in ((0, MSI_ADDRESS), (4, 0), (8, 0x40 + vector), (12, 0)):
                bus.write(table + 16 * vector + at, 4, value)
        self.board.config_write(self.msix_at + 2, 2, control | 0x8000, self.slot)
        self.write(1, 0x10, 2, 0)

    def kick(self, index: int) -> bool:
        """Publish what was added to queue ``index`` and ring its doorbell if the device asks for it."""
        wanted = self.queues[index].publish()
        if wanted:
            self.notify(index)
        return wanted

    def notify(self, index: int) -> None:
        self.write(1, 0x16, 2, index)
        self.write(2, self.read(1, 0x1E, 2) * self.multiplier, 2, index)
