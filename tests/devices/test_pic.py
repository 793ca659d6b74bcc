"""8259A: the data sheet's words (Intel order 231468), one test each."""

from __future__ import annotations

import pytest

from tests.devices.promises import Rig
from vmm.devices.pic import Pic

MASTER_BASE, SLAVE_BASE = 0x20, 0x28
EOI = 0x20
SPECIFIC_EOI = 0x60


@pytest.fixture
def pic(bench: Rig) -> Pic:
    """Initialised as the PC does: ICW1 to ICW4, everything unmasked."""
    pic = Pic(output=bench.line("int"))
    for chip, base, icw3 in ((pic.master, MASTER_BASE, 0x04), (pic.slave, SLAVE_BASE, 0x02)):
        chip.write(0, 1, 0x11)
        for icw in (base, icw3, 0x01):
            chip.write(1, 1, icw)
    return pic


def wants_service(bench: Rig) -> bool:
    return bench.lines["int"].level


def isr(pic: Pic, chip: str = "master") -> int:
    port = getattr(pic, chip)
    port.write(0, 1, 0x0B)
    return int(port.read(0, 1))


def irr(pic: Pic, chip: str = "master") -> int:
    port = getattr(pic, chip)
    port.write(0, 1, 0x0A)
    return int(port.read(0, 1))


def pulse(pic: Pic, number: int) -> None:
    pic.line(number).set(False)
    pic.line(number).set(True)


def test_chip_without_icw1_is_mute(bench: Rig) -> None:
    pic = Pic(output=bench.line("int"))
    pic.master.write(1, 1, 0x00)
    pic.line(1).set(True)
    assert not wants_service(bench)


def test_interrupt_sequence(bench: Rig, pic: Pic) -> None:
    """Interrupt Sequence: IRR set, INT raised; INTA sets the ISR bit, clears the IRR bit."""
    pic.line(3).set(True)
    assert wants_service(bench)
    assert irr(pic) == 0x08
    assert pic.acknowledge() == MASTER_BASE | 3
    assert (irr(pic), isr(pic)) == (0, 0x08)
    assert not wants_service(bench)
    pic.master.write(0, 1, EOI)
    assert isr(pic) == 0
    assert not wants_service(bench), "an edge asks once"


def test_fully_nested_mode(bench: Rig, pic: Pic) -> None:
    """Fully Nested Mode: lower and equal priorities wait for the EOI, higher ones interrupt."""
    pic.line(4).set(True)
    assert pic.acknowledge() == MASTER_BASE | 4
    pic.line(5).set(True)
    pulse(pic, 4)
    assert not wants_service(bench)
    pic.line(1).set(True)
    assert pic.acknowledge() == MASTER_BASE | 1
    pic.master.write(0, 1, EOI)
    assert isr(pic) == 0x10, "non-specific EOI clears the highest level in service"
    pic.master.write(0, 1, EOI)
    assert [pic.acknowledge()] == [MASTER_BASE | 4]
    pic.master.write(0, 1, SPECIFIC_EOI | 4)
    assert pic.acknowledge() == MASTER_BASE | 5


def test_cascade(bench: Rig, pic: Pic) -> None:
    """Cascade Mode: the slave gives the vector; two EOIs, one for each chip."""
    pic.line(12).set(True)
    assert irr(pic) == 0x04
    assert pic.acknowledge() == SLAVE_BASE | 4
    assert (isr(pic), isr(pic, "slave")) == (0x04, 0x10)
    pic.line(8).set(True)
    assert not wants_service(bench), "a fully nested master holds back its own slave"
    pic.slave.write(0, 1, EOI)
    pic.master.write(0, 1, EOI)
    assert pic.acknowledge() == SLAVE_BASE | 0


def test_special_fully_nested_mode(bench: Rig, pic: Pic) -> None:
    """Special Fully Nested Mode: further requests of a slave in service pass the master."""
    pic.master.write(0, 1, 0x11)
    for icw in (MASTER_BASE, 0x04, 0x11):
        pic.master.write(1, 1, icw)
    pic.line(12).set(True)
    assert pic.acknowledge() == SLAVE_BASE | 4
    pic.line(9).set(True)
    assert wants_service(bench)
    assert pic.acknowledge() == SLAVE_BASE | 1
    pic.line(3).set(True)
    assert not wants_service(bench), "lower levels still wait"


def test_withdrawn_request_is_spurious_level_7(pic: Pic, bench: Rig) -> None:
    """Interrupt Sequence: no request at INTA gives level 7, and no ISR bit."""
    pic.line(3).set(True)
    pic.line(3).set(False)
    assert not wants_service(bench)
    assert pic.acknowledge() == MASTER_BASE | 7
    assert isr(pic) == 0


def test_request_withdrawn_from_slave_is_spurious_15(pic: Pic) -> None:
    """The slave answers level 7; the master did see its input 2 and has it in service."""
    pic.master.write(1, 1, 0x00)
    pic.line(10).set(True)
    master = pic.state.master
    pic.line(10).set(False)
    master.irr |= 0x04  # the slave's INT fell between the two INTA pulses
    assert pic.acknowledge() == SLAVE_BASE | 7
    assert (isr(pic), isr(pic, "slave")) == (0x04, 0)


def test_level_input_asks_as_long_as_it_is_high(bench: Rig, pic: Pic) -> None:
    """ELCR2 bit 2: IRQ 10 level-triggered."""
    pic.elcr.write(1, 1, 0x04)
    pic.line(10).set(True)
    assert pic.acknowledge() == SLAVE_BASE | 2
    for chip in (pic.slave, pic.master):
        chip.write(0, 1, EOI)
    assert pic.acknowledge() == SLAVE_BASE | 2, "still high: asks again after EOI"
    pic.line(10).set(False)
    for chip in (pic.slave, pic.master):
        chip.write(0, 1, EOI)
    assert not wants_service(bench)


def test_elcr_bits_of_board_interrupts_do_not_exist(pic: Pic) -> None:
    """ELCR1/ELCR2: IRQ 0, 1, 2, 8 and 13 are always edges."""
    pic.elcr.write(0, 2, 0xFFFF)
    assert pic.elcr.read(0, 2) == 0xDEF8


def test_automatic_eoi(bench: Rig, pic: Pic) -> None:
    """AEOI: the ISR bit goes with the last INTA; rotating AEOI makes the level the lowest."""
    pic.master.write(0, 1, 0x11)
    for icw in (MASTER_BASE, 0x04, 0x03):
        pic.master.write(1, 1, icw)
    pic.master.write(0, 1, 0x80)  # rotate in AEOI, set
    pic.line(3).set(True)
    assert pic.acknowledge() == MASTER_BASE | 3
    assert isr(pic) == 0
    pulse(pic, 3)
    pic.line(6).set(True)
    assert pic.acknowledge() == MASTER_BASE | 6, "3 is now the lowest"
    pic.master.write(0, 1, 0x00)  # rotate in AEOI, clear
    assert pic.acknowledge() == MASTER_BASE | 3


@pytest.mark.parametrize(("ocw2", "first"), [(0xA0, 5), (0xE0 | 4, 5), (0xC0 | 4, 5), (EOI, 1)])
def test_rotation(pic: Pic, ocw2: int, first: int) -> None:
    """Automatic and Specific Rotation: after level 4 becomes the lowest, 5 is the highest."""
    pic.line(4).set(True)
    pic.acknowledge()
    pic.master.write(0, 1, ocw2)
    pic.master.write(0, 1, SPECIFIC_EOI | 4)
    pic.line(1).set(True)
    pic.line(5).set(True)
    assert pic.acknowledge() == MASTER_BASE | first


def test_special_mask_mode(bench: Rig, pic: Pic) -> None:
    """Special Mask Mode: a masked level in service holds nothing back, and survives an EOI."""
    pic.line(4).set(True)
    pic.acknowledge()
    pic.line(6).set(True)
    pic.master.write(1, 1, 0x10)
    assert not wants_service(bench)
    pic.master.write(0, 1, 0x68)
    assert wants_service(bench)
    assert pic.acknowledge() == MASTER_BASE | 6
    pic.master.write(0, 1, EOI)
    assert isr(pic) == 0x10
    pic.master.write(0, 1, EOI)
    assert isr(pic) == 0x10
    pic.master.write(0, 1, SPECIFIC_EOI | 4)
    assert isr(pic) == 0


def test_poll_command(bench: Rig, pic: Pic) -> None:
    """Poll Command: the next read is an INTA and gives bit 7 and the level."""
    pic.line(5).set(True)
    pic.master.write(0, 1, 0x0C)
    assert pic.master.read(0, 1) == 0x85
    assert isr(pic) == 0x20
    assert not wants_service(bench)
    pic.master.write(0, 1, 0x0C)
    assert pic.master.read(0, 1) == 0


def test_ocw1_masks_without_forgetting(bench: Rig, pic: Pic) -> None:
    """OCW1: a masked request stays in the IRR."""
    pic.master.write(1, 1, 0x02)
    pic.line(1).set(True)
    assert not wants_service(bench)
    assert irr(pic) == 0x02
    assert pic.master.read(1, 1) == 0x02
    pic.master.write(1, 1, 0x00)
    assert wants_service(bench)


def test_icw1_starts_over(bench: Rig, pic: Pic) -> None:
    """ICW1 a to f: edge sense, IMR and priorities are reset; a high input must fall first."""
    pic.line(1).set(True)
    pic.master.write(1, 1, 0xFF)
    pic.master.write(0, 1, 0x11)
    for icw in (0x40, 0x04, 0x01):
        pic.master.write(1, 1, icw)
    assert pic.master.read(1, 1) == 0
    assert not wants_service(bench)
    pulse(pic, 1)
    assert pic.acknowledge() == 0x41


def test_icw4_and_icw3_only_when_announced(pic: Pic) -> None:
    """ICW1 SNGL and IC4: without them the sequence is shorter."""
    pic.master.write(0, 1, 0x12)
    pic.master.write(1, 1, 0x30)
    pic.master.write(1, 1, 0x55)
    assert pic.master.read(1, 1) == 0x55, "this was OCW1 already"


def test_input_2_belongs_to_the_cascade(bench: Rig, pic: Pic) -> None:
    pic.line(2).set(True)
    assert not wants_service(bench)
