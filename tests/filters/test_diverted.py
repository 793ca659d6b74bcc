"""A guest that runs and does not serve: what it says is diverted, and translated both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo.filters import FilteredNet, OutputHold, parse, protect
from colo.filters.console import PIECE_MAX, HeldConsole
from colo.filters.diverted import BYTES_MAX, FRAMES_MAX, Sayings
from colo.messages import INPUTS_MAX
from tests.filters.cables import Cable, frame, number_of
from vmm.backends.console import Capture
from vmm.clock import ManualClock

Plug = Callable[..., tuple[FilteredNet, Cable]]
Heard = list[tuple[str, bytes]]


class Shift:
    """A translator that shows in the number of a frame; it keeps the times at which it was asked."""

    def __init__(self) -> None:
        self.asked_ms: list[float] = []

    def inward(self, data: bytes, now_ms: float) -> bytes:
        self.asked_ms.append(now_ms)
        return frame(number_of(data) + 100)

    def outward(self, data: bytes, now_ms: float) -> bytes:
        self.asked_ms.append(now_ms)
        return frame(number_of(data) - 100)


def note(heard: Heard) -> Callable[[str, bytes], None]:
    return lambda port, data: heard.append((port, data))


def test_a_muted_card_hands_over_what_its_guest_says_until_it_serves(plug: Plug) -> None:
    net, cable = plug("net3", muted=True)
    net.transmit(frame(0))
    heard: Heard = []
    net.diverted = note(heard)
    buffer = bytearray(frame(1))
    net.transmit(memoryview(buffer))
    buffer[:] = frame(9)  # the guest's own buffer is used again
    assert heard == [("net3", frame(1))]
    assert (net.muted_frames, cable.heard) == (1, [])
    net.unmute()
    net.transmit(frame(2))
    assert cable.numbers == [2]
    assert len(heard) == 1


def test_a_muted_console_does_so_in_pieces_that_fit_a_message(hold: OutputHold) -> None:
    screen = Capture()
    console = HeldConsole(screen, hold, muted=True)
    console.write(b"lost")
    heard: Heard = []
    console.diverted = note(heard)
    console.write(bytes(PIECE_MAX) + b"x")
    assert [(port, len(data)) for port, data in heard] == [("com1", PIECE_MAX), ("com1", 1)]
    assert console.muted_bytes == 4
    console.unmute()
    console.write(b"served")
    assert screen.data == b"served"
    assert len(heard) == 2


def test_what_a_release_says_while_muted_is_not_diverted(plug: Plug, hold: OutputHold) -> None:
    """A node that lost must not tell what it held as what its guest says."""
    net, cable = plug()
    protect([net], hold)
    net.transmit(frame(1))
    hold.cut(1)
    heard: Heard = []
    net.diverted = note(heard)
    net.mute()
    hold.release(1)
    assert heard == []
    assert cable.heard == []
    assert net.muted_frames == 1


# Translation


def test_frames_are_translated_between_the_guest_and_the_filters(plug: Plug, clock: ManualClock) -> None:
    net, cable = plug()
    net.translate = shift = Shift()
    clock.advance(2_500_000)
    net.transmit(memoryview(frame(101)))
    assert cable.numbers == [1]
    cable.arrive(frame(2))
    assert net.receive() == frame(102)
    assert net.receive() is None
    assert shift.asked_ms == [2.5, 2.5]
    net.translate = None
    net.transmit(frame(3))
    assert cable.numbers == [1, 3]


def test_a_hold_and_a_filter_see_translated_frames_once(
    plug: Plug, hold: OutputHold, clock: ManualClock
) -> None:
    net, cable = plug()
    protect([net], hold)
    net.add(parse("buffer,id=late,queue=tx,interval=1000"))
    net.translate = Shift()
    net.transmit(frame(101))
    hold.cut(1)
    assert [number_of(data) for _, data in hold.taken(1, 1000)] == [1]
    hold.release(1)
    assert cable.numbers == [1]
    cable.arrive(frame(5))
    assert net.receive() is None
    clock.advance(1_000_000)
    assert net.receive() == frame(105)


def test_translation_holds_while_muted_and_through_a_failover(plug: Plug) -> None:
    net, cable = plug(muted=True)
    net.translate = Shift()
    heard: Heard = []
    net.diverted = note(heard)
    net.transmit(frame(101))
    assert [number_of(data) for _, data in heard] == [1]
    cable.arrive(frame(2))
    [collected] = net.collect()
    assert collected == frame(2), "as it came: it may not be the guest's to have"
    assert net.to_guest(collected) == frame(102)
    net.unmute()
    net.transmit(frame(103))
    cable.arrive(frame(4))
    assert cable.numbers == [3]
    assert net.receive() == frame(104)


def test_without_a_translator_a_frame_is_what_it_was(plug: Plug) -> None:
    net, _ = plug()
    data = frame(1)
    assert net.to_guest(data) is data


# Sayings


@pytest.fixture
def said(plug: Plug, hold: OutputHold) -> tuple[Sayings, FilteredNet, HeldConsole, list[int]]:
    net, _ = plug(muted=True)
    console = HeldConsole(Capture(), hold, muted=True)
    begun: list[int] = []
    sayings = Sayings([net, console], lambda: begun.append(sayings.waiting))
    sayings.begin()
    return sayings, net, console, begun


Said = tuple[Sayings, FilteredNet, HeldConsole, list[int]]


def test_everything_is_kept_in_one_order_until_it_is_taken(said: Said) -> None:
    sayings, net, console, begun = said
    net.transmit(frame(1))
    console.write(b"hello")
    net.transmit(frame(2))
    assert begun == [1], "told once that there is something"
    assert sayings.take(1000) == [("net0", frame(1)), ("com1", b"hello"), ("net0", frame(2))]
    assert sayings.take(1000) == []
    console.write(b"x")
    assert begun == [1, 1]
    assert sayings.heard == 4


def test_a_message_takes_as_much_as_fits_and_one_at_least(said: Said) -> None:
    sayings, net, _, _ = said
    for n in range(6):
        net.transmit(frame(n, 100))
    assert [number_of(data) for _, data in sayings.take(250)] == [0, 1]
    assert [number_of(data) for _, data in sayings.take(10)] == [2]
    assert [number_of(data) for _, data in sayings.take(1000, 2)] == [3, 4]
    assert sayings.waiting == 1
    for n in range(INPUTS_MAX):
        net.transmit(frame(n))
    assert len(sayings.take(1 << 20)) == INPUTS_MAX


def test_what_was_said_before_an_epoch_or_after_its_end_is_nothing(said: Said) -> None:
    sayings, net, console, _ = said
    net.transmit(frame(1))
    sayings.begin()
    assert sayings.take(1000) == []
    net.transmit(frame(2))
    sayings.end()
    net.transmit(frame(3))
    console.write(b"x")
    assert sayings.take(1000) == []
    assert (net.muted_frames, console.muted_bytes) == (1, 1)


@pytest.mark.parametrize(("size", "fitting"), [(60, FRAMES_MAX), (1 << 16, BYTES_MAX >> 16)])
def test_what_is_kept_has_a_limit(said: Said, size: int, fitting: int) -> None:
    sayings, net, _, _ = said
    for n in range(fitting + 3):
        net.transmit(frame(n, size))
    assert (sayings.waiting, sayings.heard, sayings.lost) == (fitting, fitting, 3)
    taken = 0
    while packets := sayings.take(1 << 20):
        assert [number_of(data) for _, data in packets] == list(range(taken, taken + len(packets)))
        taken += len(packets)
    assert taken == fitting
    net.transmit(frame(1, size))
    assert sayings.waiting == 1, "and there is room again"
