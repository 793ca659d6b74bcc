"""The text display against the "Video Subsystem" section of IBM's PS/2 technical reference."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vmm.devices.vga import GLYPHS, TEXT_BASE, Vga
from vmm.ram import Ram

STATUS_1, CRTC, CRTC_DATA = 0x1A, 0x14, 0x15


@pytest.fixture
def ram() -> Ram:
    ram = Ram(1)
    Vga.blank(ram)
    return ram


@pytest.fixture
def vga(ram: Ram) -> Vga:
    return Vga(ram)


def crtc(vga: Vga, index: int, value: int) -> None:
    vga.write(CRTC, 2, value << 8 | index)  # one word: index and data, as kernels do it


def put(ram: Ram, row: int, column: int, text: bytes) -> None:
    cells = b"".join(bytes((byte, 0x07)) for byte in text)
    ram.write(TEXT_BASE + 2 * (80 * row + column), cells)


def test_blank_screen(vga: Vga, ram: Ram) -> None:
    assert vga.text() == [" " * 80] * 25
    assert ram.read(TEXT_BASE, 4) == b" \x07 \x07"


def test_text_in_code_page_437(vga: Vga, ram: Ram) -> None:
    put(ram, 2, 3, b"A\xb0\x01\x7f\xe1\x00")
    assert vga.text()[2][3:9] == "A░☺⌂ß "
    assert len(GLYPHS) == 256


def test_start_address_scrolls_and_wraps(vga: Vga, ram: Ram) -> None:
    put(ram, 30, 0, b"line 30")
    crtc(vga, 0x0C, 30 * 80 >> 8)
    crtc(vga, 0x0D, 30 * 80 & 0xFF)
    assert vga.text()[0].startswith("line 30")
    put(ram, 0, 0, b"wrapped")
    start = 16384 - 80
    crtc(vga, 0x0C, start >> 8)
    crtc(vga, 0x0D, start & 0xFF)
    assert vga.text()[1].startswith("wrapped")


def test_cursor_is_relative_to_the_screen(vga: Vga) -> None:
    crtc(vga, 0x0E, 0x00)
    crtc(vga, 0x0F, 85)
    assert vga.cursor() == (1, 5)
    crtc(vga, 0x0D, 80)
    assert vga.cursor() == (0, 5)
    vga.write(CRTC, 1, 0x0F)
    assert vga.read(CRTC_DATA, 1) == 85


def test_crtc_write_protection_spares_line_compare(vga: Vga) -> None:
    """Register 11H bit 7 protects 0-7, but for bit 4 of 7."""
    crtc(vga, 0x11, 0x8E)
    crtc(vga, 0x00, 0x00)
    crtc(vga, 0x07, 0x00)
    vga.write(CRTC, 1, 0x00)
    assert vga.read(CRTC_DATA, 1) == 0x5F
    vga.write(CRTC, 1, 0x07)
    assert vga.read(CRTC_DATA, 1) == 0x1F & ~0x10


def test_attribute_flip_flop_is_cleared_by_status_1(vga: Vga) -> None:
    vga.read(STATUS_1, 1)
    vga.write(0x00, 1, 0x31)  # index 11H, overscan
    vga.write(0x00, 1, 0x3F)
    vga.write(0x00, 1, 0x31)
    assert vga.read(0x01, 1) == 0x3F
    vga.read(STATUS_1, 1)
    vga.write(0x00, 1, 0x30)  # an index again, not data
    assert vga.read(0x01, 1) == 0x0C
    assert vga.read(0x00, 1) == 0x30


def test_loops_that_wait_for_retrace_end(vga: Vga) -> None:
    seen = [vga.read(STATUS_1, 1) for _ in range(64)]
    for mask in (0x01, 0x08):
        levels = [bool(value & mask) for value in seen]
        assert any(a and not b for a, b in pairwise(levels))
        assert any(b and not a for a, b in pairwise(levels))
    assert all(value & 1 for value in seen if value & 8), "the display is disabled during retrace"


def test_palette(vga: Vga) -> None:
    vga.write(0x08, 1, 2)
    for component in (1, 2, 0xFF):
        vga.write(0x09, 1, component)
    assert vga.read(0x08, 1) == 3, "after blue comes the next colour"
    vga.write(0x07, 1, 2)
    assert [vga.read(0x09, 1) for _ in range(3)] == [1, 2, 0x3F]
    assert vga.read(0x07, 1) == 3, "DAC state: reading"
    vga.write(0x07, 1, 0x3F)
    assert [vga.read(0x09, 1) for _ in range(3)] == [0x3F] * 3, "colour 63 of mode 3 is white"


def test_monochrome_select_takes_the_crtc_off_3dx(vga: Vga) -> None:
    assert vga.read(0x0C, 1) == 0x67
    vga.write(0x02, 1, 0x66)
    assert vga.read(STATUS_1, 1) == 0xFF
    assert vga.read(CRTC, 1) == 0xFF
