"""A guest's thread, simulated: what :class:`colo.node.guest_thread.GuestThread` offers, in virtual time.

The world gives a guest its turns (:mod:`colo.sim.agenda`).  A turn does the jobs that wait, gives the machine
what came for it, and runs it; as with a thread, everything else happens between two blocks.

**Time.**  While its guest runs freely a machine's clock and the world's go at one speed (or ``slowness``
times slower); while it stands still (frozen, stopped, waiting for the other node) the world's goes on and the
machine's does not, and nothing of that is made up for: a paced machine on a real host would catch up.  A
guest that follows a log takes no time at all: the secondary's processor is infinitely fast, unless it is
slowed.

**Jobs** (:meth:`submit`) are done in a turn of the same instant; who waits for one (``call``, ``result``) has
it done at once.  So nobody ever waits for a thread that does not run.

**Descriptors** of a simulated companion are negative numbers, which no kernel knows; the world says itself
when there is input (``Machine.arrived``), as it does for cards, so that a frame enters when it comes.  What
is level-triggered in a kernel is asked for at every turn. A thread that would spin on input that it does
not read looks again after ``SPIN_NS``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vmm.clock import NEVER_NS
from vmm.machine import Ended, Machine
from vmm.ports import NetPort

T = TypeVar("T")

LOOK_NS = 1_000_000
"""A guest that computes is looked at this often, as a paced one is at least."""
REST_NS = 500_000_000
SPIN_NS = 50_000
Readable = Callable[[int], bool]
"""Has this descriptor input?"""


class _Job(Future[T]):
    """Whoever waits for it has it done."""

    def __init__(self, guest: SimGuest) -> None:
        super().__init__()
        self._guest = guest

    def result(self, timeout: float | None = None) -> T:
        if not self.done():
            self._guest.do_jobs()
        return super().result(0)


class SimGuest:
    """Runs ``machine`` for the world; ``wake(ns)`` asks for a look at that time."""

    def __init__(
        self,
        machine: Machine,
        ended: Callable[[Ended], None],
        now_ns: Callable[[], int],
        wake: Callable[[int], None],
        readable: Readable = lambda descriptor: False,
    ) -> None:
        self.machine = machine
        self.frozen = False
        self.has_run = False
        self.throttle = 0.0
        self.idle_s: float | None = None
        self.slowness = 1
        """World time that a nanosecond of the guest takes."""
        self.dead = self.stopped = False
        """Killed; and stopped as a process: no turns until it goes on."""
        self.local_ns = 0
        self._ended, self._now_ns, self._wake, self._readable = ended, now_ns, wake, readable
        self._jobs: deque[tuple[Callable[[], Any], _Job[Any] | None]] = deque()
        self._failure: Exception | None = None
        """What a job raised that nobody waits for: the end of the thread."""
        self._drive: Callable[[], Ended] | None = None
        self._descriptor = 0
        """Negative: of what drives the guest."""
        self._sources: dict[int, NetPort | None] = {}
        """Descriptors of cards and companions."""
        self._wanted = False
        self._busy = self._running_freely = False
        self._horizon_ns = 0
        self._began_ns = self._began_clock_ns = 0
        self._idle_until_ns = 0
        self._has_news = False
        """Something came that the guest has not been given yet."""

    # For the node (GuestThread)

    @property
    def running(self) -> bool:
        return self._wanted and not self.frozen

    def start(self) -> None:
        self._wanted = True
        self.news()

    def stop(self) -> None:
        self._wanted = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self.news()

    def quit(self) -> None:
        """The node's process ends."""
        self.dead = True

    def submit(self, job: Callable[[], T]) -> Future[T]:
        future: _Job[T] = _Job(self)
        self._jobs.append((job, future))
        self.news()
        return future

    def post(self, job: Callable[[], object]) -> None:
        self._jobs.append((job, None))
        self.news()

    def call(self, job: Callable[[], T]) -> T:
        if not self._busy:
            self.do_jobs()
        return job()

    def drive_by(self, drive: Callable[[], Ended] | None, descriptor: int = 0) -> None:
        self._drive, self.idle_s, self._descriptor = drive, None, min(descriptor, 0)
        self._idle_until_ns = 0

    def run_freely(self) -> Ended:
        """To the horizon; for what drives the guest, and in its absence."""
        clock = self.machine.clock
        self._began_ns, self._began_clock_ns = self.local_ns, clock.now_ns
        ahead = self._horizon_ns - self.local_ns
        if not self._is_asleep:
            ahead = min(ahead, LOOK_NS)
        self._running_freely = True
        try:
            # A slow guest moves even when less is ahead than one of its nanoseconds takes.
            return self.machine.run(clock.now_ns + max(ahead // self.slowness, 1))
        finally:
            self._running_freely = False
            self._pass(clock.now_ns - self._began_clock_ns)

    def _pass(self, guest_ns: int) -> None:
        took_ns = guest_ns * self.slowness
        if self.throttle:
            took_ns = round(took_ns / (1 - self.throttle))
        self.local_ns = self._began_ns + took_ns

    # For the world

    def listen(self, descriptor: int, port: NetPort | None = None) -> None:
        """Look at this one in every turn; what comes for ``port`` enters at once."""
        self._sources[descriptor] = port

    @property
    def is_in_turn(self) -> bool:
        return self._busy

    @property
    def world_ns(self) -> int:
        """Where the guest is now, also within a turn."""
        if not self._running_freely:
            return self.local_ns
        return self._began_ns + (self.machine.clock.now_ns - self._began_clock_ns) * self.slowness

    def news(self) -> None:
        """Something came, or changed: the guest is to look, from now on."""
        self._idle_until_ns = 0
        self._has_news = True
        if not self._busy and not self.dead:
            self._catch_up()

    def _catch_up(self) -> None:
        """Time in which it stood still has passed for the world."""
        self.local_ns = max(self.local_ns, self._now_ns())

    @property
    def may_run(self) -> bool:
        if self.dead or self.stopped:
            return False
        return bool(self._jobs) or self._failure is not None or (self.running and not self._idle_until_ns)

    @property
    def speaks_ns(self) -> int:
        if not self.may_run:
            return NEVER_NS
        if self._jobs or self._has_news or not self._is_asleep:
            return self.local_ns
        clock = self.machine.clock
        return self.local_ns + max(clock.next_deadline_ns - clock.now_ns, 0) * self.slowness

    @property
    def _is_asleep(self) -> bool:
        cpu = self.machine.cpu
        return cpu.halted and not cpu.can_take_interrupt

    def interrupt(self, at_ns: int) -> None:
        """Only a free run goes on in time."""
        self._horizon_ns = min(self._horizon_ns, at_ns)
        if self._running_freely:
            self.machine.pause()

    def turn(self, horizon_ns: int) -> None:
        self.do_jobs()
        if self._failure is not None:
            raise self._failure
        if self.dead or not self.running:
            return
        self.has_run, self._busy, self._horizon_ns = True, True, horizon_ns
        self._has_news = False
        began_ns, clock_ns = self.local_ns, self.machine.clock.now_ns
        try:
            ended = self._run()
        finally:
            self._busy = False
        if self.local_ns == began_ns:  # it followed a log
            self.local_ns += max(self.machine.clock.now_ns - clock_ns, 0) * (self.slowness - 1)
        if ended is Ended.IDLE:
            self._rest()
        elif ended not in (Ended.REQUEST, Ended.PAUSED, Ended.TIME):
            self._wanted = False
            self._ended(ended)

    def _run(self) -> Ended:
        machine = self.machine
        for descriptor, port in self._sources.items():
            if self._readable(descriptor):
                if port is not None:
                    port.pump()
                machine.arrived(descriptor)
        return self._drive() if self._drive is not None else self.run_freely()

    def _rest(self) -> None:
        """As poll(2): until input, a job, or a time."""
        now_ns = max(self.local_ns, self._now_ns())
        rest_ns = REST_NS if self.idle_s is None else min(round(self.idle_s * 1e9), REST_NS)
        if self._descriptor and self._readable(self._descriptor):
            rest_ns = SPIN_NS
        self._idle_until_ns = now_ns + max(rest_ns, SPIN_NS)
        self._wake(self._idle_until_ns)

    def look(self) -> None:
        """A time has come that :meth:`_rest` asked for."""
        if self._idle_until_ns and self._now_ns() >= self._idle_until_ns:
            self._idle_until_ns = 0
            self._catch_up()

    def do_jobs(self) -> None:
        busy, self._busy = self._busy, True
        try:
            while self._jobs and not self.dead:
                job, future = self._jobs.popleft()
                if future is None or future.set_running_or_notify_cancel():
                    self._do(job, future)
        finally:
            self._busy = busy

    def _do(self, job: Callable[[], Any], future: _Job[Any] | None) -> None:
        try:
            result = job()
        except Exception as exc:
            if future is None:
                self._failure = self._failure or exc
            else:
                future.set_exception(exc)
        else:
            if future is not None:
                future.set_result(result)
