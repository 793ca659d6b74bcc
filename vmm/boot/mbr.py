"""A raw boot sector, started as a BIOS starts it.

Source: BIOS Boot Specification 1.01, section 6.5.1 (boot handoff): the sector at 0000:7C00, DL =
the drive it came from.  SP just below the sector and interrupts on are what PC firmware does.

The file is the disk: sectors behind the first are read through INT 13h (bios.py) or the disk
controller.  Not here: partition tables; the sector finds its own partitions.
"""

from __future__ import annotations

from vmm.boot.entry import Entry, real_mode_entry
from vmm.errors import ImageError
from vmm.ram import Ram

SECTOR = 512
LOAD_ADDRESS = 0x7C00
SIGNATURE_AT = 510
SIGNATURE = b"\x55\xaa"
HARD_DISK = 0x80


def load(memory: Ram, image: bytes, drive: int = HARD_DISK, name: str = "boot sector") -> Entry:
    """Put the first sector of ``image`` at 0x7C00."""
    if len(image) < SECTOR:
        raise ImageError(
            f"{name}: {len(image)} bytes, a boot sector has {SECTOR}: pad it (times 510-($-$$) db 0)"
        )
    found = image[SIGNATURE_AT:SECTOR]
    if found != SIGNATURE:
        raise ImageError(
            f"{name}: {found.hex(' ')} at offset 510, expected 55 aa: not a boot sector,"
            " or `dw 0xaa55` is missing"
        )
    memory.write(LOAD_ADDRESS, image[:SECTOR])
    return real_mode_entry(0, LOAD_ADDRESS, {"rdx": drive, "rsp": LOAD_ADDRESS}, interrupts=True)
