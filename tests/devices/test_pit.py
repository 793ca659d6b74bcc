"""8254: the data sheet's words (Intel order 231164), one test each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.promises import Rig
from vmm.clock import ManualClock
from vmm.devices.pit import HZ, Pit, ns_of, pulse_at

SECOND = 1_000_000_000


@pytest.fixture
def pit(bench: Rig, clock: ManualClock) -> Pit:
    pit = Pit(irq=bench.line("irq0"), clock=clock)
    pit.set_gate2(True)
    return pit


def program(pit: Pit, counter: int, mode: int, count: int, bcd: bool = False) -> None:
    pit.write(3, 1, counter << 6 | 0x30 | mode << 1 | bcd)
    pit.write(counter, 1, count & 0xFF)
    pit.write(counter, 1, count >> 8)


def to_pulse(clock: ManualClock, pulse: int) -> None:
    clock.advance(ns_of(pulse) - clock.now_ns)


def count_of(pit: Pit, counter: int) -> int:
    pit.write(3, 1, counter << 6)
    return pit.read(counter, 1) | pit.read(counter, 1) << 8


def level(bench: Rig) -> bool:
    return bench.lines["irq0"].level


def rises(bench: Rig) -> int:
    return bench.log.count(("irq0", True))


@given(st.integers(0, 1 << 60))
def test_pulse_and_time_agree(pulse: int) -> None:
    at = ns_of(pulse)
    assert pulse_at(at) == pulse
    assert at == 0 or pulse_at(at - 1) == pulse - 1


def test_rate_generator_never_drifts(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """Mode 2: one rising edge each N pulses, exactly, however long it runs."""
    program(pit, 0, 2, 1193)
    bench.log.clear()
    clock.advance(100 * SECOND)
    assert rises(bench) == (pulse_at(100 * SECOND) - 1) // 1193
    assert clock.next_deadline_ns == ns_of(1 + (rises(bench) + 1) * 1193)


def test_edges_come_apart(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """Each period lowers IRQ 0 and raises it: an edge-triggered input sees one request."""
    program(pit, 0, 2, 100)
    bench.log.clear()
    to_pulse(clock, 1 + 3 * 100)
    assert bench.log == [("irq0", False), ("irq0", True)] * 3


def test_mode_2_counts_down_and_is_low_for_one_pulse(clock: ManualClock, pit: Pit) -> None:
    program(pit, 2, 2, 4)
    seen = []
    for pulse in range(1, 10):
        to_pulse(clock, pulse)
        seen.append((count_of(pit, 2), pit.output2()))
    assert seen == [
        (4, True),
        (3, True),
        (2, True),
        (1, False),
        (4, True),
        (3, True),
        (2, True),
        (1, False),
        (4, True),
    ]


@pytest.mark.parametrize(
    ("count", "values", "outs"),
    [
        (4, [4, 2, 4, 2, 4], [True, True, False, False, True]),
        (5, [4, 2, 0, 4, 2, 4], [True, True, True, False, False, True]),
    ],
)
def test_mode_3_even_and_odd(
    clock: ManualClock, pit: Pit, count: int, values: list[int], outs: list[bool]
) -> None:
    """Mode 3: decrements by two; an odd count is one pulse longer high than low."""
    program(pit, 2, 3, count)
    for pulse, (value, out) in enumerate(zip(values, outs, strict=True), start=1):
        to_pulse(clock, pulse)
        assert (count_of(pit, 2), pit.output2()) == (value, out), f"pulse {pulse}"


def test_mode_0_interrupts_once(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """Mode 0: OUT is low from the control word and high N + 1 pulses after the count; then it stays."""
    program(pit, 0, 0, 10)
    assert not level(bench)
    to_pulse(clock, 10)
    assert not level(bench)
    to_pulse(clock, 11)
    assert level(bench)
    assert clock.deadlines() == {}
    to_pulse(clock, 12)
    assert count_of(pit, 0) == 0xFFFF, "the counter wraps and goes on"
    pit.write(0, 1, 5)
    assert not level(bench), "the first byte of a new count sets OUT low"


def test_mode_0_gate_holds_the_count(clock: ManualClock, pit: Pit) -> None:
    program(pit, 2, 0, 100)
    to_pulse(clock, 31)
    pit.set_gate2(False)
    to_pulse(clock, 500)
    assert (count_of(pit, 2), pit.output2()) == (70, False)
    pit.set_gate2(True)
    to_pulse(clock, 569)
    assert not pit.output2()
    to_pulse(clock, 570)
    assert pit.output2()


def test_mode_1_is_triggered_by_gate_and_retriggerable(clock: ManualClock, pit: Pit) -> None:
    pit.set_gate2(False)
    program(pit, 2, 1, 10)
    to_pulse(clock, 50)
    assert pit.output2(), "waits for the trigger"
    pit.set_gate2(True)
    to_pulse(clock, 51)
    assert not pit.output2()
    to_pulse(clock, 58)
    pit.set_gate2(False)
    pit.set_gate2(True)
    to_pulse(clock, 68)
    assert not pit.output2(), "retriggered at 59"
    to_pulse(clock, 69)
    assert pit.output2()


@pytest.mark.parametrize("mode", [4, 5])
def test_strobes_are_low_for_one_pulse(clock: ManualClock, pit: Pit, mode: int) -> None:
    """Modes 4 and 5: OUT is low for the pulse at terminal count."""
    pit.set_gate2(mode == 4)
    program(pit, 2, mode, 10)
    pit.set_gate2(True)
    outs = []
    for pulse in range(9, 14):
        to_pulse(clock, pulse)
        outs.append(pit.output2())
    assert outs == [True, True, False, True, True]


def test_mode_4_on_counter_0_gives_one_edge(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """Linux's one-shot clock event: mode 4, edge at the end of the strobe."""
    program(pit, 0, 4, 10)
    bench.log.clear()
    to_pulse(clock, 11)
    assert rises(bench) == 0
    to_pulse(clock, 12)
    assert rises(bench) == 1
    to_pulse(clock, 100_000)
    assert rises(bench) == 1


def test_gate_low_stops_modes_2_and_3_high(clock: ManualClock, pit: Pit) -> None:
    program(pit, 2, 3, 100)
    to_pulse(clock, 61)
    assert not pit.output2()
    pit.set_gate2(False)
    assert pit.output2()
    stopped = count_of(pit, 2)
    to_pulse(clock, 1000)
    assert count_of(pit, 2) == stopped
    pit.set_gate2(True)
    to_pulse(clock, 1001)
    assert count_of(pit, 2) == 100, "the rising gate reloads"


def test_new_count_waits_for_the_end_of_the_period(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """Mode 2: "a new count ... will be loaded at the end of the current counting cycle"."""
    program(pit, 0, 2, 100)
    to_pulse(clock, 31)
    pit.write(0, 1, 40)
    pit.write(0, 1, 0)
    bench.log.clear()
    assert count_of(pit, 0) == 70
    to_pulse(clock, 100)
    assert rises(bench) == 0
    to_pulse(clock, 101)
    assert rises(bench) == 1
    to_pulse(clock, 141)
    assert rises(bench) == 2


def test_new_count_in_mode_3_waits_for_the_half_period(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """Mode 3: "loaded at the end of the current half-cycle"."""
    program(pit, 0, 3, 100)
    to_pulse(clock, 31)
    pit.write(0, 1, 40)
    pit.write(0, 1, 0)
    bench.log.clear()
    to_pulse(clock, 51 + 19)
    assert rises(bench) == 0
    to_pulse(clock, 51 + 20)
    assert rises(bench) == 1, "the low half was already that of the new count"
    to_pulse(clock, 51 + 20 + 40)
    assert rises(bench) == 2


def test_latch_holds_until_read(clock: ManualClock, pit: Pit) -> None:
    """Counter Latch Command: the first of two latches counts; reading frees it."""
    program(pit, 2, 2, 0x1234)
    to_pulse(clock, 1)
    pit.write(3, 1, 0x80)
    to_pulse(clock, 0x11)
    pit.write(3, 1, 0x80)
    assert (pit.read(2, 1), pit.read(2, 1)) == (0x34, 0x12)
    assert (pit.read(2, 1), pit.read(2, 1)) == (0x24, 0x12)


def test_read_back_status_then_count(clock: ManualClock, pit: Pit) -> None:
    """Read-Back Command: status comes first; NULL COUNT until the count is loaded."""
    program(pit, 2, 3, 100)
    pit.write(3, 1, 0xE8)
    assert pit.read(2, 1) == 0x80 | 0x40 | 0x36
    to_pulse(clock, 61)
    pit.write(3, 1, 0xC8)
    assert pit.read(2, 1) == 0x36, "OUT low, count loaded, control word"
    assert pit.read(2, 1) | pit.read(2, 1) << 8 == 80
    pit.write(3, 1, 0xE2)
    assert pit.read(0, 1) & 0x40, "counter 0 has no count yet"


def test_lsb_only_and_msb_only(clock: ManualClock, pit: Pit) -> None:
    pit.write(3, 1, 0x94)  # counter 2, LSB, mode 2
    pit.write(2, 1, 50)
    to_pulse(clock, 2)
    assert [pit.read(2, 1), pit.read(2, 1)] == [49, 49]
    pit.write(3, 1, 0xA4)  # counter 2, MSB, mode 2
    pit.write(2, 1, 2)
    to_pulse(clock, 3)
    assert pit.read(2, 1) == 2


def test_bcd_counts_in_tens(clock: ManualClock, pit: Pit) -> None:
    program(pit, 2, 2, 0x1000, bcd=True)
    to_pulse(clock, 2)
    assert count_of(pit, 2) == 0x0999
    program(pit, 2, 2, 0, bcd=True)
    to_pulse(clock, 4)
    assert count_of(pit, 2) == 0x9999, "zero is 10000"


def test_zero_is_65536(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """The PC's 18.2 Hz."""
    program(pit, 0, 3, 0)
    bench.log.clear()
    clock.advance(10 * SECOND)
    assert rises(bench) == 10 * HZ // 65536 == 182


def test_idle_timer_arms_nothing(clock: ManualClock, pit: Pit) -> None:
    assert clock.deadlines() == {}
    program(pit, 2, 2, 2)
    assert clock.deadlines() == {}, "only OUT 0 is wired to an interrupt"


def test_late_alarm_gives_one_edge_and_returns_to_the_grid(bench: Rig, clock: ManualClock, pit: Pit) -> None:
    """A slice that overran several periods: one request, and the next deadline is on the grid."""
    program(pit, 0, 2, 100)
    bench.log.clear()
    clock._now_ns = ns_of(1 + 350)
    clock.fire_due()
    assert rises(bench) == 1
    assert clock.next_deadline_ns == ns_of(1 + 400)
