"""The thread that runs a machine, and how the others have something done to it.

A machine belongs to one thread.  Everybody else hands it jobs, which run between two blocks: the
guest has stopped at a clean place when a job begins, and goes on at once when it ends.  A checkpoint's
pause is one job.

:meth:`GuestThread.run` occupies the thread that calls it, the main one of a node, so that signal
handlers find Python running; the engine gives the interpreter lock back while the guest executes.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from vmm.clock import NEVER_NS
from vmm.machine import Ended, Machine

T = TypeVar("T")

REST_S = 0.5
"""Longest time without a look around."""
THROTTLED_SLICE_NS = 10_000_000
"""What a throttled guest executes between two rests."""
Job = tuple[Callable[[], Any], "Future[Any] | None"]
"""And who waits for it; None: nobody does."""


class GuestThreadOver(RuntimeError):
    """A job came after the thread's end: the process is about to end too."""

    def __init__(self) -> None:
        super().__init__("the guest thread has ended")


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
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)
        self._drive: Callable[[], Ended] | None = None
        self.idle_s: float | None = None
        """How long what drives the guest wants to be idle at most; set by it."""
        self._still = self._bells(-1)
        self._idle = self._bells(-1)
        """What ends a rest of a guest that stands still, and of one that has nothing to do."""
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
        os.eventfd_write(self._bell, 1)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have ``job`` run between two blocks."""
        future: Future[T] = Future()
        self._jobs.append((job, future))
        self._notify()
        if self._over:  # written before the jobs are abandoned, read after this one was added
            self._abandon_jobs()
        return future

    def post(self, job: Callable[[], object]) -> None:
        """Have ``job`` run between two blocks, for nobody: what it raises is the end of :meth:`run`."""
        self._jobs.append((job, None))
        self._notify()
        if self._over:
            self._abandon_jobs()

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
        os.eventfd_write(self._bell, 1)

    def drive_by(self, drive: Callable[[], Ended] | None, descriptor: int = -1) -> None:
        """By a job: have ``drive`` run the machine for a while, again and again, instead of ``Machine.run``.

        When it returns ``Ended.IDLE`` it is called again after a job, or input at ``descriptor``.
        """
        self._drive, self.idle_s = drive, None
        self._idle = self._bells(descriptor)

    def _bells(self, descriptor: int) -> select.poll:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
        return poll

    # The thread itself

    def run(self) -> None:
        """Until :meth:`quit`.

        What the machine raises comes out here, and what a job does that nobody waits for; it fails the jobs
        that wait.
        """
        self._thread = threading.get_ident()
        try:
            while not self._quit:
                self._run_jobs()
                self._in_guest = self.running
                if not self._in_guest:
                    self._rest(self._still)
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
        ended = self._drive() if self._drive is not None else self.run_freely()
        if ended in (Ended.REQUEST, Ended.PAUSED, Ended.TIME):
            return
        if ended is Ended.IDLE:
            self._in_guest = False
            self._rest(self._idle, REST_S if self.idle_s is None else self.idle_s)
            return
        self._wanted = False
        self._ended(ended)

    def run_freely(self) -> Ended:
        """By the thread itself: run the machine until something happens."""
        clock = self.machine.clock
        return self.machine.run(clock.now_ns + THROTTLED_SLICE_NS if self.throttle else NEVER_NS)

    def _throttle(self) -> None:
        """Stand still for the share that ``throttle`` says; a job ends it early."""
        until_s = time.monotonic() + THROTTLED_SLICE_NS / 1e9 * self.throttle / (1 - self.throttle)
        while not self._jobs and not self._quit and (left_s := until_s - time.monotonic()) > 0:
            self._rest(self._still, left_s)

    def _run_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            if future is None:
                job()
                continue
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as exc:
                future.set_exception(exc)
                if not isinstance(exc, Exception):
                    raise

    def _rest(self, poll: select.poll, at_most_s: float = REST_S) -> None:
        """Until there is news, which the bell tells even when it came just before.

        What rang for a job that was done already wakes this thread once for nothing.
        """
        poll.poll(min(at_most_s, REST_S) * 1000)
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _abandon_jobs(self) -> None:
        """By this thread, or by who comes too late; whoever takes a job fails it."""
        with suppress(IndexError):
            while True:
                _, future = self._jobs.popleft()
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_exception(GuestThreadOver())
