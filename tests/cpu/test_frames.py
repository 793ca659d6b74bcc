"""Frames between a host's descriptor and rings, compiled and in Python: one outcome, whatever comes.

Two cards with the same memory are given the same accesses, and the same frames through descriptors of their
own: a pair of sockets that keep frames apart, or TAP interfaces.  One card uses its descriptor directly; the
door of the other has somebody who listens, so that each of its frames passes through Python.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.backends.test_tap import in_namespace, ip
from tests.backends.test_tap import pytestmark as needs_tap
from tests.cpu.frame_worlds import (
    NOISE,
    RX,
    SIZES,
    TX,
    Interface,
    Sockets,
    Twins,
    Wire,
    World,
    enable_messages,
    frame,
    offered,
    run_twins,
)
from tests.cpu.test_ring import AREA, NET_FEATURES, entangle, post
from tests.devices.virtio_bench import RINGS, SIZE, bring_up, offer
from tests.devices.virtio_driver import RingsWithoutProcessor
from tests.fuzz.test_rings import FEATURES
from vmm.backends.net import FRAME_MAX, FRAME_MIN, VNET_HEADER
from vmm.backends.pcap import PcapTap
from vmm.devices.virtio_net import BUSY_NOTIFICATIONS, LARGE, TX_DELAY_NS
from vmm.errors import BackendError
from vmm.inputs import Door
from vmm.ports import NetPort
from vmm.ram import MIB

LIMITS = (
    VNET_HEADER + FRAME_MIN - 1,
    VNET_HEADER + FRAME_MIN,
    VNET_HEADER + FRAME_MAX,
    VNET_HEADER + FRAME_MAX + 1,
    VNET_HEADER + FRAME_MAX + 2,
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many frames each compiled call moved."""
    counts: dict[str, list[int]] = {"receive": [], "send": []}
    for name, found in counts.items():
        whole = getattr(RingsWithoutProcessor, name)

        def call(*arguments: Any, whole: Any = whole, found: list[int] = found) -> Any:
            moved = whole(*arguments)
            found.append(moved[0])
            return moved

        monkeypatch.setattr(RingsWithoutProcessor, name, call)
    return counts


def pair(stack: ExitStack, make: Callable[[], Wire]) -> tuple[Wire, Wire]:
    made = make(), make()
    for each in made:
        stack.callback(each.close)
    return made


@pytest.mark.parametrize("attacks", [0.0, 0.3])
def test_frames_of_all_sizes_over_rings_of_many_shapes(attacks: float, counted: dict[str, list[int]]) -> None:
    broken = 0
    for seed in range(60):
        with ExitStack() as stack:
            wires = pair(stack, Sockets)
            broken += run_twins(f"{attacks} {seed}", wires, SIZES, 12, attacks).broken
    assert 20 < broken < 60 if attacks else broken < 20, broken
    for moved in counted.values():
        assert moved.count(1) > 50
        assert sum(each > 1 for each in moved) > 20
        assert 0 in moved


def test_rings_over_each_other_and_over_buffers(counted: dict[str, list[int]]) -> None:
    """What is given back changes what is taken next."""
    for seed in range(150):
        rng = random.Random(f"over {seed}")
        with ExitStack() as stack:
            twins = Twins(pair(stack, Sockets))
            twins.write(0, rng.randbytes(AREA))
            twins.do(lambda world: bring_up(world.card, FEATURES | NET_FEATURES))
            for _ in range(6):
                entangle(rng, twins)
                frames = [frame(rng, rng.choice(SIZES)) for _ in range(rng.randrange(4))]
                twins.do(lambda world: world.card.notify(4 * TX, 2, 0))
                twins.do(lambda world, frames=frames: bring(world, frames))  # type: ignore[misc]
                if twins.broken:
                    break
    assert all(sum(moved) > 50 for moved in counted.values())


def test_the_index_of_the_available_ring_is_read_once_a_pass() -> None:
    """The used ring lies over it, and the second buffer is one for Python: it is the last all the same."""

    def prepare(world: World) -> None:
        bring_up(world.card, FEATURES | NET_FEATURES)
        queue = world.card.queues[TX].state
        queue.device = queue.driver - 4  # its first element is flags and index, and two entries
        world.ram.write(queue.desc, struct.pack("<QIHHQIHH", 0x6_0000, 8, 0, 0, 0x6_0000, 72, 0, 0))
        world.ram.write(queue.driver, struct.pack("<4H", 0, 2, 1, 0))

    with ExitStack() as stack:
        twins = Twins(pair(stack, Sockets))
        twins.do(prepare)
        twins.do(lambda world: world.card.notify(4 * TX, 2, 0))
        state = twins.direct.card.state
        assert (state.tx_frames, state.tx_dropped, twins.broken) == (1, 1, False)


@pytest.mark.parametrize("ring", ["driver", "device"])
@pytest.mark.parametrize("index", [RX, TX])
def test_a_ring_that_leaves_ram(ring: str, index: int) -> None:
    """No driver can set that, a snapshot could: all of it fits but its last field, about notifications."""
    last = {"driver": 4 + 2 * SIZE, "device": 4 + 8 * SIZE}[ring]

    def prepare(world: World) -> None:
        bring_up(world.card, FEATURES | NET_FEATURES)
        queue = world.card.queues[index].state
        queue.device = 0x6_1000
        setattr(queue, ring, MIB - last)
        world.ram.write(queue.desc, struct.pack("<QIHH", 0x6_0000, 72, 0 if index == TX else 2, 0))
        world.ram.write(queue.driver, struct.pack("<3H", 0, 1, 0))

    with ExitStack() as stack:
        twins = Twins(pair(stack, Sockets))
        twins.do(prepare)
        twins.do(lambda world: world.card.notify(4 * TX, 2, 0))
        twins.do(lambda world: bring(world, [NOISE + bytes(20)]))
        assert twins.broken == (index == TX or ring == "driver")


def bring(world: World, frames: list[bytes]) -> None:
    for each in frames:
        world.wire.put(each)
    world.port.pump()


@needs_tap
def test_through_the_kernel(counted: dict[str, list[int]]) -> None:
    def body() -> None:
        names = iter(range(1000))
        for seed in range(12):
            with ExitStack() as stack:
                wires = pair(stack, lambda: Interface(f"vmtest{next(names)}"))
                run_twins(f"tap {seed}", wires, (26, 60, 72, 400, 1526), 12, 0.03)

    in_namespace(body)
    assert all(sum(moved) > 50 for moved in counted.values()), {
        name: sum(moved) for name, moved in counted.items()
    }


def one_world(stack: ExitStack, wire: Wire) -> World:
    """A card with 8 receive buffers of 2 KiB, and all features."""
    stack.callback(wire.close)
    world = World(wire, True)
    bring_up(world.card, FEATURES | NET_FEATURES)
    enable_messages(world.card)
    world.said.clear()
    for place in range(8):
        offer(world.ram, RX, b"", 0x600, place)
    return world


@pytest.mark.parametrize("name", ["_receive", "_send"])
def test_an_interrupt_on_the_way_back_loses_no_place_of_a_ring(name: str) -> None:
    """Python runs signal handlers right there; a machine that is run again goes on behind what was shown."""
    index = RX if name == "_receive" else TX
    with ExitStack() as stack:
        world = one_world(stack, Sockets())
        compiled, queue = getattr(world.rings, name), world.card.queues[index].state
        sent = NOISE + bytes(60)

        def go() -> None:
            if index == RX:
                bring(world, [sent])
            else:
                offer(world.ram, TX, sent, 0, queue.next_avail)
                world.card.notify(4 * TX, 2, 0)

        def interrupted(*arguments: int) -> int:
            compiled(*arguments)
            raise KeyboardInterrupt

        setattr(world.rings, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            go()
        assert shown(world, index) == queue.published == queue.used == queue.next_avail == 1
        setattr(world.rings, name, compiled)
        go()
        assert shown(world, index) == queue.published == queue.used == queue.next_avail == 2


def shown(world: World, index: int) -> int:
    """What the driver sees that was given back."""
    return int.from_bytes(world.ram.read(world.card.queues[index].state.device + 2, 2), "little")


@pytest.mark.parametrize("size", LIMITS)
def test_each_limit_of_a_frame(size: int, counted: dict[str, list[int]]) -> None:
    """Whatever has no Ethernet header, or is longer than the longest, is lost and counted, either way."""
    good = VNET_HEADER + FRAME_MIN <= size <= VNET_HEADER + FRAME_MAX

    def prepare(world: World) -> None:
        bring_up(world.card, FEATURES | NET_FEATURES)
        for _ in range(2):
            post(world.ram, struct.pack("<QIHH", 0x6_0000, 0x2_0000, 2, 0))
        table = struct.pack("<QIHHQIHH", 0x6_0000, 20, 1, 1, 0x6_0014, size - 20, 0, 0)
        world.ram.write(RINGS + 0x3800, table)
        base = RINGS + 0x1000 * TX
        world.ram.write(base, struct.pack("<QIHH", RINGS + 0x3800, len(table), 4, 0))
        world.ram.write(base + 0x402, struct.pack("<HH", 1, 0))

    def both_ways(world: World) -> None:
        world.card.notify(4 * TX, 2, 0)
        world.wire.put(bytes(size))
        world.port.pump()

    with ExitStack() as stack:
        twins = Twins(pair(stack, Sockets))
        twins.do(prepare)
        twins.do(both_ways)
        for world in twins.worlds:
            state = world.card.state
            assert (state.tx_frames, state.rx_frames) == (good, good)
            assert state.tx_dropped + world.wire.backend.dropped == 2 * (not good)
    assert counted == {"receive": [good], "send": [good]}


def test_an_empty_descriptor_is_read_once_more_by_who_can_say_why() -> None:
    with ExitStack() as stack:
        world = one_world(stack, Sockets())
        world.port.pump()
        assert (world.card.state.rx_frames, world.wire.backend.dropped, world.said) == (0, 0, [])


def test_a_refusal_of_a_past_that_was_replaced_is_over_with_the_next_frame() -> None:
    def refused(world: World) -> None:
        bring_up(world.card, FEATURES | NET_FEATURES)
        offer(world.ram, RX, b"", 0x600, 0)
        world.card.state.rx_refused = True

    with ExitStack() as stack:
        twins = Twins(pair(stack, Sockets))
        twins.do(refused)
        twins.do(lambda world: bring(world, [NOISE + bytes(50)]))
        assert not twins.direct.card.state.rx_refused


def test_several_frames_are_one_request_and_make_a_driver_busy() -> None:
    with ExitStack() as stack:
        world = one_world(stack, Sockets())
        for _ in range(3):
            world.wire.put(NOISE + bytes(50))
        world.port.pump()
        assert world.card.state.rx_frames == 3
        assert world.card.state.busy == BUSY_NOTIFICATIONS
        assert world.said == [(0xFEE0_0000, 0x31)]


def test_a_segment_makes_a_driver_busy_and_it_is_told_later() -> None:
    with ExitStack() as stack:
        world = one_world(stack, Sockets())
        world.clock.advance(1000)
        offered(random.Random(2), world.ram, (VNET_HEADER + LARGE,))
        world.card.notify(4 * TX, 2, 0)
        assert world.card.state.tx_frames == 1
        assert world.card.state.tx_bytes == LARGE
        assert world.said == []
        world.clock.advance(TX_DELAY_NS)
        assert world.said == [(0xFEE0_0000, 0x32)]


@pytest.mark.parametrize("who", ["recorder", "replayer", "heard"])
def test_whoever_watches_the_door_sees_every_frame(who: str) -> None:
    with ExitStack() as stack:
        world = one_world(stack, Sockets())
        assert world.port.direct() == world.wire.backend.fileno() >= 0
        setattr(world.door, who, object())
        assert world.port.direct() == -1
        setattr(world.door, who, None)
        world.wire.backend.close()
        assert world.port.direct() == -1, "the number may be somebody else's by now"


def test_a_capture_sees_every_frame(tmp_path: Path) -> None:
    with ExitStack() as stack:
        wire = Sockets()
        stack.callback(wire.close)
        capture = PcapTap(wire.backend, str(tmp_path / "pcap"), lambda: 0)
        stack.callback(capture.close)
        port = NetPort("net0", capture, Door(lambda: 0))
        assert port.direct() == -1


@needs_tap
def test_an_interface_that_is_down_loses_frames_and_one_that_is_gone_is_an_error() -> None:
    def body() -> None:
        with ExitStack() as stack:
            wire = Interface("vmtest0")
            world = one_world(stack, wire)
            world.port.pump()
            ip("link", "set", "vmtest0", "down")
            for _ in range(2):
                offer(world.ram, TX, NOISE + bytes(50), 0, 0)
                world.card.notify(4 * TX, 2, 0)
            assert (world.card.state.tx_frames, wire.backend.dropped) == (2, 2)
            ip("link", "delete", "vmtest0")
            with pytest.raises(BackendError, match="look whether something deleted it"):
                world.port.pump()
            offer(world.ram, TX, NOISE + bytes(50), 0, 0)
            with pytest.raises(BackendError, match="look whether something deleted it"):
                world.card.notify(4 * TX, 2, 0)

    in_namespace(body)
