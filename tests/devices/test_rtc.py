"""MC146818A: the data sheet's words, one test each."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.promises import Rig
from vmm.clock import ManualClock
from vmm.devices.rtc import CENTURY, UIP_NS, Rtc

SECOND = 1_000_000_000
EPOCH = int(datetime.datetime(2024, 2, 28, 23, 59, 58, tzinfo=datetime.UTC).timestamp())
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D


@pytest.fixture
def rtc(bench: Rig, clock: ManualClock) -> Rtc:
    return Rtc(irq=bench.line("irq8"), clock=clock, epoch_s=EPOCH)


def get(rtc: Rtc, index: int) -> int:
    rtc.write(0, 1, index)
    return rtc.read(1, 1)


def put(rtc: Rtc, index: int, value: int) -> None:
    rtc.write(0, 1, index)
    rtc.write(1, 1, value)


def shown(rtc: Rtc) -> str:
    """Century to second, as the registers read."""
    return "".join(f"{get(rtc, index):02x}" for index in (CENTURY, 9, 8, 7, 4, 2, 0))


def asks(bench: Rig) -> bool:
    return bench.lines["irq8"].level


def test_calendar_over_a_leap_day(clock: ManualClock, rtc: Rtc) -> None:
    assert shown(rtc) == "20240228235958"
    assert get(rtc, 6) == 4, "a Wednesday; Sunday is 1"
    clock.advance(2 * SECOND)
    assert shown(rtc) == "20240229000000"
    clock.advance(86_400 * SECOND)
    assert shown(rtc) == "20240301000000"


def test_binary_and_twelve_hours(clock: ManualClock, rtc: Rtc) -> None:
    """Register B: DM = 1 is binary; 24/12 = 0 has PM in bit 7, and midnight is 12 AM."""
    put(rtc, B, 0x06)
    assert (get(rtc, 4), get(rtc, 2), get(rtc, 0)) == (23, 59, 58)
    put(rtc, B, 0x00)
    assert get(rtc, 4) == 0x91
    clock.advance(2 * SECOND)
    assert get(rtc, 4) == 0x12
    clock.advance(12 * 3600 * SECOND)
    assert get(rtc, 4) == 0x92


def test_set_stops_and_starts_the_clock(clock: ManualClock, rtc: Rtc) -> None:
    """Register B SET: registers are memory until it is cleared; the phase of the second stays."""
    clock.advance(300_000_000)
    put(rtc, B, 0x82)
    for index, value in ((CENTURY, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)):
        put(rtc, index, value)
    clock.advance(5 * SECOND)
    assert shown(rtc) == "19991231235959"
    put(rtc, B, 0x02)
    clock.advance(699_999_999)
    assert shown(rtc) == "19991231235959"
    clock.advance(1)
    assert shown(rtc) == "20000101000000"


def test_divider_reset_starts_half_a_second_before_the_first_update(clock: ManualClock, rtc: Rtc) -> None:
    """Register A DV: what Linux does to set the time exactly (mc146818_set_time)."""
    clock.advance(123_456_789)
    put(rtc, B, 0x82)
    put(rtc, A, 0x76)
    put(rtc, 0, 0x10)
    clock.advance(3 * SECOND)
    put(rtc, B, 0x02)
    clock.advance(3 * SECOND)
    assert get(rtc, 0) == 0x10, "the divider is still held"
    put(rtc, A, 0x26)
    clock.advance(499_999_999)
    assert get(rtc, 0) == 0x10
    clock.advance(1)
    assert get(rtc, 0) == 0x11


def test_setting_a_running_clock_moves_it(clock: ManualClock, rtc: Rtc) -> None:
    put(rtc, 4, 0x08)
    assert shown(rtc) == "20240228085958"
    clock.advance(2 * SECOND)
    assert shown(rtc) == "20240228090000"


@settings(max_examples=50)
@given(st.binary(min_size=8, max_size=8), st.integers(0, 0xFF))
def test_any_calendar_can_be_written(registers: bytes, control: int) -> None:
    """Nonsense in the registers gives some time of day, never an exception."""
    clock = ManualClock()
    rtc = Rtc(irq=Rig(clock).line("irq8"), clock=clock, epoch_s=EPOCH)
    put(rtc, B, 0x80)
    for index, value in zip((0, 2, 4, 6, 7, 8, 9, CENTURY), registers, strict=True):
        put(rtc, index, value)
    put(rtc, B, control & 0x7F)
    clock.advance(2 * SECOND)
    for index in (0, 2, 4, 6, 7, 8, 9, CENTURY):
        assert 0 <= get(rtc, index) <= 0xFF


def test_update_in_progress(clock: ManualClock, rtc: Rtc) -> None:
    """Update Cycle: UIP comes 244 us before it, and the registers are good when it is off."""
    assert get(rtc, A) == 0x26
    clock.advance(SECOND - UIP_NS)
    assert get(rtc, A) == 0xA6
    clock.advance(UIP_NS)
    assert get(rtc, A) == 0x26
    clock.advance(SECOND - 1)
    put(rtc, B, 0x82)
    assert get(rtc, A) == 0x26, "SET stops updates"


@pytest.mark.parametrize(("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(bench: Rig, clock: ManualClock, rtc: Rtc, rate: int, hz: int) -> None:
    """Table of periodic rates at 32.768 kHz; register C must be read for the next one."""
    put(rtc, A, 0x20 | rate)
    put(rtc, B, 0x42)
    count = 0
    while clock.next_deadline_ns <= SECOND:
        clock.advance(clock.next_deadline_ns - clock.now_ns)
        assert asks(bench)
        assert get(rtc, C) & 0xC0 == 0xC0
        assert not asks(bench)
        count += 1
    assert count == hz


def test_register_c_unread_keeps_the_line_and_arms_nothing(bench: Rig, clock: ManualClock, rtc: Rtc) -> None:
    """Interrupts: IRQ stays low (asserted) until register C is read; an idle machine sleeps on."""
    put(rtc, B, 0x42)
    clock.advance(10_000_000)
    assert asks(bench)
    assert clock.deadlines() == {}
    get(rtc, C)
    assert clock.deadlines() != {}


def test_flags_are_set_without_enables(bench: Rig, clock: ManualClock, rtc: Rtc) -> None:
    """Register C: flags come whether or not they interrupt; IRQF only with the enable."""
    assert clock.deadlines() == {}
    clock.advance(SECOND)
    assert get(rtc, C) == 0x50
    assert get(rtc, C) == 0
    clock.advance(SECOND)
    put(rtc, B, 0x12)
    assert asks(bench), "a flag that is already set interrupts when it is enabled"
    assert get(rtc, C) == 0xF0, "midnight: the alarm bytes of power-on, 00:00:00, match too"


def test_update_ended_interrupt(bench: Rig, clock: ManualClock, rtc: Rtc) -> None:
    clock.advance(400_000_000)
    put(rtc, B, 0x12)
    clock.advance(599_999_999)
    assert not asks(bench)
    clock.advance(1)
    assert asks(bench)
    assert get(rtc, 0) == 0x59, "the registers are already new"
    put(rtc, B, 0x92)
    assert get(rtc, B) == 0x82, "SET clears UIE"


@pytest.mark.parametrize(
    ("alarm", "after_s"),
    [
        ((0x00, 0x00, 0x00), 2),
        ((0x58, 0x59, 0x23), 86_400),
        ((0x30, 0xC0, 0xFF), 32),
        ((0xC0, 0xC0, 0xC0), 1),
        ((0x00, 0x10, 0xC0), 602),
        ((0xC0, 0x05, 0x01), 2 + 3600 + 300),
        ((0x00, 0xC0, 0x06), 2 + 6 * 3600),
    ],
)
def test_alarm(bench: Rig, clock: ManualClock, rtc: Rtc, alarm: tuple[int, int, int], after_s: int) -> None:
    """Time, Calendar and Alarm: bytes of C0 to FF match anything."""
    for index, value in zip((1, 3, 5), alarm, strict=True):
        put(rtc, index, value)
    put(rtc, B, 0x22)
    assert list(clock.deadlines().values()) == [after_s * SECOND]
    clock.advance(after_s * SECOND)
    assert asks(bench)
    assert get(rtc, C) & 0xA0 == 0xA0


def test_impossible_alarm_never_comes(clock: ManualClock, rtc: Rtc) -> None:
    put(rtc, 1, 0x75)
    put(rtc, B, 0x22)
    assert clock.deadlines() == {}


def test_alarm_in_twelve_hour_format(clock: ManualClock, rtc: Rtc) -> None:
    put(rtc, B, 0x00)
    for index, value in ((1, 0), (3, 0), (5, 0x81)):
        put(rtc, index, value)
    put(rtc, B, 0x20)
    assert list(clock.deadlines().values()) == [(2 + 13 * 3600) * SECOND]


def test_memory_index_and_valid_ram(rtc: Rtc) -> None:
    """Register D: VRT; C and D are read-only; the index port cannot be read, bit 7 masks NMI."""
    assert get(rtc, D) == 0x80
    put(rtc, D, 0)
    put(rtc, C, 0xFF)
    assert get(rtc, D) == 0x80
    put(rtc, 0x80 | 0x40, 0x5A)
    assert rtc.state.index == 0xC0
    assert get(rtc, 0x40) == 0x5A
    assert rtc.read(0, 1) == 0xFF


@pytest.mark.parametrize(
    ("mib", "extended", "high"),
    [(1, 0, 0), (16, 15 * 1024, 0), (256, 63 * 1024, 240 * 16), (4096, 63 * 1024, 65280)],
)
def test_memory_size(rtc: Rtc, mib: int, extended: int, high: int) -> None:
    """CMOS 15h to 18h, 30h/31h in KiB; 34h/35h in 64 KiB above 16 MiB."""
    rtc.set_memory_size(mib << 20)

    def word(index: int) -> int:
        return get(rtc, index) | get(rtc, index + 1) << 8

    assert [word(0x15), word(0x17), word(0x30), word(0x34)] == [640, extended, extended, high]
