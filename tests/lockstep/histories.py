"""A guest's life as a list of events, for tests of the log: what it was given and what it said, and when.

:class:`Guest` lives it again behind a :class:`~colo.lockstep.reader.LogReader`, as a machine does behind the
door: in blocks, of which the last one is executed to its end; inputs come between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from colo.lockstep.reader import LogReader
from colo.lockstep.writer import LogWriter
from colo.messages import Log

PORTS = ["net0", "com1"]
START_NS = 1_000


@dataclass(frozen=True)
class Event:
    """Something that passes the door."""

    ns: int
    port: str
    payload: bytes
    is_input: bool


History = list[Event]


@st.composite
def histories(draw: st.DrawFn, most: int = 40) -> History:
    """In the order of their times; an output is in the middle of a block, so never at an input's time."""
    ns = START_NS
    events: History = []
    for _ in range(draw(st.integers(0, most))):
        is_input = draw(st.booleans())
        before = events[-1] if events else None
        same_moment = before is not None and before.is_input == is_input
        ns += draw(st.integers(0 if same_moment else 1, 5))
        port = draw(st.sampled_from(PORTS))
        events.append(Event(ns, port, draw(st.binary(min_size=1, max_size=6)), is_input))
    return events


def written(history: History, pauses: list[bool], epoch: int = 7) -> list[list[Log]]:
    """What a writer says of it, when it is asked after each event for which ``pauses`` has True."""
    writer, words = LogWriter(), []
    writer.begin(epoch, START_NS)
    spoken: dict[str, int] = {}
    for event, pause in zip(history, pauses, strict=True):
        if event.is_input:
            writer.input(event.ns, event.port, event.payload)
        else:
            writer.output(event.ns, event.port, event.payload)
        if pause:
            words.append(writer.take(event.ns, spoken))
    words.append(writer.take(end_of(history), spoken))
    return words


def end_of(history: History) -> int:
    return history[-1].ns + 1 if history else START_NS


@dataclass
class Guest:
    """Does what ``life`` says, and is given what ``reader`` has."""

    life: History
    reader: LogReader
    overshoot: int = 0
    """Events that belong to the block in which a frontier falls, at most."""
    now_ns: int = START_NS
    given: list[tuple[int, str, bytes]] = field(default_factory=list)
    said: History = field(default_factory=list)

    def run(self) -> None:
        """To the frontier of what has come, as :class:`colo.node.follower.Follower` has it run."""
        reader = self.reader
        while True:
            self._take_inputs()
            due = self._next_output()
            stop_ns = min(reader.frontier_ns, reader.next_input_ns)
            if due is not None and due.ns <= stop_ns:
                self._say(due)
                continue
            if self.now_ns >= stop_ns:
                break
            self.now_ns = stop_ns
        self._end_the_block()
        reader.reached()

    def _take_inputs(self) -> None:
        if self.reader.next_input_ns <= self.now_ns:
            self.given += [(self.now_ns, port, payload) for port, payload in self.reader.due(self.now_ns)]

    def _next_output(self) -> Event | None:
        outputs = [event for event in self.life if not event.is_input]
        return outputs[len(self.said)] if len(self.said) < len(outputs) else None

    def _say(self, event: Event) -> None:
        self.now_ns = max(self.now_ns, event.ns)
        self.said.append(event)
        self.reader.check_output(event.ns, event.port, event.payload)
        self.reader.said(event.port, event.payload)

    def _end_the_block(self) -> None:
        """The primary's block went on, too, and was given nothing in the middle of it."""
        for _ in range(self.overshoot):
            due = self._next_output()
            inputs = [event.ns for event in self.life if event.is_input and event.ns >= self.now_ns]
            if due is None or any(ns < due.ns for ns in inputs[len(self._given_now()) :]):
                return
            self._say(due)

    def _given_now(self) -> list[tuple[int, str, bytes]]:
        return [given for given in self.given if given[0] >= self.now_ns]


def changed(history: History, number: int) -> History:
    """The same, but for one bit of one payload."""
    event = history[number]
    other = bytes([event.payload[0] ^ 1]) + event.payload[1:]
    return [*history[:number], replace(event, payload=other), *history[number + 1 :]]
