"""The thread that runs a machine, and how the others have something done to it.

A machine belongs to one thread.  Everybody else hands it jobs, which run between two blocks: the
guest has stopped at a clean place when a job begins, and goes on at once when it ends.  A checkpoint's
pause is one job.

:meth:`GuestThread.run` occupies the thread that calls it, the main one of a node, so that signal
handlers find Python running; the engine gives the interpreter lock back while the guest executes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from vmm.clock import NEVER_NS
from vmm.machine import Ended, Machine

T = TypeVar("T")

REST_S = 0.5
"""Longest time without a look at ``_quit``, which a signal handler sets without notifying."""
THROTTLED_SLICE_NS = 10_000_000
"""What a throttled guest executes between two rests."""
Job = tuple[Callable[[], Any], "Future[Any]"]


class GuestThread:
    """Runs ``machine`` while it is to run, and jobs in between.

    ``ended`` is called in this thread, with why, when the guest ended by itself; it does not run any
    more until :meth:`start`.
    """

    def __init__(self, machine: Machine, ended: Callable[[Ended], None]) -> None:
        self.machine = machine
        self.frozen = False
        """A node that stands by, lost, or has not decided: the guest must not run, whoever asks."""
        self._ended = ended
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self.has_run = False
        self.throttle = 0.0
        """The share of time that the guest stands still while it runs."""
        self._wanted = False
        self._quit = False
        self._over = False
        """:meth:`run` has ended: nobody does a job any more."""
        self._in_guest = False
        self._thread: int | None = None

    @property
    def running(self) -> bool:
        """Does the guest run, but for jobs?"""
        return self._wanted and not self.frozen

    # For other threads, and for jobs

    def start(self) -> None:
        """The guest is to run."""
        self._wanted = True
        self._notify()

    def stop(self) -> None:
        """The guest is to stand still; it does when a job asked for afterwards runs."""
        self._wanted = False
        self._notify()

    def freeze(self) -> None:
        """Stand still whatever ``start`` says, until :meth:`thaw`."""
        self.frozen = True
        self._notify()

    def thaw(self) -> None:
        self.frozen = False
        self._notify()

    def quit(self) -> None:
        """Make :meth:`run` return; safe from signal handlers."""
        self._quit = True
        self.machine.stop()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have ``job`` run between two blocks."""
        future: Future[T] = Future()
        self._jobs.append((job, future))
        self._notify()
        if self._over:  # written before the jobs are abandoned, read after this one was added
            self._abandon_jobs()
        return future

    def call(self, job: Callable[[], T]) -> T:
        """Have ``job`` run between two blocks, and wait for what it returns or raises."""
        if threading.get_ident() == self._thread:
            return job()
        return self.submit(job).result()

    def _notify(self) -> None:
        """Here the news is written before the flag is read, in run() the other way round.

        A stop that nobody needs would end the next run at once.
        """
        if self._in_guest:
            self.machine.stop()
        with self._wake:
            self._wake.notify()

    # The thread itself

    def run(self) -> None:
        """Until :meth:`quit`.  What the machine raises comes out here, and fails the jobs that wait."""
        self._thread = threading.get_ident()
        try:
            while not self._quit:
                self._run_jobs()
                self._in_guest = self.running
                if not self._in_guest:
                    self._rest(running=False)
                elif not self._jobs:
                    self._run_guest()
                self._in_guest = False
        finally:
            self._quit = self._over = True
            self._abandon_jobs()

    def _run_guest(self) -> None:
        self.has_run = True
        if self.throttle:
            self._throttle()
        clock = self.machine.clock
        ended = self.machine.run(clock.now_ns + THROTTLED_SLICE_NS if self.throttle else NEVER_NS)
        if ended in (Ended.REQUEST, Ended.PAUSED, Ended.TIME):
            return
        if ended is Ended.IDLE:
            self._rest(running=True)
            return
        self._wanted = False
        self._ended(ended)

    def _throttle(self) -> None:
        """Stand still for the share that ``throttle`` says; a job ends it early."""
        still_s = THROTTLED_SLICE_NS / 1e9 * self.throttle / (1 - self.throttle)
        with self._wake:
            self._wake.wait_for(lambda: bool(self._jobs) or self._quit, still_s)

    def _run_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as exc:
                future.set_exception(exc)
                if not isinstance(exc, Exception):
                    raise

    def _rest(self, *, running: bool) -> None:
        """Until there is something to do, for a guest that was found ``running`` or not."""
        with self._wake:
            self._wake.wait_for(lambda: bool(self._jobs) or self._quit or self.running != running, REST_S)

    def _abandon_jobs(self) -> None:
        """By this thread, or by who comes too late; whoever takes a job fails it."""
        with suppress(IndexError):
            while True:
                _, future = self._jobs.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(RuntimeError("the guest thread has ended"))
