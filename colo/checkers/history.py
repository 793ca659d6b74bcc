"""What clients asked and were told, in the order in which it happened: a history of Herlihy and Wing.

An operation is an *invocation* and, if the client ever heard, a *return*.  Between the two it took effect
at some instant, if the service is right.  Three ends are possible, and a client must not mix them up:

=============  ====================================================================================
returned       the client was told a result
failed         the operation certainly had no effect (the connection was refused, say)
neither        unknown: a time-out or a reset; it had its effect at any time after the invocation,
               perhaps long after, or never
=============  ====================================================================================

The order of the events is the order in which they were noted.  Virtual times are for people, and for judges
that speak of time; they may repeat and never go back.  A client has one operation at a time open; one that
gave up on an operation goes on under another name, for its old operation may still be running (a connection
that was reset and made again is a new client).

In a file, a history is one JSON object a line, so that it can be read, cut and checked again without us.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from colo.errors import ColoError

LINE_MAX = 1 << 20
"""Bytes of one event in a file: a value is a word or a list of words, not a disk."""


class HistoryError(ColoError):
    """Events that no clients can have caused, or a file that holds no history."""


class Invoked(msgspec.Struct, frozen=True, tag_field="event", tag="invoked"):
    """A client asked."""

    operation: int
    client: str
    key: str
    action: str
    arguments: tuple[Any, ...]
    at_ns: int

    @property
    def call(self) -> str:
        words = ", ".join(map(repr, (*([self.key] if self.key else []), *self.arguments)))
        return f"{self.action}({words})"


class Returned(msgspec.Struct, frozen=True, tag_field="event", tag="returned"):
    """It was told."""

    operation: int
    result: Any
    at_ns: int


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="failed"):
    """It was told, or knows, that nothing happened."""

    operation: int
    at_ns: int


Event = Invoked | Returned | Failed
_decoder = msgspec.json.Decoder(Event)


class History:
    """A history that grows."""

    def __init__(self, events: tuple[Event, ...] = ()) -> None:
        self.events: list[Event] = []
        self._invoked: list[Invoked] = []
        self._open: dict[str, int] = {}
        for event in events:
            self._note(event)

    # What clients call

    def invoke(self, client: str, action: str, *arguments: Any, at_ns: int, key: str = "") -> int:
        """``client`` asks for ``action`` on the object ``key``; the number to end the operation by."""
        number = len(self._invoked)
        self._note(Invoked(number, client, key, action, plain(arguments), at_ns))
        return number

    def returned(self, operation: int, result: Any, *, at_ns: int) -> None:
        self._note(Returned(operation, plain(result), at_ns))

    def failed(self, operation: int, *, at_ns: int) -> None:
        self._note(Failed(operation, at_ns))

    # What judges ask

    def operation(self, number: int) -> Invoked:
        return self._invoked[number]

    def by_key(self) -> dict[str, list[Event]]:
        """The part of the history that is about each object, in the order of first use."""
        parts: dict[str, list[Event]] = {}
        for event in self.events:
            parts.setdefault(self.operation(event.operation).key, []).append(event)
        return parts

    def line(self, event: Event) -> str:
        """One event for people, with its time."""
        return f"{seconds(event.at_ns)} {self.told(event)}"

    def told(self, event: Event) -> str:
        asked = self.operation(event.operation)
        match event:
            case Invoked():
                return f"{asked.client} asks {asked.call}"
            case Failed():
                return f"{asked.client} {asked.call} fails"
        return f"{asked.client} {asked.call} -> {event.result!r}"

    # Files

    def write(self, path: Path | str) -> None:
        with Path(path).open("wb") as file:
            for event in self.events:
                file.write(msgspec.json.encode(event) + b"\n")

    @classmethod
    def read(cls, path: Path | str) -> History:
        """HistoryError names the line that is no event, or cannot follow what stands above it."""
        history = cls()
        for number, line in _lines(Path(path)):
            try:
                history._note(_plain_event(_decoder.decode(line)))
            except (msgspec.DecodeError, HistoryError) as exc:
                raise HistoryError(f"{path}:{number}: {exc}") from None
        return history

    # Private

    def _note(self, event: Event) -> None:
        last_ns = self.events[-1].at_ns if self.events else event.at_ns
        if event.at_ns < last_ns:
            raise HistoryError(
                f"an event at {event.at_ns} ns after one at {last_ns} ns: note events in their order"
            )
        if isinstance(event, Invoked):
            self._begin(event)
        else:
            self._end(event.operation)
        self.events.append(event)

    def _begin(self, event: Invoked) -> None:
        if event.operation != len(self._invoked):
            raise HistoryError(f"operation {event.operation}, expected {len(self._invoked)}: the next number")
        if event.client in self._open:
            asked = self._invoked[self._open[event.client]]
            raise HistoryError(
                f"client {event.client} asks for {event.call} while {asked.call} is open: end that; a client"
                " that gave up on an operation goes on under another name"
            )
        self._open[event.client] = event.operation
        self._invoked.append(event)

    def _end(self, number: int) -> None:
        if not 0 <= number < len(self._invoked):
            raise HistoryError(f"operation {number} ends, but was never invoked")
        client = self._invoked[number].client
        if self._open.get(client) != number:
            raise HistoryError(f"operation {number} of client {client} ends, but is not open")
        del self._open[client]


def plain(value: Any) -> Any:
    """``value`` as JSON would give it back, and hashable: text, numbers, tuples; a set is sorted."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(plain, value), key=repr))
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if value is None or isinstance(value, str | int | float):
        return value
    raise HistoryError(
        f"{value!r} ({type(value).__name__}) in a history: expected text, bytes, a number, None or a sequence"
    )


def seconds(at_ns: int) -> str:
    return f"{at_ns / 1e9:13.6f} s"


def _plain_event(event: Event) -> Event:
    match event:
        case Invoked():
            return msgspec.structs.replace(event, arguments=plain(event.arguments))
        case Returned():
            return msgspec.structs.replace(event, result=plain(event.result))
    return event


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_MAX):
                number += 1
                yield number, line
    except OSError as exc:
        raise HistoryError(f"{path}: {exc.strerror}") from None
