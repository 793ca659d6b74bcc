"""Two cascaded 8259A interrupt controllers with the edge/level registers of the PC south bridge.

Sources: Intel 8259A data sheet (order 231468), sections "Interrupt Sequence", "Initialization
Command Words" and "Operation Command Words"; Intel 82371SB (PIIX3) data sheet for ELCR1/ELCR2.

Edges and levels.  An input that rises sets its IRR bit, one that falls clears it: the data sheet
wants the input high until the first INTA, and a request that was withdrawn earlier ends as a
spurious level 7.  The two kinds of input differ in one thing: the acknowledge takes the IRR bit
of an edge input away, so that the input must fall and rise to ask again; a level input asks for as
long as it is high.

The slave's INT is the master's input 2, modelled as a level: while the slave wants service the
master's IRR bit 2 is set.

Not modelled: MCS-80/85 mode (ICW1 ADI and call addresses, ICW4 uPM = 0), buffered mode, LTIM
(PIIX3 ignores it in favour of the ELCR), a slave whose ICW3 identity is not 2.  Before its first
ICW1 a chip is mute; the data sheet leaves that state open.
"""

from __future__ import annotations

from vmm.device import Line
from vmm.devices.isa import View, read_bytes, write_bytes
from vmm.state import State, field, u8

ICW1_SELECT = 0x10  # D4: this write to port 0 is ICW1
ICW1_IC4 = 0x01
ICW1_SNGL = 0x02
ICW4_AEOI = 0x02
ICW4_SFNM = 0x10
OCW3_SELECT = 0x08  # D4..D3 = 01
OCW3_RIS = 0x01
OCW3_RR = 0x02
OCW3_POLL = 0x04
OCW3_SMM = 0x20
OCW3_ESMM = 0x40
OCW2_LEVEL = 0x07
POLL_INTERRUPT = 0x80

ROTATE_AEOI_CLEAR, NONSPECIFIC_EOI, _NO_OPERATION, SPECIFIC_EOI = range(4)  # OCW2 R, SL, EOI
ROTATE_AEOI_SET, ROTATE_NONSPECIFIC_EOI, SET_PRIORITY, ROTATE_SPECIFIC_EOI = range(4, 8)

CASCADE = 2
CASCADE_BIT = 1 << CASCADE
SPURIOUS = 7
ELCR_WRITABLE = (0xF8, 0xDE)  # PIIX3 ELCR1/ELCR2: IRQ 0, 1, 2, 8 and 13 are edges
NONE = 8  # "no level" in the priority order: behind every real one

FIRST_SET = bytes([NONE] + [(n & -n).bit_length() - 1 for n in range(1, 256)])


class Chip(State):
    """One 8259A."""

    irr: u8 = 0
    isr: u8 = 0
    imr: u8 = 0xFF
    inputs: u8 = 0  # levels on IR0..IR7, for edge detection
    elcr: u8 = 0  # 1 = level-triggered
    icw_next: u8 = 0  # the ICW that port 1 expects: 2, 3, 4, or 0 when initialised
    icw1: u8 = 0
    icw2: u8 = 0
    icw3: u8 = 0
    icw4: u8 = 0
    lowest: u8 = 7  # the level of lowest priority
    read_isr: bool = False
    poll: bool = False
    special_mask: bool = False
    rotate_aeoi: bool = False


class PicState(State):
    """Both chips."""

    master: Chip = field(default_factory=Chip)
    slave: Chip = field(default_factory=Chip)


class Input:
    """One interrupt input.  ``Pic.line(2)``, which the cascade takes, is not connected."""

    __slots__ = ("_bit", "_is_slave", "_pic")

    def __init__(self, pic: Pic, number: int) -> None:
        self._pic = pic
        self._is_slave = number >= 8
        self._bit = 0 if number == CASCADE else 1 << (number & 7)

    def set(self, level: bool) -> None:
        state = self._pic.state
        chip = state.slave if self._is_slave else state.master
        bit = self._bit
        if level == bool(chip.inputs & bit):
            return
        if level:
            chip.inputs |= bit
            chip.irr |= bit
        else:
            chip.inputs &= ~bit
            chip.irr &= ~bit
        self._pic.restored()


class Pic:
    """The interrupt controller pair; ``output`` is the master's INT.

    Offsets: 0-1 master, 2-3 slave, 4-5 ELCR.  The board claims the views, which start at 0.
    """

    __slots__ = ("_inputs", "_output", "elcr", "master", "slave", "state")

    def __init__(self, output: Line) -> None:
        self.state = PicState()
        self._output = output
        self._inputs = tuple(Input(self, number) for number in range(16))
        self.master = View(self, 0, 2)
        self.slave = View(self, 2, 2)
        self.elcr = View(self, 4, 2)

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        if not 0 <= offset <= 5:
            return 0xFF
        chip = self.state.slave if offset in (2, 3, 5) else self.state.master
        if offset >= 4:
            return chip.elcr
        if chip.poll:
            return self._polled(chip)
        if offset & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
            return
        if not 0 <= offset <= 5:
            return
        is_slave = offset in (2, 3, 5)
        chip = self.state.slave if is_slave else self.state.master
        if offset >= 4:
            chip.elcr = value & ELCR_WRITABLE[is_slave]
            chip.irr = chip.irr & ~chip.elcr | chip.inputs & chip.elcr
        elif offset & 1:
            _write_port1(chip, value)
        elif value & ICW1_SELECT:
            _initialise(chip, value)
        elif value & OCW3_SELECT:
            _ocw3(chip, value)
        else:
            _ocw2(chip, value)
        self.restored()

    # Board side

    def line(self, number: int) -> Input:
        """Interrupt input ``number``, 0 to 15."""
        return self._inputs[number]

    def acknowledge(self) -> int:
        """The processor's INTA cycles: the vector of the interrupt that is now in service.

        With no request left (the input fell too early) the answer is level 7 of the chip that was
        asked, and no ISR bit is set ("Interrupt Sequence").
        """
        master = self.state.master
        level = _request(master)
        if level == NONE:
            return master.icw2 | SPURIOUS
        _take(master, level)
        vector = master.icw2 | level
        if level == CASCADE and master.icw3 & CASCADE_BIT:
            slave = self.state.slave
            level = _request(slave)
            if level == NONE:
                vector = slave.icw2 | SPURIOUS
            else:
                _take(slave, level)
                vector = slave.icw2 | level
        self.restored()
        return vector

    # Life cycle

    def reset(self) -> None:
        self.state = PicState()
        self.restored()

    def restored(self) -> None:
        """Drive the cascade and INT from the registers; also the last step of every access."""
        master = self.state.master
        if _request(self.state.slave) != NONE:
            master.irr |= CASCADE_BIT
        else:
            master.irr &= ~CASCADE_BIT
        self._output.set(_request(master) != NONE)

    def _polled(self, chip: Chip) -> int:
        """OCW3 poll command: this read is an INTA that answers with the level."""
        chip.poll = False
        level = _request(chip)
        if level == NONE:
            return 0
        _take(chip, level)
        self.restored()
        return POLL_INTERRUPT | level


def _request(chip: Chip) -> int:
    """The level that INT is raised for, or NONE ("Priority Resolver")."""
    requests = chip.irr & ~chip.imr
    if not requests or chip.icw_next or not chip.icw1:
        return NONE
    top = chip.lowest + 1 & 7
    order = FIRST_SET[(requests << 8 | requests) >> top & 0xFF]
    served = chip.isr
    if served:
        if chip.special_mask:
            served &= ~chip.imr
        if chip.icw4 & ICW4_SFNM:
            # "Special Fully Nested Mode": a slave in service does not lock out its own requests.
            served &= ~(chip.icw3 & CASCADE_BIT & requests)
        if order >= FIRST_SET[(served << 8 | served) >> top & 0xFF]:
            return NONE
    return order + top & 7


def _take(chip: Chip, level: int) -> None:
    """INTA for ``level``: into service, or with AEOI in and out again."""
    bit = 1 << level
    if not chip.elcr & bit:
        chip.irr &= ~bit
    if not chip.icw4 & ICW4_AEOI:
        chip.isr |= bit
    elif chip.rotate_aeoi:
        chip.lowest = level


def _initialise(chip: Chip, icw1: int) -> None:
    """ICW1: the list of effects a to f in "Initialization Command Words"."""
    chip.icw1 = icw1
    chip.irr = chip.inputs & chip.elcr
    chip.imr = chip.isr = 0
    chip.icw3 = chip.icw4 = 0
    chip.lowest = 7
    chip.special_mask = chip.read_isr = chip.poll = chip.rotate_aeoi = False
    chip.icw_next = 2


def _write_port1(chip: Chip, value: int) -> None:
    """OCW1, or the ICW that is due."""
    match chip.icw_next:
        case 0:
            chip.imr = value
        case 2:
            chip.icw2 = value & 0xF8
            if not chip.icw1 & ICW1_SNGL:
                chip.icw_next = 3
            else:
                chip.icw_next = 4 if chip.icw1 & ICW1_IC4 else 0
        case 3:
            chip.icw3 = value
            chip.icw_next = 4 if chip.icw1 & ICW1_IC4 else 0
        case _:
            chip.icw4 = value
            chip.icw_next = 0


def _ocw2(chip: Chip, value: int) -> None:
    """End of interrupt and priority rotation."""
    command = value >> 5
    level = value & OCW2_LEVEL
    if command in (NONSPECIFIC_EOI, ROTATE_NONSPECIFIC_EOI):
        # In special mask mode a masked ISR bit is not cleared by a non-specific EOI.
        served = chip.isr & ~chip.imr if chip.special_mask else chip.isr
        if not served:
            return
        top = chip.lowest + 1 & 7
        level = FIRST_SET[(served << 8 | served) >> top & 0xFF] + top & 7
        chip.isr &= ~(1 << level)
    elif command in (SPECIFIC_EOI, ROTATE_SPECIFIC_EOI):
        chip.isr &= ~(1 << level)
    elif command == ROTATE_AEOI_SET:
        chip.rotate_aeoi = True
    elif command == ROTATE_AEOI_CLEAR:
        chip.rotate_aeoi = False
    if command in (ROTATE_NONSPECIFIC_EOI, ROTATE_SPECIFIC_EOI, SET_PRIORITY):
        chip.lowest = level


def _ocw3(chip: Chip, value: int) -> None:
    """Special mask mode, poll and the choice of what port 0 reads."""
    if value & OCW3_ESMM:
        chip.special_mask = bool(value & OCW3_SMM)
    chip.poll = bool(value & OCW3_POLL)
    if value & OCW3_RR:
        chip.read_isr = bool(value & OCW3_RIS)
