"""The world's log: what happened, a line each, and a digest over all of it.

A line is ``TIME WHO WHAT DETAIL``, with the world's virtual nanoseconds.  Everything that one part of the
world does to another is in it: every frame that is delivered or lost, every word of the protocol and of the
companion, every change of a node's state, every line on a console, every fault.  Nothing of the host is:
two runs of one world with one seed have the same lines, and the digest (BLAKE2b) proves it.

The last lines are kept for whoever wants to know what led to something; :attr:`EventLog.sink` gets all.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from colo.errors import ColoError

if TYPE_CHECKING:
    from colo.sim.world import World

KEPT = 512
DIGEST_BYTES = 16
SHORT_BYTES = 6


class Line(NamedTuple):
    """One event."""

    at_ns: int
    who: str
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.at_ns} {self.who} {self.what} {self.detail}".rstrip()


class NotDeterministic(ColoError):
    """Two runs of one world with one seed differ."""


def short(data: bytes | memoryview) -> str:
    """A payload in a few characters."""
    return hashlib.blake2b(data, digest_size=SHORT_BYTES).hexdigest()


class EventLog:
    """Of one world.  ``sink`` is given every line."""

    def __init__(self) -> None:
        self.count = 0
        self.last: deque[Line] = deque(maxlen=KEPT)
        self.sinks: list[Callable[[Line], None]] = []
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def add(self, line: Line) -> None:
        self.count += 1
        self._digest.update(f"{line}\n".encode())
        self.last.append(line)
        for sink in self.sinks:
            sink(line)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def tail(self, count: int = 20) -> str:
        """The last lines, for a person."""
        return "\n".join(map(str, list(self.last)[-count:]))


def check_determinism(make: Callable[[], World], scenario: Callable[[World], None]) -> str:
    """Run ``scenario`` in two worlds that ``make`` makes; the digest of both, or NotDeterministic."""

    def run(sink: Callable[[Line], None]) -> str:
        with make() as world:
            world.log.sinks.append(sink)
            scenario(world)
            return world.log.digest

    return check_runs(run)


def check_runs(run: Callable[[Callable[[Line], None]], str]) -> str:
    """Have ``run(sink)`` run a world twice, with ``sink`` told of every line; it returns the digest.

    NotDeterministic names the first line in which the runs differ; the second one ends there.
    """
    expected: list[Line] = []
    digest = run(expected.append)
    seen = 0

    def compare(line: Line) -> None:
        nonlocal seen
        known = expected[seen] if seen < len(expected) else None
        if line != known:
            raise NotDeterministic(
                f"event {seen} differs: the first run has {_shown(known)}, the second {line}: something of"
                " the host came near the guest or the protocol"
            )
        seen += 1

    run(compare)
    if seen < len(expected):
        raise NotDeterministic(
            f"event {seen} is missing: the first run has {expected[seen]}, the second ends before it"
        )
    return digest


def _shown(line: Line | None) -> str:
    return "no more events" if line is None else str(line)
