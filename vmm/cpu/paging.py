"""Linear to physical addresses by reading the guest's page tables, as a debugger wants it.

Source: Intel SDM vol. 3 chapter 4: 4.3 (32-bit paging, with 4 MiB pages and PSE-36), 4.4 (PAE), 4.5
(4-level paging).

The walk only looks: it sets no accessed or dirty bit, and it grants what a debugger should see, so
protection (U/S, R/W, XD) and reserved bits are not checked.  PAE paging keeps four page directory
pointers in registers that a MOV to CR3 loads (4.4.1); the walk reads them from memory instead, which
differs only for a guest that changed them without reloading CR3.  5-level paging is not announced.
"""

from __future__ import annotations

from collections.abc import Callable

CR0_PG = 1 << 31
CR4_PSE, CR4_PAE = 1 << 4, 1 << 5
EFER_LMA = 1 << 10

_PRESENT, _LARGE = 1 << 0, 1 << 7
_LINEAR_BITS = 48
_FRAME = 0x000F_FFFF_FFFF_F000
"""Bits 51 to 12 of an 8-byte entry: a physical address."""
_LOW32 = 0xFFFF_FFFF

MemoryRead = Callable[[int, int], bytes]
"""``read(physical address, length)``; an address that is not RAM may give any bytes of that length."""


def translate(memory_read: MemoryRead, cr0: int, cr3: int, cr4: int, efer: int, address: int) -> int | None:
    """Physical address of linear ``address``, or None where nothing is mapped."""
    if efer & EFER_LMA:
        return _four_level(memory_read, cr3, address)
    address &= _LOW32
    if not cr0 & CR0_PG:
        return address
    if cr4 & CR4_PAE:
        return _pae(memory_read, cr3, address)
    return _two_level(memory_read, cr3, cr4, address)


def is_canonical(address: int) -> bool:
    """Do bits 63 to 47 agree (SDM vol. 1 3.3.7.1)?"""
    return (address >> (_LINEAR_BITS - 1)) in (0, (1 << (64 - _LINEAR_BITS + 1)) - 1)


def _entry(memory_read: MemoryRead, table: int, index: int, size: int) -> int:
    return int.from_bytes(memory_read(table + index * size, size), "little")


def _two_level(memory_read: MemoryRead, cr3: int, cr4: int, address: int) -> int | None:
    """4.3: 1024 entries of 4 bytes a table; with CR4.PSE a directory entry may map 4 MiB."""
    entry = _entry(memory_read, cr3 & 0xFFFF_F000, address >> 22, 4)
    if not entry & _PRESENT:
        return None
    if entry & _LARGE and cr4 & CR4_PSE:
        high = (entry >> 13 & 0xFF) << 32  # PSE-36: bits 20 to 13 are address bits 39 to 32
        return high | (entry & 0xFFC0_0000) | (address & 0x003F_FFFF)
    entry = _entry(memory_read, entry & 0xFFFF_F000, address >> 12 & 0x3FF, 4)
    return (entry & 0xFFFF_F000) | (address & 0xFFF) if entry & _PRESENT else None


def _pae(memory_read: MemoryRead, cr3: int, address: int) -> int | None:
    """4.4: four pointers at a 32-byte boundary, then two levels of 512 entries of 8 bytes."""
    pointer = _entry(memory_read, cr3 & 0xFFFF_FFE0, address >> 30, 8)
    return _levels(memory_read, pointer & _FRAME, address, 21) if pointer & _PRESENT else None


def _four_level(memory_read: MemoryRead, cr3: int, address: int) -> int | None:
    """4.5; a non-canonical address maps nowhere."""
    address &= (1 << 64) - 1
    return _levels(memory_read, cr3 & _FRAME, address, 39) if is_canonical(address) else None


def _levels(memory_read: MemoryRead, table: int, address: int, shift: int) -> int | None:
    """Walk tables of 512 entries, the first indexed by the nine bits from ``shift``."""
    while True:
        entry = _entry(memory_read, table, address >> shift & 0x1FF, 8)
        if not entry & _PRESENT:
            return None
        # PS means a page in a 1 GiB or 2 MiB entry, is PAT in a 4 KiB one, and is reserved above.
        if shift == 12 or (entry & _LARGE and shift <= 30):
            inside = (1 << shift) - 1
            return (entry & _FRAME & ~inside) | (address & inside)
        table = entry & _FRAME
        shift -= 9
