"""Whatever either machine sends, memory is bounded and nothing is lost but beyond the limits."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.compare.comparison import MODES, Comparison, Settings, open_comparison
from colo.compare.packet import FIN, RST, SYN
from colo.compare.stream import LATER_MAX
from colo.compare.verdict import Diverged, Drop, Reason, Release
from tests.compare import frames
from tests.compare.frames import differences, dropped, fragments, released, tcp, udp

SMALL = Settings(queue_max=8, frames_max=40, bytes_max=6000, connections_max=6, history_bytes=2000)
pieces = [
    tcp(1, b"abc", ack=5),
    tcp(1, ack=5, flags=SYN, options=b"\2\4\5\xb4\1\3\3\7"),
    tcp(1, b"abc", ack=5, flags=FIN),
    tcp(1, ack=5, flags=RST),
    tcp(0xFFFF_FFF0, bytes(100), ack=0xFFFF_FFF0, options=b"\5\x0a" + bytes(8)),
    udp(b"abc"),
    frames.echo(1, 2),
    frames.arp(),
    *fragments(udp(bytes(100)), 32),
]
damage = st.lists(st.tuples(st.integers(12, 80), st.integers(0, 255)), max_size=3)
hostile = st.lists(
    st.tuples(st.sampled_from(pieces) | st.binary(max_size=120), damage, st.integers(0, 60)), max_size=120
)


@pytest.mark.parametrize("mode", sorted(MODES))
@given(frames_made=hostile, seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_hostile_frames_end_once_each_and_leave_nothing(
    mode: str, frames_made: list[tuple[bytes, list[tuple[int, int]], int]], seed: int
) -> None:
    comparison = open_comparison(mode, SMALL)
    order = random.Random(seed)
    fed: tuple[list[bytes], list[bytes]] = ([], [])
    said = []
    for now_ms, (frame, changes, keep) in enumerate(frames_made):
        made = bytearray(frame)
        for at, value in changes:
            if at < len(made):
                made[at] = value
        one = bytes(made[: max(keep * 4, 20)])
        side = order.randrange(2)
        fed[side].append(one)
        said += (comparison.feed_primary, comparison.feed_secondary)[side](one, now_ms)
        if order.random() < 0.1:
            said += comparison.tick(now_ms)
        if order.random() < 0.05:
            said += comparison.checkpoint()
        assert comparison.tally.frames_kept <= 2 * 40 + 1 or mode == "qemu"
    said += comparison.checkpoint()
    assert sorted(released(said) + dropped(said)) == sorted(fed[0] + fed[1])
    assert comparison.tally.frames_kept == comparison.tally.bytes_kept == 0


def test_what_a_connection_kept_goes_with_it_when_the_primary_is_in_the_next_at_a_checkpoint() -> None:
    comparison = Comparison(SMALL)
    syn = tcp(1, ack=5, flags=SYN, options=b"\2\4\5\xb4\1\3\3\7")
    comparison.feed_primary(tcp(1, b"abc", ack=5), 0)
    comparison.feed_secondary(tcp(1, b"abc", ack=5), 1)
    comparison.feed_secondary(tcp(4, b"def", ack=5), 2)  # more than the primary, which begins anew instead
    comparison.feed_primary(syn, 3)
    assert comparison.tally.frames_kept > 1, "both the bytes ahead and the SYN wait"
    comparison.checkpoint()
    assert comparison.tally.frames_kept == comparison.tally.bytes_kept == 0


def test_a_queue_that_is_full_asks_for_a_checkpoint_and_then_drops() -> None:
    comparison = Comparison(SMALL)
    said = [each for n in range(30) for each in comparison.feed_primary(tcp(500 + n, b"x", ack=5), 0.0)]
    assert differences(said) == [Reason.QUEUE_FULL]
    assert len(dropped(said)) == 30 - 16
    assert released(comparison.checkpoint()) == [tcp(500 + n, b"x", ack=5) for n in range(16)]


def test_a_secondary_that_runs_ahead_asks_for_a_checkpoint() -> None:
    comparison = Comparison(SMALL)
    said = [each for n in range(30) for each in comparison.feed_secondary(tcp(500 + n, b"x", ack=5), 0.0)]
    assert differences(said) == [Reason.QUEUE_FULL]
    assert len(dropped(said)) == 30
    assert comparison.tally.frames_kept == 0


def test_segments_ahead_of_a_gap_are_limited() -> None:
    comparison = Comparison()
    comparison.feed_primary(tcp(500, b"x", ack=5), 0.0)
    comparison.feed_secondary(tcp(500, b"x", ack=5), 0.0)
    said = [
        each
        for n in range(LATER_MAX + 1)
        for each in comparison.feed_secondary(tcp(600 + 2 * n, b"x", ack=5), 0.0)
    ]
    assert differences(said) == [Reason.QUEUE_FULL]


def test_the_connection_unused_for_longest_makes_room() -> None:
    comparison = Comparison(SMALL)
    ports = [(80, port) for port in range(1000, 1010)]
    for pair in ports:
        frame = tcp(500, b"x", ack=5, ports=pair)
        comparison.feed_primary(frame, 0.0)
        assert released(comparison.feed_secondary(frame, 0.0)) == [frame]
    names = [status.name.split(":")[-1] for status in comparison.conversations()]
    assert names == [str(port) for _, port in ports[-6:]]


def test_connections_that_wait_are_kept_and_a_new_one_waits_for_a_checkpoint() -> None:
    comparison = Comparison(SMALL)
    made = [tcp(500, b"x", ack=5, ports=(80, port)) for port in range(1000, 1008)]
    said = [each for frame in made for each in comparison.feed_primary(frame, 0.0)]
    assert differences(said) == [Reason.TABLE_FULL]
    for frame in made[:6]:
        assert released(comparison.feed_secondary(frame, 0.0)) == [frame]
    assert released(comparison.checkpoint()) == made[6:]


def test_old_connections_are_forgotten_one_by_one() -> None:
    comparison = Comparison()
    for port, flags, now_ms in ((1, FIN, 0.0), (2, 0, 1.0), (3, FIN, 130_000.0)):
        frame = tcp(500, b"x", ack=5, flags=flags, ports=(80, port))
        comparison.feed_primary(frame, now_ms)
        comparison.feed_secondary(frame, now_ms)

    def left(now_ms: float) -> list[str]:
        comparison.tick(now_ms)
        comparison.tick(now_ms)
        return [status.name.split(":")[-1] for status in comparison.conversations()]

    assert left(119_000.0) == ["1", "2", "3"]
    assert left(131_000.0) == ["2", "3"]
    assert left(7_600_000.0) == []


def test_a_forgotten_connection_that_speaks_again_starts_anew() -> None:
    comparison = Comparison(Settings(connections_max=1))
    for port in (1, 2, 1):
        frame = tcp(500, b"x", ack=5, ports=(80, port))
        assert comparison.feed_primary(frame, 0.0) == []
        assert released(comparison.feed_secondary(frame, 0.0)) == [frame]


@pytest.mark.parametrize("size", [1, 1400])
def test_a_long_stream_takes_no_more_memory_than_its_history(size: int) -> None:
    comparison = Comparison(Settings(history_bytes=1 << 18))
    tracemalloc.start()
    try:
        for n in range(6000):
            frame = tcp(500 + n * size, bytes((n & 255,)) * size, ack=5)
            comparison.feed_primary(frame, 0.0)
            assert len(released(comparison.feed_secondary(frame, 0.0))) == 1
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 << 18


def test_a_retransmission_of_what_was_forgotten_waits_for_a_checkpoint() -> None:
    comparison = Comparison(SMALL)
    for n in range(50):
        frame = tcp(500 + n, b"x", ack=5)
        comparison.feed_primary(frame, 0.0)
        comparison.feed_secondary(frame, 0.0)
    old, new = tcp(500, b"x", ack=5), tcp(549, b"x", ack=5)
    assert released(comparison.feed_primary(new, 0.0)) == [new]
    assert differences(comparison.feed_primary(old, 0.0)) == [Reason.UNVERIFIABLE]
    assert released(comparison.checkpoint()) == [old]


def test_every_kind_of_decision_is_one_of_three() -> None:
    comparison = Comparison()
    said = comparison.feed_secondary(udp(b"x"), 0.0) + comparison.feed_primary(udp(b"x"), 0.0)
    assert {type(each) for each in said} <= {Release, Drop, Diverged}
