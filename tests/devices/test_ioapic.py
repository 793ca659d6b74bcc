"""The I/O APIC against the 82093AA data sheet (290566-001)."""

from __future__ import annotations

import pytest

from vmm.clock import ManualClock
from vmm.devices.ioapic import PIN_COUNT, IoApic
from vmm.devices.lapic import Lapic

MASKED, LEVEL, REMOTE_IRR, LOW = 1 << 16, 1 << 15, 1 << 14, 1 << 13


class Bench:
    def __init__(self) -> None:
        self.sent: list[tuple[int, bool, int]] = []
        self.chip = IoApic(lambda vector, level, mode: self.sent.append((vector, level, mode)))

    def __getitem__(self, register: int) -> int:
        self.chip.write(0x00, 4, register)
        return self.chip.read(0x10, 4)

    def __setitem__(self, register: int, value: int) -> None:
        self.chip.write(0x00, 4, register)
        self.chip.write(0x10, 4, value)


@pytest.fixture
def b() -> Bench:
    return Bench()


def test_identity(b: Bench) -> None:
    """§3.2.1-3.2.3; xv6 compares the ID with the MP table's."""
    assert b[0x01] == 0x0017_0011
    assert b[0x00] == 1 << 24
    b[0x00] = 0xFFFF_FFFF
    assert b[0x00] == b[0x02] == 0x0F00_0000, "4 bits; arbitration is loaded with the ID"


def test_power_on_masks_every_pin(b: Bench) -> None:
    assert all((b[0x10 + 2 * pin], b[0x11 + 2 * pin]) == (MASKED, 0) for pin in range(PIN_COUNT))
    for pin in range(PIN_COUNT):
        b.chip.line(pin).set(True)
    assert b.sent == []


def test_writable_bits(b: Bench) -> None:
    """§3.2.4: delivery status and Remote IRR are read-only, bits 17-55 reserved."""
    b[0x12], b[0x13] = 0xFFFF_FFFF, 0xFFFF_FFFF
    assert (b[0x12], b[0x13]) == (0x1_AFFF, 0xFF00_0000)
    assert b[0x40] == 0xFFFF_FFFF, "beyond the table"
    b[0x40] = 0


def test_edge(b: Bench) -> None:
    b[0x10 + 8] = 0x31
    pin = b.chip.line(4)
    pin.set(True)
    pin.set(True)
    assert b.sent == [(0x31, False, 0)]
    pin.set(False)
    pin.set(True)
    assert len(b.sent) == 2


def test_edge_on_a_masked_pin_is_lost(b: Bench) -> None:
    b[0x18] = 0x31 | MASKED
    b.chip.line(4).set(True)
    b[0x18] = 0x31
    assert b.sent == []


def test_level_is_sent_once_until_eoi(b: Bench) -> None:
    b[0x10 + 20] = 0x41 | LEVEL | LOW
    pin = b.chip.line(10)
    pin.set(True)
    assert b.sent == [(0x41, True, 0)]
    assert b[0x24] & REMOTE_IRR
    pin.set(False)
    pin.set(True)
    assert len(b.sent) == 1, "Remote IRR holds it back"
    b.chip.eoi(0x42)
    assert len(b.sent) == 1, "another vector's EOI"
    b.chip.eoi(0x41)
    assert len(b.sent) == 2, "still asserted"
    pin.set(False)
    b.chip.eoi(0x41)
    assert len(b.sent) == 2
    assert not b[0x24] & REMOTE_IRR


def test_level_on_a_masked_pin_is_sent_when_unmasked(b: Bench) -> None:
    b[0x24] = 0x41 | LEVEL | MASKED
    b.chip.line(10).set(True)
    assert b.sent == []
    b[0x24] = 0x41 | LEVEL
    assert b.sent == [(0x41, True, 0)]


def test_remote_irr_is_cleared_by_a_moment_of_edge_mode(b: Bench) -> None:
    """How Linux ends a level interrupt on a version without an EOI register."""
    b[0x24] = 0x41 | LEVEL
    b.chip.line(10).set(True)
    b.chip.line(10).set(False)
    b[0x24] = 0x41 | MASKED
    b[0x24] = 0x41 | LEVEL
    assert not b[0x24] & REMOTE_IRR


@pytest.mark.parametrize(("mode", "sent"), [(1, True), (2, False), (4, True), (5, False), (7, True)])
def test_delivery_modes(b: Bench, mode: int, sent: bool) -> None:
    b[0x10] = 0x31 | mode << 8
    b.chip.line(0).set(True)
    assert b.sent == ([(0x31, False, mode)] if sent else [])


def test_there_is_no_eoi_register(b: Bench) -> None:
    assert b.chip.read(0x40, 4) == 0xFFFF_FFFF
    b[0x24] = 0x41 | LEVEL
    b.chip.line(10).set(True)
    b.chip.write(0x40, 4, 0x41)
    assert b[0x24] & REMOTE_IRR


def test_with_a_local_apic(b: Bench) -> None:
    """A level-triggered interrupt through both chips: it returns until the device is served."""

    class Output:
        level = False

        def set(self, level: bool) -> None:
            self.level = level

        def __call__(self) -> bool:
            return self.level

    output = Output()
    chip = IoApic(lambda vector, level, mode: lapic.deliver(vector, level, mode))
    lapic = Lapic(ManualClock(), output, lambda: 0, lambda: None, chip.eoi)
    lapic.virtual_wire()
    chip.write(0x00, 4, 0x10 + 2 * 11)
    chip.write(0x10, 4, 0x41 | LEVEL)
    chip.line(11).set(True)
    for _ in range(3):
        assert output()
        assert lapic.acknowledge() == 0x41
        assert not output()
        lapic.write(0xB0, 4, 0)
    lapic.acknowledge()
    chip.line(11).set(False)
    lapic.write(0xB0, 4, 0)
    assert not output()
