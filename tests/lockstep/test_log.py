"""The two ends of the log: however it is cut into words, and they come, nothing is lost or mixed up."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.errors import Departed
from colo.lockstep import writer
from colo.lockstep.reader import LogReader
from colo.lockstep.writer import WORD_BYTES, LogWriter
from colo.messages import INPUT_MAX, INPUTS_MAX, OUTPUTS_MAX, Log
from colo.transport.wire import COMPANION_MAX, Decoder, Encoder
from tests.lockstep.histories import PORTS, START_NS, Guest, History, changed, end_of, histories, written

EPOCH = 7
PACKED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=["few", "many"])
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the real limits, and with some that every history reaches."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "few":
            patch.setattr(writer, "INPUTS_MAX", 2)
            patch.setattr(writer, "OUTPUTS_MAX", 2)
            patch.setattr(writer, "WORD_BYTES", 9)
        yield


def reader() -> LogReader:
    return LogReader(EPOCH, START_NS, PORTS)


def inputs_of(history: History) -> list[tuple[int, str, bytes]]:
    return [(event.ns, event.port, event.payload) for event in history if event.is_input]


def follow(words: list[Log], guest: Guest, stops: list[bool]) -> None:
    """The words come one by one; the guest runs after each for which ``stops`` has True, and at the end."""
    for word, stop in zip(words, stops, strict=True):
        guest.reader.take(word)
        if stop:
            guest.run()
    guest.run()


@st.composite
def journeys(draw: st.DrawFn) -> tuple[History, list[Log], list[bool]]:
    """A history, the words that tell of it, and after which of them the guest has time to run."""
    history = draw(histories())
    pauses = draw(st.lists(st.booleans(), min_size=len(history), max_size=len(history)))
    words = [word for some in written(history, pauses) for word in some]
    return history, words, draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))


@pytest.mark.usefixtures("limits")
@settings(suppress_health_check=PACKED)
@given(data=st.data(), overshoot=st.integers(0, 3))
def test_a_guest_that_does_the_same_is_given_the_same_and_never_departs(
    data: st.DataObject, overshoot: int
) -> None:
    history, words, stops = data.draw(journeys())
    guest = Guest(history, reader(), overshoot)
    follow(words, guest, stops)
    assert guest.given == inputs_of(history)
    assert guest.said == [event for event in history if not event.is_input]
    assert guest.now_ns == guest.reader.frontier_ns == end_of(history)


@pytest.mark.usefixtures("limits")
@settings(suppress_health_check=PACKED)
@given(data=st.data(), overshoot=st.integers(0, 3))
def test_one_bit_of_one_output_is_found(data: st.DataObject, overshoot: int) -> None:
    history, words, stops = data.draw(journeys())
    outputs = [number for number, event in enumerate(history) if not event.is_input]
    if not outputs:
        return
    other = changed(history, data.draw(st.sampled_from(outputs)))
    with pytest.raises(Departed, match=r"has|have the checksum|the log has"):
        follow(words, Guest(other, reader(), overshoot), stops)


@pytest.mark.usefixtures("limits")
@settings(suppress_health_check=PACKED)
@given(data=st.data(), overshoot=st.integers(0, 3))
def test_an_output_that_is_missing_is_found(data: st.DataObject, overshoot: int) -> None:
    history, words, stops = data.draw(journeys())
    outputs = [number for number, event in enumerate(history) if not event.is_input]
    if not outputs:
        return
    number = data.draw(st.sampled_from(outputs))
    silent = history[:number] + history[number + 1 :]
    if [event.payload for event in silent if not event.is_input] == [
        event.payload for event in history if not event.is_input
    ]:
        return
    with pytest.raises(Departed):
        follow(words, Guest(silent, reader(), overshoot), stops)


@pytest.mark.usefixtures("limits")
@settings(suppress_health_check=PACKED)
@given(data=st.data())
def test_every_word_tells_of_a_time_that_its_guest_had_reached(data: st.DataObject) -> None:
    """A frontier covers every input of its word and of those before; what comes after it comes later."""
    history, words, _ = data.draw(journeys())
    reached_ns, told = START_NS, []
    for word in words:
        assert word.frontier_ns >= reached_ns
        assert all(reached_ns <= ns <= word.frontier_ns for ns, _, _ in word.inputs)
        reached_ns = word.frontier_ns
        told += word.inputs
    assert told == inputs_of(history)
    checksums = [checksum for word in words for checksum in word.outputs]
    assert checksums == [zlib.crc32(event.payload) for event in history if not event.is_input]


@pytest.mark.usefixtures("limits")
@settings(suppress_health_check=PACKED)
@given(data=st.data())
def test_no_output_is_told_before_a_frontier_that_covers_it(data: st.DataObject) -> None:
    """At a frontier a guest has said all that the log has: an output may come after it, and never before."""
    history, words, _ = data.draw(journeys())
    outputs = iter([event for event in history if not event.is_input])
    for word in words:
        for _ in word.outputs:
            assert next(outputs).ns <= word.frontier_ns


# Limits of a word

SIZES = st.lists(st.integers(1, WORD_BYTES // 3) | st.just(INPUT_MAX), max_size=12)


@settings(max_examples=25, deadline=None)
@given(SIZES)
def test_every_word_fits_a_frame_whatever_its_inputs(sizes: list[int]) -> None:
    log = LogWriter()
    log.begin(EPOCH, START_NS)
    for size in sizes:
        log.input(START_NS, "com1", bytes(size))
    words = log.take(START_NS, {"com1": 1 << 60})
    encoder, decoder = Encoder(COMPANION_MAX), Decoder(COMPANION_MAX)
    for word in words:
        decoder.feed(encoder.frame(word))
        assert decoder.next() == word
    assert [len(payload) for word in words for _, _, payload in word.inputs] == sizes


def test_a_word_has_so_many_inputs_and_outputs() -> None:
    """One more than a message may have, of each: the limits are those of the message."""
    log = LogWriter()
    log.begin(EPOCH, START_NS)
    for number in range(INPUTS_MAX + 1):
        log.input(START_NS + number, "net0", b"x")
    for _ in range(2 * OUTPUTS_MAX + 1):
        log.output(START_NS + INPUTS_MAX, "com1", b"y")
    words = log.take(START_NS + INPUTS_MAX, {})
    assert max(len(word.inputs) for word in words) == INPUTS_MAX
    assert max(len(word.outputs) for word in words) == OUTPUTS_MAX
    assert sum(len(word.inputs) for word in words) == INPUTS_MAX + 1
    assert sum(len(word.outputs) for word in words) == 2 * OUTPUTS_MAX + 1


def test_a_cut_ends_what_was_not_said() -> None:
    log = LogWriter()
    log.begin(EPOCH, START_NS)
    log.input(START_NS, "net0", b"x")
    log.output(START_NS, "net0", b"y")
    assert log.has_news
    log.begin(EPOCH + 1, START_NS + 5)
    assert not log.has_news
    assert log.take(START_NS + 6, {"net0": 3}) == [Log(EPOCH + 1, START_NS + 6, [], [], {"net0": 3})]
    assert log.frontier_ns == START_NS + 6


def test_nothing_but_time_is_a_word_too() -> None:
    log = LogWriter()
    log.begin(EPOCH, START_NS)
    assert log.take(START_NS, {}) == [Log(EPOCH, START_NS, [], [], {})]
