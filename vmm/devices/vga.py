"""VGA as a colour text display: registers, and what is on the screen.

Source: IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem" (the VGA
function), register sections; the values of BIOS mode 3 are from the same book's mode tables.

Text memory at B8000H is plain RAM.  No register changes what the guest reads there, so this chip
only remembers registers and tells a host what a monitor would show.  There is no video BIOS:
power-on is mode 3 (80 x 25, 16 colours, 9 x 16 characters) as a BIOS would have left it.

Not modelled, and why:
* graphics modes, planes, fonts, attributes on the screen: the machine has no display, only text();
* the monochrome addresses 3B0H-3BBH: with misc output bit 0 clear the CRTC is at no address;
* retrace timing: status register 1 changes with every read of it, so that loops that wait for either
  edge of either signal end, and the same program sees the same sequence.
"""

from __future__ import annotations

from typing import Annotated

from vmm.device import Memory
from vmm.devices.isa import read_bytes, write_bytes
from vmm.state import State, field, length, u8

# Offsets from 3C0H
ATTRIBUTE, ATTRIBUTE_READ, MISC_WRITE, SEQUENCER, SEQUENCER_DATA = 0x00, 0x01, 0x02, 0x04, 0x05
PEL_MASK, PEL_READ_INDEX, PEL_WRITE_INDEX, PEL_DATA = 0x06, 0x07, 0x08, 0x09
FEATURE_READ, MISC_READ, GRAPHICS, GRAPHICS_DATA = 0x0A, 0x0C, 0x0E, 0x0F
CRTC, CRTC_DATA, STATUS_1 = 0x14, 0x15, 0x1A

MISC_COLOUR = 0x01  # CRTC and status 1 are at 3DxH
DISPLAY_DISABLED, VERTICAL_RETRACE = 0x01, 0x08

# CRTC registers
CRTC_OVERFLOW, START_HIGH, START_LOW, CURSOR_HIGH, CURSOR_LOW = 0x07, 0x0C, 0x0D, 0x0E, 0x0F
RETRACE_END, ROW_OFFSET, CRTC_PROTECT, LINE_COMPARE_8 = 0x11, 0x13, 0x80, 0x10

TEXT_BASE, TEXT_BYTES = 0xB8000, 0x8000
CHARACTERS = TEXT_BYTES // 2
ROWS, COLUMNS = 25, 80
BLANK = b" \x07"  # a space, grey on black

_CONTROL_GLYPHS = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
GLYPHS = (
    _CONTROL_GLYPHS
    + bytes(range(0x20, 0x7F)).decode("ascii")
    + "⌂"
    + bytes(range(0x80, 0xFF)).decode("cp437")
    + " "
)
"""The 256 characters of code page 437 as they look on the screen."""


def _mode_3_crtc() -> bytearray:
    return bytearray.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")


def _mode_3_attributes() -> bytearray:
    return bytearray.fromhex("00010203040514073839 3a3b3c3d3e3f 0c000f0800")


def _mode_3_graphics() -> bytearray:
    return bytearray.fromhex("0000000000100e00ff")


def _mode_3_sequencer() -> bytearray:
    return bytearray.fromhex("0300030002")


def _mode_3_palette() -> bytearray:
    """The 64 colours rgbRGB of an EGA, 6 bits a component; the rest is black."""
    palette = bytearray(768)
    for colour in range(64):
        for component, bit in enumerate((2, 1, 0)):
            strong, weak = colour >> bit & 1, colour >> (bit + 3) & 1
            palette[3 * colour + component] = 0x2A * strong + 0x15 * weak
    return palette


class VgaState(State):
    misc: u8 = 0x67
    sequencer_index: u8 = 0
    sequencer: Annotated[bytearray, length(5)] = field(default_factory=_mode_3_sequencer)
    crtc_index: u8 = 0
    crtc: Annotated[bytearray, length(25)] = field(default_factory=_mode_3_crtc)
    graphics_index: u8 = 0
    graphics: Annotated[bytearray, length(9)] = field(default_factory=_mode_3_graphics)
    attribute_index: u8 = 0x20  # bit 5: the palette drives the screen
    attribute_data_next: bool = False  # the flip-flop of 3C0H
    attributes: Annotated[bytearray, length(21)] = field(default_factory=_mode_3_attributes)
    pel_mask: u8 = 0xFF
    pel_index: u8 = 0
    pel_component: u8 = 0
    pel_reading: bool = False
    palette: Annotated[bytearray, length(768)] = field(default_factory=_mode_3_palette)
    feature: u8 = 0
    status_reads: u8 = 0  # modulo 16


class Vga:
    """The register block 3C0H-3DFH; ``memory`` is where the text is."""

    __slots__ = ("_memory", "state")

    def __init__(self, memory: Memory) -> None:
        self.state = VgaState()
        self._memory = memory

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        s = self.state
        if offset >= 0x10:
            return self._read_crtc(offset) if s.misc & MISC_COLOUR else 0xFF
        if offset == PEL_DATA:
            return self._read_pel()
        return {
            ATTRIBUTE: s.attribute_index,
            ATTRIBUTE_READ: _indexed(s.attributes, s.attribute_index & 0x1F),
            MISC_WRITE: 0x10,  # input status 0: switch sense, no retrace interrupt
            SEQUENCER: s.sequencer_index,
            SEQUENCER_DATA: _indexed(s.sequencer, s.sequencer_index),
            PEL_MASK: s.pel_mask,
            PEL_READ_INDEX: 3 if s.pel_reading else 0,  # DAC state
            PEL_WRITE_INDEX: s.pel_index,
            FEATURE_READ: s.feature,
            MISC_READ: s.misc,
            GRAPHICS: s.graphics_index,
            GRAPHICS_DATA: _indexed(s.graphics, s.graphics_index),
        }.get(offset, 0xFF)

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
            return
        s = self.state
        if offset >= 0x10:
            if s.misc & MISC_COLOUR:
                self._write_crtc(offset, value)
        elif offset == ATTRIBUTE:
            self._write_attribute(value)
        elif offset == MISC_WRITE:
            s.misc = value
        elif offset == SEQUENCER:
            s.sequencer_index = value & 0x07
        elif offset == SEQUENCER_DATA:
            _store(s.sequencer, s.sequencer_index, value)
        elif offset == GRAPHICS:
            s.graphics_index = value & 0x0F
        elif offset == GRAPHICS_DATA:
            _store(s.graphics, s.graphics_index, value)
        else:
            self._write_pel(offset, value)

    # Host side

    def text(self) -> list[str]:
        """What a monitor would show: 25 lines of 80 characters."""
        s = self.state
        screen = self._memory.read(TEXT_BASE, TEXT_BYTES)[0::2]
        start, stride = _pair(s.crtc, START_HIGH), s.crtc[ROW_OFFSET] * 2
        return [
            "".join(GLYPHS[screen[(start + row * stride + column) % CHARACTERS]] for column in range(COLUMNS))
            for row in range(ROWS)
        ]

    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor; a guest hides it by putting it below the screen."""
        crtc = self.state.crtc
        stride = crtc[ROW_OFFSET] * 2 or COLUMNS
        return divmod((_pair(crtc, CURSOR_HIGH) - _pair(crtc, START_HIGH)) % CHARACTERS, stride)

    @staticmethod
    def blank(memory: Memory) -> None:
        """Clear the screen, as a BIOS does when it sets mode 3."""
        memory.write(TEXT_BASE, BLANK * CHARACTERS)

    # Life cycle

    def reset(self) -> None:
        self.state = VgaState()
        self.restored()

    def restored(self) -> None:
        """Nothing to drive."""

    # Private

    def _read_crtc(self, offset: int) -> int:
        s = self.state
        if offset == CRTC:
            return s.crtc_index
        if offset == CRTC_DATA:
            return _indexed(s.crtc, s.crtc_index)
        if offset != STATUS_1:
            return 0xFF
        s.attribute_data_next = False
        s.status_reads = (s.status_reads + 1) & 0x0F
        if s.status_reads & 8:
            return VERTICAL_RETRACE | DISPLAY_DISABLED
        return s.status_reads & DISPLAY_DISABLED

    def _write_crtc(self, offset: int, value: int) -> None:
        s = self.state
        if offset == CRTC:
            s.crtc_index = value & 0x1F
        elif offset == STATUS_1:
            s.feature = value
        elif offset == CRTC_DATA:
            if s.crtc_index <= CRTC_OVERFLOW and s.crtc[RETRACE_END] & CRTC_PROTECT:
                if s.crtc_index != CRTC_OVERFLOW:
                    return
                value = s.crtc[CRTC_OVERFLOW] & ~LINE_COMPARE_8 | value & LINE_COMPARE_8
            _store(s.crtc, s.crtc_index, value)

    def _write_attribute(self, value: int) -> None:
        s = self.state
        if s.attribute_data_next:
            _store(s.attributes, s.attribute_index & 0x1F, value)
        else:
            s.attribute_index = value & 0x3F
        s.attribute_data_next = not s.attribute_data_next

    def _read_pel(self) -> int:
        s = self.state
        value = s.palette[(3 * s.pel_index + s.pel_component) % 768]
        self._next_component()
        return value

    def _write_pel(self, offset: int, value: int) -> None:
        s = self.state
        if offset == PEL_MASK:
            s.pel_mask = value
        elif offset in (PEL_READ_INDEX, PEL_WRITE_INDEX):
            s.pel_index, s.pel_component = value, 0
            s.pel_reading = offset == PEL_READ_INDEX
        elif offset == PEL_DATA:
            s.palette[(3 * s.pel_index + s.pel_component) % 768] = value & 0x3F
            self._next_component()

    def _next_component(self) -> None:
        """Red, green, blue, then the next colour."""
        s = self.state
        s.pel_component = (s.pel_component + 1) % 3
        if s.pel_component == 0:
            s.pel_index = (s.pel_index + 1) & 0xFF


def _pair(crtc: bytearray, high: int) -> int:
    """A 16-bit quantity kept in two CRTC registers."""
    return crtc[high] << 8 | crtc[high + 1]


def _indexed(registers: bytearray, index: int) -> int:
    return registers[index] if index < len(registers) else 0


def _store(registers: bytearray, index: int, value: int) -> None:
    if index < len(registers):
        registers[index] = value
