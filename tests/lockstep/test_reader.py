"""What the secondary's end of the log refuses, what it calls a departure, what it keeps for a survivor."""

from __future__ import annotations

import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import Departed, ProtocolViolation
from colo.lockstep import reader as module
from colo.lockstep.reader import AHEAD_MAX, LogReader
from colo.messages import Log, LoggedInput
from vmm.clock import NEVER_NS

EPOCH, NOW_NS = 3, 100


def reader() -> LogReader:
    return LogReader(EPOCH, NOW_NS, ["net0", "com1"])


def word(
    frontier_ns: int,
    inputs: tuple[LoggedInput, ...] = (),
    outputs: tuple[bytes, ...] = (),
    spoken: dict[str, int] | None = None,
) -> Log:
    return Log(EPOCH, frontier_ns, list(inputs), list(map(zlib.crc32, outputs)), spoken or {})


# Words that cannot follow


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (word(99), "a log up to 99 ns after 100 ns"),
        (word(NEVER_NS), "a log up to"),
        (word(NEVER_NS + 1), "a log up to"),
        (word(200, ((201, "net0", b"x"),)), "an input at 201 ns between 100 and 200 ns"),
        (word(200, ((99, "net0", b"x"),)), "an input at 99 ns"),
        (word(200, ((150, "net0", b"x"), (149, "com1", b"y"))), "an input at 149 ns between 150"),
        (word(200, ((150, "net1", b"x"),)), "'net1', which is no port here"),
        (word(200, ((150, "?", b"x"),)), "'\\?', which is no port here"),
    ],
)
def test_a_word_that_cannot_follow_is_refused(hostile: Log, says: str) -> None:
    with pytest.raises(ProtocolViolation, match=says):
        reader().take(hostile)


def test_a_word_follows_on_the_one_before_it() -> None:
    log = reader()
    log.take(word(200, ((150, "net0", b"x"),)))
    with pytest.raises(ProtocolViolation, match="199 ns after 200 ns"):
        log.take(word(199))
    with pytest.raises(ProtocolViolation, match="an input at 149 ns"):
        log.take(word(250, ((149, "net0", b"x"),)))
    log.take(word(250, ((250, "com1?", b"z"),)))
    assert (log.words, log.frontier_ns) == (2, 250)


# The door's replayer


def test_inputs_are_due_at_their_time_all_at_once() -> None:
    log = reader()
    assert log.next_input_ns == NEVER_NS
    log.take(word(300, ((150, "net0", b"a"), (150, "com1?", b"b"), (160, "net0", b"c"))))
    assert log.next_input_ns == 150
    assert log.due(149) == []
    assert log.due(150) == [("net0", b"a"), ("com1?", b"b")]
    assert log.next_input_ns == 160
    assert log.next_mark_ns == NEVER_NS


def test_an_input_for_a_time_that_has_passed_is_a_departure() -> None:
    """The guest did not stop where the primary's did."""
    log = reader()
    log.take(word(300, ((150, "net0", b"a"),)))
    with pytest.raises(Departed, match="an input of 150 ns for net0 found the guest at 151 ns already"):
        log.due(151)


def test_another_output_is_a_departure_whichever_end_speaks_first() -> None:
    log = reader()
    log.take(word(200, outputs=(b"one",)))
    with pytest.raises(Departed, match=f"at 150 ns 3 bytes on com1 .* {zlib.crc32(b'two'):#010x}"):
        log.check_output(150, "com1", b"two")
    log = reader()
    log.check_output(150, "com1", b"two")
    with pytest.raises(Departed, match=f"it said {zlib.crc32(b'two'):#010x}"):
        log.take(word(200, outputs=(b"one",)))


def test_a_guest_that_is_ahead_and_right_has_not_departed() -> None:
    log = reader()
    for text in (b"one", b"two"):
        log.check_output(150, "com1", text)
    log.reached()
    log.take(word(200, outputs=(b"one",)))
    log.take(word(200, outputs=(b"two", b"three")))
    with pytest.raises(Departed, match="at 200 ns it had not said 1 of the log's outputs"):
        log.reached()
    log.check_output(200, "com1", b"three")
    log.reached()


def test_a_guest_that_says_more_and_more_has_departed() -> None:
    log = reader()
    for _ in range(AHEAD_MAX):
        log.check_output(150, "com1", b"x")
    with pytest.raises(Departed, match="at 151 ns it says more and more on com1"):
        log.check_output(151, "com1", b"x")


# What the world may not have heard

PIECES = st.lists(
    st.tuples(st.sampled_from(["net0", "com1"]), st.binary(min_size=1, max_size=5)), max_size=20
)


@given(PIECES, st.data())
def test_what_was_not_wholly_heard_is_kept_in_order_and_whole(
    pieces: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    """Heard bytes are told in any steps, of any port; never is a byte forgotten that was not heard."""
    log = reader()
    sizes: Counter[str] = Counter()
    heard: Counter[str] = Counter()
    for port, payload in pieces:
        log.said(port, payload)
        sizes[port] += len(payload)
        told = data.draw(st.sampled_from(["net0", "com1"]))
        heard[told] = data.draw(st.integers(heard[told], sizes[told]))
        log.take(word(log.frontier_ns, spoken=dict(heard)))
    for port in ("net0", "com1"):
        at, left = 0, []
        for payload in (payload for of, payload in pieces if of == port):
            if at + len(payload) > heard[port]:
                left.append(payload)
            at += len(payload)
        assert [payload for of, payload in log.unspoken() if of == port] == left


def test_more_heard_than_said_forgets_what_there_is() -> None:
    """The primary's word may be ahead of what this guest did; what comes later is counted on."""
    log = reader()
    log.said("com1", b"abc")
    log.take(word(200, spoken={"com1": 5, "net0": 9}))
    assert log.unspoken() == []
    log.said("com1", b"de")
    log.take(word(200, spoken={"com1": 5}))
    assert log.unspoken() == []


def test_the_oldest_of_the_longest_goes_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSPOKEN_BYTES", 6)
    log = reader()
    log.said("net0", b"xy")
    for piece in (b"ab", b"cd", b"ef"):
        log.said("com1", piece)
    assert log.unspoken() == [("net0", b"xy"), ("com1", b"cd"), ("com1", b"ef")]
    log.take(word(200, spoken={"com1": 4}))
    assert log.unspoken() == [("net0", b"xy"), ("com1", b"ef")], "what was forgotten is counted"
