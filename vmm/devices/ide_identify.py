"""What IDENTIFY DEVICE answers, and the geometry that goes with it.

Source: ATA/ATAPI-6 (T13/1410D), IDENTIFY DEVICE; CHS translation from ATA-5 (T13/1321D).

Not modelled: optional feature sets; the words that are not named here are zero and say so.
"""

from __future__ import annotations

import struct

HEADS, SECTORS_PER_TRACK, CYLINDERS_MAX = 16, 63, 16383
"""The default translation of a large drive."""
MULTIPLE_MAX = 16
LBA28_MAX = 0x0FFF_FFFF

# Word 82/85 and 83/86: command sets
POWER_MANAGEMENT, WRITE_CACHE, LOOK_AHEAD = 1 << 3, 1 << 5, 1 << 6
LBA48, FLUSH_CACHE, FLUSH_CACHE_EXT, ALWAYS_ONE = 1 << 10, 1 << 12, 1 << 13, 1 << 14


def default_cylinders(sectors: int) -> int:
    return max(1, min(CYLINDERS_MAX, sectors // (HEADS * SECTORS_PER_TRACK)))


def _text(text: str, length: int) -> bytes:
    """ATA strings are padded with spaces and have the bytes of each word swapped."""
    raw = bytearray(text.ljust(length).encode("ascii"))
    raw[0::2], raw[1::2] = raw[1::2], raw[0::2]
    return bytes(raw)


def identify(
    sectors: int, number: int, heads: int, per_track: int, multiple: int, write_cache: bool
) -> bytearray:
    """The 512 bytes of drive ``number``; heads, per_track and multiple are the current settings."""
    data = bytearray(512)

    def words(first: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}H", data, 2 * first, *values)

    cylinders = min(CYLINDERS_MAX, sectors // (heads * per_track))
    reachable = cylinders * heads * per_track
    lba28 = min(sectors, LBA28_MAX)
    words(0, 0x0040, default_cylinders(sectors))  # fixed drive
    words(3, HEADS)
    words(6, SECTORS_PER_TRACK)
    data[20:40] = _text(f"VMM{number:05d}", 20)
    data[46:54] = _text("1.0", 8)
    data[54:94] = _text("VMM HARDDISK", 40)
    words(47, 0x8000 | MULTIPLE_MAX, 1, 0x0A00, 0x4000)  # 48: 32-bit data port; 49: IORDY, LBA
    words(53, 0x0003)  # words 54-58 and 64-70 are valid
    words(54, cylinders, heads, per_track, reachable & 0xFFFF, reachable >> 16)
    words(59, 0x0100 | multiple if multiple else 0)
    words(60, lba28 & 0xFFFF, lba28 >> 16)
    words(64, 0x0003, 0, 0, 120, 120)  # PIO modes 3 and 4, cycle times in ns
    words(80, 0x007E)  # ATA-1 to ATA/ATAPI-6
    supported = ALWAYS_ONE | FLUSH_CACHE_EXT | FLUSH_CACHE | LBA48
    words(82, POWER_MANAGEMENT | WRITE_CACHE | LOOK_AHEAD, supported, ALWAYS_ONE)
    cache = WRITE_CACHE if write_cache else 0
    words(85, POWER_MANAGEMENT | LOOK_AHEAD | cache, supported & ~ALWAYS_ONE, ALWAYS_ONE)
    struct.pack_into("<Q", data, 200, sectors)
    data[510] = 0xA5  # word 255: signature, then the checksum that makes all bytes add up to 0
    data[511] = -sum(data) & 0xFF
    return data
