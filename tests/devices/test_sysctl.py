"""PIIX3 ports 0x61, 0x92 and 0xCF9."""

from __future__ import annotations

from tests.devices.promises import Rig
from vmm.clock import ManualClock
from vmm.devices.pit import Pit, ns_of
from vmm.devices.sysctl import REFRESH_NS, ResetControl, SystemControlA, SystemControlB


def test_port_b_calibrates_with_counter_2(bench: Rig, clock: ManualClock) -> None:
    """What Linux's TSC calibration does: gate on, mode 0, wait for bit 5."""
    pit = Pit(irq=bench.line("irq0"), clock=clock)
    port = SystemControlB(pit, clock)
    port.write(0, 1, 0x01)
    pit.write(3, 1, 0xB0)
    pit.write(2, 1, 0xFF)
    pit.write(2, 1, 0x2E)
    clock.advance(ns_of(0x2EFF))
    assert not port.read(0, 1) & 0x20
    clock.advance(ns_of(0x2F00) - clock.now_ns)
    assert port.read(0, 1) & 0x20


def test_port_b_gate_off_holds_counter_2(bench: Rig, clock: ManualClock) -> None:
    pit = Pit(irq=bench.line("irq0"), clock=clock)
    port = SystemControlB(pit, clock)
    pit.write(3, 1, 0x90)
    pit.write(2, 1, 10)
    clock.advance(1_000_000)
    assert not port.read(0, 1) & 0x20
    port.write(0, 1, 0x01)
    clock.advance(1_000_000)
    assert port.read(0, 1) & 0x20


def test_port_b_refresh_bit_toggles(bench: Rig, clock: ManualClock) -> None:
    """NMISC bit 4: toggles with each refresh cycle, about every 15 us."""
    port = SystemControlB(Pit(irq=bench.line("irq0"), clock=clock), clock)
    seen = []
    for _ in range(4):
        seen.append(port.read(0, 1) >> 4 & 1)
        clock.advance(REFRESH_NS)
    assert seen == [0, 1, 0, 1]


def test_port_b_keeps_the_lower_half_only(bench: Rig, clock: ManualClock) -> None:
    port = SystemControlB(Pit(irq=bench.line("irq0"), clock=clock), clock)
    port.write(0, 1, 0xFF)
    assert port.read(0, 1) & 0xCF == 0x0F, "SERR# and IOCHK# never come"


def test_port_92(bench: Rig) -> None:
    """Bit 1 is A20; a reset comes when bit 0 rises, and once."""
    port = SystemControlA(reset=bench.sink("reset"), set_a20=bench.line("a20").set)
    port.write(0, 1, 0x02)
    assert port.read(0, 1) == 0x02
    assert bench.log == [("a20", True)]
    port.write(0, 1, 0x03)
    port.write(0, 1, 0x03)
    assert bench.log == [("a20", True), ("reset",)]
    port.write(0, 1, 0x00)
    assert not bench.lines["a20"].level


def test_reset_control_begins_when_rcpu_rises(bench: Rig) -> None:
    """RC register: Linux writes 0x02, then 0x06."""
    port = ResetControl(reset=bench.sink("reset"))
    port.write(0, 1, 0x02)
    assert bench.log == []
    port.write(0, 1, 0x06)
    assert bench.log == [("reset",)]
    assert port.read(0, 1) == 0x06


def test_reset_may_replace_the_state_at_once(bench: Rig) -> None:
    """A board may reset everything from inside the callback: nothing is written after it."""
    ports: list[ResetControl] = []
    ports.append(ResetControl(reset=lambda: ports[0].reset()))
    ports[0].write(0, 1, 0x06)
    assert ports[0].read(0, 1) == 0
