"""INT 10h: text on the screen.

Source: IBM PC/AT technical reference and VGA BIOS interface, INT 10h functions 00h to 13h.

The screen is text memory at B800:0000, eight pages of 80 x 25 cells; cursor positions, mode and
active page live in the BIOS data area, and the CRT controller is told the cursor and start address.

Not here: graphics.  Setting a graphics mode is remembered and reported by function 0Fh, its memory
is cleared, but the adapter stays in text mode (the machine shows no graphics); pixel functions,
palettes and fonts are ignored.
"""

from __future__ import annotations

from vmm.boot import bios_rom as rom
from vmm.boot.bios_call import Call
from vmm.boot.bios_rom import Ports

TEXT = 0xB8000
TEXT_SIZE = 0x8000
GRAPHICS = 0xA0000
GRAPHICS_SIZE = 0x10000
PAGES = 8
PAGE_BYTES = 0x1000
ROWS = 25
BLANK_ATTRIBUTE = 0x07
KEEP_CONTENTS = 0x80
TEXT_COLUMNS = {0: 40, 1: 40, 2: 80, 3: 80, 7: 80}


CRTC_INDEX, CRTC_DATA = 0x3D4, 0x3D5
CRTC_CURSOR_START, CRTC_CURSOR_END = 0x0A, 0x0B
CRTC_START_HIGH, CRTC_START_LOW = 0x0C, 0x0D
CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW = 0x0E, 0x0F

DISPLAY_VGA_COLOUR = 0x08


def service(call: Call, ports: Ports) -> None:
    """One INT 10h."""
    _Screen(call, ports).serve(call.high("ax"))


def print_text(call: Call, ports: Ports, text: bytes) -> None:
    """The firmware's own words, on the active page."""
    screen = _Screen(call, ports)
    for character in text:
        screen.teletype(call.byte(rom.BDA_PAGE) % PAGES, character, None)


class _Screen:
    """The screen during one call."""

    __slots__ = ("_call", "_ports")

    def __init__(self, call: Call, ports: Ports) -> None:
        self._call = call
        self._ports = ports

    def serve(self, function: int) -> None:
        call = self._call
        match function:
            case 0x00:
                self._set_mode(call.low("ax"))
            case 0x01:
                self._set_shape(call.get("cx"))
            case 0x02:
                self._move(self._page(), call.low("dx"), call.high("dx"))
            case 0x03:
                call.set("cx", call.word(rom.BDA_CURSOR_SHAPE))
                call.set("dx", call.word(self._cursor_at(self._page())))
            case 0x05:
                self._select_page(call.low("ax") % PAGES)
            case 0x06 | 0x07:
                self._scroll_window(up=function == 0x06)
            case 0x08:
                call.set("ax", call.word(self._cell(self._page())))
            case 0x09 | 0x0A:
                self._fill(with_attribute=function == 0x09)
            case 0x0E:
                self.teletype(self._page(), call.low("ax"), None)
            case 0x0F:
                call.set("ax", self._columns << 8 | call.byte(rom.BDA_VIDEO_MODE))
                call.set_high("bx", call.byte(rom.BDA_PAGE))
            case 0x13:
                self._write_string(call.low("ax"))
            case 0x1A if call.low("ax") == 0:
                call.set_low("ax", 0x1A)
                call.set("bx", DISPLAY_VGA_COLOUR)

    # Where things are.

    @property
    def _columns(self) -> int:
        """40 or 80, whatever a guest wrote to the data area."""
        return 40 if self._call.word(rom.BDA_COLUMNS) == 40 else 80

    def _page(self) -> int:
        return self._call.high("bx") % PAGES

    def _cursor_at(self, page: int) -> int:
        return rom.BDA_CURSORS + 2 * page

    def _position(self, page: int) -> tuple[int, int]:
        """Column and row of the cursor, brought onto the screen."""
        word = self._call.word(self._cursor_at(page))
        return min(word & 0xFF, self._columns - 1), min(word >> 8, ROWS - 1)

    def _address(self, page: int, column: int, row: int) -> int:
        return TEXT + page * PAGE_BYTES + 2 * (row * self._columns + column)

    def _cell(self, page: int) -> int:
        return self._address(page, *self._position(page))

    # Functions.

    def _set_mode(self, value: int) -> None:
        call, mode = self._call, value & ~KEEP_CONTENTS
        call.put_byte(rom.BDA_VIDEO_MODE, mode)
        call.put_word(rom.BDA_COLUMNS, TEXT_COLUMNS.get(mode, 40))
        call.memory.write(rom.BDA_CURSORS, bytes(2 * PAGES))
        if not value & KEEP_CONTENTS:
            if mode in TEXT_COLUMNS:
                call.memory.write(TEXT, bytes((0x20, BLANK_ATTRIBUTE)) * (TEXT_SIZE // 2))
            else:
                call.memory.write(GRAPHICS, bytes(GRAPHICS_SIZE))
        self._set_shape(0x0607)
        self._select_page(0)

    def _set_shape(self, shape: int) -> None:
        self._call.put_word(rom.BDA_CURSOR_SHAPE, shape)
        self._crtc(CRTC_CURSOR_START, shape >> 8)
        self._crtc(CRTC_CURSOR_END, shape)

    def _move(self, page: int, column: int, row: int) -> None:
        self._call.put_word(self._cursor_at(page), row << 8 | column)
        if page == self._call.byte(rom.BDA_PAGE):
            self._show_cursor(page)

    def _show_cursor(self, page: int) -> None:
        cell = (self._cell(page) - TEXT) // 2
        self._crtc(CRTC_CURSOR_HIGH, cell >> 8)
        self._crtc(CRTC_CURSOR_LOW, cell)

    def _select_page(self, page: int) -> None:
        start = page * PAGE_BYTES
        self._call.put_byte(rom.BDA_PAGE, page)
        self._call.put_word(rom.BDA_PAGE_START, start)
        self._crtc(CRTC_START_HIGH, start // 2 >> 8)
        self._crtc(CRTC_START_LOW, start // 2)
        self._show_cursor(page)

    def _scroll_window(self, *, up: bool) -> None:
        call, last = self._call, self._columns - 1
        left, right = call.low("cx"), min(call.low("dx"), last)
        top, bottom = call.high("cx"), min(call.high("dx"), ROWS - 1)
        if left <= right and top <= bottom:
            page = call.byte(rom.BDA_PAGE) % PAGES
            self._scroll(page, (left, top, right, bottom), call.low("ax"), call.high("bx"), up=up)

    def _scroll(
        self, page: int, window: tuple[int, int, int, int], lines: int, attribute: int, *, up: bool
    ) -> None:
        left, top, right, bottom = window
        width, height = right - left + 1, bottom - top + 1
        rows = [self._call.memory.read(self._address(page, left, top + i), 2 * width) for i in range(height)]
        count = lines if 0 < lines < height else height
        blank = [bytes((0x20, attribute)) * width] * count
        moved = rows[count:] + blank if up else blank + rows[: height - count]
        for i, row in enumerate(moved):
            self._call.memory.write(self._address(page, left, top + i), row)

    def _fill(self, *, with_attribute: bool) -> None:
        """Functions 09h and 0Ah: CX copies from the cursor on, which does not move."""
        call, page = self._call, self._page()
        at = self._cell(page)
        count = min(call.get("cx") & 0xFFFF, (TEXT + TEXT_SIZE - at) // 2)
        cells = bytearray(call.memory.read(at, 2 * count))
        cells[0::2] = bytes((call.low("ax"),)) * count
        if with_attribute:
            cells[1::2] = bytes((call.low("bx"),)) * count
        call.memory.write(at, cells)

    def teletype(self, page: int, character: int, attribute: int | None) -> None:
        """One character as a terminal takes it; without ``attribute`` the cell keeps its own."""
        column, row = self._position(page)
        match character:
            case 0x07:  # bell: there is no loudspeaker
                return
            case 0x08:  # backspace
                column = max(column - 1, 0)
            case 0x0A:  # line feed
                row += 1
            case 0x0D:  # carriage return
                column = 0
            case _:
                at = self._address(page, column, row)
                self._call.put_byte(at, character)
                if attribute is not None:
                    self._call.put_byte(at + 1, attribute)
                column += 1
        if column == self._columns:
            column, row = 0, row + 1
        if row == ROWS:
            row -= 1
            colour = self._call.byte(self._address(page, min(column, self._columns - 1), row) + 1)
            self._scroll(page, (0, 0, self._columns - 1, ROWS - 1), 1, colour, up=True)
        self._move(page, column, row)

    def _write_string(self, mode: int) -> None:
        """Function 13h: bit 0 moves the cursor, bit 1 says that attributes are in the string."""
        call, page = self._call, self._page()
        saved = call.word(self._cursor_at(page))
        step = 2 if mode & 2 else 1
        data = call.memory.read(call.linear("es", call.get("bp")), step * (call.get("cx") & 0xFFFF))
        self._move(page, call.low("dx"), call.high("dx"))
        for i in range(0, len(data), step):
            self.teletype(page, data[i], data[i + 1] if step == 2 else call.low("bx"))
        if not mode & 1:
            self._move(page, saved & 0xFF, saved >> 8)

    def _crtc(self, index: int, value: int) -> None:
        self._ports.write(CRTC_INDEX, 1, index)
        self._ports.write(CRTC_DATA, 1, value & 0xFF)
