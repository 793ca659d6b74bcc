"""An asyncio loop of one node, run by the world in virtual time.

The coroutines of a node (:mod:`colo.primary` and all around it) are written for asyncio.  They run here
unmodified: :class:`NodeLoop` is asyncio's own ``BaseEventLoop`` with three things replaced.

* **Time** is the world's.  Nothing waits: the selector returns at once, and when there is nothing to run the
  world goes on to whatever comes next.
* **Threads** are none.  ``run_in_executor`` (``asyncio.to_thread``) does the work there and then, and
  ``call_soon_threadsafe`` needs no self-pipe, for the only other "thread" is a guest that the world runs.
* **Descriptors** are none.  What comes over a wire is a callback (:mod:`colo.sim.wire`).

Each node has a loop of its own, so that a node that is stopped (SIGSTOP) or killed (SIGKILL) is one whose
loop the world no longer steps.  Callbacks run in the order in which they were asked for, timers in the order
of their times, so a run is a function of the seed.

Not modelled: the time that Python takes.  A callback takes no virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

from colo.errors import ColoError

TURNS = 32
"""Of one loop within a nanosecond.  Coroutines may wait by asking again and again for the rest of a period
that is less than a float can tell from nothing; on a host the time goes by meanwhile."""
SPINS_MAX = 100_000
"""Nanoseconds in a row in which a loop had no end: it waits for something that does not come."""
RESOLUTION_S = 5e-10
"""Half of the world's unit: what is due at this nanosecond is, whatever was rounded on the way."""
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class WorldError(ColoError):
    """The world cannot go on: what is simulated is broken, or was asked for something that is not there."""


class _Nothing:
    """A selector for a loop without descriptors."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        """There is nothing to close."""


class NodeLoop(asyncio.BaseEventLoop):
    """One node's.  ``wake`` is called when something was added from outside of :meth:`step`."""

    def __init__(self, name: str, now_ns: Callable[[], int], wake: Callable[[], None]) -> None:
        super().__init__()
        self.name = name
        self._now_ns = now_ns
        self._wake = wake
        self._stepping = False
        self._spins = 0
        self._selector = _Nothing()
        self._clock_resolution = RESOLUTION_S  # asyncio takes the host's
        self._ready: Any
        self._scheduled: list[asyncio.TimerHandle]

    # For asyncio

    def time(self) -> float:
        return self._now_ns() / 1e9

    def _process_events(self, event_list: list[Any]) -> None:
        """There never are any."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self._added()
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """At a whole nanosecond; who asks for later is called later, or a rule that waits for the rest of a
        period would ask again and again while a last fraction is left.
        """
        now_ns = self._now_ns()
        at_ns = round(when * 1e9)
        if at_ns <= now_ns and when > now_ns / 1e9:
            at_ns = now_ns + 1
        handle = super().call_at(at_ns / 1e9, callback, *args, context=context)
        self._added()
        return handle

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """There and then; the future is done when this returns."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:
            future.set_exception(exc)
        return future

    def _added(self) -> None:
        if not self._stepping:
            self._wake()

    # For the world

    @property
    def next_s(self) -> float | None:
        """When this loop wants to be stepped again; None: when something happens."""
        if self._ready:
            return self.time()
        live = (handle.when() for handle in self._scheduled if not handle.cancelled())
        return min(live, default=None)

    def step(self, goes_on: Callable[[], bool]) -> bool:
        """Run what is due now, and what follows from it now, for as long as ``goes_on`` says.

        False when that has no end yet: a nanosecond later there is more.
        """
        assert not self._stepping, f"{self.name}: a loop steps within its own step"
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        self._stepping = True
        try:
            for _ in range(TURNS):
                if not goes_on() or not self._is_due():
                    self._spins = 0
                    return True
                self._run_once()  # type: ignore[attr-defined]
        finally:
            self._stepping = False
            asyncio._set_running_loop(outer)
        self._spins += 1
        if self._spins > SPINS_MAX:
            raise WorldError(
                f"{self.name}: its loop has run without an end for {SPINS_MAX} ns, up to {self._now_ns()} ns"
                " of the world: a coroutine waits by asking again and again; what is simulated has a defect"
            )
        return False

    def _is_due(self) -> bool:
        if self._ready:
            return True
        next_s = self.next_s
        return next_s is not None and next_s < self.time() + RESOLUTION_S

    def abandon(self) -> None:
        """The process is gone: no callback runs any more, and coroutines end where they stand, unheard."""
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        self._ready.clear()
        self._scheduled.clear()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.close()
