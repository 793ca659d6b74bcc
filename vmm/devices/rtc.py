"""MC146818A real-time clock with 128 bytes of CMOS RAM.

Sources: Motorola MC146818A data sheet (order MC146818A/D), sections "Memory", "Time, Calendar and
Alarm Locations", "Update Cycle", "Interrupts" and "Registers"; Intel PIIX3 data sheet for ports
0x70/0x71; Ralf Brown's CMOS list for the bytes that PC firmware keeps.

The time of day is ``epoch + offset + virtual time`` in nanoseconds.  While it runs, the calendar
registers are computed from it, and setting one moves the offset; while SET or a divider reset
stops it, they are plain memory, taken over when it starts again.  The sub-second phase is that of
the divider chain: SET keeps it, a divider reset makes the first update come half a second after
its end ("Divider Control").

Interrupt flags are worked out when somebody looks: ``flags`` covers all that happened up to
``seen_ns``.  So no alarm is armed unless its interrupt is enabled and not yet pending, and an idle
machine sleeps.

Update in progress is on during the last 2228 us of a second: 244 us of warning and the 1984 us
update cycle of a 32.768 kHz crystal.  The new second appears at the end of it.

Not modelled: daylight saving (DSE is stored), the square wave output, other crystals than
32.768 kHz, a day of the week that disagrees with the date, years outside 1970 to 2225.  Changing
DM or 24/12 while the clock runs reformats the registers, where the chip would misread them.
"""

from __future__ import annotations

import datetime
from typing import Annotated

from msgspec import Meta

from vmm.device import Clock, Line
from vmm.devices.isa import read_bytes, write_bytes
from vmm.state import State, field, length, u8, u64

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY, MONTH, YEAR, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = range(6, 14)
CENTURY = 0x32
CALENDAR = frozenset((SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY))

A_UIP = 0x80
A_DIVIDER = 0x70
A_DIVIDER_RESET = 0x60  # DV2 and DV1 both set
A_RATE = 0x0F
B_SET, B_PIE, B_AIE, B_UIE, B_SQWE, B_DM, B_24, B_DSE = 0x80, 0x40, 0x20, 0x10, 8, 4, 2, 1
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
C_FLAGS = C_PF | C_AF | C_UF
D_VRT = 0x80
HOURS_PM = 0x80
ALARM_ANY = 0xC0  # "don't care": an alarm byte with both top bits set

# Bytes that PC firmware keeps
EQUIPMENT = 0x14
EQUIPMENT_FPU = 0x02
BASE_MEMORY = 0x15  # KiB below 640 KiB
EXTENDED_MEMORY = 0x17  # KiB above 1 MiB, up to 63 MiB; again at 0x30
EXTENDED_MEMORY_AGAIN = 0x30
HIGH_MEMORY = 0x34  # 64 KiB blocks above 16 MiB
KIB, MIB = 1 << 10, 1 << 20

NS_PER_S = 1_000_000_000
UIP_NS = (244 + 1984) * 1000
CRYSTAL_HZ = 32_768
YEAR_MIN, YEAR_MAX = 1970, 2225
OFFSET_MAX_NS = (1 << 63) - 1
DAYS_TO_1970 = datetime.date(1970, 1, 1).toordinal()
PORT_INDEX, PORT_DATA = 0, 1
INDEX_NMI_OFF = 0x80


def _power_on() -> bytearray:
    cmos = bytearray(128)
    cmos[REGISTER_A] = 0x26  # 32.768 kHz, 1024 Hz
    cmos[REGISTER_B] = B_24
    cmos[REGISTER_D] = D_VRT
    cmos[EQUIPMENT] = EQUIPMENT_FPU
    return cmos


class RtcState(State):
    index: u8 = 0  # bit 7: NMI masked (write-only on the PC)
    cmos: Annotated[bytearray, length(128)] = field(default_factory=_power_on)
    flags: u8 = 0  # PF, AF, UF
    seen_ns: u64 = 0  # virtual time up to which ``flags`` is complete
    offset_ns: Annotated[int, Meta(ge=-OFFSET_MAX_NS, le=OFFSET_MAX_NS)] = 0


class Rtc:
    """The clock; ``epoch_s`` is the time of day at power-on, in seconds since 1970."""

    __slots__ = ("_alarm", "_clock", "_epoch_ns", "_irq", "state")

    def __init__(self, irq: Line, clock: Clock, epoch_s: int) -> None:
        assert 0 <= epoch_s < (YEAR_MAX - YEAR_MIN) * 365 * 86400
        self.state = RtcState()
        self._irq = irq
        self._clock = clock
        self._epoch_ns = epoch_s * NS_PER_S
        self._alarm = clock.timer("rtc", self._fire)

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        if offset != PORT_DATA:
            return 0xFF
        s = self.state
        index = s.index & 0x7F
        if index in CALENDAR:
            return s.cmos[index] if self._stopped() else self._calendar(index)
        if index == REGISTER_A:
            return s.cmos[index] | (A_UIP if self._updating() else 0)
        if index == REGISTER_C:
            return self._read_flags()
        return s.cmos[index]

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
            return
        s = self.state
        if offset == PORT_INDEX:
            s.index = value
            return
        index = s.index & 0x7F
        if offset != PORT_DATA or index in (REGISTER_C, REGISTER_D):
            return
        self._look()
        if index in CALENDAR:
            self._write_calendar(index, value)
        elif index in (REGISTER_A, REGISTER_B):
            self._write_control(index, value)
        else:
            s.cmos[index] = value
        self.restored()

    # Board side

    def set_memory_size(self, ram_bytes: int) -> None:
        """What firmware notes about RAM.  To be called again after :meth:`reset`."""
        cmos = self.state.cmos
        base = min(ram_bytes // KIB, 640)
        extended = min(max(0, ram_bytes - MIB) // KIB, 63 * KIB)
        high = min(max(0, ram_bytes - 16 * MIB) // (64 * KIB), 0xFFFF)
        cmos[BASE_MEMORY : BASE_MEMORY + 2] = base.to_bytes(2, "little")
        cmos[EXTENDED_MEMORY : EXTENDED_MEMORY + 2] = extended.to_bytes(2, "little")
        cmos[EXTENDED_MEMORY_AGAIN : EXTENDED_MEMORY_AGAIN + 2] = extended.to_bytes(2, "little")
        cmos[HIGH_MEMORY : HIGH_MEMORY + 2] = high.to_bytes(2, "little")

    # Life cycle

    def reset(self) -> None:
        """A clock as new: it shows the epoch plus virtual time."""
        self.state = RtcState()
        self.restored()

    def restored(self) -> None:
        """Drive IRQ and set the alarm for the next event that would raise it."""
        s = self.state
        enabled = s.cmos[REGISTER_B] & C_FLAGS
        pending = s.flags & enabled
        self._irq.set(pending != 0)
        due = None if pending or not enabled else self._next_event(enabled)
        if due is None:
            self._alarm.cancel()
        else:
            self._alarm.arm(due)

    # Private: time

    def _time_ns(self, now_ns: int) -> int:
        """Time of day in nanoseconds since 1970; its phase is that of the divider chain."""
        return max(0, self._epoch_ns + self.state.offset_ns + now_ns)

    def _stopped(self) -> bool:
        return bool(self.state.cmos[REGISTER_B] & B_SET) or self._divider_reset()

    def _divider_reset(self) -> bool:
        return self.state.cmos[REGISTER_A] & A_DIVIDER_RESET == A_DIVIDER_RESET

    def _updating(self) -> bool:
        if self._stopped():
            return False
        return self._time_ns(self._clock.now_ns) % NS_PER_S >= NS_PER_S - UIP_NS

    def _calendar(self, index: int) -> int:
        """One calendar register, from the time of day."""
        time_s = self._time_ns(self._clock.now_ns) // NS_PER_S
        days, second = divmod(time_s, 86400)
        if index == SECONDS:
            return self._encode(second % 60)
        if index == MINUTES:
            return self._encode(second // 60 % 60)
        if index == HOURS:
            return self._hours_register(second // 3600)
        if index == DAY_OF_WEEK:
            return self._encode((days + 4) % 7 + 1)  # 1 January 1970 was a Thursday; Sunday is 1
        date = datetime.date.fromordinal(DAYS_TO_1970 + days)
        parts = {DAY: date.day, MONTH: date.month, YEAR: date.year % 100, CENTURY: date.year // 100}
        return self._encode(parts[index])

    def _encode(self, value: int) -> int:
        if self.state.cmos[REGISTER_B] & B_DM:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, register: int) -> int:
        if self.state.cmos[REGISTER_B] & B_DM:
            return register
        return (register >> 4) * 10 + (register & 0xF)

    def _hours_register(self, hour: int) -> int:
        if self.state.cmos[REGISTER_B] & B_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (HOURS_PM if hour >= 12 else 0)

    def _hours_decoded(self, register: int) -> int:
        if self.state.cmos[REGISTER_B] & B_24:
            return self._decode(register)
        return self._decode(register & ~HOURS_PM) % 12 + (12 if register & HOURS_PM else 0)

    def _write_calendar(self, index: int, value: int) -> None:
        if self._stopped():
            self.state.cmos[index] = value
            return
        self._store_calendar()
        self.state.cmos[index] = value
        self._take_calendar()

    def _store_calendar(self) -> None:
        """The running time into the registers: the clock stops."""
        values = [(index, self._calendar(index)) for index in sorted(CALENDAR)]
        for index, value in values:
            self.state.cmos[index] = value

    def _take_calendar(self) -> None:
        """The time in the registers is now; the phase within the second stays."""
        cmos = self.state.cmos
        year = self._decode(cmos[CENTURY]) * 100 + self._decode(cmos[YEAR])
        year = min(max(year, YEAR_MIN), YEAR_MAX)
        month = min(max(self._decode(cmos[MONTH]), 1), 12)
        days = datetime.date(year, month, 1).toordinal() - DAYS_TO_1970 + self._decode(cmos[DAY]) - 1
        second = self._decode(cmos[SECONDS]) + 60 * self._decode(cmos[MINUTES])
        second += 3600 * self._hours_decoded(cmos[HOURS])
        now = self._clock.now_ns
        phase = self._time_ns(now) % NS_PER_S
        self._set_time((max(0, days) * 86400 + second) * NS_PER_S + phase, now)

    def _set_time(self, time_ns: int, now_ns: int) -> None:
        offset = time_ns - self._epoch_ns - now_ns
        self.state.offset_ns = min(max(offset, -OFFSET_MAX_NS), OFFSET_MAX_NS)

    def _write_control(self, index: int, value: int) -> None:
        """Registers A and B: rates, formats, enables, and what stops and starts the clock."""
        cmos = self.state.cmos
        was_stopped, was_reset = self._stopped(), self._divider_reset()
        stops = value & B_SET if index == REGISTER_B else value & A_DIVIDER_RESET == A_DIVIDER_RESET
        if stops and not was_stopped:
            self._store_calendar()
        if index == REGISTER_A:
            cmos[REGISTER_A] = value & ~A_UIP
        else:
            cmos[REGISTER_B] = value & ~B_UIE if value & B_SET else value  # SET clears UIE
        if was_reset and not self._divider_reset():
            now = self._clock.now_ns
            time = self._time_ns(now)
            self._set_time(time - time % NS_PER_S + NS_PER_S // 2, now)
        if was_stopped and not self._stopped():
            self._take_calendar()

    # Private: interrupts

    def _fire(self) -> None:
        self._look()
        self.restored()

    def _read_flags(self) -> int:
        """Register C: reading it clears it."""
        self._look()
        s = self.state
        flags = s.flags
        if flags & s.cmos[REGISTER_B]:
            flags |= C_IRQF
        s.flags = 0
        self.restored()
        return flags

    def _look(self) -> None:
        """Set the flags of all that happened since the last look."""
        s = self.state
        now = self._clock.now_ns
        for flag in (C_PF, C_AF, C_UF):
            due = self._next_event(flag)
            if due is not None and due <= now:
                s.flags |= flag
        s.seen_ns = now

    def _next_event(self, flags: int) -> int | None:
        """Virtual time of the first of these events after ``seen_ns``; None: it does not come."""
        s = self.state
        start = self._time_ns(s.seen_ns)
        due: list[int] = []
        rate = s.cmos[REGISTER_A] & A_RATE
        if flags & C_PF and rate and not self._divider_reset():
            hz = CRYSTAL_HZ >> (rate - 1 if rate >= 3 else rate + 6)
            tick = start * hz // NS_PER_S + 1
            due.append(-(-tick * NS_PER_S // hz))
        if not self._stopped():
            if flags & C_UF:
                due.append((start // NS_PER_S + 1) * NS_PER_S)
            if flags & C_AF:
                alarm_s = self._next_alarm(start // NS_PER_S)
                if alarm_s is not None:
                    due.append(alarm_s * NS_PER_S)
        if not due:
            return None
        return max(0, min(due) - self._epoch_ns - s.offset_ns)

    def _next_alarm(self, after_s: int) -> int | None:
        """The first second after ``after_s`` that the three alarm bytes match."""
        cmos = self.state.cmos
        raw_second, raw_minute, raw_hour = cmos[SECONDS_ALARM], cmos[MINUTES_ALARM], cmos[HOURS_ALARM]
        second = None if raw_second >= ALARM_ANY else self._decode(raw_second)
        minute = None if raw_minute >= ALARM_ANY else self._decode(raw_minute)
        hour = None if raw_hour >= ALARM_ANY else self._hours_decoded(raw_hour)
        if (second or 0) > 59 or (minute or 0) > 59 or (hour or 0) > 23:
            return None
        time = after_s + 1
        if second is not None:
            time += (second - time) % 60
        first = second or 0
        while minute is not None and time // 60 % 60 != minute:
            time = (time // 60 + 1) * 60 + first
        first += 60 * (minute or 0)
        while hour is not None and time // 3600 % 24 != hour:
            time = (time // 3600 + 1) * 3600 + first
        return time
