"""The world's agenda: what happens next, and how far a machine may run before it does.

A conservative discrete-event simulation (Chandy and Misra, "Distributed Simulation", IEEE TSE SE-5, 1979)
in one thread.  Two kinds of things have a time: *events*, in one heap, each done at its time in the order in
which they were entered; and *guests*, each at a local time of its own.  A guest may run ahead to its
*horizon*, beyond which something might reach it:

* the next event, whatever it is about;
* for each other guest, the time at which that one could speak next, and the *lookahead*, the shortest time
  in which anything that one machine says reaches another.  A guest that halts speaks after its next alarm.

The guest that is furthest behind runs first; of several the one that was added first.  What a guest says
while it runs becomes an event; when that lies before its horizon the guest stops there (between two blocks)
and everybody else catches up.  A guest stops at the first end of a block past its horizon, so its local time
may be a few hundred nanoseconds ahead of the event that it then meets.  That is the same in every run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from vmm.clock import NEVER_NS

LOOKAHEAD_NS = 10_000
"""Nothing in a world is faster: links and wires have at least this delay."""
Act = Callable[[], None]


class Runner(Protocol):
    """A guest, as the agenda sees it."""

    local_ns: int
    """World time up to which it has run."""

    @property
    def world_ns(self) -> int:
        """The same, also within a turn."""

    @property
    def may_run(self) -> bool:
        """Would a turn move it?"""

    @property
    def speaks_ns(self) -> int:
        """Before this time it says nothing, unless something reaches it."""

    def turn(self, horizon_ns: int) -> None:
        """Run on, at most to there."""

    def interrupt(self, at_ns: int) -> None:
        """Something will happen at this time, before its horizon: end the turn."""


class Agenda:
    """Events and guests of one world."""

    def __init__(self) -> None:
        self.guests: list[Runner] = []
        self._heap: list[tuple[int, int, Act]] = []
        self._entered = 0
        self._now_ns = 0
        self._turning: Runner | None = None
        self._horizon_ns = 0
        self.turns = 0
        """Of guests, as a measure of the work."""

    @property
    def now_ns(self) -> int:
        """The event's time, or that of the guest whose turn it is."""
        return self._now_ns if self._turning is None else max(self._turning.world_ns, self._now_ns)

    def at(self, at_ns: int, act: Act) -> None:
        """Do ``act`` at this time, or now if it has passed."""
        at_ns = max(at_ns, self._now_ns)
        heapq.heappush(self._heap, (at_ns, self._entered, act))
        self._entered += 1
        if self._turning is not None and at_ns < self._horizon_ns:
            self._horizon_ns = at_ns
            self._turning.interrupt(at_ns)

    def run(self, until_ns: int, over: Callable[[], bool]) -> None:
        """Until this time, or until ``over`` says so between two events."""
        while not over():
            next_ns = min(self._heap[0][0] if self._heap else NEVER_NS, until_ns)
            guest = self._behind(next_ns)
            if guest is not None:
                self._turn(guest, self._horizon(guest, next_ns))
            elif self._heap and self._heap[0][0] <= until_ns:
                self._now_ns, _, act = heapq.heappop(self._heap)
                act()
            else:
                self._now_ns = until_ns
                return

    def _behind(self, next_ns: int) -> Runner | None:
        """The guest that has to run before the next event."""
        found: Runner | None = None
        for guest in self.guests:
            if guest.may_run and guest.local_ns < (next_ns if found is None else found.local_ns):
                found = guest
        return found

    def _horizon(self, guest: Runner, next_ns: int) -> int:
        """At least a nanosecond ahead, so that everybody moves."""
        horizon_ns = next_ns
        for other in self.guests:
            if other is not guest:
                horizon_ns = min(horizon_ns, other.speaks_ns + LOOKAHEAD_NS)
        return max(horizon_ns, guest.local_ns + 1)

    def _turn(self, guest: Runner, horizon_ns: int) -> None:
        self.turns += 1
        self._turning, self._horizon_ns = guest, horizon_ns
        try:
            guest.turn(horizon_ns)
        finally:
            self._turning = None
