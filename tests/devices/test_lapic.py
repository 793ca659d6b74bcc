"""The local APIC against Intel SDM volume 3A chapter 11 (section titles in quotes)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.promises import Rig
from vmm.clock import ManualClock
from vmm.devices.lapic import Lapic
from vmm.devices.lapic_timer import PERIOD_MIN_NS

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
TIMER, LINT0, LINT1, ERROR, INITIAL, CURRENT, DIVIDE = 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0
MASKED, PERIODIC, TSC_DEADLINE, DIVIDE_BY_1 = 0x1_0000, 0x2_0000, 0x4_0000, 0xB
PIC_VECTOR = 0x38


class Bench:
    """An enabled APIC whose output, NMIs and EOI broadcasts are recorded."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000)
        rig = Rig(self.clock)
        self.log = rig.log
        self.output = rig.line("output")
        self.apic = Lapic(self.clock, self.output, lambda: PIC_VECTOR, rig.sink("nmi"), rig.sink("eoi"))
        self.apic.reset()
        self.apic.virtual_wire()
        self[DIVIDE] = DIVIDE_BY_1
        self.log.clear()

    def __getitem__(self, register: int) -> int:
        return self.apic.read(register, 4)

    def __setitem__(self, register: int, value: int) -> None:
        self.apic.write(register, 4, value)

    def pending(self) -> bool:
        return self.output.level

    def vectors(self, register: int) -> set[int]:
        words = [self[register + 16 * word] for word in range(8)]
        return {32 * word + bit for word in range(8) for bit in range(32) if words[word] >> bit & 1}


@pytest.fixture
def b() -> Bench:
    return Bench()


# "Local APIC State After Power-Up or Reset"


def test_power_on_registers() -> None:
    bench = Bench()
    bench.apic.reset()
    expected = {ID: 0, TPR: 0, PPR: 0, LDR: 0, DFR: 0xFFFF_FFFF, SVR: 0xFF, ESR: 0, INITIAL: 0, CURRENT: 0}
    expected |= dict.fromkeys((TIMER, 0x330, 0x340, LINT0, LINT1, ERROR), MASKED)
    assert {register: bench[register] for register in expected} == expected
    assert bench[VERSION] == 0x0005_0014  # integrated, LVT entries 0-5
    assert bench.apic.apic_base == 0xFEE0_0900


def test_virtual_wire_is_what_the_mp_specification_demands(b: Bench) -> None:
    """MP specification 3.6.2.2: LINT0 is ExtINT, LINT1 is NMI, the APIC is enabled."""
    assert (b[LINT0], b[LINT1], b[SVR] >> 8 & 1) == (0x700, 0x400, 1)
    b.apic.lint0.set(True)
    assert b.pending()
    assert b.apic.acknowledge() == PIC_VECTOR
    assert b.vectors(ISR) == set(), "ExtINT leaves ISR alone"
    b.apic.lint0.set(False)
    assert not b.pending()
    b.apic.lint1.set(True)
    b.apic.lint1.set(True)
    assert b.log.count(("nmi",)) == 1


# "Handling Interrupts", "Interrupt, Task, and Processor Priority"


def test_fixed_interrupt_from_irr_to_isr_to_eoi(b: Bench) -> None:
    b.apic.deliver(0x51, False)
    assert b.pending()
    assert b.vectors(IRR) == {0x51}
    assert b.apic.acknowledge() == 0x51
    assert not b.pending()
    assert (b.vectors(IRR), b.vectors(ISR), b[PPR]) == (set(), {0x51}, 0x50)
    b[EOI] = 0
    assert (b.vectors(ISR), b[PPR]) == (set(), 0)
    assert ("eoi", 0x51) not in b.log, "an edge-triggered interrupt is not broadcast"


def test_only_a_higher_class_nests(b: Bench) -> None:
    b.apic.deliver(0x51, False)
    b.apic.acknowledge()
    b.apic.deliver(0x5F, False)
    assert not b.pending(), "same class waits"
    b.apic.deliver(0x60, False)
    assert b.pending()
    assert b.apic.acknowledge() == 0x60
    b[EOI] = 0
    assert b.vectors(ISR) == {0x51}
    b[EOI] = 0
    assert b.apic.acknowledge() == 0x5F


def test_task_priority_holds_back_and_lets_go(b: Bench) -> None:
    b.apic.set_tpr(0x50)
    b.apic.deliver(0x5F, False)
    assert not b.pending()
    assert b.apic.acknowledge() == 0xFF, "nothing deliverable: the spurious vector"
    assert b.vectors(ISR) == set()
    b[TPR] = 0x4F
    assert b.pending()
    assert b.apic.tpr == 0x4F
    assert b[PPR] == 0x4F


@given(tpr=st.integers(0, 255), vectors=st.lists(st.integers(16, 255), max_size=12))
def test_acknowledge_gives_the_highest_vector_above_ppr(tpr: int, vectors: list[int]) -> None:
    bench = Bench()
    bench.apic.set_tpr(tpr)
    for vector in vectors:
        bench.apic.deliver(vector, False)
    waiting = {vector for vector in vectors if vector >> 4 > tpr >> 4}
    while waiting:
        assert bench.pending()
        assert bench.apic.acknowledge() == max(waiting)
        bench[EOI] = 0
        waiting.discard(max(waiting))
    assert not bench.pending()


def test_level_triggered_eoi_is_broadcast(b: Bench) -> None:
    b.apic.deliver(0x41, True)
    assert b.vectors(TMR) == {0x41}
    b.apic.acknowledge()
    b[EOI] = 0
    assert ("eoi", 0x41) in b.log
    b.apic.deliver(0x41, False)
    assert b.vectors(TMR) == set(), "TMR follows the last acceptance"


def test_extint_message_runs_the_external_acknowledge(b: Bench) -> None:
    b.apic.deliver(0, False, 7)
    assert b.pending()
    assert b.apic.acknowledge() == PIC_VECTOR
    assert not b.pending()


def test_nmi_message(b: Bench) -> None:
    b.apic.deliver(0, False, 4)
    assert b.log == [("nmi",)]


# "Local Vector Table"


def test_lint0_fixed_level_asks_again_after_eoi(b: Bench) -> None:
    b[LINT0] = 0x8000 | 0x61
    b.apic.lint0.set(True)
    assert b[LINT0] & 0x4000, "remote IRR"
    assert b.apic.acknowledge() == 0x61
    b[EOI] = 0
    assert b.apic.acknowledge() == 0x61, "the pin is still asserted"
    b.apic.lint0.set(False)
    b[EOI] = 0
    assert b.vectors(IRR) == set()
    assert not b[LINT0] & 0x4000


def test_lint0_fixed_edge(b: Bench) -> None:
    """Linux falls back to this virtual wire for the timer."""
    b[LINT0] = 0x61
    b.apic.lint0.set(True)
    b.apic.acknowledge()
    b[EOI] = 0
    assert not b.pending()
    b.apic.lint0.set(False)
    b.apic.lint0.set(True)
    assert b.apic.acknowledge() == 0x61


def test_masking_lint0_hides_the_8259(b: Bench) -> None:
    b.apic.lint0.set(True)
    b[LINT0] = 0x700 | MASKED
    assert not b.pending()
    b[LINT0] = 0x700
    assert b.pending()


# "Local APIC Status and Location", "Spurious Interrupt"


def test_software_disable_masks_the_lvt_and_takes_no_new_interrupts(b: Bench) -> None:
    b.apic.deliver(0x51, False)
    b[SVR] = 0xFF
    assert all(b[register] & MASKED for register in (TIMER, LINT0, LINT1, ERROR))
    b[LINT0] = 0x700
    assert b[LINT0] == 0x700 | MASKED, "mask bits cannot be cleared"
    b.apic.deliver(0x61, False)
    assert b.vectors(IRR) == {0x51}
    assert b.apic.acknowledge() == 0x51, "what was pending is still served"


def test_global_disable_connects_the_pins_to_the_processor(b: Bench) -> None:
    b[TPR] = 0x20
    b.apic.lint0.set(True)
    assert b.apic.write_apic_base(0xFEE0_0100)
    assert b[VERSION] == 0xFFFF_FFFF
    b.apic.deliver(0x51, False)
    assert b.pending()
    assert b.apic.acknowledge() == PIC_VECTOR
    b.apic.lint0.set(False)
    assert not b.pending()
    b.apic.lint1.set(True)
    assert ("nmi",) in b.log
    assert b.apic.write_apic_base(0xFEE0_0900)
    assert (b[TPR], b[SVR], b[LINT0]) == (0, 0xFF, MASKED), "re-enabled: the power-on state"


@pytest.mark.parametrize("value", [0xFEE0_0901, 0xFEE0_0B00, 0xFEE0_0D00, 0xFEE0_1900, 1 << 52 | 0xFEE0_0900])
def test_reserved_bits_x2apic_and_relocation_are_refused(b: Bench, value: int) -> None:
    assert not b.apic.write_apic_base(value)
    assert b.apic.apic_base == 0xFEE0_0900


# "Issuing Interprocessor Interrupts", "Determining IPI Destination"


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, 0x4_0051, True),  # self
        (0, 0x8_0051, True),  # all including self
        (0, 0xC_0051, False),  # all excluding self
        (0, 0x0_0051, True),  # physical 0
        (0xFF00_0000, 0x0_0051, True),  # physical broadcast
        (0x0100_0000, 0x0_0051, False),
        (0x0300_0000, 0x0_0851, True),  # flat logical: bit 0 is ours
        (0x0200_0000, 0x0_0851, False),
        (0, 0x4_0551, False),  # INIT to ourselves goes nowhere
    ],
)
def test_ipi_destinations(b: Bench, high: int, low: int, arrives: bool) -> None:
    b[LDR] = 0x0100_0000
    b[ICR_HIGH] = high
    b[ICR_LOW] = low
    assert b.vectors(IRR) == ({0x51} if arrives else set())
    assert b[ICR_LOW] & 0x1000 == 0, "delivery status is idle"


def test_cluster_model(b: Bench) -> None:
    b[LDR], b[DFR] = 0x2100_0000, 0x0FFF_FFFF
    for destination, arrives in ((0x21, True), (0x23, True), (0x22, False), (0x31, False), (0xF1, True)):
        b[ICR_HIGH], b[ICR_LOW] = destination << 24, 0x851
        assert (b.vectors(IRR) == {0x51}) == arrives, hex(destination)
        b.apic.acknowledge()
        b[EOI] = 0


# "Error Handling"


def test_illegal_vector_is_reported_after_esr_is_written(b: Bench) -> None:
    b[ERROR] = 0x71
    b.apic.deliver(0x0F, False)
    assert b.apic.acknowledge() == 0x71
    assert b[ESR] == 0, "a write is needed before a read"
    b[ESR] = 0
    assert b[ESR] == 0x40
    b[ICR_LOW] = 0x4_0001
    assert b[0x3F0] == 0
    b[ESR] = 0
    assert b[ESR] == 0x20 | 0x80, "send illegal vector, illegal register address"
    b[ESR] = 0
    assert b[ESR] == 0


def test_partial_access(b: Bench) -> None:
    assert b.apic.read(VERSION + 2, 1) == 0x05
    assert b.apic.read(VERSION, 8) == 0x0005_0014
    assert b.apic.read(VERSION + 4, 4) == 0
    b.apic.write(TPR, 1, 0x50)
    assert b.apic.tpr == 0, "only 32-bit writes are defined"


# "APIC Timer"


def test_one_shot(b: Bench) -> None:
    b[TIMER] = 0xEC
    b[INITIAL] = 500
    b.clock.advance(200)
    assert b[CURRENT] == 300
    b.clock.advance(300)
    assert (b[CURRENT], b.vectors(IRR)) == (0, {0xEC})
    b.apic.acknowledge()
    b[EOI] = 0
    b.clock.advance(10_000)
    assert not b.pending()


@pytest.mark.parametrize(
    ("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_divide_configuration(b: Bench, code: int, divisor: int) -> None:
    b[DIVIDE] = code
    b[TIMER] = 0xEC
    b[INITIAL] = 100
    b.clock.advance(100 * divisor - 1)
    assert (b[CURRENT], b.pending()) == (1, False)
    b.clock.advance(1)
    assert b.pending()


def test_periodic_keeps_its_phase(b: Bench) -> None:
    b[TIMER] = PERIODIC | 0xEC
    b[INITIAL] = 5000
    times = []
    for _ in range(40):
        b.clock.advance(500)
        if b.pending():
            times.append(b.clock.now_ns - 1000)
            b.apic.acknowledge()
            b[EOI] = 0
    assert times == [5000, 10_000, 15_000, 20_000]


def test_masked_periodic_timer_counts_without_an_alarm(b: Bench) -> None:
    b[TIMER] = PERIODIC | MASKED | 0xEC
    b[INITIAL] = 5000
    assert b.clock.deadlines() == {}
    b.clock.advance(12_000)
    assert b[CURRENT] == 3000
    b[TIMER] = PERIODIC | 0xEC
    assert b.vectors(IRR) == set(), "ticks while masked are lost"
    b.clock.advance(3000)
    assert b.vectors(IRR) == {0xEC}


def test_fast_periods_are_served_at_a_limited_rate(b: Bench) -> None:
    b[TIMER] = PERIODIC | 0xEC
    b[INITIAL] = 3
    b.clock.advance(3)
    assert b.pending()
    next_tick = b.clock.deadlines()["lapic"]
    assert PERIOD_MIN_NS <= next_tick - b.clock.now_ns < PERIOD_MIN_NS + 3
    assert (next_tick - 1000) % 3 == 0, "in phase"


def test_new_divisor_keeps_what_is_left_of_the_count(b: Bench) -> None:
    b[TIMER] = 0xEC
    b[INITIAL] = 1000
    b.clock.advance(400)
    b[DIVIDE] = 0  # by 2
    assert b[CURRENT] == 600
    b.clock.advance(1199)
    assert not b.pending()
    b.clock.advance(1)
    assert b.pending()


def test_writing_zero_stops(b: Bench) -> None:
    b[TIMER] = 0xEC
    b[INITIAL] = 500
    b[INITIAL] = 0
    assert b.clock.deadlines() == {}


# "TSC-Deadline Mode"


def test_tsc_deadline(b: Bench) -> None:
    b.apic.write_tsc_deadline(5000)
    assert b.apic.tsc_deadline == 0, "ignored in the other modes"
    b[TIMER] = TSC_DEADLINE | 0xEC
    b.apic.write_tsc_deadline(5000)
    b[INITIAL] = 77
    assert (b.apic.tsc_deadline, b[CURRENT], b[INITIAL]) == (5000, 0, 0)
    b.clock.advance(3999)
    assert not b.pending()
    b.clock.advance(1)
    assert b.pending()
    assert b.apic.tsc_deadline == 0, "disarmed by firing"
    b.apic.acknowledge()
    b[EOI] = 0
    b.apic.write_tsc_deadline(1)
    assert b.apic.acknowledge() == 0xEC, "a deadline in the past fires at once"


def test_leaving_deadline_mode_disarms(b: Bench) -> None:
    b[TIMER] = TSC_DEADLINE | 0xEC
    b.apic.write_tsc_deadline(5000)
    b[TIMER] = 0xEC
    b.clock.advance(10_000)
    assert not b.pending()
