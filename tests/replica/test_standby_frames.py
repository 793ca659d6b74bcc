"""Frames for a guest that stands by: what the primary was given is never repeated, the rest is not lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.filters import FilteredNet
from colo.node.standby_frames import GENERATIONS, KEPT_MAX, TOLD_MAX, StandbyFrames
from tests.filters.cables import Cable, frame, number_of


class Bench:
    """A muted card and its frames."""

    def __init__(self) -> None:
        self.cable = Cable()
        self.net = FilteredNet(self.cable, "net0", muted=True)
        self.frames = StandbyFrames(self.net)

    def arrive(self, *numbers: int) -> None:
        self.cable.arrive(*map(frame, numbers))
        self.frames.collect()

    def taken(self) -> list[int]:
        return [number_of(each) for each in self.frames.take()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.net.close()


def test_what_the_primary_was_given_is_forgotten_whichever_came_first(bench: Bench) -> None:
    bench.arrive(1, 2, 3)
    bench.frames.given(frame(2))
    bench.frames.given(frame(4))
    bench.arrive(4, 5)
    assert bench.taken() == [1, 3, 5]
    assert bench.taken() == [], "they are taken once"


def test_what_came_until_now_can_be_forgotten(bench: Bench) -> None:
    bench.arrive(1, 2)
    bench.cable.arrive(*map(frame, range(3, 600)))
    bench.frames.forget()
    bench.arrive(600)
    assert bench.taken() == [600]


@pytest.mark.parametrize("offloads", [False, True])
def test_what_the_guest_of_the_primary_says_is_nothing_to_hear(offloads: bool) -> None:
    mac = bytes.fromhex("525400c01002")
    cable = Cable(offloads)
    net = FilteredNet(cable, "net0", muted=True)
    frames = StandbyFrames(net, mac)
    header = bytes(12) if offloads else b""
    own, other = (header + bytes(6) + source + bytes(50) for source in (mac, bytes(6)))
    cable.arrive(own, other, own)
    assert frames.take() == [other]
    net.close()


def test_equal_frames_are_counted(bench: Bench) -> None:
    bench.arrive(1, 1, 1)
    bench.frames.given(frame(1))
    assert bench.taken() == [1, 1]
    for _ in range(2):
        bench.frames.given(frame(9))
    bench.arrive(9, 9, 9)
    assert bench.taken() == [9]


def test_a_frame_has_two_commits_to_be_told_of(bench: Bench) -> None:
    bench.arrive(1)
    bench.frames.committed()
    bench.arrive(2)
    assert bench.taken() == [1, 2]
    bench.arrive(3)
    bench.frames.committed()
    bench.arrive(4)
    bench.frames.committed()
    assert bench.taken() == [4], "the primary had its chance with 3"


def test_tidings_outlive_one_commit_and_not_two(bench: Bench) -> None:
    bench.frames.given(frame(1))
    bench.frames.given(frame(2))
    bench.frames.committed()
    bench.arrive(1)
    bench.frames.committed()
    bench.arrive(2)
    assert bench.taken() == [2]


def test_what_still_waits_in_the_back_end_is_taken_along(bench: Bench) -> None:
    bench.frames.given(frame(1))
    bench.cable.arrive(*map(frame, (1, 2)))
    assert bench.taken() == [2]


def test_a_flood_of_frames_has_a_limit_and_the_newest_stay(bench: Bench) -> None:
    for number in range(0, KEPT_MAX + 202, 50):
        bench.arrive(*range(number, number + 50))
    assert bench.frames.lost == 202
    assert bench.taken() == list(range(202, KEPT_MAX + 202))


def test_a_flood_of_tidings_has_a_limit() -> None:
    """A peer whose frames never come here, as between two hosts, must not fill our memory."""
    bench = Bench()
    for _ in range(3):
        for number in range(TOLD_MAX + 100):
            bench.frames.given(frame(number))
        bench.frames.committed()
    assert sum(map(len, bench.frames._told)) <= GENERATIONS * TOLD_MAX
    bench.arrive(0, TOLD_MAX - 1)
    assert bench.taken() == [], "the first ones are remembered"
    bench.net.close()


def test_a_card_that_serves_keeps_its_frames_for_its_guest(bench: Bench) -> None:
    bench.net.unmute()
    bench.arrive(1)
    assert bench.taken() == []
    assert bench.net.receive() == frame(1)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, 4)),
        st.tuples(st.just("given"), st.integers(0, 4)),
        st.tuples(st.just("commit"), st.just(0)),
    ),
    max_size=80,
)


@given(steps)
def test_never_again_what_was_given_and_always_what_was_not(steps: list[tuple[str, int]]) -> None:
    """Within what two commits allow, as multisets: for every kind of frame on its own.

    The model pairs each tiding with an arrival of the last two generations, or the other way round.
    """
    bench = Bench()
    commit = 0
    arrived: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    for what, number in steps:
        here = (commit, number)
        if what == "commit":
            commit += 1
            bench.frames.committed()
            arrived = [each for each in arrived if each[0] > commit - 2]
            told = [each for each in told if each[0] > commit - 2]
            continue
        if what == "arrive":
            bench.arrive(number)
        else:
            bench.frames.given(frame(number))
        mine, others = (arrived, told) if what == "arrive" else (told, arrived)
        for each in others:
            if each[1] == number:
                others.remove(each)
                break
        else:
            mine.append(here)
    taken = bench.taken()
    assert Counter(taken) == Counter(number for _, number in arrived)
    assert taken == [number for _, number in arrived], "in the order in which they came"
    bench.net.close()


@given(st.lists(st.integers(0, 6), max_size=40), st.randoms(use_true_random=False), st.integers(0, 40))
def test_one_order_of_frames_on_two_wires(sent: list[int], random: object, reached: int) -> None:
    """Every frame reaches both nodes, in its own time; the primary's guest was given the first few.

    However the two interleave, the survivor gives its guest exactly the others.
    """
    bench = Bench()
    given = sent[:reached]
    pending = {"arrive": list(sent), "given": list(given)}
    while any(pending.values()):
        choices = [name for name, left in pending.items() if left]
        name = random.choice(choices)  # type: ignore[attr-defined]
        number = pending[name].pop(0)
        if name == "arrive":
            bench.arrive(number)
        else:
            bench.frames.given(frame(number))
    assert Counter(bench.taken()) == Counter(sent[reached:])
    bench.net.close()
