"""ACPI power management: the PM1a event and control blocks and the PM timer.

Source: ACPI specification 6.4, section 4.8.3 (PM1 event grouping, PM1 control grouping, power
management timer) and section 4.8.2.2 (power button); the blocks lie as in Intel's 82371AB (PIIX4)
data sheet, section 7.2: status 0, enable 2, control 4, timer 8.

    0  PM1_STS   TMR_STS 0, PWRBTN_STS 8; written ones clear
    2  PM1_EN    TMR_EN 0, GBL_EN 5, PWRBTN_EN 8, RTC_EN 10
    4  PM1_CNT   SCI_EN 0, BM_RLD 1, SLP_TYP 12:10, SLP_EN 13 (reads 0)
    8  PM_TMR    24 bits at 3.579545 MHz

A status bit whose enable bit is set holds the system control interrupt (``sci``), a level.

Nothing counts here: the timer is computed from virtual time, and TMR_STS from the carries that the
guest has not cleared yet, so that no alarm is armed unless TMR_EN is set and TMR_STS is clear.  A
reset does not stop the counter; TMR_STS may be set after one, as it may on hardware.

Sleeping: S5 (soft off) alone.  ``off`` stays set until a reset, as a machine without power does not
go on; ``poweroff`` tells the board when it happens.  Other values of SLP_TYP do nothing.

Not modelled, and why: SMI_CMD, because there is no legacy mode to leave (SCI_EN always reads 1);
the global lock, because no firmware runs beside the guest; the real-time clock's event, because there
is no sleep that it could end (GBL_EN and RTC_EN are stored, for Linux reads back what it enables);
the sleep button and general-purpose events, which the tables deny; bus master status, which only
processor power states below C1 need.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.device import Clock, Line, all_ones
from vmm.state import State, u16, u64

HZ = 3_579_545
NS_PER_S = 1_000_000_000

# Offsets of the blocks, and how many ports the board decodes
PM1_STS, PM1_EN, PM1_CNT, PM_TMR = 0, 2, 4, 8
SPAN = 16

# Sections 4.8.3.1.1 and 4.8.3.1.2
TMR, GBL, PWRBTN, RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 10
EN_WRITABLE = TMR | GBL | PWRBTN | RTC

# Section 4.8.3.2.1
SCI_EN, BM_RLD = 1 << 0, 1 << 1
SLP_TYP_SHIFT, SLP_TYP = 10, 7 << 10
SLP_EN = 1 << 13
CNT_WRITABLE = BM_RLD | SLP_TYP
SLP_TYP_S5 = 5
"""What \\_S5 says.  Not 0, so that a stray SLP_EN is not a power-off."""

TIMER_BITS = 24
CARRY_BIT = TIMER_BITS - 1
"""TMR_STS is set whenever the highest bit changes: each 2.34 s."""
NOBODY = 0xFFFF << 48 | 0xFFFF_FFFF << 96
"""Offsets 6 and 12 to 15 answer all ones."""


class AcpiPmState(State):
    power_button: bool = False  # PWRBTN_STS
    carries: u64 = 0  # of the timer, up to when TMR_STS was last cleared
    enable: u16 = 0
    control: u16 = 0
    off: bool = False  # S5 was entered


def ticks_at(now_ns: int) -> int:
    """Timer pulses since power-on."""
    return now_ns * HZ // NS_PER_S


def ns_of(tick: int) -> int:
    """The first nanosecond at which ``tick`` has happened."""
    return -(-tick * NS_PER_S // HZ)


class AcpiPm:
    """``sci`` is the system control interrupt, ``poweroff`` hears of S5."""

    __slots__ = ("_carry", "_clock", "_poweroff", "_sci", "state")

    def __init__(self, sci: Line, clock: Clock, poweroff: Callable[[], None]) -> None:
        self.state = AcpiPmState()
        self._sci = sci
        self._clock = clock
        self._poweroff = poweroff
        self._carry = clock.timer("acpi-pm.carry", self.restored)

    # Guest side

    def read(self, offset: int, size: int) -> int:
        """Any bytes of the blocks (section 4.8.3: byte, word and double word accesses)."""
        if offset == PM_TMR and size == 4:
            return self._timer()
        if not 0 <= offset <= SPAN - size:
            return all_ones(size)
        s = self.state
        registers = NOBODY | self._status() << 8 * PM1_STS | s.enable << 8 * PM1_EN
        registers |= (s.control | SCI_EN) << 8 * PM1_CNT | self._timer() << 8 * PM_TMR
        return registers >> 8 * offset & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if not 0 <= offset <= SPAN - size:
            return
        lanes = all_ones(size)
        written, value = lanes << 8 * offset, (value & lanes) << 8 * offset
        s = self.state
        self._clear_status(value >> 8 * PM1_STS)
        kept = s.enable & ~(written >> 8 * PM1_EN)
        s.enable = (kept | value >> 8 * PM1_EN) & EN_WRITABLE
        kept = s.control & ~(written >> 8 * PM1_CNT)
        s.control = (kept | value >> 8 * PM1_CNT) & CNT_WRITABLE
        self.restored()
        sleep_type = (s.control & SLP_TYP) >> SLP_TYP_SHIFT
        if value >> 8 * PM1_CNT & SLP_EN and sleep_type == SLP_TYP_S5:
            s.off = True
            self._poweroff()

    # Host side

    @property
    def off(self) -> bool:
        """In S5: only a reset goes on from here."""
        return self.state.off

    def press_power_button(self) -> None:
        """A short press, which asks the guest to shut down."""
        self.state.power_button = True
        self.restored()

    # Life cycle

    def reset(self) -> None:
        self.state = AcpiPmState()
        self.restored()

    def restored(self) -> None:
        s = self.state
        status = self._status()
        self._sci.set(bool(status & s.enable))
        if s.enable & TMR and not status & TMR:
            self._carry.arm(ns_of(s.carries + 1 << CARRY_BIT))
        else:
            self._carry.cancel()

    # Private

    def _timer(self) -> int:
        return ticks_at(self._clock.now_ns) & (1 << TIMER_BITS) - 1

    def _carries_now(self) -> int:
        return ticks_at(self._clock.now_ns) >> CARRY_BIT

    def _status(self) -> int:
        s = self.state
        carried = TMR if self._carries_now() > s.carries else 0
        return carried | (PWRBTN if s.power_button else 0)

    def _clear_status(self, ones: int) -> None:
        if ones & TMR:
            self.state.carries = self._carries_now()
        if ones & PWRBTN:
            self.state.power_button = False
