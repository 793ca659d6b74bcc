"""Virtqueues, compiled and in Python: one outcome, whatever the guest has written anywhere.

Two machines are given the same memory and the same accesses; one of them has the compiled rings.  After each
access all of memory, all of the device's state and all that was said must be equal, and code that was
overwritten is announced.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.virtio_bench import BUFFERS, RINGS, SIZE, bring_up, offer
from tests.devices.virtio_driver import RingsWithoutProcessor
from tests.fuzz.test_rings import ADDRESSES, FEATURES, LENGTHS, Medium, long_table, scramble
from vmm.cpu.ring import Rings
from vmm.devices.virtio_blk import VirtioBlk
from vmm.devices.virtio_buffer import Segments
from vmm.devices.virtio_net import VirtioNet
from vmm.devices.virtio_pci import STATUS_NEEDS_RESET, VirtioPci
from vmm.devices.virtio_queue import QueueState, RingViolation, Violation, VirtQueue
from vmm.devices.virtio_rng import VirtioRng
from vmm.errors import BadAddress
from vmm.ram import HIGH_BASE, LOW_MAX, MIB, PAGE_SIZE, Ram
from vmm.state import pack

NET_FEATURES = 0x0023_8020
AREA = 0x8000
"""Rings and buffers that lie here, anywhere, lie over each other."""


@dataclass
class World:
    """A device, its memory, and what it said."""

    make: Callable[[Ram, World], VirtioPci]
    compiled: bool
    ram: Ram = field(default_factory=lambda: Ram(1))
    said: list[object] = field(default_factory=list)
    written: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rings = RingsWithoutProcessor(self.ram) if self.compiled else None
        self.ram.on_write = self._write
        self.device = self.make(self.ram, self)

    def _write(self, address: int, length: int) -> None:
        self.written |= set(range(address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE + 1))

    def say(self, *words: object) -> None:
        self.said.append(words)

    def message(self, address: int, data: int) -> None:
        self.say("message", address, data)

    def set(self, level: bool) -> None:
        self.say("line", level)


def net(ram: Ram, world: World) -> VirtioNet:
    return VirtioNet(
        bytes(6), lambda frame: world.say(bytes(frame)), ram, world, world.message, rx_ready=lambda: None
    )


def net_with_offloads(ram: Ram, world: World) -> VirtioNet:
    return VirtioNet(bytes(6), lambda frame: world.say(bytes(frame)), ram, world, world.message, True)


DEVICES: dict[str, Callable[[Ram, World], VirtioPci]] = {
    "net": net,
    "net with offloads": net_with_offloads,
    "blk": lambda ram, world: VirtioBlk(Medium(), ram, world, world.message),
    "rng": lambda ram, world: VirtioRng(b"seed", ram, world, world.message),
}


class Twins:
    """The two of them."""

    def __init__(self, name: str) -> None:
        self.plain, self.compiled = (World(DEVICES[name], way) for way in (False, True))
        self.is_net = name.startswith("net")

    def do(self, act: Callable[[World], object], code: set[int]) -> None:
        """Both do it, while the processor has translated these pages of memory."""
        assert self.compiled.rings is not None
        self.compiled.rings.code[:] = 0
        self.compiled.rings.code[list(code)] = 1
        for world in (self.plain, self.compiled):
            world.written.clear()
            act(world)
        assert pack(self.compiled.device.state) == pack(self.plain.device.state)
        assert self.compiled.said == self.plain.said
        assert self.compiled.ram.read(0, MIB) == self.plain.ram.read(0, MIB)
        assert self.plain.written & code <= self.compiled.written

    def receive(self, frame: bytes, code: set[int]) -> None:
        def act(world: World) -> None:
            assert isinstance(world.device, VirtioNet)
            world.say(world.device.receive(frame))

        self.do(act, code)

    def write(self, address: int, data: bytes) -> None:
        for world in (self.plain, self.compiled):
            world.ram.write(address, data)

    def writes_first(self, index: int) -> bool:
        """Has the device nothing to read in the buffers of this queue?"""
        return isinstance(self.plain.device, VirtioRng) or (self.is_net and index == 0)

    def bring_up(self, features: int) -> None:
        for world in (self.plain, self.compiled):
            bring_up(world.device, features)

    @property
    def broken(self) -> bool:
        return bool(self.plain.device.state.status & STATUS_NEEDS_RESET)


def step(rng: random.Random, twins: Twins) -> None:
    """A doorbell, or a frame."""
    code = {rng.randrange(MIB // PAGE_SIZE) for _ in range(rng.choice((0, 0, 3)))}
    code |= {RINGS // PAGE_SIZE} if rng.random() < 0.1 else set()
    if twins.is_net and rng.random() < 0.5:
        twins.receive(rng.randbytes(rng.choice((13, 14, 60, 72, 1514, 9000))), code)
    else:
        index = rng.randrange(len(twins.plain.device.queues))
        twins.do(lambda world: world.device.notify(4 * index, 2, 0), code)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_attacks(name: str) -> None:
    """Those of the fuzz tests: mostly plausible rings, and long tables."""
    broken = [0] * len(Violation)
    for seed in range(60):
        rng = random.Random(f"{name} {seed}")
        twins = Twins(name)
        features = FEATURES if rng.random() < 0.7 else rng.choice((1 << 32, 5 << 28 | 1 << 32))
        for _ in range(3):
            twins.write(RINGS, bytes(0x4000))
            twins.bring_up(features | (NET_FEATURES if twins.is_net and rng.random() < 0.8 else 0))
            for _ in range(8):
                index, kind, again = rng.randrange(len(twins.plain.device.queues)), rng.random(), rng.random()
                for world in (twins.plain, twins.compiled):
                    attack(random.Random(again), world.ram, index, kind)
                step(rng, twins)
        found = twins.plain.device.state.violations
        broken = [had + more for had, more in zip(broken, found, strict=True)]
    hit = {Violation(kind).name for kind, count in enumerate(broken) if count}
    assert len(hit) >= 8, f"the attacks have become too tame: only {sorted(hit)}"


def attack(rng: random.Random, ram: Ram, index: int, kind: float) -> None:
    if kind < 0.2:
        long_table(rng, ram, index)
    elif kind < 0.6:
        readable = rng.randbytes(rng.choice((0, 1, 16, 40, 90)))
        offer(ram, index, readable, rng.choice((0, 16, 64, 1600, 1600)), rng.randrange(SIZE))
    else:
        scramble(rng, ram, index)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_rings_over_each_other_and_over_buffers(name: str) -> None:
    """What the device writes changes what it reads next: the order of every access counts."""
    steps = served = 0
    for seed in range(120):
        rng = random.Random(f"over {name} {seed}")
        twins = Twins(name)
        twins.write(0, rng.randbytes(AREA))
        twins.bring_up(FEATURES | (NET_FEATURES if twins.is_net else 0))
        for _ in range(6):
            entangle(rng, twins)
            used = [queue.used for queue in twins.plain.device.state.queues]
            step(rng, twins)
            steps += 1
            served += used != [queue.used for queue in twins.plain.device.state.queues]
            if twins.broken:
                break
    assert served > steps // 10, f"{served} of {steps}: the rings have become too wild"


def entangle(rng: random.Random, twins: Twins) -> None:
    """Rings anywhere in a small area, and descriptors that point there, one of which is made available."""
    for index in range(len(twins.plain.device.queues)):
        state = twins.plain.device.state.queues[index]
        if rng.random() < 0.5:
            state.desc, state.driver = 16 * rng.randrange(AREA // 16), 2 * rng.randrange(AREA // 2)
            state.device = 4 * rng.randrange(AREA // 4)
        for place in range(SIZE):
            address = rng.choice((rng.randrange(AREA), rng.randrange(AREA), BUFFERS))
            length = rng.choice((rng.randrange(1, 64), rng.randrange(1, 2048), 16 * rng.randrange(1, 8)))
            flags, following = (2, 0) if place & 1 else (1, place + 1)
            if rng.random() < 0.1:
                flags, following = rng.choice((0, 1, 2, 3, 4)), rng.randrange(SIZE)
            row = struct.pack("<QIHH", address, length, flags, following)
            twins.write(state.desc + 16 * place, row)
        odd = twins.writes_first(index)
        heads = [rng.randrange(SIZE) & ~1 | odd for _ in range(SIZE)]
        twins.write(state.driver + 4, struct.pack(f"<{SIZE}H", *heads))
        count = rng.choice((0, 1, 1, 2, SIZE))
        twins.write(state.driver + 2, struct.pack("<H", state.next_avail + count & 0xFFFF))
        twin = twins.compiled.device.state.queues[index]
        twin.desc, twin.driver, twin.device = state.desc, state.driver, state.device


@pytest.mark.parametrize("name", ["net", "net with offloads"])
def test_frames_over_buffers_of_many_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most are merged in compiled code; with code in their pages, too few, or too small, they are not."""
    ways: list[bool] = []
    merge = Rings.merge

    def counted(*arguments: Any) -> int | None:
        wanted = merge(*arguments)
        ways.append(wanted is not None)
        return wanted

    monkeypatch.setattr(Rings, "merge", counted)
    for seed in range(60):
        rng = random.Random(f"frames {name} {seed}")
        twins = Twins(name)
        mergeable = 0x8000 if rng.random() < 0.8 else 0
        twins.bring_up(
            (FEATURES if rng.random() < 0.5 else 1 << 32 | 1 << 28) | NET_FEATURES & ~0x8000 | mergeable
        )
        for _ in range(6):
            for _ in range(rng.randrange(1, 6)):
                table = indirect_buffer(rng)
                for world in (twins.plain, twins.compiled):
                    post(world.ram, table)
            frame = rng.randbytes(rng.choice((26, 60, 72, 400, 1526, 3000)))
            code = (
                {rng.randrange(BUFFERS, BUFFERS + 0x5000) // PAGE_SIZE} if rng.random() < 0.2 else set[int]()
            )
            if rng.random() < 0.1:
                code.add(RINGS // PAGE_SIZE)
            twins.receive(frame, code)
            if twins.broken:
                break
    assert len(ways) // 2 < ways.count(True) < len(ways)


def indirect_buffer(rng: random.Random) -> bytes:
    """A table of pieces to be written, which may lie over each other."""
    count = rng.choice((1, 1, 2, 3, 7))
    rows = []
    for number in range(count):
        address, length = (
            BUFFERS + rng.randrange(0x4000),
            rng.choice((12, 20, 100, 1600, rng.randrange(1, 2000))),
        )
        rows.append(struct.pack("<QIHH", address, length, 3 if number + 1 < count else 2, number + 1))
    return b"".join(rows)


def post(ram: Ram, table: bytes) -> None:
    """One more receive buffer; tables have their places behind the rings."""
    (available,) = struct.unpack("<H", ram.read(RINGS + 0x402, 2))
    place = available % SIZE
    at = RINGS + 0x3000 + 0x80 * place
    ram.write(at, table)
    ram.write(RINGS + 16 * place, struct.pack("<QIHH", at, len(table), 4, 0))
    ram.write(RINGS + 0x404 + 2 * place, struct.pack("<H", place))
    ram.write(RINGS + 0x402, struct.pack("<H", available + 1 & 0xFFFF))


# Registers that no driver can set, as a snapshot could have them.

EDGES = 0, 0x1000, 0x1001, MIB - 64, MIB, 1 << 32, (1 << 63) - 8, 1 << 63, (1 << 64) - 4
addresses = st.sampled_from(EDGES)
indices = st.sampled_from((0, 1, 7, 0x7FFF, 0xFFFF)) | st.integers(0, 0xFFFF)
states = st.builds(
    QueueState,
    size=st.sampled_from((0, 1, 3, 8, 1024, 1025, 0xFFFF)),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    desc=addresses,
    driver=addresses,
    device=addresses,
    next_avail=indices,
    used=indices,
    published=indices,
    told=indices,
)


def outcome(state: QueueState, memory: bytes, compiled: bool) -> tuple[object, ...]:
    ram = Ram(1)
    if compiled:
        RingsWithoutProcessor(ram)
    ram.write(0, memory)
    queue = VirtQueue(ram, 8)
    queue.state = QueueState(**{name: getattr(state, name) for name in QueueState.__struct_fields__})
    said: list[object] = []

    def work(readable: Segments, size: int, writable: Segments, room: int) -> int:
        said.append((list(readable), size, list(writable), room))
        return len(said)

    try:
        said.append(queue.serve(work))
    except RingViolation as violation:
        said.append(violation.kind)
    except BadAddress:
        said.append(Violation.OUTSIDE_RAM)
    return said, pack(queue.state), ram.read(0, MIB)


@given(states, st.binary(max_size=64), st.sampled_from((0, 0x1000, MIB - 64)), st.integers(0, 9))
def test_any_registers(state: QueueState, noise: bytes, at: int, count: int) -> None:
    memory = bytearray(MIB)
    memory[at : at + len(noise)] = noise
    if state.driver < MIB - 4:
        struct.pack_into("<H", memory, state.driver + 2, state.next_avail + count & 0xFFFF)
    assert outcome(state, bytes(memory), True) == outcome(state, bytes(memory), False)


def test_above_the_hole() -> None:
    """Rings and buffers at both ends of both pieces of RAM."""
    ram = Ram(4096)
    rings = RingsWithoutProcessor(ram)
    end = HIGH_BASE + 4096 * MIB - LOW_MAX
    queue = VirtQueue(ram, 8)
    state = queue.state
    state.desc, state.driver, state.device = HIGH_BASE, LOW_MAX - 4 - 2 * 8 - 2, end - 4 - 8 * 8 - 4
    queue.enable()
    rows = ((end - 100, 100), (LOW_MAX - 50, 50), (HIGH_BASE + 256, 7))
    for place, (address, length) in enumerate(rows):
        flags = 1 if place < 2 else 0
        ram.write(state.desc + 16 * place, struct.pack("<QIHH", address, length, flags | 2, place + 1))
    ram.write(state.driver + 2, struct.pack("<H", 1))
    found = []

    def work(_readable: Segments, _size: int, writable: Segments, room: int) -> int:
        found.append((tuple(writable), room))
        return room

    assert queue.serve(work)
    assert found == [(rows, 157)]
    assert ram.read(state.device + 2, 10) == struct.pack("<HII", 1, 0, 157)
    assert rings.code.sum() == 0


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("address", ADDRESSES)
def test_one_descriptor(address: int, length: int) -> None:
    """Where it lies matters to whoever uses it, not to who takes it."""
    memory = bytearray(MIB)
    struct.pack_into("<QIHH", memory, 0x1000, address, length, 2, 0)
    struct.pack_into("<H", memory, 0x2002, 1)
    state = QueueState(size=8, desc=0x1000, driver=0x2000, device=0x3000, indirect=True)
    compiled = outcome(state, bytes(memory), True)
    assert compiled == outcome(state, bytes(memory), False)
    if length:
        assert compiled[0] == [([], 0, [(address, length)], length), True]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("device", [*EDGES, (1 << 64) - 4 - 8 * 8, (1 << 64) - 2])
def test_a_used_ring_anywhere(device: int, event_idx: bool) -> None:
    """Also where its elements would lie at address 0 again."""
    memory = bytearray(MIB)
    struct.pack_into("<QIHH", memory, 0x4000, 0x5000, 16, 2, 0)
    struct.pack_into("<H", memory, 0x2002, 1)
    state = QueueState(size=8, desc=0x4000, driver=0x2000, device=device, event_idx=event_idx)
    assert outcome(state, bytes(memory), True) == outcome(state, bytes(memory), False)
