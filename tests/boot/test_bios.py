"""The BIOS as a boot sector meets it: real code calls INT 10h and others and looks at the results.

Programs are bytes with their assembly beside them; each ends in `cli; hlt`.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.boot.real_mode import STOP, RealModePc, call, carry, high, mov, mov_e, ran
from vmm.boot import bios_rom
from vmm.state import pack, unpack

BARE = Path(__file__).parents[2] / "guests" / "bare"


# ROM and data area.


def test_every_vector_points_into_the_rom() -> None:
    pc = RealModePc(STOP)
    for vector in range(256):
        offset, segment = struct.unpack("<HH", pc.memory.read(4 * vector, 4))
        assert segment == 0xF000
        assert 0xE000 <= offset <= 0xFFFF


def test_rom_fits_its_places() -> None:
    """The pieces do not run into each other: re-reading each gives what was put there."""
    image = bios_rom.rom()
    assert len(image) == 0x2000
    for at, pieces in bios_rom._ROUTINES.items():
        code = bytes.fromhex("".join(pieces))
        assert image[at - 0xE000 : at - 0xE000 + len(code)] == code
    assert image[0x1FF0] == 0xEA, "the reset vector is a far jump"
    assert image[0x1FFE] == 0xFC, "model byte: AT"


def test_unused_vectors_return() -> None:
    pc = ran(b"".join(call(vector) for vector in (0x03, 0x05, 0x1B, 0x1C, 0x60, 0xFF)) + mov(ax=0x1234))
    assert pc.registers.get("ax") == 0x1234
    assert pc.registers.get("sp") == 0x7C00


def test_post_programs_the_chips() -> None:
    """8259A: ICW1-4 in order, bases 08h and 70h; 8254: counter 0, mode 3, count 65536."""
    written = RealModePc(STOP).latch.written
    assert [v for p, v in written if p in (0x20, 0x21)] == [0x11, 0x08, 0x04, 0x01, 0xF8]
    assert [v for p, v in written if p in (0xA0, 0xA1)] == [0x11, 0x70, 0x02, 0x01, 0xFF]
    assert [(p, v) for p, v in written if p in (0x40, 0x43)] == [(0x43, 0x36), (0x40, 0), (0x40, 0)]


def test_calls_from_elsewhere_are_ignored() -> None:
    """A program that writes to the port itself gets nothing done."""
    pc = ran(mov(ax=0x0E41) + b"\x6a\x10\xe6\xe4")  # push 10h; out E4h, al
    assert pc.row(0) == ""
    assert pc.memory.read(0x7BFE, 2) == b"\x10\x00", "the stack is as it was"


def test_state_is_only_the_wait() -> None:
    state = RealModePc(STOP).bios.state
    assert unpack(type(state), pack(state)) == state
    assert state.__struct_fields__ == ("wait_until_ns",)


def test_the_boot_sector_guest_prints() -> None:
    """guests/bare/bootsector.S, as assembled: INT 10h on the screen, bytes on COM1."""
    pc = RealModePc((BARE / "bootsector.bin").read_bytes())
    pc.latch.values[0x3FD] = 0x20  # the transmitter is always empty
    pc.run()
    assert pc.row(0) == "hello from the boot sector"
    sent = bytes(value for port, value in pc.latch.written if port == 0x3F8)
    assert sent == b"hello from the boot sector\r\n"


# INT 10h.


def test_teletype() -> None:
    text = b"Hi\r\nyou\x08U"
    pc = ran(b"".join(call(0x10, ax=0x0E00 | c, bx=7) for c in text))
    assert (pc.row(0), pc.row(1)) == ("Hi", "yoU")
    assert pc.memory.read(0x450, 2) == b"\x03\x01"
    assert [v for p, v in pc.latch.written if p == 0x3D5][-2:] == [0, 83], "the CRTC has the cursor"


def test_teletype_scrolls_at_the_last_line() -> None:
    pc = ran(
        call(0x10, ax=0x0200, bx=0, dx=0x1800)
        + call(0x10, ax=0x0E41)
        + call(0x10, ax=0x0E0A)
        + call(0x10, ax=0x0E42)
    )
    assert (pc.row(23), pc.row(24)) == ("A", " B")


def test_mode_clears_and_is_reported() -> None:
    pc = ran(call(0x10, ax=0x0E41) + call(0x10, ax=0x0003) + call(0x10, ax=0x0F00, bx=0))
    assert pc.row(0) == ""
    assert pc.registers.get("ax") == 80 << 8 | 3


def test_characters_with_attributes() -> None:
    pc = ran(
        call(0x10, ax=0x0200, bx=0, dx=0x0205)
        + call(0x10, ax=0x092A, bx=0x1E, cx=3)
        + call(0x10, ax=0x0A2B, bx=0, cx=1)
        + call(0x10, ax=0x0800, bx=0)
    )
    assert pc.row(2) == "     +**"
    assert pc.registers.get("ax") == 0x1E2B
    assert pc.memory.read(0x450, 2) == b"\x05\x02", "the cursor does not move"


def test_scroll_window() -> None:
    write = b"".join(
        call(0x10, ax=0x0200, bx=0, dx=row << 8) + call(0x10, ax=0x0900 | 0x41 + row, bx=7, cx=5)
        for row in range(3)
    )
    pc = ran(write + call(0x10, ax=0x0601, bx=0x7000, cx=0x0001, dx=0x0203))
    assert [pc.row(i) for i in range(3)] == ["ABBBA", "BCCCB", "C   C"]
    pc = ran(write + call(0x10, ax=0x0701, bx=0x7000, cx=0x0001, dx=0x0203))
    assert [pc.row(i) for i in range(3)] == ["A   A", "BAAAB", "CBBBC"]


def test_write_string() -> None:
    """13h, mode 1: from ES:BP, cursor moves."""
    pc = RealModePc(call(0x10, ax=0x1301, bx=0x0007, cx=5, dx=0x0302, bp=0x7D00) + STOP)
    pc.memory.write(0x7D00, b"hello")
    pc.run()
    assert pc.row(3) == "  hello"
    assert pc.memory.read(0x450, 2) == b"\x07\x03"


def test_pages() -> None:
    pc = ran(call(0x10, ax=0x0501) + call(0x10, ax=0x0E51, bx=0x0100) + call(0x10, ax=0x0F00))
    assert pc.row(0, page=1) == "Q"
    assert high(pc, "bx") == 1


# INT 11h, 12h, 15h.


def test_sizes() -> None:
    pc = ran(call(0x12) + b"\x93" + call(0x11), drives={0x80: bytes(512)})  # xchg ax, bx
    assert pc.registers.get("bx") == 639
    assert pc.registers.get("ax") & 0x30 == 0x20, "80 x 25 colour"
    pc = ran(call(0x15, ax=0x8800))
    assert (pc.registers.get("ax"), carry(pc)) == (1024, False)
    pc = ran(call(0x15, ax=0xE801))
    assert [pc.registers.get(name) for name in ("ax", "bx", "cx", "dx")] == [1024, 0, 1024, 0]


def test_e820_walk() -> None:
    step = mov_e(eax=0xE820, ecx=20, edx=0x534D4150) + b"\xcd\x15"
    code = mov_e(ebx=0) + mov(di=0x8000) + (step + b"\x83\xc7\x14") * 4  # add di, 20
    pc = ran(code)
    ranges = [struct.unpack("<QQI", pc.memory.read(0x8000 + 20 * i, 20)) for i in range(4)]
    assert ranges[0] == (0, 0x9FC00, 1)
    assert ranges[3] == (1 << 20, 1 << 20, 1)
    assert (pc.registers.get("ebx"), pc.registers.get("eax")) == (0, 0x534D4150)
    assert not carry(ran(code[:-3])), "the last range is an answer too"


def test_unknown_service() -> None:
    pc = ran(call(0x15, ax=0x5300))
    assert (high(pc, "ax"), carry(pc)) == (0x86, True)


def test_a20() -> None:
    pc = ran(call(0x15, ax=0x2401))
    assert (0x92, 2) in pc.latch.written
    assert not carry(pc)


def test_block_move() -> None:
    """87h: descriptors at ES:SI, CX words."""
    pc = RealModePc(call(0x15, ax=0x8700, cx=4, si=0x7E00) + STOP)
    table = bytearray(48)
    table[0x10:0x18] = struct.pack("<HHBBBB", 0xFFFF, 0x8000, 0, 0x93, 0, 0)
    table[0x18:0x20] = struct.pack("<HHBBBB", 0xFFFF, 0x0000, 0x18, 0x93, 0, 0)
    pc.memory.write(0x7E00, bytes(table))
    pc.memory.write(0x8000, b"moved up")
    pc.run()
    assert pc.memory.read(0x180000, 8) == b"moved up"
    assert not carry(pc)


def test_wait_takes_its_time() -> None:
    """86h: 500,000 microseconds, ten ticks of the timer."""
    pc = RealModePc(call(0x15, ax=0x8600, cx=7, dx=0xA120) + STOP)
    pc.run()
    assert 500_000_000 <= pc.clock.now_ns < 501_000_000
    assert pc.bios.state.wait_until_ns == 0
    assert not carry(pc)


# INT 08h, 1Ah, 14h, 18h.


def test_timer_counts_and_acknowledges() -> None:
    pc = ran(b"\xfb\xf4\xfb\xf4\xfa" + call(0x1A, ax=0x0000))  # sti; hlt, twice
    assert (pc.registers.get("cx"), pc.registers.get("dx")) == (0, 2)
    assert [v for p, v in pc.latch.written if p == 0x20][-2:] == [0x20, 0x20], "two EOIs"


def test_midnight() -> None:
    """At 1800B0h ticks the day is over; 00h reports that once."""
    code = call(0x1A, ax=0x0100, cx=0x0018, dx=0x00AF) + b"\xfb\xf4\xfa" + call(0x1A, ax=0x0000)
    pc = ran(code)
    assert (pc.registers.get("ax"), pc.registers.get("cx"), pc.registers.get("dx")) == (1, 0, 0)
    assert ran(code + call(0x1A, ax=0x0000)).registers.get("ax") == 0


def test_clock_is_read_from_the_chip() -> None:
    pc = RealModePc(call(0x1A, ax=0x0200) + STOP)
    pc.latch.values[0x71] = 0x23
    pc.run()
    assert (pc.registers.get("cx"), high(pc, "dx")) == (0x2323, 0x23)
    assert [v for p, v in pc.latch.written if p == 0x70] == [4, 2, 0]


def test_serial() -> None:
    pc = RealModePc(call(0x14, ax=0x00E3, dx=0) + call(0x14, ax=0x0141, dx=0) + STOP)
    pc.run()
    sent = [(p, v) for p, v in pc.latch.written if p in range(0x3F8, 0x400)]
    assert (0x3FB, 0x80) in sent
    assert (0x3FB, 0x03) in sent, "8 bits, no parity, 1 stop bit"
    assert sent[1:3] == [(0x3F8, 12), (0x3F9, 0)], "9600 bit/s"
    assert sent[-1] == (0x3F8, 0x41)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (call(0x18), "No bootable device. Halted."),
        (call(0x19), "Boot failed. Halted."),
        (b"\x31\xc9\xf7\xf1", "Divide error. Halted."),  # xor cx, cx; div cx
    ],
)
def test_dead_ends_say_so(code: bytes, text: str) -> None:
    assert ran(code).row(1) == text
