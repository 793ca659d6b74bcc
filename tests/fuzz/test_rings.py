"""Hostile rings: whatever a guest writes into its rings, nothing is raised and every pass ends.

Each example brings a device up properly, then fills rings and descriptors from a seed, mostly with
values near the limits, and rings doorbells.  What must hold afterwards: no exception; the work of a
notification is bounded (counted in accesses to guest memory); every broken queue is counted under a
name; what the device wrote lies in buffers, used rings, or nowhere; and a reset makes it work again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.devices.virtio_bench import BUFFERS, RINGS, SIZE, bring_up, offer
from vmm.device import Pieces
from vmm.devices.virtio_blk import VirtioBlk
from vmm.devices.virtio_buffer import MANY
from vmm.devices.virtio_net import VirtioNet
from vmm.devices.virtio_pci import STATUS_NEEDS_RESET, VirtioPci
from vmm.devices.virtio_queue import CHAIN_MAX, Violation
from vmm.devices.virtio_rng import VirtioRng
from vmm.dma import PieceList
from vmm.ram import MIB, Ram
from vmm.state import pack, unpack

SEEDS = range(150)
FEATURES = 1 << 32 | 1 << 29 | 1 << 28
ACCESSES_MAX = SIZE * (CHAIN_MAX + 40 * SIZE)
"""Accesses to memory on one notification: a pass has SIZE chains of SIZE descriptors, or long tables."""
ADDRESSES = (
    0,
    BUFFERS,
    BUFFERS + 0x800,
    RINGS,
    RINGS + 0x400,
    RINGS + 0x800,
    MIB - 8,
    MIB,
    1 << 32,
    (1 << 64) - 1,
)
LENGTHS = (0, 1, 11, 12, 16, 32, 64, 513, 528, 1536, 16 * 1024, 16 * 1025, 1 << 16, 1 << 20, 0xFFFF_FFFF)
FLAGS = (0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 0xFFFF)
TABLE = BUFFERS + 0x8000
"""Where a long indirect table lies, and some of the pieces that it names."""


class CountedRam(Ram):
    """RAM that counts what bus masters do with it."""

    __slots__ = ("accesses", "writes")

    def __init__(self) -> None:
        super().__init__(1)
        self.accesses = 0

    def view(self, address: int, length: int) -> memoryview:
        self.accesses += 1
        return super().view(address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.accesses += 1
        super().write(address, data)

    def pieces(self, table: bytes) -> PieceList:
        self.accesses += len(table) // 16
        return super().pieces(table)


class Medium:
    """A disk full of what could be a ring."""

    sectors, read_only = 4096, False

    def read(self, sector: int, count: int) -> bytes:
        return struct.pack("<QIHH", BUFFERS, 16, 1, sector & 15) * (32 * count)

    def write(self, sector: int, data: bytes | memoryview) -> None:
        assert len(data) % 512 == 0
        assert sector + len(data) // 512 <= self.sectors

    def read_into(self, sector: int, pieces: Pieces) -> None:
        data = self.read(sector, pieces.size // 512)
        for view in pieces.views():
            view[:], data = data[: len(view)], data[len(view) :]

    def write_from(self, sector: int, pieces: Pieces) -> None:
        self.write(sector, b"".join(pieces.views()))

    def flush(self) -> None:
        pass


def ignore(*arguments: object) -> None:
    """A sink that nobody reads."""


def net(ram: Ram) -> VirtioNet:
    device: VirtioNet

    def reflect(frame: memoryview | bytes) -> None:
        """What the guest sends comes back to it, while its transmission is being served."""
        device.receive(frame)

    def try_again() -> None:
        device.receive(bytes(64))

    device = VirtioNet(bytes(6), reflect, ram, None, ignore, rx_ready=try_again)
    return device


DEVICES: dict[str, Callable[[Ram], VirtioPci]] = {
    "net": net,
    "blk": lambda ram: VirtioBlk(Medium(), ram, None, ignore),
    "rng": lambda ram: VirtioRng(b"seed", ram, None, ignore),
}


def scramble(rng: random.Random, ram: Ram, index: int) -> None:
    """Descriptors and rings of one queue, mostly plausible."""
    base = RINGS + 0x1000 * index
    for place in range(SIZE):
        descriptor = (
            rng.choice(ADDRESSES[1:3] if rng.random() < 0.7 else ADDRESSES),
            rng.choice(LENGTHS[3:10] if rng.random() < 0.7 else LENGTHS),
            rng.choice(FLAGS),
            rng.choice((place + 1, place + 1, rng.randrange(SIZE), SIZE, 0xFFFF)) & 0xFFFF,
        )
        ram.write(base + 16 * place, struct.pack("<QIHH", *descriptor))
        # Indirect tables, and block headers, at the addresses that descriptors point to.
        table = struct.pack("<QIHH", *descriptor[:2], descriptor[2] & rng.choice((3, 7)), descriptor[3])
        ram.write(
            BUFFERS + 16 * place, table if rng.random() < 0.5 else struct.pack("<IIQ", place % 5, 0, place)
        )
    ram.write(
        base + 0x404,
        bytes(rng.choice((rng.randrange(SIZE), SIZE, 255)) if n % 2 == 0 else 0 for n in range(2 * SIZE)),
    )
    (available,) = struct.unpack("<H", ram.read(base + 0x402, 2))
    step = rng.choice((1, 1, 2, SIZE, SIZE + 1, 0xFFFF))
    ram.write(base + 0x402, struct.pack("<H", available + step & 0xFFFF))
    ram.write(base + 0x404 + 2 * SIZE, rng.randbytes(2))


def long_table(rng: random.Random, ram: Ram, index: int) -> None:
    """One request with an indirect table that is in order, as Linux makes them, but for what it names."""
    base, place = RINGS + 0x1000 * index, rng.randrange(SIZE)
    count = rng.choice((MANY - 1, MANY, 40, 130, CHAIN_MAX))
    write = rng.random() < 0.5
    readable = rng.choice((0, count, count // 2)) if rng.random() < 0.1 else count - 1 if write else 1
    wild = rng.random() < 0.4
    rows = bytearray()
    for number in range(count):
        address = rng.choice(ADDRESSES) if wild and rng.random() < 0.1 else BUFFERS + 512 * rng.randrange(256)
        length = rng.choice(LENGTHS) if wild and rng.random() < 0.1 else 512
        if number == 0 and readable:
            address, length = BUFFERS, rng.choice((16, 16, 16, 528))
        elif number == count - 1 and readable < count:
            length = rng.choice((1, 1, 1, 513))
        flags = (2 if number >= readable else 0) | (1 if number < count - 1 else 0)
        rows += struct.pack("<QIHH", address, length, flags, number + 1)
    if wild and rng.random() < 0.3:
        rows[rng.randrange(len(rows))] = rng.randrange(256)
    kind = rng.choice((0, 1, 4, 8)) if rng.random() < 0.1 else write
    ram.write(BUFFERS, struct.pack("<IIQ", kind, 0, rng.choice((0, 5, 3000, 4095))))
    ram.write(TABLE, rows)
    ram.write(base + 16 * place, struct.pack("<QIHH", TABLE, len(rows), 4, 0))
    (available,) = struct.unpack("<H", ram.read(base + 0x402, 2))
    ram.write(base + 0x404 + 2 * (available % SIZE), place.to_bytes(2, "little"))
    ram.write(base + 0x402, (available + 1 & 0xFFFF).to_bytes(2, "little"))


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_hostile_rings(name: str) -> None:
    broken = [0] * len(Violation)
    for seed in SEEDS:
        rng = random.Random(f"{name} {seed}")
        ram = CountedRam()
        device = DEVICES[name](ram)
        for _ in range(4):
            ram.write(RINGS, bytes(0x4000))
            bring_up(device, FEATURES | (0x0023_8020 if name == "net" else 0))
            assert device.state.status == 0xF, f"seed {seed}: works again after a reset"
            attack(rng, ram, device, seed)
        assert unpack(type(device.state), pack(device.state)) == device.state
        broken = [had + more for had, more in zip(broken, device.state.violations, strict=True)]
    hit = {Violation(kind).name for kind, count in enumerate(broken) if count}
    assert len(hit) >= 8, f"the attacks have become too tame: only {sorted(hit)}"


def attack(rng: random.Random, ram: CountedRam, device: VirtioPci, seed: int) -> None:
    for _ in range(6):
        index = rng.randrange(len(device.queues))
        kind = rng.random()
        if kind < 0.2:
            long_table(rng, ram, index)
        elif kind < 0.5:
            offer(
                ram, index, rng.randbytes(rng.randrange(40)), rng.choice(LENGTHS[1:10]), rng.randrange(SIZE)
            )
        else:
            scramble(rng, ram, index)
        ram.accesses = 0
        device.notify(4 * index, 2, index)
        if isinstance(device, VirtioNet):
            device.receive(rng.randbytes(rng.choice((14, 60, 1514, 9000))))
        assert ram.accesses <= ACCESSES_MAX, f"seed {seed}: {ram.accesses} accesses"
    violations = sum(device.state.violations)
    queues: list[Any] = [queue for queue in device.state.queues if queue.broken]
    assert bool(queues) == bool(device.state.status & STATUS_NEEDS_RESET), f"seed {seed}"
    assert violations >= len(queues), f"seed {seed}"


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_long_tables(name: str) -> None:
    served = 0
    for seed in SEEDS:
        rng = random.Random(f"tables {name} {seed}")
        ram = CountedRam()
        device = DEVICES[name](ram)
        for _ in range(4):
            index = rng.randrange(len(device.queues))
            if device.state.status != 0xF:
                bring_up(device, FEATURES)
            long_table(rng, ram, index)
            ram.accesses = 0
            device.notify(4 * index, 2, index)
            assert ram.accesses <= ACCESSES_MAX, f"seed {seed}: {ram.accesses} accesses"
        if isinstance(device, VirtioBlk):
            served += device.state.reads + device.state.writes
    assert served > len(SEEDS) // 2 or name != "blk", "the tables have become too wild"


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_random_bytes_everywhere(name: str) -> None:
    """Rings, buffers and registers of pure noise, from the first access on."""
    for seed in SEEDS:
        rng = random.Random(f"noise {name} {seed}")
        ram = CountedRam()
        ram.write(0, rng.randbytes(0x4_0000))
        device = DEVICES[name](ram)
        device.config_write(4, 2, 7)
        for _ in range(60):
            offset, size = rng.randrange(0x310), rng.choice((1, 2, 4, 4, 8))
            value = (
                rng.choice((0, 1, 0xF, 0x10, 0x1000, 0x2000, rng.getrandbits(8 * size))) & (1 << 8 * size) - 1
            )
            device.registers_write(offset, size, value)
            assert 0 <= device.registers_read(offset, size) < 1 << 8 * size
            device.notify(offset & 0xF, 2, value)
        pack(device.state)


def test_disk_that_rewrites_its_own_ring() -> None:
    """A read aimed at the available ring makes more requests available while one is served."""
    ram = CountedRam()
    device = VirtioBlk(Medium(), ram, None, ignore)
    bring_up(device, FEATURES)
    for place in range(SIZE):
        ram.write(RINGS + 0x404 + 2 * place, struct.pack("<H", 0))
    ram.write(BUFFERS, struct.pack("<IIQ", 0, 0, 1))
    ram.write(RINGS, struct.pack("<QIHH", BUFFERS, 16, 1, 1))
    ram.write(RINGS + 16, struct.pack("<QIHH", RINGS + 0x400, 512, 3, 2))
    ram.write(RINGS + 32, struct.pack("<QIHH", BUFFERS + 0x800, 1, 2, 0))
    ram.write(RINGS + 0x402, struct.pack("<H", 1))
    for _ in range(20):
        ram.accesses = 0
        device.notify(0, 2, 0)
        assert ram.accesses <= ACCESSES_MAX
