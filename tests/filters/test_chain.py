"""The order in which frames meet filters, coming and going while frames pass, and the mute."""

from __future__ import annotations

import select
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.filters import FilteredNet, OutputHold, parse, protect, unprotect
from colo.filters.chain import FILTERS_MAX
from colo.filters.net import COLLECT_MAX, RECEIVE_MAX
from tests.filters.cables import ARP, Cable, frame, number_of
from vmm.backends.hub import HubPort
from vmm.backends.net import NetBackend, Nowhere
from vmm.clock import ManualClock
from vmm.errors import ConfigError

Plug = Callable[..., tuple[FilteredNet, Cable]]
INTERVAL_NS = 1_000_000


def ids(net: FilteredNet) -> list[str]:
    return [each.spec.id for each in net.filters]


def is_readable(net: FilteredNet, wait_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(net.fileno(), select.POLLIN)
    return bool(poll.poll(wait_ms))


def test_without_filters_frames_go_straight_through(plug: Plug) -> None:
    net, cable = plug()
    backend: NetBackend = net
    backend.transmit(memoryview(frame(1)))
    assert cable.numbers == [1]
    assert not is_readable(net)
    cable.arrive(frame(2))
    assert is_readable(net)
    assert net.receive() == frame(2)
    assert net.receive() is None
    assert not is_readable(net)


def test_the_rest_is_the_back_ends_own(tmp_path: Path) -> None:
    hub = HubPort(str(tmp_path))
    net = FilteredNet(hub)
    assert (net.offloads, net.dropped, net.pending_output) == (False, 0, False)
    net.transmit(b"x")
    assert net.dropped == hub.dropped == 1
    net.flush()
    net.close()
    net.close()
    assert hub.fileno() == net.fileno() == -1


def test_a_back_end_without_input_stays_so() -> None:
    """A machine none of whose ends can bring anything may end when it idles."""
    assert FilteredNet(Nowhere()).fileno() == -1


def test_a_place_is_as_qemu_says(plug: Plug, tmp_path: Path) -> None:
    net, _ = plug()
    for words in (
        "id=b",
        "id=c",
        "id=a,position=head",
        "id=b2,position=id=b",
        "id=b1,position=id=b,insert=before",
    ):
        net.add(parse(f"dump,{words},file={tmp_path / 'x.pcap'}"))
    assert ids(net) == ["a", "b1", "b", "b2", "c"]


def test_frames_from_the_guest_meet_the_tail_first_and_frames_to_it_the_head(
    plug: Plug, clock: ManualClock, tmp_path: Path
) -> None:
    """Whoever stands behind a buffer, in the direction of the frame, sees it only after its release."""
    net, cable = plug()
    net.add(parse(f"dump,id=head,file={tmp_path / 'head'}"))
    net.add(parse("buffer,id=middle,interval=1000"))
    net.add(parse(f"dump,id=tail,file={tmp_path / 'tail'}"))

    def seen() -> list[int]:
        return [each._file.frames for each in net.filters if each.spec.kind == "dump"]  # type: ignore[attr-defined]

    net.transmit(frame(1))
    assert (seen(), cable.numbers) == ([0, 1], [])
    cable.arrive(frame(2))
    assert net.receive() is None
    assert seen() == [1, 1]
    clock.advance(INTERVAL_NS)
    assert net.receive() == frame(2)
    assert (seen(), cable.numbers) == ([2, 2], [1])


@pytest.mark.parametrize(
    ("queue", "kept"), [("rx", (True, False)), ("tx", (False, True)), ("all", (True, True))]
)
def test_rx_is_from_the_guest_and_tx_is_to_it(
    plug: Plug, clock: ManualClock, queue: str, kept: tuple[bool, bool]
) -> None:
    net, cable = plug()
    net.add(parse(f"buffer,id=f0,interval=1000,queue={queue}"))
    net.transmit(frame(1))
    cable.arrive(frame(2))
    assert (cable.numbers == [], net.receive() is None) == kept
    clock.advance(INTERVAL_NS)
    net.tick()
    assert cable.numbers == [1]


def test_an_interval_ends_for_all_that_came_in_it(plug: Plug, clock: ManualClock) -> None:
    """QEMU's timer runs from when the filter was made, not from the first frame."""
    net, cable = plug()
    net.add(parse("buffer,id=f0,interval=1000"))
    net.transmit(frame(1))
    clock.advance(INTERVAL_NS - 1)
    net.transmit(frame(2))
    assert cable.numbers == []
    clock.advance(1)
    net.transmit(frame(3))
    assert cable.numbers == [1, 2]
    clock.advance(INTERVAL_NS * 5 // 2)
    net.tick()
    assert cable.numbers == [1, 2, 3]
    net.transmit(frame(4))
    clock.advance(INTERVAL_NS // 2 - 1)
    net.tick()
    assert cable.numbers == [1, 2, 3]
    clock.advance(1)
    net.tick()
    assert cable.numbers == [1, 2, 3, 4]


def test_the_end_of_an_interval_wakes_the_run_loop(plug: Plug, clock: ManualClock) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=f0,interval=1000,queue=tx"))
    cable.arrive(frame(1))
    assert is_readable(net)
    assert net.receive() is None
    assert is_readable(net, 5000), "host time passed, and virtual time did not"
    assert net.receive() is None
    clock.advance(INTERVAL_NS)
    assert is_readable(net, 5000)
    assert net.receive() == frame(1)
    assert net.receive() is None
    assert not is_readable(net)


def test_removing_a_buffer_lets_go_what_it_held_in_order(plug: Plug) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=f0,interval=1000"))
    for number in range(5):
        net.transmit(frame(number))
    cable.arrive(*map(frame, range(10, 13)))
    assert net.receive() is None
    net.remove("f0")
    net.transmit(frame(5))
    cable.arrive(frame(13))
    assert cable.numbers == list(range(6))
    assert is_readable(net)
    assert [number_of(net.receive() or b"") for _ in range(4)] == [10, 11, 12, 13]
    assert net.receive() is None


def test_status_off_lets_go_and_keeps_the_place(plug: Plug) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=f0,interval=1000,queue=rx,status=off"))
    net.add(parse("buffer,id=f1,interval=1000,queue=rx,status=off"))
    net.transmit(frame(1))
    assert cable.numbers == [1]
    net.set_status("f0", True)
    net.transmit(frame(2))
    assert cable.numbers == [1]
    net.set_status("f0", False)
    assert cable.numbers == [1, 2]
    assert ids(net) == ["f0", "f1"]


def test_filters_that_keep_all_input_give_the_guest_its_turn(plug: Plug) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=f0,interval=1000,queue=tx"))
    cable.arrive(*map(frame, range(RECEIVE_MAX + 1)))
    assert net.receive() is None
    assert is_readable(net), "one is left"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("buffer,id=f0,interval=1", "id is taken"),
        ("buffer,id=f1,interval=1,position=id=f9", "'f9': no such filter on this card; expected one of: f0"),
        ("buffer,id=f1", "interval=0: releases on commit, and here is nobody"),
    ],
)
def test_what_cannot_stand_there_is_refused(plug: Plug, words: str, said: str) -> None:
    net, _ = plug()
    net.add(parse("buffer,id=f0,interval=1000"))
    with pytest.raises(ConfigError) as found:
        net.add(parse(words))
    assert said in str(found.value)
    assert ids(net) == ["f0"]
    with pytest.raises(ConfigError, match="there are none"):
        plug("net1")[0].remove("f0")


def test_a_card_has_a_limited_number_of_filters(plug: Plug) -> None:
    net, _ = plug()
    for number in range(FILTERS_MAX):
        net.add(parse(f"buffer,id=f{number},interval=1000"))
    with pytest.raises(ConfigError, match="has 16 filters"):
        net.add(parse("buffer,id=more,interval=1000"))


# The mute


def test_a_muted_node_neither_speaks_nor_hears(plug: Plug, hold: OutputHold) -> None:
    net, cable = plug(muted=True)
    cable.arrive(frame(9), frame(10))
    net.transmit(frame(1))
    net.say(frame(2))
    assert net.receive() is None
    assert cable.numbers == []
    assert (net.muted_frames, net.dropped) == (2, 2)
    net.unmute()
    assert net.receive() == frame(9), "what came meanwhile is for whoever serves then"
    net.transmit(frame(3))
    assert cable.numbers == [3]
    protect([net], hold)
    net.transmit(frame(4))
    hold.cut(1)
    net.mute()
    assert net.muted
    hold.release(1)
    unprotect([net])
    assert cable.numbers == [3]


def test_standing_by_collects_a_bounded_number_at_once(plug: Plug) -> None:
    net, cable = plug(muted=True)
    cable.arrive(*[ARP] * (COLLECT_MAX + 3))
    assert [net.collect(), net.collect(), net.collect()] == [[ARP] * COLLECT_MAX, [ARP] * 3, []]
    assert not is_readable(net)


def test_what_waits_inside_for_the_guest_is_thrown_away_too(plug: Plug) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=f0,interval=1000,queue=tx"))
    cable.arrive(frame(1))
    assert net.receive() is None
    net.remove("f0")
    net.mute()
    assert net.collect() == []
    assert net.receive() is None
    assert not is_readable(net)
