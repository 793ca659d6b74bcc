"""Held output: what a commit lets out, what it never lets out, and the limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.filters import OutputHold
from colo.filters import hold as output_hold
from colo.filters.hold import HARD_BYTES, HARD_FRAMES, SOFT_BYTES, SOFT_FRAMES


@pytest.fixture
def said(hold: OutputHold) -> list[bytes]:
    heard: list[bytes] = []
    hold.connect("net0", heard.append)
    hold.begin()
    return heard


def test_a_release_says_its_epoch_and_no_more(hold: OutputHold, said: list[bytes]) -> None:
    hold.hold("net0", memoryview(b"one"))
    hold.hold("net0", b"two")
    assert hold.cut(1) == 2
    hold.hold("net0", b"three")
    assert said == []
    released = hold.release(1)
    assert said == [b"one", b"two"]
    assert (released.frames, released.bytes) == (2, 6)
    assert (hold.held_frames, hold.held_bytes) == (1, 5)
    assert hold.release(1).frames == 0
    assert hold.cut(2) == 1
    hold.release(2)
    assert said == [b"one", b"two", b"three"]


def test_a_frame_is_copied_when_it_is_held(hold: OutputHold, said: list[bytes]) -> None:
    """The guest's own buffer is reused as soon as the call returns."""
    buffer = bytearray(b"first")
    hold.hold("net0", memoryview(buffer))
    buffer[:] = b"other"
    hold.cut(1)
    hold.release(1)
    assert said == [b"first"]


def test_a_release_covers_earlier_epochs_and_skips_empty_ones(hold: OutputHold, said: list[bytes]) -> None:
    for epoch in range(1, 6):
        if epoch != 3:
            hold.hold("net0", bytes([epoch]))
        hold.cut(epoch)
    hold.release(3)
    assert b"".join(said) == b"\1\2"
    hold.release(5)
    assert b"".join(said) == b"\1\2\4\5"


def test_what_travels_with_a_checkpoint_is_its_epoch_or_nothing(hold: OutputHold, said: list[bytes]) -> None:
    hold.connect("net0:in", said.append, inward=True)
    hold.hold("net0", b"one")
    hold.hold("net0:in", b"for the guest")
    hold.cut(1)
    hold.hold("net0", b"two")
    hold.cut(2)
    assert hold.taken(1, 100) == [("net0", b"one")]
    assert hold.taken(2, 3) == [("net0", b"two")]
    assert hold.taken(2, 2) == []
    assert hold.taken(3, 100) == []
    assert said == []


def test_age_is_that_of_the_oldest(said: list[bytes]) -> None:
    now = [100]
    hold = OutputHold(now_ns=lambda: now[0])
    hold.connect("net0", said.append)
    assert [hold.oldest_ns] == [None]
    hold.hold("net0", b"one")
    hold.cut(1)
    now[0] = 250
    hold.hold("net0", b"two")
    assert hold.oldest_ns == 100
    assert hold.release(1).age_ns == 150
    assert hold.oldest_ns == 250


def test_dropped_is_never_said(hold: OutputHold, said: list[bytes]) -> None:
    hold.hold("net0", b"one")
    hold.cut(1)
    hold.hold("net0", b"two")
    assert hold.drop_all() == 2
    hold.release(1)
    hold.end()
    assert said == []
    assert (hold.held_bytes, hold.held_frames, hold.dropped) == (0, 0, 2)


def test_the_end_says_everything_and_holds_no_more(hold: OutputHold, said: list[bytes]) -> None:
    hold.hold("net0", b"one")
    hold.cut(1)
    hold.hold("net0", b"two")
    assert hold.end().frames == 2
    assert said == [b"one", b"two"]
    assert not hold.active
    assert hold.end().frames == 0


def test_a_frame_that_cannot_be_said_does_not_take_the_others_with_it(hold: OutputHold) -> None:
    said: list[bytes] = []

    def fail_once(data: bytes) -> None:
        if data == b"bad":
            raise OSError("gone")
        said.append(data)

    hold.connect("net0", fail_once)
    for data in (b"one", b"bad", b"two"):
        hold.hold("net0", data)
    hold.cut(1)
    with pytest.raises(OSError, match="gone"):
        hold.release(1)
    hold.release(1)
    assert said == [b"one", b"two"]
    assert hold.held_bytes == 0


# Limits


def test_over_the_soft_limit_a_checkpoint_is_asked_for_once_an_epoch(said: list[bytes]) -> None:
    asked: list[str] = []
    hold = OutputHold(lambda: asked.append("checkpoint"), lambda: asked.append("begins"))
    hold.connect("net0", said.append)
    for _ in range(SOFT_FRAMES):
        hold.hold("net0", b"x")
    assert asked == ["begins"]
    for _ in range(3):
        hold.hold("net0", b"x")
    assert asked == ["begins", "checkpoint"]
    hold.cut(1)
    hold.hold("net0", b"x")
    assert asked == ["begins", "checkpoint", "begins"], "what waits for its commit needs no other checkpoint"
    hold.hold("net0", bytes(SOFT_BYTES))
    assert asked == ["begins", "checkpoint"] * 2
    assert hold.dropped == 0


@pytest.mark.parametrize(
    ("size", "fitting"), [(1 << 16, HARD_BYTES >> 16), (1, HARD_FRAMES)], ids=["bytes", "frames"]
)
@pytest.mark.parametrize("cuts", [False, True], ids=["one epoch", "many epochs"])
def test_over_the_hard_limit_frames_are_dropped_and_counted(
    hold: OutputHold, said: list[bytes], size: int, fitting: int, cuts: bool
) -> None:
    data = bytes(size)
    kept = 0
    for number in range(fitting + 10):
        kept += hold.hold("net0", data)
        if cuts and number % 100 == 99:
            hold.cut(number)
    assert (kept, hold.dropped) == (fitting, 10)
    hold.cut(fitting + 10)
    assert hold.release(fitting + 10).frames == fitting
    assert hold.hold("net0", data), "and there is room again"


@given(st.lists(st.integers(1, 70_000), max_size=60), st.integers(1, 60))
def test_the_bookkeeping_adds_up(sizes: list[int], every: int) -> None:
    hold = OutputHold()
    said: list[bytes] = []
    hold.connect("net0", said.append)
    total = 0
    for number, size in enumerate(sizes):
        assert hold.hold("net0", bytes(size))
        total += size
        assert (hold.held_frames, hold.held_bytes) == (number + 1, total)
        if number % every == 0:
            hold.cut(number)
    hold.end()
    assert list(map(len, said)) == sizes
    assert (hold.held_frames, hold.held_bytes, hold.oldest_ns) == (0, 0, None)


def test_limits_leave_room_for_what_they_promise() -> None:
    assert output_hold.SOFT_BYTES < output_hold.HARD_BYTES
    assert output_hold.SOFT_FRAMES < output_hold.HARD_FRAMES
