"""INT 13h: disks by cylinder, head and sector, and by block number.

Sources: IBM PC/AT technical reference (functions 00h to 15h); Phoenix Enhanced Disk Drive
Specification 1.1 (functions 41h to 48h, disk address packet).

A drive is a number (80h the first hard disk, 00h the first diskette) and a back end.  Hard disks
have 16 heads and 63 sectors a track, or 255 heads where 1024 cylinders would not hold the disk;
diskettes have the geometry of their size.  Transfers complete before the call returns.

Not here: formatting, change line, lock and eject, 64 KiB DMA boundaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vmm.boot import bios_rom as rom
from vmm.boot.bios_call import Call
from vmm.errors import BackendError, BadAddress

SECTOR = 512
TRANSFER_MAX = 128
"""Sectors a call: what fits behind one segment address."""
EDD_TRANSFER_MAX = 127
CYLINDERS_MAX = 1024

# Status codes, in AH and the data area.
OK = 0x00
INVALID = 0x01
WRITE_PROTECTED = 0x03
NOT_FOUND = 0x04
CONTROLLER = 0x20

DISKETTE_1440 = 4
TYPE_NONE, TYPE_DISKETTE, TYPE_HARD_DISK = 0, 1, 3
EDD_VERSION = 0x21
EDD_SUBSETS = 0x01
EDD_PACKET = 1
EDD_MAGIC, EDD_ANSWER = 0x55AA, 0xAA55
GEOMETRY_VALID = 1 << 1
PARAMETERS_SIZE = 26
FLAT_POINTER = 0xFFFF_FFFF

DISKETTES = {
    320: (40, 1, 8),
    360: (40, 1, 9),
    640: (40, 2, 8),
    720: (40, 2, 9),
    1440: (80, 2, 9),
    2400: (80, 2, 15),
    2880: (80, 2, 18),
    5760: (80, 2, 36),
}


class Drive(Protocol):
    """The part of a block back end (vmm.devices.block) that firmware needs."""

    @property
    def sectors(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def read(self, sector: int, count: int) -> bytes: ...

    def write(self, sector: int, data: bytes | memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Geometry:
    """What CHS addresses mean on one drive."""

    cylinders: int
    heads: int
    sectors: int

    def block(self, cylinder: int, head: int, sector: int) -> int | None:
        """The block number, or None for an address that does not exist."""
        if cylinder < self.cylinders and head < self.heads and 1 <= sector <= self.sectors:
            return (cylinder * self.heads + head) * self.sectors + sector - 1
        return None


def geometry(number: int, sectors: int) -> Geometry:
    """The geometry of drive ``number`` with this many sectors."""
    if number < 0x80:
        known = DISKETTES.get(sectors)
        return Geometry(*known) if known else Geometry(max(1, -(-sectors // 36)), 2, 18)
    heads = 16 if sectors <= CYLINDERS_MAX * 16 * 63 else 255
    return Geometry(max(1, min(sectors // (heads * 63), CYLINDERS_MAX)), heads, 63)


def service(call: Call, drives: Mapping[int, Drive]) -> None:
    """One INT 13h."""
    number, function = call.low("dx"), call.high("ax")
    drive = drives.get(number)
    if function == 0x15:
        _drive_type(call, number, drive)
        return
    status_at = rom.BDA_DISK_STATUS if number >= 0x80 else rom.BDA_DISKETTE_STATUS
    if function == 0x01:
        status = call.byte(status_at)
    elif drive is None:
        status = INVALID
        if function in (0x02, 0x03, 0x04):
            call.set_low("ax", 0)
    else:
        try:
            status = _serve(call, function, number, drive, drives)
        except BackendError:
            status = CONTROLLER
        except BadAddress:
            status = INVALID
    call.put_byte(status_at, status)
    if status or function not in (0x41, 0x08):
        call.set_high("ax", status)
    call.set_carry(status != OK)


def _serve(call: Call, function: int, number: int, drive: Drive, drives: Mapping[int, Drive]) -> int:
    match function:
        case 0x00 | 0x0D | 0x11 | 0x10:  # reset, alternate reset, recalibrate, ready
            return OK
        case 0x02 | 0x03 | 0x04:
            return _chs(call, function, number, drive)
        case 0x08:
            return _parameters(call, number, drive, drives)
        case 0x0C:  # seek
            return OK
        case 0x41 if call.get("bx") == EDD_MAGIC and number >= 0x80:
            call.set("bx", EDD_ANSWER)
            call.set_high("ax", EDD_VERSION)
            call.set("cx", EDD_SUBSETS)
            return OK
        case 0x42 | 0x43 | 0x44 | 0x47 if number >= 0x80:
            return _extended(call, function, drive)
        case 0x48 if number >= 0x80:
            return _extended_parameters(call, number, drive)
    return INVALID


def _transfer(call: Call, function: int, drive: Drive, block: int, count: int, address: int) -> int:
    """Functions 02h-04h and 42h-44h are read, write and verify."""
    if block + count > drive.sectors:
        return NOT_FOUND
    match function & 0x0F:
        case 0x02:
            call.memory.write(address, drive.read(block, count))
        case 0x03 if drive.read_only:
            return WRITE_PROTECTED
        case 0x03:
            drive.write(block, call.memory.read(address, count * SECTOR))
    return OK


def _chs(call: Call, function: int, number: int, drive: Drive) -> int:
    """AL sectors at CH = cylinder, CL = sector and cylinder bits 8-9, DH = head; AL = sectors done."""
    count = call.low("ax")
    cylinder = call.high("cx") | (call.low("cx") & 0xC0) << 2
    block = geometry(number, drive.sectors).block(cylinder, call.high("dx"), call.low("cx") & 0x3F)
    status = INVALID
    if block is None:
        status = NOT_FOUND
    elif 1 <= count <= TRANSFER_MAX:
        status = _transfer(call, function, drive, block, count, call.linear("es", call.get("bx")))
    if status:
        call.set_low("ax", 0)
    return status


def _parameters(call: Call, number: int, drive: Drive, drives: Mapping[int, Drive]) -> int:
    """Function 08h: the highest cylinder, head and sector, and how many drives there are."""
    shape = geometry(number, drive.sectors)
    cylinder = shape.cylinders - 1
    call.set("ax", 0)
    call.set("cx", (cylinder & 0xFF) << 8 | cylinder >> 2 & 0xC0 | shape.sectors)
    call.set("dx", (shape.heads - 1) << 8 | sum((n ^ number) < 0x80 for n in drives))
    if number < 0x80:
        call.set("bx", DISKETTE_1440)
        call.set("es", rom.SEGMENT)
        call.set("di", rom.DISKETTE)
    return OK


def _drive_type(call: Call, number: int, drive: Drive | None) -> None:
    """Function 15h."""
    call.set_carry(False)
    if drive is None:
        call.set_high("ax", TYPE_NONE)
    elif number < 0x80:
        call.set_high("ax", TYPE_DISKETTE)
    else:
        count = min(drive.sectors, 0xFFFF_FFFF)
        call.set_high("ax", TYPE_HARD_DISK)
        call.set("cx", count >> 16)
        call.set("dx", count & 0xFFFF)


def _extended(call: Call, function: int, drive: Drive) -> int:
    """The disk address packet at DS:SI: size, count, buffer, block number."""
    at = call.linear("ds", call.get("si"))
    size, count = call.byte(at), call.word(at + 2)
    pointer = call.dword(at + 4)
    block = call.dword(at + 8) | call.dword(at + 12) << 32
    if size < 16 or count > EDD_TRANSFER_MAX:
        return INVALID
    if function == 0x47:  # seek
        return OK if block < drive.sectors else NOT_FOUND
    address = (pointer >> 16) * 16 + (pointer & 0xFFFF)
    if pointer == FLAT_POINTER and size >= 24:
        address = call.dword(at + 16) | call.dword(at + 20) << 32
    status = _transfer(call, function, drive, block, count, address) if count else OK
    if status:
        call.put_word(at + 2, 0)
    return status


def _extended_parameters(call: Call, number: int, drive: Drive) -> int:
    """Function 48h: size, flags, geometry, sectors, sector size."""
    at = call.linear("ds", call.get("si"))
    if call.word(at) < PARAMETERS_SIZE:
        return INVALID
    shape = geometry(number, drive.sectors)
    call.put_word(at, PARAMETERS_SIZE)
    call.put_word(at + 2, GEOMETRY_VALID)
    for i, value in enumerate(
        (shape.cylinders, shape.heads, shape.sectors, drive.sectors, drive.sectors >> 32)
    ):
        call.put_dword(at + 4 + 4 * i, value)
    call.put_word(at + 24, SECTOR)
    return OK
