"""Two cards on wires of their own, and what happens to them (test_frames.py)."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from tests.backends.test_tap import ip
from tests.cpu.test_ring import NET_FEATURES, attack, indirect_buffer, post
from tests.devices.virtio_bench import BUFFERS, RINGS, SIZE, bring_up, offer
from tests.devices.virtio_driver import RingsWithoutProcessor
from tests.fuzz.test_rings import FEATURES
from vmm.backends.net import FRAME_MIN, VNET_HEADER
from vmm.backends.tap import Tap
from vmm.clock import ManualClock
from vmm.devices.virtio_net import VirtioNet
from vmm.devices.virtio_pci import STATUS_NEEDS_RESET
from vmm.inputs import Door
from vmm.ports import NetPort
from vmm.ram import MIB, PAGE_SIZE, Ram
from vmm.state import pack

RX, TX = 0, 1
SIZES = (0, 11, 12, 25, 26, 60, 72, 72, 72, 400, 1526, 3000, 9000)
NOISE = bytes(12) + b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5"
"""Header and Ethernet header of an experimental frame for everybody (IEEE 802, local experimental)."""


class Wire(Protocol):
    """What a card is plugged into, and its other end."""

    backend: Tap

    def put(self, frame: bytes) -> None: ...

    def come(self) -> list[bytes]:
        """What came from the guest since the last time."""

    def close(self) -> None: ...


class OnSockets(Tap):
    """All of a TAP but the device: the same code on another descriptor."""

    __slots__ = ()

    def __init__(self, descriptor: int) -> None:
        self.name, self.dropped, self.descriptor = "pair", 0, descriptor

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool) -> None:
        """Nobody has any."""


class Sockets:
    def __init__(self) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each in (near, self.far):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.backend: Tap = OnSockets(near.detach())

    def put(self, frame: bytes) -> None:
        self.far.send(frame)

    def come(self) -> list[bytes]:
        found = []
        while select.select([self.far], [], [], 0)[0]:
            found.append(self.far.recv(1 << 17))
        return found

    def close(self) -> None:
        self.backend.close()
        self.far.close()


class Interface:
    """A TAP, and a packet socket at its other end."""

    def __init__(self, name: str) -> None:
        self.backend = Tap(name)
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip("link", "set", name, "up", "mtu", "65521")
        self.far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.far.bind((name, 0x0003))
        self.far.setblocking(False)

    def put(self, frame: bytes) -> None:
        if VNET_HEADER + FRAME_MIN <= len(frame) <= VNET_HEADER + 65535:
            self.far.send(frame[VNET_HEADER:])

    def come(self) -> list[bytes]:
        found = []
        while select.select([self.far], [], [], 0)[0]:
            frame, (_, _, kind, *_) = self.far.recvfrom(1 << 17)
            if kind != socket.PACKET_OUTGOING:
                found.append(frame)
        return found

    def close(self) -> None:
        self.backend.close()
        self.far.close()


@dataclass
class World:
    """A card on a wire, and what it said."""

    wire: Wire
    direct: bool
    ram: Ram = field(default_factory=lambda: Ram(1))
    clock: ManualClock = field(default_factory=ManualClock)
    said: list[object] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    moved: int = 0

    def __post_init__(self) -> None:
        self.rings = RingsWithoutProcessor(self.ram)
        self.ram.on_write = self._write
        self.door = Door(lambda: self.clock.now_ns)
        if not self.direct:
            self.door.heard = lambda port, data: None
        self.port = NetPort("net0", self.wire.backend, self.door)
        self.card = self.device = self.port.card = VirtioNet(
            bytes(6),
            self.port.transmit,
            self.ram,
            self,
            lambda address, data: self.said.append((address, data)),
            True,
            self.port.posted,
            self.port.direct,
        )
        self.card.moderate(self.clock, "net0")

    def set(self, level: bool) -> None:
        self.said.append(level)

    def _write(self, address: int, length: int) -> None:
        self.written |= set(range(address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE + 1))

    @property
    def outcome(self) -> tuple[object, ...]:
        """All that can be told from outside; one request after another of the same kind is one."""
        said = [each for each, _ in groupby(self.said)]
        waiting = self.door.is_full("net0"), self.port.rx_ready, self.wire.backend.dropped
        return pack(self.card.state), said, waiting, self.clock.deadlines(), self.wire.come()


class Twins:
    def __init__(self, wires: tuple[Wire, Wire]) -> None:
        self.plain, self.direct = World(wires[0], False), World(wires[1], True)
        self.worlds = self.plain, self.direct
        self.compiled = self.direct

    def write(self, address: int, data: bytes) -> None:
        for world in self.worlds:
            world.ram.write(address, data)

    def writes_first(self, index: int) -> bool:
        """As :meth:`tests.cpu.test_ring.Twins.writes_first`, for ``entangle``."""
        return index == RX

    def do(self, act: Callable[[World], object], code: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Both do it, while the processor has translated these pages of memory."""
        for world in self.worlds:
            world.rings.code[:] = 0
            world.rings.code[list(code)] = 1
            world.said.clear()
            world.written.clear()
            act(world)
        assert self.direct.outcome == self.plain.outcome
        assert self.direct.ram.read(0, MIB) == self.plain.ram.read(0, MIB)
        assert self.plain.written & code <= self.direct.written

    @property
    def broken(self) -> bool:
        return bool(self.plain.card.state.status & STATUS_NEEDS_RESET)


def frame(rng: random.Random, size: int) -> bytes:
    return (NOISE + rng.randbytes(size))[:size] if size <= 1 << 17 else bytes(size)


def arrive(rng: random.Random, world: World, sizes: tuple[int, ...]) -> None:
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        world.wire.put(frame(rng, rng.choice(sizes)))
    world.port.pump()
    while select.select([world.wire.backend.fileno()], [], [], 0)[0] and not world.door.is_full("net0"):
        world.port.pump()  # as a poll that has more says


def offered(rng: random.Random, ram: Ram, sizes: tuple[int, ...]) -> None:
    """Frames that the guest sends: in one piece or in three, perhaps with something to write behind it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = frame(rng, rng.choice(sizes)) or b"x"
        base = RINGS + 0x1000 * TX
        (available,) = struct.unpack("<H", ram.read(base + 0x402, 2))
        place = 2 * available % SIZE
        if len(data) < 0x600:
            offer(ram, TX, data, rng.choice((0, 0, 16)), place)
            continue
        cut = len(data) // 3
        at = 0x4_0000
        for number in range(3):
            piece = data[cut * number : cut * (number + 1)] if number < 2 else data[cut * 2 :]
            row = struct.pack("<QIHH", at, len(piece), 1 if number < 2 else 0, number + 1)
            ram.write(RINGS + 0x3800 + 16 * number, row)
            ram.write(at, piece)
            at += len(piece)
        ram.write(base + 16 * place, struct.pack("<QIHH", RINGS + 0x3800, 48, 4, 0))
        ram.write(base + 0x404 + 2 * (available % SIZE), struct.pack("<H", place))
        ram.write(base + 0x402, struct.pack("<H", available + 1 & 0xFFFF))
        return


def around(rng: random.Random, world: World) -> None:
    """What happens beside frames: time, a plugged cable, an idle processor, masks, suppression."""
    act, vector, up, value = rng.randrange(6), rng.randrange(3), rng.random() < 0.8, rng.randrange(1 << 16)
    if act == 0:
        world.clock.advance(value)
    elif act == 1:
        world.card.set_link(up)
    elif act == 2:
        world.card.idle()
    elif act == 3:
        world.card.msix.write(16 * vector + 12, 4, value & 1)
    elif act == 4:  # VIRTQ_AVAIL_F_NO_INTERRUPT, or used_event
        queue = world.card.queues[value & 1].state
        near = (queue.published + (value >> 4) % 3).to_bytes(2, "little")
        world.ram.write(queue.driver + (4 + 2 * SIZE if queue.event_idx else 0), near)
    else:
        world.card.config_write(0x42 if value & 1 else 0x4, 2, 7)


def enable_messages(card: VirtioNet) -> None:
    """MSI-X with a vector for each queue."""
    for vector in range(card.msix.vectors):
        for at, value in ((0, 0xFEE0_0000), (8, 0x30 + vector), (12, 0)):
            card.msix.write(16 * vector + at, 4, value)
    at = card.state.config[0x34]
    while card.state.config[at] != 0x11:
        at = card.state.config[at + 1]
    card.config_write(at + 2, 2, 0x8000)


def run_twins(
    seed: str, wires: tuple[Wire, Wire], sizes: tuple[int, ...], steps: int, attacks: float
) -> Twins:
    rng = random.Random(seed)
    twins = Twins(wires)
    features = (FEATURES if rng.random() < 0.7 else 1 << 32 | 1 << 28) | NET_FEATURES
    features &= ~0x8000 if rng.random() < 0.2 else -1

    def both(act: Callable[[random.Random, World], object], code: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        again = rng.random()
        twins.do(lambda world: act(random.Random(again), world), code)

    both(lambda _, world: bring_up(world.card, features))
    if rng.random() < 0.8:
        both(lambda _, world: enable_messages(world.card))
    for _ in range(steps):
        tables = [indirect_buffer(rng) for _ in range(rng.choice((0, 1, 4)))]
        both(lambda _, world, tables=tables: [post(world.ram, table) for table in tables])  # type: ignore[misc]
        code = {rng.randrange(BUFFERS, BUFFERS + 0x5000) // PAGE_SIZE} if rng.random() < 0.1 else set()
        code |= {RINGS // PAGE_SIZE, RINGS // PAGE_SIZE + 1} if rng.random() < 0.1 else set()
        both(lambda again, world: offered(again, world.ram, sizes))
        if rng.random() < attacks:
            index, kind = rng.randrange(2), rng.random()
            both(lambda again, world, index=index, kind=kind: attack(again, world.ram, index, kind))  # type: ignore[misc]
        both(lambda _, world: world.card.notify(4 * TX, 2, 0), code)
        both(lambda again, world: arrive(again, world, sizes), code)
        both(lambda _, world: world.card.notify(4 * RX, 2, 0))
        both(lambda _, world: world.port.pump() if world.port.rx_ready else None)
        both(around)
        for world in twins.worlds:
            world.port.rx_ready = False
            world.door.retry("net0")
        if twins.broken:
            break
    return twins
