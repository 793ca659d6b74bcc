"""The timer of the local APIC: one-shot, periodic and TSC-deadline.

Source: Intel SDM volume 3A, "APIC Timer" and "TSC-Deadline Mode".

It counts at 1 GHz, one count a nanosecond of virtual time, divided by the divide configuration
register; the TSC is virtual time, so a TSC deadline is a virtual time.  The state holds when the
count next reaches zero; the current count is derived from that.  A masked timer goes on counting
but has no alarm, because nobody would hear it.

Not modelled: the reserved mode 11B, which counts as TSC-deadline; periods below PERIOD_MIN_NS, whose
ticks would merge in IRR anyway.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.device import Clock
from vmm.state import State, u32, u64

MODE, ONE_SHOT, PERIODIC, DEADLINE = 0x6_0000, 0, 0x2_0000, 0x4_0000
"""Bits 18:17 of the LVT entry."""
MASKED = 0x1_0000
DIVIDE_WRITABLE = 0xB
PERIOD_MIN_NS = 1000
"""A guest cannot make the host serve periodic ticks more often than this."""


class TimerState(State):
    """Part of LapicState."""

    lvt: u32 = MASKED
    initial: u32 = 0
    divide: u32 = 0
    expiry_ns: u64 = 0  # when the count next reaches zero; 0: stopped


class LapicTimer:
    """``fire`` is called at each expiry of an unmasked timer; ``state`` belongs to the APIC."""

    __slots__ = ("_alarm", "_clock", "_fire", "state")

    def __init__(self, clock: Clock, state: TimerState, fire: Callable[[], None]) -> None:
        self.state = state
        self._clock = clock
        self._fire = fire
        self._alarm = clock.timer("lapic", self._expired)

    def current(self) -> int:
        """The current-count register."""
        s = self.state
        if not s.expiry_ns or s.lvt & DEADLINE:
            return 0
        left_ns = s.expiry_ns - self._clock.now_ns
        if left_ns <= 0:
            if not s.lvt & PERIODIC or not s.initial:
                return 0
            period_ns = s.initial << self._shift()
            left_ns = left_ns % period_ns or period_ns
        return -(-left_ns >> self._shift())

    def write_initial(self, count: int) -> None:
        """Start; 0 stops.  Ignored in TSC-deadline mode."""
        s = self.state
        now = self._clock.now_ns
        if 0 < s.expiry_ns <= now:
            self._catch_up()
        if s.lvt & DEADLINE:
            return
        s.initial = count
        s.expiry_ns = now + (count << self._shift()) if count else 0
        self.arm()

    def write_divide(self, value: int) -> None:
        """What is left of the count goes on at the new rate."""
        s = self.state
        self._catch_up()
        left = self.current()
        s.divide = value & DIVIDE_WRITABLE
        if left:
            s.expiry_ns = self._clock.now_ns + (left << self._shift())
            self.arm()

    def write_lvt(self, value: int) -> None:
        """Going to or from TSC-deadline mode disarms the timer."""
        s = self.state
        self._catch_up()
        if (value ^ s.lvt) & DEADLINE:
            s.expiry_ns = s.initial = 0
        s.lvt = value
        self.arm()

    def deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 when not armed or in another mode."""
        s = self.state
        return s.expiry_ns if s.lvt & DEADLINE and s.expiry_ns > self._clock.now_ns else 0

    def write_deadline(self, value: int) -> None:
        """Ignored in the other modes; 0 disarms; a deadline in the past fires at once."""
        s = self.state
        if s.lvt & DEADLINE:
            self._catch_up()
            s.expiry_ns = value
            self._expired()

    def arm(self) -> None:
        """Set the alarm that the registers ask for."""
        s = self.state
        if s.expiry_ns and not s.lvt & MASKED:
            self._alarm.arm(s.expiry_ns)
        else:
            self._alarm.cancel()

    def _shift(self) -> int:
        """log2 of the divisor: bits 3, 1 and 0 of the divide register, 111 meaning 1."""
        divide = self.state.divide
        return ((divide & 3 | divide >> 1 & 4) + 1) & 7

    def _expired(self) -> None:
        self._catch_up()
        self.arm()

    def _catch_up(self) -> None:
        """If the count reached zero: fire, unless masked, and find the next expiry."""
        s = self.state
        now = self._clock.now_ns
        if not 0 < s.expiry_ns <= now:
            return
        period_ns = s.initial << self._shift()
        if s.lvt & MODE == PERIODIC and period_ns:
            after = now if period_ns >= PERIOD_MIN_NS else now + PERIOD_MIN_NS - 1
            s.expiry_ns += ((after - s.expiry_ns) // period_ns + 1) * period_ns
        else:
            s.expiry_ns = 0
        if not s.lvt & MASKED:
            self._fire()
