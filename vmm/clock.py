"""Virtual time and its alarms.

Time is nanoseconds since power-on.  It advances by what the guest executes, by a fixed cost per
port or MMIO access, and by jumping to the next alarm when the guest halts.  A chip never sees any
other clock.

Timers are made once, when the board is built, and hold no state of their own: a device derives
its deadline from its registers in ``restored()``.  Alarms due at one instant fire in the order in
which the timers were made, so the order never depends on the order of re-arming.
"""

from __future__ import annotations

from collections.abc import Callable

NEVER_NS = 1 << 62
"""A deadline that does not come (about 146 years)."""


class Timer:
    """One alarm.  ``deadline_ns`` is NEVER_NS when it is not armed."""

    __slots__ = ("_clock", "deadline_ns", "fire", "name")

    def __init__(self, clock: TimerClock, name: str, fire: Callable[[], None]) -> None:
        self._clock = clock
        self.name = name
        self.fire = fire
        self.deadline_ns = NEVER_NS

    def arm(self, at_ns: int) -> None:
        """Fire at ``at_ns``; a time already past fires at the next look."""
        before, self.deadline_ns = self.deadline_ns, min(at_ns, NEVER_NS)
        clock = self._clock
        if before == clock.next_deadline_ns or at_ns < clock.next_deadline_ns:
            clock.rearmed()

    def cancel(self) -> None:
        self.arm(NEVER_NS)


class TimerClock:
    """The alarms of one machine.  Subclasses say what time it is."""

    __slots__ = ("_timers", "next_deadline_ns")

    def __init__(self) -> None:
        self._timers: list[Timer] = []
        self.next_deadline_ns = NEVER_NS

    @property
    def now_ns(self) -> int:
        raise NotImplementedError

    def timer(self, name: str, fire: Callable[[], None]) -> Timer:
        """A new timer, ranked after all made before it."""
        made = Timer(self, name, fire)
        self._timers.append(made)
        return made

    def rearmed(self) -> None:
        """The earliest deadline may be another: find it."""
        self.next_deadline_ns = min([t.deadline_ns for t in self._timers], default=NEVER_NS)

    def fire_due(self) -> None:
        """Fire every alarm whose time has come, earliest first, each at most once per deadline."""
        now = self.now_ns
        while self.next_deadline_ns <= now:
            due = min(self._timers, key=lambda timer: timer.deadline_ns)
            due.deadline_ns = NEVER_NS
            self.rearmed()
            due.fire()

    def deadlines(self) -> dict[str, int]:
        """Armed timers by name, for traces and for explaining an idle machine."""
        return {t.name: t.deadline_ns for t in self._timers if t.deadline_ns != NEVER_NS}


class ManualClock(TimerClock):
    """A clock that a test or a simulation moves by hand."""

    __slots__ = ("_now_ns",)

    def __init__(self, now_ns: int = 0) -> None:
        super().__init__()
        self._now_ns = now_ns

    @property
    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, by_ns: int) -> None:
        """Move on, stopping at each alarm on the way so that it sees its own time."""
        end = self._now_ns + by_ns
        while self.next_deadline_ns <= end:
            self._now_ns = max(self._now_ns, self.next_deadline_ns)
            self.fire_due()
        self._now_ns = end
