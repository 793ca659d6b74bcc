"""ACPI fixed hardware, by ACPI specification 6.4, section 4.8.3."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.promises import Rig
from vmm.clock import ManualClock
from vmm.devices.acpi_pm import (
    BM_RLD,
    GBL,
    PM1_CNT,
    PM1_EN,
    PM1_STS,
    PM_TMR,
    PWRBTN,
    RTC,
    SCI_EN,
    SLP_EN,
    SLP_TYP_S5,
    SPAN,
    TMR,
    AcpiPm,
)

SECOND = 1_000_000_000
HALF_TURN_NS = -(-(1 << 23) * SECOND // 3_579_545)
"""When bit 23 of the timer changes for the first time: 2.34 s."""


@pytest.fixture
def chip(bench: Rig) -> AcpiPm:
    made = AcpiPm(bench.line("sci"), bench.clock, bench.sink("poweroff"))
    made.reset()
    return made


def sci(bench: Rig) -> bool:
    return bench.lines["sci"].level


# Power management timer (4.8.3.3)


def test_timer_runs_at_3_579545_mhz(chip: AcpiPm, bench: Rig) -> None:
    assert chip.read(PM_TMR, 4) == 0
    bench.clock.advance(SECOND)
    assert chip.read(PM_TMR, 4) == 3_579_545
    bench.clock.advance(SECOND)
    assert chip.read(PM_TMR, 4) == 2 * 3_579_545


def test_timer_has_24_bits(chip: AcpiPm, bench: Rig) -> None:
    bench.clock.advance(5 * SECOND)
    assert chip.read(PM_TMR, 4) == 5 * 3_579_545 - (1 << 24)


def test_timer_is_read_only(chip: AcpiPm, bench: Rig) -> None:
    bench.clock.advance(SECOND)
    chip.write(PM_TMR, 4, 0)
    assert chip.read(PM_TMR, 4) == 3_579_545


def test_timer_status_follows_the_highest_bit(chip: AcpiPm, bench: Rig) -> None:
    """4.8.3.1.1: TMR_STS is set whenever bit 23 changes, in both directions."""
    for _ in range(3):
        start = bench.clock.now_ns
        due = -(-(start * 3_579_545 // SECOND // (1 << 23) + 1) * (1 << 23) * SECOND // 3_579_545)
        bench.clock.advance(due - start - 1)
        assert chip.read(PM1_STS, 2) == 0
        bench.clock.advance(1)
        assert chip.read(PM1_STS, 2) == TMR
        chip.write(PM1_STS, 2, TMR)
        assert chip.read(PM1_STS, 2) == 0


def test_timer_interrupt(chip: AcpiPm, bench: Rig) -> None:
    chip.write(PM1_EN, 2, TMR)
    assert bench.clock.deadlines() == {"acpi-pm.carry": HALF_TURN_NS}
    bench.clock.advance(HALF_TURN_NS)
    assert sci(bench)
    assert bench.clock.deadlines() == {}, "nothing more can happen before the guest clears it"
    chip.write(PM1_STS, 2, TMR)
    assert not sci(bench)
    assert len(bench.clock.deadlines()) == 1


def test_an_idle_guest_is_left_alone(chip: AcpiPm, bench: Rig) -> None:
    """Without TMR_EN there is nothing to wake up for."""
    chip.write(PM1_EN, 2, PWRBTN | GBL)
    assert bench.clock.deadlines() == {}


# Events (4.8.3.1)


def test_power_button(chip: AcpiPm, bench: Rig) -> None:
    chip.press_power_button()
    assert chip.read(PM1_STS, 2) == PWRBTN
    assert not sci(bench), "not enabled"
    chip.write(PM1_EN, 2, PWRBTN)
    assert sci(bench)
    chip.write(PM1_STS, 2, ~PWRBTN & 0xFFFF)
    assert sci(bench), "only a written one clears"
    chip.write(PM1_STS, 2, PWRBTN)
    assert not sci(bench)
    assert chip.read(PM1_STS, 2) == 0


def test_disabled_event_drops_the_interrupt(chip: AcpiPm, bench: Rig) -> None:
    chip.write(PM1_EN, 2, PWRBTN)
    chip.press_power_button()
    chip.write(PM1_EN, 2, 0)
    assert not sci(bench)
    assert chip.read(PM1_STS, 2) == PWRBTN


def test_enable_register_keeps_what_is_defined(chip: AcpiPm) -> None:
    chip.write(PM1_EN, 2, 0xFFFF)
    assert chip.read(PM1_EN, 2) == TMR | GBL | PWRBTN | RTC


# Control (4.8.3.2)


def test_there_is_no_legacy_mode(chip: AcpiPm) -> None:
    """Without SMI_CMD the hardware is in ACPI mode from the start and stays there."""
    assert chip.read(PM1_CNT, 2) == SCI_EN
    chip.write(PM1_CNT, 2, 0)
    assert chip.read(PM1_CNT, 2) == SCI_EN


def test_soft_off(chip: AcpiPm, bench: Rig) -> None:
    chip.write(PM1_CNT, 2, SLP_TYP_S5 << 10)
    assert not chip.off, "SLP_TYP alone does nothing"
    chip.write(PM1_CNT, 2, SLP_TYP_S5 << 10 | SLP_EN)
    assert chip.state.off
    assert bench.log == [("poweroff",)]
    assert chip.read(PM1_CNT, 2) == SLP_TYP_S5 << 10 | SCI_EN, "SLP_EN is write-only"
    chip.reset()
    assert not chip.off


def test_soft_off_byte_by_byte(chip: AcpiPm) -> None:
    """SLP_TYP and SLP_EN are in the upper byte."""
    chip.write(PM1_CNT + 1, 1, (SLP_TYP_S5 << 10 | SLP_EN) >> 8)
    assert chip.off


@pytest.mark.parametrize("sleep_type", [kind for kind in range(8) if kind != SLP_TYP_S5])
def test_other_sleep_states_do_not_exist(chip: AcpiPm, bench: Rig, sleep_type: int) -> None:
    chip.write(PM1_CNT, 2, sleep_type << 10 | SLP_EN)
    assert not chip.off
    assert bench.log == []


def test_bus_master_reload_is_stored(chip: AcpiPm) -> None:
    chip.write(PM1_CNT, 2, BM_RLD)
    assert chip.read(PM1_CNT, 2) == BM_RLD | SCI_EN


# Accesses


def made(prepare: Callable[[AcpiPm], None]) -> AcpiPm:
    rig = Rig(ManualClock())
    chip = AcpiPm(rig.line("sci"), rig.clock, rig.sink("poweroff"))
    rig.clock.advance(3 * SECOND + 7)
    prepare(chip)
    return chip


@given(st.integers(0, SPAN - 1), st.sampled_from([1, 2, 4, 8]))
def test_a_wide_read_is_its_bytes(offset: int, size: int) -> None:
    chip = made(AcpiPm.press_power_button)
    chip.write(PM1_EN, 2, PWRBTN)
    wide = chip.read(offset, size)
    if offset + size <= SPAN:
        assert wide.to_bytes(size, "little") == bytes(chip.read(offset + i, 1) for i in range(size))
    else:
        assert wide == (1 << 8 * size) - 1


@given(st.integers(0, SPAN - 4), st.integers(0, 0xFFFF_FFFF))
def test_a_wide_write_is_its_bytes(offset: int, value: int) -> None:
    """The highest byte last, as it holds SLP_EN beside SLP_TYP."""
    wide, narrow = made(AcpiPm.press_power_button), made(AcpiPm.press_power_button)
    wide.write(offset, 4, value)
    for index, byte in enumerate(value.to_bytes(4, "little")):
        narrow.write(offset + index, 1, byte)
    assert wide.state == narrow.state
