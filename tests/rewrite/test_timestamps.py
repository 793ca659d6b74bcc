"""Time stamps: what a client that had the primary's takes of the secondary's, and what the guest reads back.

``paws`` is the client's check as RFC 7323, section 5.3, has it; the clocks are numbers in the tests.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from colo.compare.packet import SYN
from colo.rewrite.timestamps import HOLD_MAX, MARGIN, Stamps
from tests.rewrite.ends import MASK, Ends

numbers = st.integers(0, MASK) | st.sampled_from([0, 2**31 - 1, 2**31, MASK])
OWN, ITS, CLIENT = 1000, 700_000, 5000


def paws(stamp: int, recent: int) -> bool:
    """Does a client that has ``recent`` take a segment with ``stamp``?"""
    return not 0 < (recent - stamp) & MASK < 1 << 31


def stamp(ends: Ends, own: int) -> int:
    """What the client sees for a segment of the guest."""
    stamps = ends.guest(OWN + 1, b"x", ack=CLIENT + 1, stamps=(own, 9)).stamps
    assert stamps is not None
    assert stamps[1] == 9, "the echo is of the client's own clock"
    return stamps[0]


def echo(ends: Ends, its: int) -> int:
    """What the guest sees for the client's echo."""
    stamps = ends.client(CLIENT + 1, ack=ITS + 1, stamps=(9, its)).stamps
    assert stamps is not None
    assert stamps[0] == 9
    return stamps[1]


def accepted(own: int, its: int) -> Ends:
    """The client opened; both guests answered, with these time stamps."""
    ends = Ends()
    ends.client(CLIENT, flags=SYN, stamps=(7, 0))
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN, stamps=(own, 7))
    assert ends.client(CLIENT + 1, ack=ITS + 1, stamps=(8, its)).stamps == (8, own)
    return ends


def test_qemu_s_stuck_connections() -> None:
    """As measured with QEMU's COLO: the guest's first connection ever came after the last checkpoint, so that
    each replica drew a secret of its own for its clock, and the survivor's was 2,102,360,925 behind."""
    its, own = 2_433_102_356, 330_741_431
    assert not paws(own, its), "its rewriter leaves time stamps alone"
    ends = accepted(own - 900, its - 900)
    assert echo(ends, its) == own - 900, "not what the guest's clock has not come to"
    ends.rewriter.take_over(0.0)
    for later in range(0, 5000, 100):
        shown = stamp(ends, own + later)
        assert paws(shown, its)
        assert echo(ends, shown) == own + later or later < MARGIN
        its = shown


drifts = st.lists(st.tuples(st.integers(0, 400), st.integers(-300, 300)), max_size=30)


@given(numbers, numbers.filter(bool), drifts)
def test_any_two_clocks(own: int, its: int, steps: list[tuple[int, int]]) -> None:
    """The primary's clock goes ahead of the secondary's and falls behind; then the secondary is alone."""
    ends, at, ahead, recent = accepted(own, its), 0, 0, its
    for step, drift in steps:
        at, ahead = at + step, max(ahead + drift, -at)
        heard = (its + at + ahead) & MASK
        if not heard or not paws(heard, recent):  # 0 is no echo
            continue
        recent = heard
        assert paws(own + at, echo(ends, recent)), "not from the guest's future"
        assert paws(stamp(ends, (own + at) & MASK), recent)
    ends.rewriter.take_over(0.0)
    recent = (recent + MARGIN) & MASK
    for later in range(0, 3 * HOLD_MAX, 500):
        shown = stamp(ends, (own + at + later) & MASK)
        assert paws(shown, recent)
        recent = shown
        assert paws(own + at + later, echo(ends, recent))


def test_the_guest_opens() -> None:
    """Linux refuses a SYN-ACK whose echo is not between its first SYN and now."""
    ends = Ends()
    ends.guest(OWN, flags=SYN, stamps=(100, 0))
    ends.guest(OWN, flags=SYN, stamps=(1100, 0))
    heard = ends.client(CLIENT, ack=ITS + 1, flags=SYN, stamps=(5, 0x8000_0000))
    assert heard.stamps == (5, 100)
    assert stamp(ends, 1200) == 0x8000_0000 + 1100


def test_an_echo_that_is_the_guest_s_own_is_not_taken_for_another() -> None:
    """A survivor's second SYN-ACK was answered: the clock is right as it is."""
    ends = Ends()
    ends.client(CLIENT, flags=SYN, stamps=(7, 0))
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN, stamps=(100, 7))
    ends.rewriter.take_over(0.0)
    second = ends.guest(OWN, ack=CLIENT + 1, flags=SYN, stamps=(1100, 7)).stamps
    assert second is not None
    assert ends.client(CLIENT + 1, ack=OWN + 1, stamps=(8, second[0])).stamps == (8, 1100)
    assert second == (1100 + MARGIN, 7)
    later = ends.guest_frame(OWN + 1, b"x", ack=CLIENT + 1, stamps=(1100 + MARGIN, 8))
    assert ends.same(later, outward=True)
    assert not ends.rewriter.active


def test_options_in_a_syn_cookie_s_time_stamp_survive() -> None:
    """Linux keeps window scale, SACK and ECN in its low six bits, and reads them from the echo."""
    own, its = (
        (0x1234_5678 & ~63) | 0x2B,
        ((0x9999_0000 & ~63) | 0x2B) + 0x77,
    )  # each with an offset of its own
    assert echo(accepted(own, its), its) == own


def test_a_clock_that_is_a_little_behind_is_held() -> None:
    """And when it has come as far there is nothing to be changed any more."""
    ends = Ends()
    assert echo(ends, 10_000) == 10_000
    ends.rewriter.reset()
    shown = [stamp(ends, own) for own in (9_950, 9_970, 10_000, 10_010)]
    assert shown == [10_000, 10_000, 10_000, 10_010]
    assert ends.counts["held"] == 2
    assert ends.same(ends.guest_frame(OWN + 1, b"x", ack=CLIENT + 1, stamps=(10_011, 9)), outward=True)


def test_a_clock_that_is_far_behind_is_raised_for_good() -> None:
    ends = Ends()
    echo(ends, 1_000_000)
    assert stamp(ends, 10) == 1_000_000
    assert stamp(ends, 25) == 1_000_015
    assert ends.counts["raised"] == 1
    assert echo(ends, 1_000_015) == 25


def test_a_reset_keeps_what_is_known_of_the_client() -> None:
    ends = accepted(100, 50_000)
    echo(ends, 50_400)
    ends.rewriter.reset()
    assert stamp(ends, 50_390) == 50_400
    assert echo(ends, 50_400) == 50_390


@pytest.mark.parametrize("ahead", [0, 1, MARGIN - 1])
def test_what_the_client_had_and_did_not_echo_is_followed_too(ahead: int) -> None:
    """The secondary said the same as the primary, by a clock that was ``ahead`` behind it."""
    ends = accepted(100, 50_000)
    stamp(ends, 300)
    recent = 50_200 + ahead
    ends.rewriter.take_over(0.0)
    assert paws(stamp(ends, 301), recent)
    assert echo(ends, recent) == min(300 + ahead, 301)
    for later in range(0, 2 * MARGIN, 64):
        shown = stamp(ends, 301 + later)
        assert paws(shown, recent)
        recent = shown
    assert shown == 50_201 + later, "back to the difference of the two clocks"


def test_a_connection_without_time_stamps_gets_none() -> None:
    ends = Ends()
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    ends.client(CLIENT + 1, ack=ITS + 1)
    assert ends.guest(OWN + 1, b"x", ack=CLIENT + 1).stamps is None
    assert "stamp" not in ends.counts


def test_no_echo_is_no_echo() -> None:
    """A host that has nothing to echo sends 0, and without ACK the field means nothing (RFC 7323, 3.2)."""
    ends = accepted(100, 50_000)
    assert echo(ends, 0) == 0
    assert ends.client(CLIENT + 900, flags=SYN, stamps=(5, 4_000_000_000)).stamps == (5, 4_000_000_000)
    assert stamp(ends, 100) == 50_000


@pytest.mark.parametrize("jump", [2**20, 2**31 - 1, 2**31 + 2**30])
def test_a_forged_echo_does_not_stop_a_connection(jump: int) -> None:
    ends, recent = accepted(100, 50_000), 50_000
    for part in (jump // 2, jump - jump // 2):
        echo(ends, (recent + part) & MASK)
        recent = (recent + part) & MASK
    ends.rewriter.take_over(0.0)
    true = 50_000
    for own in range(200, 300, 10):
        shown = stamp(ends, own)
        if paws(shown, true):
            true = shown
        else:
            echo(ends, true)  # how a client objects (RFC 7323, section 5.3, R1)
    assert paws(stamp(ends, 300), true)
    assert ends.counts.get("raised", 0) <= 2


@example(shift=0, floor=0, ahead=MARGIN - 2**31, guard=True)
@given(numbers, numbers, st.integers(-(2**31) + 1, 2**30), st.booleans())
def test_stamps_never_go_back(shift: int, floor: int, ahead: int, guard: bool) -> None:
    """From wherever the guest's clock is, short of half the space ahead."""
    stamps = Stamps()
    stamps.rebase(shift, floor, guard)
    first = (floor - shift + ahead) & MASK
    last = stamps.outward(first)
    assert paws(last, floor)
    for step in (1, 5, 1, HOLD_MAX, 1):
        first = (first + step) & MASK
        shown = stamps.outward(first)
        assert paws(shown, last)
        last = shown


def test_a_secondary_of_a_survivor_follows_what_that_said_ahead_of_its_clock() -> None:
    """Whether it had spoken by the last checkpoint or not."""
    for spoke in (False, True):
        survivor = Ends()
        echo(survivor, 50_000)
        survivor.rewriter.take_over(0.0)
        if spoke:
            assert stamp(survivor, 50_010) == 50_010 + MARGIN
        ends = Ends()
        ends.rewriter.reset(survivor.rewriter.translations())
        heard = stamp(survivor, 50_040)
        assert stamp(ends, 50_020) >= 50_010 + MARGIN
        ends.rewriter.take_over(0.0)
        assert paws(stamp(ends, 50_021), heard)


def test_a_survivor_follows_what_a_primary_said_again_of_what_a_checkpoint_has() -> None:
    """For that the secondary need not speak, so nothing is known of the clocks but what was long ago."""
    ends = Ends()
    echo(ends, 50_000)
    ends.rewriter.reset()
    ends.rewriter.take_over(0.0)
    recent = 90_030
    assert paws(stamp(ends, 90_000), recent)
