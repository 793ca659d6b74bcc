"""Two consoles as streams of bytes: cut anywhere, released as far as both agree, and no further."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.compare.console import BYTES_MAX, HARD, ConsoleComparison
from colo.compare.verdict import Decision, Reason, Release, Settings
from tests.compare.frames import differences, dropped, released


@pytest.fixture
def console() -> ConsoleComparison:
    return ConsoleComparison("com1")


def pieces(text: bytes, rng: random.Random) -> list[bytes]:
    places = sorted(rng.sample(range(1, len(text)), min(rng.randrange(8), len(text) - 1)))
    return [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]


def interleaved(
    console: ConsoleComparison, mine: list[bytes], its: list[bytes], rng: random.Random
) -> list[Decision]:
    said: list[Decision] = []
    queues = [list(mine), list(its)]
    while queues[0] or queues[1]:
        side = rng.randrange(2)
        side = side if queues[side] else 1 - side
        said += (console.feed_primary, console.feed_secondary)[side](queues[side].pop(0), 0.0)
    return said


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**32))
def test_the_same_text_is_the_same_in_any_pieces(text: bytes, seed: int) -> None:
    rng, console = random.Random(seed), ConsoleComparison("com1")
    its = pieces(text, rng)
    said = interleaved(console, pieces(text, rng), its, rng)
    assert differences(said) == []
    assert b"".join(released(said)) == text
    assert dropped(said) == its
    assert not console.waits


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**32), st.booleans())
def test_nothing_goes_from_the_first_difference_on(text: bytes, seed: int, at_the_end: bool) -> None:
    rng, console = random.Random(seed), ConsoleComparison("com1")
    wrong = len(text) - 1 if at_the_end else rng.randrange(len(text))
    other = text[:wrong] + bytes((text[wrong] ^ rng.randrange(1, 256),)) + text[wrong + 1 :]
    said = interleaved(console, pieces(text, rng), pieces(other, rng), rng)
    assert differences(said) == [Reason.PAYLOAD]
    assert b"".join(released(said)) == text[:wrong]
    assert b"".join(released(console.checkpoint())) == text[wrong:]
    assert not console.waits


@given(st.binary(min_size=1, max_size=60), st.binary(min_size=1, max_size=60))
def test_what_one_of_them_has_not_said_waits(mine: bytes, rest: bytes) -> None:
    console = ConsoleComparison("com1")
    console.feed_secondary(mine, 0.0)
    assert released(console.feed_primary(mine + rest, 0.0)) == [mine]
    assert console.waits
    assert released(console.feed_secondary(rest, 0.0)) == [rest]


def test_after_a_checkpoint_what_the_secondary_said_before_is_void(console: ConsoleComparison) -> None:
    console.feed_secondary(b"login: ", 0.0)
    assert console.checkpoint() == []
    assert released(console.feed_primary(b"login: ", 0.0)) == []
    assert released(console.feed_secondary(b"login: ", 0.0)) == [b"login: "]


def test_a_difference_is_told_once_and_ends_with_a_checkpoint(console: ConsoleComparison) -> None:
    console.feed_primary(b"12:00", 0.0)
    assert differences(console.feed_secondary(b"12:01", 0.0)) == [Reason.PAYLOAD]
    later = console.feed_primary(b"\n", 1.0) + console.feed_secondary(b"\n", 1.0) + console.tick(1e6)
    assert differences(later) == []
    assert released(later) == []
    assert released(console.checkpoint()) == [b"0\n"]
    console.feed_primary(b"$ ", 2.0)
    assert released(console.feed_secondary(b"$ ", 2.0)) == [b"$ "]
    assert console.counts == {
        "matched": 2,
        "checkpoint": 1,
        "carried": 2,
        "diverged": 1,
        "diverged_payload": 1,
    }


def test_what_is_said_too_late_or_by_the_secondary_alone(console: ConsoleComparison) -> None:
    limits = Settings()
    console.feed_primary(b"ab", 0.0)
    console.feed_primary(b"c", 50.0)
    console.feed_secondary(b"ab", 60.0)
    assert console.held_age_ms(60.0) == 10.0, "of what still waits"
    assert console.tick(50.0 + limits.console_wait_ms - 1) == []
    assert differences(console.tick(50.0 + limits.console_wait_ms)) == [Reason.LATE_PAYLOAD]
    console.checkpoint()
    console.feed_secondary(b"x", 1000.0)
    assert console.tick(1000.0 + limits.alone_ms - 1) == []
    assert differences(console.tick(1000.0 + limits.alone_ms)) == [Reason.SECONDARY_ALONE]
    assert [(each.name, each.diverged) for each in console.conversations()] == [
        ("com1", Reason.SECONDARY_ALONE)
    ]


def test_a_secondary_that_goes_on_is_not_alone(console: ConsoleComparison) -> None:
    console.feed_secondary(b"abc", 0.0)
    console.feed_primary(b"a", 400.0)
    assert console.tick(800.0) == []
    assert differences(console.tick(900.0)) == [Reason.SECONDARY_ALONE]


def test_what_is_kept_has_a_limit(console: ConsoleComparison) -> None:
    piece = bytes(BYTES_MAX // 4)
    said = [each for _ in range(4 * HARD + 3) for each in console.feed_primary(piece, 0.0)]
    assert differences(said) == [Reason.QUEUE_FULL]
    assert len(dropped(said)) == 3
    assert [len(each.frame) for each in console.checkpoint() if isinstance(each, Release)] == [
        HARD * BYTES_MAX
    ]
    said = [each for _ in range(9) for each in console.feed_secondary(piece, 0.0)]
    assert differences(said) == [Reason.QUEUE_FULL]
    assert not console.waits
