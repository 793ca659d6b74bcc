"""Output commit, one history on the wire, equal states, serving again: right, planted wrong, and unknown."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm
from colo.checkers import (
    CheckFailed,
    History,
    Outcome,
    Verdict,
    Wire,
    equal,
    output_commit,
    serves_again,
    wire,
)

ACK, FIN, RST, SYN = 16, 1, 4, 2
GUEST, CLIENT = (bytes([10, 77, 0, 2]), 6379), (bytes([10, 77, 0, 1]), 40000)
MS = 1_000_000


def test_a_verdict_that_is_required_fails_in_full_unless_it_is_right() -> None:
    Verdict(judge="j", outcome=Outcome.RIGHT, reason="r").require()
    lines = tuple(f"line {number}" for number in range(30))
    with pytest.raises(CheckFailed, match=r"^j: wrong: r\n  ... 6 lines before\n  line 6\n(.*\n)*  line 29$"):
        Verdict(judge="j", outcome=Outcome.WRONG, reason="r", evidence=lines).require()
    with pytest.raises(CheckFailed, match="j: unknown: too many"):
        Verdict(judge="j", outcome=Outcome.UNKNOWN, reason="too many").require()


# Output commit


@given(st.binary(max_size=40), st.data())
def test_every_prefix_of_the_survivor_may_have_been_heard(said: bytes, data: st.DataObject) -> None:
    heard = said[: data.draw(st.integers(0, len(said)))]
    assert output_commit({"console": heard}, {"console": said}).ok


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), st.data())
def test_one_other_byte_is_found(said: bytes, more: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(said) - 1))
    heard = bytearray(said)
    heard[at] ^= data.draw(st.integers(1, 255))
    verdict = output_commit({"a": said, "b": bytes(heard)}, {"a": said, "b": said + more})
    assert verdict.outcome is Outcome.WRONG
    assert verdict.evidence[0].startswith(f"b: byte {at}: heard ")


def test_more_than_the_survivor_knows_is_found() -> None:
    verdict = output_commit({"console": b"1\n2\n3\n"}, {"console": b"1\n2\n"})
    assert "byte 4: heard b'1\\n2\\n3\\n', the survivor said b'1\\n2\\n' and ends there" in str(verdict)
    assert not output_commit({"nobody's": b"x"}, {}).ok
    assert output_commit({"nobody's": b""}, {}).ok


# The wire


def segment(
    payload: bytes = b"", seq: int = 0, flags: int = ACK, ack: int = 0, to_client: bool = True
) -> bytes:
    source, target = (GUEST, CLIENT) if to_client else (CLIENT, GUEST)
    tcp = struct.pack("!HHIIBBHHH", source[1], target[1], seq % 2**32, ack, 0x50, flags, 8192, 0, 0)
    length = 20 + len(tcp) + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 6, 0, source[0], target[0])
    return bytes(12) + b"\x08\x00" + ip + tcp + payload


def heard(*frames: bytes) -> Wire:
    judge = Wire()
    for at, frame in enumerate(frames):
        judge.frame(at, "primary" if at < len(frames) - 1 else "survivor", frame)
    return judge


@given(st.binary(min_size=1, max_size=60), st.integers(0, 2**32 - 1), st.data())
def test_any_cut_of_one_stream_in_any_order_is_one_history(
    stream: bytes, isn: int, data: st.DataObject
) -> None:
    """Segments overlap, repeat and arrive out of order, and numbers wrap: it is the same stream."""
    bounds = st.integers(0, len(stream))
    cuts = data.draw(st.lists(st.tuples(bounds, bounds), max_size=12))
    segments = [segment(stream[min(c) : max(c)], isn + 1 + min(c)) for c in cuts]
    judge = heard(segment(seq=isn, flags=SYN | ACK), *segments)
    assert judge.verdict().ok, judge.verdict()


@given(st.binary(min_size=1, max_size=60), st.integers(0, 2**32 - 1), st.data())
def test_a_byte_that_changed_is_found(stream: bytes, isn: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(stream) - 1))
    start = data.draw(st.integers(0, at))
    other = bytearray(stream)
    other[at] ^= 0x20
    judge = heard(
        segment(seq=isn, flags=SYN), segment(stream, isn + 1), segment(other[start:], isn + 1 + start)
    )
    verdict = judge.verdict()
    assert verdict.outcome is Outcome.WRONG
    assert f"survivor: byte {at} of its stream is {other[at]:#04x} now" in verdict.evidence[0]
    assert "by primary" in verdict.evidence[0]


def test_only_the_last_part_of_a_long_stream_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "KEPT_MAX", 100)
    stream = bytes(range(250))
    frames = [segment(seq=0, flags=SYN), *(segment(stream[at : at + 10], 1 + at) for at in range(0, 250, 10))]
    assert heard(*frames, segment(stream[:20], 1)).verdict().ok, "too old to be judged"
    assert heard(*frames, segment(b"?" * 20, 1)).verdict().ok
    assert heard(*frames, segment(stream[150:], 151)).verdict().ok
    assert not heard(*frames, segment(stream[150:249] + b"?", 151)).verdict().ok


PLANTED = {
    "a second SYN": [segment(seq=100, flags=SYN | ACK), segment(seq=900, flags=SYN | ACK)],
    "a second FIN": [
        segment(seq=99, flags=SYN),
        segment(b"abc", 100, FIN | ACK),
        segment(b"abcd", 100, FIN | ACK),
    ],
    "acknowledges 5 bytes that were never sent": [
        segment(seq=99, flags=SYN, to_client=False),
        segment(b"abc", 100, to_client=False),
        segment(seq=7, ack=108),
    ],
}


@pytest.mark.parametrize("words", PLANTED)
def test_planted_contradictions_are_found(words: str) -> None:
    verdict = heard(*PLANTED[words]).verdict()
    assert verdict.outcome is Outcome.WRONG
    assert words in verdict.evidence[0]


def test_a_port_may_be_used_again_after_an_end() -> None:
    opened, closed = segment(seq=100, flags=SYN | ACK), segment(seq=101, flags=RST)
    assert (
        heard(opened, segment(b"x", 101), closed, segment(seq=5, flags=SYN | ACK), segment(b"y", 6))
        .verdict()
        .ok
    )
    ends = [segment(seq=101, flags=FIN | ACK), segment(seq=51, flags=FIN | ACK, to_client=False)]
    asks = [segment(seq=50, flags=SYN, to_client=False), segment(seq=700, flags=SYN, to_client=False)]
    assert heard(asks[0], opened, *ends, asks[1], segment(seq=3, flags=SYN | ACK)).verdict().ok
    assert not heard(asks[0], opened, ends[0], asks[1]).verdict().ok, "one side still speaks"


def test_what_is_no_tcp_is_passed_over() -> None:
    assert heard(b"", bytes(60), bytes(12) + b"\x08\x06" + bytes(46)).segments == 0


# Equal states


def test_two_runs_are_equal_and_a_bit_is_not(tmp_path: Path) -> None:
    with vmm.start("counter") as one, vmm.start("counter") as other:
        one.run_for(0.05)
        other.run_for(0.05)
        other.save(tmp_path / "other.snapshot")
        assert equal(one, other).ok
        assert equal(one.machine, tmp_path / "other.snapshot").ok
        byte = one.read_physical(0x300000, 1)[0]
        one.write_physical(0x300000, bytes([byte ^ 1]))
        verdict = equal(one, str(tmp_path / "other.snapshot"))
        assert verdict.outcome is Outcome.WRONG
        assert "ram[0x300000] (1 bytes of page 0x300000)" in verdict.evidence[0]
        with other.snapshot() as held:
            other.run_for(0.001)
            assert not equal(held, other).ok
            assert equal(held, tmp_path / "other.snapshot").ok


# Serving again


def asked(*times_ms: tuple[str, int, int | None]) -> History:
    """(client, asked at, answered at) in the order of the first time; events are sorted."""
    history = History()
    numbers: dict[int, int] = {}
    events = [(at, 1, index) for index, (_, at, _) in enumerate(times_ms)]
    events += [(at, 0, index) for index, (_, _, at) in enumerate(times_ms) if at is not None]
    for at, begins, index in sorted(events):
        if begins:
            numbers[index] = history.invoke(times_ms[index][0], "get", at_ns=at * MS)
        else:
            history.returned(numbers[index], "v", at_ns=at * MS)
    return history


def test_an_answer_after_the_fault_is_service() -> None:
    history = asked(("a", 0, 5), ("a", 10, None), ("b", 11, 18), ("c", 13, 40))
    verdict = serves_again(history, after_ns=9 * MS, within_ns=20 * MS)
    assert verdict.ok
    assert verdict.reason == "9.000 ms after the fault"


def test_an_answer_to_an_old_question_is_not() -> None:
    history = asked(("a", 0, 12), ("b", 13, None), ("c", 30, None))
    verdict = serves_again(history, after_ns=10 * MS, within_ns=15 * MS)
    assert verdict.outcome is Outcome.WRONG
    assert "no client was answered within 0.015 s" in verdict.reason


def test_too_late_is_wrong() -> None:
    history = asked(("a", 11, 31))
    assert serves_again(history, after_ns=10 * MS, within_ns=20 * MS).outcome is Outcome.WRONG
    assert serves_again(history, after_ns=10 * MS, within_ns=21 * MS).ok


def test_every_client_is_one_that_was_there() -> None:
    history = asked(("a", 0, 1), ("b", 2, 3), ("a", 11, 12), ("b", 14, 40), ("late", 35, None))
    verdict = serves_again(history, after_ns=10 * MS, within_ns=20 * MS, every_client=True)
    assert "clients b were not answered" in verdict.reason
    assert serves_again(history, after_ns=10 * MS, within_ns=20 * MS).ok
    later = serves_again(history, after_ns=10 * MS, within_ns=30 * MS, every_client=True)
    assert "clients late were not" in later.reason, later


def test_what_was_not_seen_is_unknown() -> None:
    nobody = serves_again(asked(("a", 0, 5)), after_ns=6 * MS, within_ns=5 * MS)
    assert nobody.outcome is Outcome.UNKNOWN
    assert "nobody asked" in nobody.reason
    cut = asked(("a", 7, None))
    assert serves_again(cut, after_ns=6 * MS, within_ns=5 * MS).outcome is Outcome.UNKNOWN
    assert serves_again(cut, after_ns=6 * MS, within_ns=5 * MS, until_ns=11 * MS).outcome is Outcome.WRONG
