"""Sequence numbers: what holds on a small circle holds everywhere on it, the wrap included."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from colo.compare import seq
from colo.compare.seq import HALF, MASK, SPACE

numbers = st.integers(0, MASK) | st.sampled_from([0, 1, HALF - 1, HALF, HALF + 1, MASK - 1, MASK])
steps = st.integers(1, HALF - 1)


@given(numbers, steps)
@example(MASK, 1)
def test_what_is_ahead_is_after_and_what_is_behind_is_before(start: int, step: int) -> None:
    end = seq.advance(start, step)
    assert 0 <= end <= MASK
    assert seq.after(end, start)
    assert seq.before(start, end)
    assert not seq.after(start, end)
    assert not seq.before(end, start)
    assert seq.span(start, end) == step
    assert seq.distance(start, end) == step
    assert seq.distance(end, start) == -step
    assert seq.latest(start, end) == seq.latest(end, start) == end


@given(numbers)
def test_a_number_is_neither_before_nor_after_itself_or_its_opposite(start: int) -> None:
    for other in (start, seq.advance(start, HALF)):
        assert not seq.after(start, other)
        assert not seq.before(start, other)
    assert seq.distance(start, start) == 0
    assert seq.distance(start, seq.advance(start, HALF)) == -HALF


@given(numbers, st.integers(-(2**40), 2**40))
def test_moving_there_and_back_is_not_moving(start: int, step: int) -> None:
    assert seq.advance(seq.advance(start, step), -step) == start
    assert seq.advance(start, step) == (start + step) % SPACE


@given(numbers, st.integers(0, MASK), st.integers(0, MASK))
def test_between_is_counting_up_from_the_start(start: int, length: int, step: int) -> None:
    end = seq.advance(start, length)
    assert seq.between(seq.advance(start, step), start, end) == (step < length)
    assert not seq.between(start, start, start)


@given(st.integers(-(2**50), 2**50), st.integers(-(HALF), HALF - 1))
def test_a_number_is_unwrapped_to_the_nearest_position(near: int, step: int) -> None:
    assert seq.unwrap((near + step) & MASK, near) == near + step


@given(st.integers(0, MASK), st.lists(st.integers(0, 2**30), max_size=20))
def test_positions_of_a_stream_never_wrap(start: int, steps: list[int]) -> None:
    position = total = start
    for step in steps:
        total += step
        position = seq.unwrap(total & MASK, position)
    assert position == total
