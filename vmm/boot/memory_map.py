"""What the first mebibyte and the firmware's memory map say, whichever way a guest is started.

Source: ACPI specification 6.4 section 15 (INT 15h E820h address ranges); IBM PC/AT technical
reference (BIOS data area at 0040:0000).

    0x00000-0x9FBFF   RAM
    0x9FC00-0x9FFFF   extended BIOS data area: reserved
    0xA0000-0xBFFFF   VGA memory; 0xC0000-0xDFFFF option ROMs: not in the map
    0xE0000-0xEFFFF   ACPI tables: reserved
    0xF0000-0xFFFFF   firmware and MultiProcessor tables: reserved
    0x100000-         RAM to the device hole, then from 4 GiB

Not here: ranges of type 3 (ACPI tables that may be overwritten once they are read): what is there
is too little to be worth reclaiming, and the FACS must stay.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmm.ram import MIB, Ram

USABLE, RESERVED = 1, 2

EBDA = 0x9FC00
EBDA_SIZE_KIB = 1
BASE_MEMORY_KIB = EBDA >> 10
FIRMWARE = 0xE0000

BDA = 0x400
BDA_COM1 = BDA + 0x00
BDA_EBDA_SEGMENT = BDA + 0x0E
BDA_EQUIPMENT = BDA + 0x10
BDA_BASE_MEMORY_KIB = BDA + 0x13


@dataclass(frozen=True, slots=True)
class Range:
    """One address range descriptor."""

    base: int
    length: int
    kind: int

    @property
    def end(self) -> int:
        return self.base + self.length

    def pack(self) -> bytes:
        """The 20 bytes of an E820 or Multiboot entry."""
        return struct.pack("<QQI", self.base, self.length, self.kind)


def e820(memory: Ram) -> list[Range]:
    """The address ranges of a machine with this memory, in order."""
    ranges = [
        Range(0, EBDA, USABLE),
        Range(EBDA, 0xA0000 - EBDA, RESERVED),
        Range(FIRMWARE, MIB - FIRMWARE, RESERVED),
    ]
    for base, _, length in memory.regions:
        start = max(base, MIB)
        if base + length > start:
            ranges.append(Range(start, base + length - start, USABLE))
    return ranges


def low_top(memory: Ram) -> int:
    """The end of RAM below the device hole."""
    base, _, length = memory.regions[0]
    return base + length


def write_bda_sizes(memory: Ram) -> None:
    """The words of the BIOS data area that operating systems read to find the EBDA."""
    memory.write(BDA_EBDA_SEGMENT, struct.pack("<H", EBDA >> 4))
    memory.write(BDA_BASE_MEMORY_KIB, struct.pack("<H", BASE_MEMORY_KIB))
    memory.write(EBDA, bytes([EBDA_SIZE_KIB]))
