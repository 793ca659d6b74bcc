"""INT 13h from real code: CHS and extended transfers, parameters, status."""

from __future__ import annotations

import struct

import pytest

from tests.boot.real_mode import STOP, RealModePc, call, carry, high, ran
from vmm.boot.bios_disk import geometry

DISK = b"".join(bytes((i & 0xFF,)) * 512 for i in range(63 * 16 * 3))


def test_read_by_cylinder_head_sector() -> None:
    """C 1, H 2, S 3 of 16 heads and 63 sectors."""
    pc = ran(call(0x13, ax=0x0202, bx=0x8000, cx=0x0103, dx=0x0280), drives={0x80: DISK})
    block = (1 * 16 + 2) * 63 + 2
    assert pc.memory.read(0x8000, 1024) == DISK[512 * block : 512 * (block + 2)]
    assert (pc.registers.get("ax"), carry(pc)) == (0x0002, False)


def test_write_and_status() -> None:
    pc = RealModePc(call(0x13, ax=0x0301, bx=0x8000, cx=0x0002, dx=0x0080) + STOP, {0x80: DISK})
    pc.memory.write(0x8000, b"written!" * 64)
    pc.run()
    assert bytes(pc.disks[0x80].data[512:1024]) == b"written!" * 64
    pc = ran(call(0x13, ax=0x0201, bx=0x8000, cx=0x0500, dx=0x0080), drives={0x80: DISK})
    assert (high(pc, "ax"), carry(pc)) == (4, True), "sector 0 does not exist"
    assert pc.memory.read(0x474, 1) == b"\x04"


def test_parameters() -> None:
    pc = ran(call(0x13, ax=0x0800, dx=0x0080), drives={0x80: DISK})
    assert (pc.registers.get("cx"), pc.registers.get("dx")) == (0x023F, 0x0F01)
    pc = ran(call(0x13, ax=0x1500, dx=0x0080), drives={0x80: DISK})
    assert high(pc, "ax") == 3
    assert pc.registers.get("dx") == len(DISK) // 512


def test_missing_drive() -> None:
    pc = ran(call(0x13, ax=0x0201, bx=0x8000, cx=1, dx=0x0081), drives={0x80: DISK})
    assert (pc.registers.get("ax"), carry(pc)) == (0x0100, True)


def test_extended_read() -> None:
    pc = RealModePc(call(0x13, ax=0x4200, si=0x7E00, dx=0x0080) + STOP, {0x80: DISK})
    pc.memory.write(0x7E00, struct.pack("<BBHHHQ", 16, 0, 3, 0x0000, 0x0900, 1000))
    pc.run()
    assert pc.memory.read(0x9000, 1536) == DISK[512 * 1000 : 512 * 1003]
    assert not carry(pc)


def test_extended_presence_and_parameters() -> None:
    pc = ran(call(0x13, ax=0x4100, bx=0x55AA, dx=0x0080), drives={0x80: DISK})
    assert (pc.registers.get("bx"), high(pc, "ax"), pc.registers.get("cx") & 1) == (0xAA55, 0x21, 1)
    pc = RealModePc(call(0x13, ax=0x4800, si=0x7E00, dx=0x0080) + STOP, {0x80: DISK})
    pc.memory.write(0x7E00, struct.pack("<H", 26))
    pc.run()
    found = struct.unpack("<HHIIIQH", pc.memory.read(0x7E00, 26))
    assert found == (26, 2, 3, 16, 63, len(DISK) // 512, 512)


def test_transfers_outside_the_disk_or_memory() -> None:
    pc = RealModePc(call(0x13, ax=0x4200, si=0x7E00, dx=0x0080) + STOP, {0x80: DISK})
    pc.memory.write(0x7E00, struct.pack("<BBHHHQ", 16, 0, 3, 0, 0x900, (1 << 64) - 1))
    pc.run()
    assert (high(pc, "ax"), carry(pc)) == (4, True)
    pc = RealModePc(call(0x13, ax=0x4200, si=0x7E00, dx=0x0080) + STOP, {0x80: DISK})
    pc.memory.write(0x7E00, struct.pack("<BBHIQQ", 24, 0, 3, 0xFFFFFFFF, 0, 1 << 40))
    pc.run()
    assert (high(pc, "ax"), carry(pc)) == (1, True)


@pytest.mark.parametrize(
    ("number", "sectors", "shape"),
    [
        (0x00, 2880, (80, 2, 18)),
        (0x00, 720, (40, 2, 9)),
        (0x00, 5, (1, 2, 18)),
        (0x80, 16 * 63 * 100, (100, 16, 63)),
        (0x80, 16 * 63 * 1024, (1024, 16, 63)),
        (0x80, 255 * 63 * 500, (500, 255, 63)),
        (0x80, 1 << 30, (1024, 255, 63)),
        (0x80, 1, (1, 16, 63)),
    ],
)
def test_geometry(number: int, sectors: int, shape: tuple[int, int, int]) -> None:
    found = geometry(number, sectors)
    assert (found.cylinders, found.heads, found.sectors) == shape


def test_diskette() -> None:
    image = b"".join(struct.pack("<I", i) * 128 for i in range(2880))
    pc = ran(call(0x13, ax=0x0201, bx=0x8000, cx=0x0001, dx=0x0100), drives={0x00: image})
    assert pc.memory.read(0x8000, 4) == struct.pack("<I", 18), "head 1, sector 1 follows 18 of head 0"
