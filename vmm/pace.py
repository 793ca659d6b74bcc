"""Where virtual time meets the wall: the only part of the machine that knows what time it is.

*Free-running*: a guest that halts jumps to its next alarm; nobody waits for anything.

*Paced*: for guests that serve real clients.  A halted guest sleeps until the wall has caught up or
something arrives, and a running one is never more than a slice ahead.  A guest that fell behind
(it executes more slowly than its own clock says) catches up when it idles, because its alarms are
then already due; more than ``LAG_MAX_NS`` behind (a stopped host) the rest is forgotten.

In both modes an input is stamped with the virtual time at which it entered, which is all that the
guest, a recording or a replica ever learns of the wall.
"""

from __future__ import annotations

import os
import select
import time

from vmm.clock import NEVER_NS

SLICE_NS = 2_000_000
"""How far ahead of the wall a paced guest may run: well under a tick, well over a sleep's error."""
LAG_MAX_NS = 1_000_000_000
SLEEP_MAX_NS = 1_000_000_000
COARSE_NS = 20_000_000
"""Waits from this length on need no better resolution than a millisecond."""
SELECT_MAX = 1024
"""Descriptors from here on are beyond select(2)."""
RESPONSE_NS = 50_000_000
"""Longest time that a free-running guest computes without a return to Python, where signal handlers run."""


class Pacer:
    """The host's descriptors, and (if ``paced``) the relation of virtual time to the wall."""

    __slots__ = ("_anchor_ns", "_epoll", "_number", "_wake", "_watched", "deaf", "paced")

    def __init__(self, paced: bool) -> None:
        self.paced = paced
        self.deaf = False
        """Look at no descriptor: a guest that is tried out must not take what is for the one that serves."""
        self._epoll = select.epoll()
        self._number = self._epoll.fileno()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watched: set[int] = set()
        self._anchor_ns: int | None = None

    # Descriptors

    @property
    def descriptor(self) -> int:
        """For the native poll; -1 when there is nothing to look at."""
        return self._number if self._watched and not self.deaf else -1

    @property
    def can_wake(self) -> bool:
        """Is there anything on the host that could end an endless wait?"""
        return bool(self._watched)

    def watch(self, descriptor: int, wanted: bool = True) -> None:
        """Look at ``descriptor`` for input, or no longer; -1 is ignored."""
        if descriptor < 0 or wanted == (descriptor in self._watched):
            return
        if wanted:
            self._epoll.register(descriptor, select.EPOLLIN)
            self._watched.add(descriptor)
        else:
            self._epoll.unregister(descriptor)
            self._watched.discard(descriptor)

    def ready(self, timeout_ns: int = 0) -> set[int]:
        """Descriptors with input, after at most ``timeout_ns``."""
        if 0 < timeout_ns < COARSE_NS and self._number < SELECT_MAX:
            # epoll counts milliseconds: a guest that sleeps 100 us would sleep ten times as long
            select.select([self._epoll], [], [], timeout_ns / 1e9)
            timeout_ns = 0
        found = set(dict(self._epoll.poll(timeout_ns / 1e9)))  # without what each of them is ready for
        if self._wake in found:
            os.eventfd_read(self._wake)
            found.discard(self._wake)
        return set() if self.deaf else found

    def wake(self) -> None:
        """End a wait; safe from any thread and from signal handlers."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def after_fork(self) -> None:
        """In a child of ``os.fork()``: descriptors of its own; the old ones go on belonging to the parent.

        What an epoll descriptor watches is shared with whoever inherited it, and so is a wake-up.
        """
        self.close()
        self._epoll = select.epoll()
        self._number = self._epoll.fileno()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for descriptor in (self._wake, *sorted(self._watched)):
            self._epoll.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        self._epoll.close()
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    # Time

    def start(self, now_ns: int) -> None:
        """Virtual ``now_ns`` is the wall's now."""
        self._anchor_ns = time.monotonic_ns() - now_ns

    def wall_ns(self, now_ns: int) -> int:
        """What virtual time the wall has reached, for a machine at ``now_ns``."""
        if self._anchor_ns is None:
            self.start(now_ns)
        assert self._anchor_ns is not None
        wall = time.monotonic_ns() - self._anchor_ns
        if wall - now_ns > LAG_MAX_NS:
            self._anchor_ns += wall - now_ns - LAG_MAX_NS
            wall = now_ns + LAG_MAX_NS
        return wall

    def limit_ns(self, now_ns: int) -> int:
        """The time at which a running guest must come back: to look at the wall, or for signals."""
        return self.wall_ns(now_ns) + SLICE_NS if self.paced else now_ns + RESPONSE_NS

    def rest(self, now_ns: int, deadline_ns: int) -> tuple[int, set[int]]:
        """A halted guest at ``now_ns`` waits for ``deadline_ns`` or input.

        Returns the virtual time at which it goes on, and the descriptors with input.
        """
        if not self.paced:
            return self._jump(now_ns, deadline_ns)
        wall = self.wall_ns(now_ns)
        if deadline_ns <= wall:
            return max(now_ns, deadline_ns), self.ready()
        ready = self.ready(min(deadline_ns - wall, SLEEP_MAX_NS))
        reached = min(self.wall_ns(now_ns), deadline_ns)
        return max(now_ns, reached), ready

    def _jump(self, now_ns: int, deadline_ns: int) -> tuple[int, set[int]]:
        if deadline_ns < NEVER_NS:
            return max(now_ns, deadline_ns), self.ready() if self._watched else set()
        return now_ns, self.ready(SLEEP_MAX_NS)
