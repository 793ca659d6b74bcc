"""Tables of bus masters, compiled: what :mod:`vmm.cpu.dma` calls.

A table comes from the guest.  An address may be anything, so nothing is added to it before it is known
to be in RAM.
"""

from __future__ import annotations

from vmm.cpu.control import CODE_PAGES
from vmm.cpu.native import callback, i64, load8, load32, load64, native, store64

_ROW_SIZE, _VECTOR_SIZE = 16, 16


@native
def in_ram(address: int, length: int, low_end: int, high_base: int, high_end: int) -> int:
    """Where ``[address, address + length)`` is in the RAM mapping, or -1.

    RAM is ``[0, low_end)`` and ``[high_base, high_end)``, one after the other.
    """
    base, end, offset = 0, low_end, 0
    if address >= high_base:
        base, end, offset = high_base, high_end, low_end
    return -1 if address < 0 or length > end - address else offset + (address - base)


@callback(i64(i64, i64, i64, i64, i64, i64, i64))
def list_pieces(
    table: int, count: int, vectors: int, host: int, low_end: int, high_base: int, high_end: int
) -> int:
    """One vector for each row; bytes in all, or ``-1 - n`` where row ``n`` is the first outside RAM."""
    size = 0
    for index in range(count):
        row, vector = table + _ROW_SIZE * index, vectors + _VECTOR_SIZE * index
        length = load32(row + 8)
        offset = in_ram(load64(row), length, low_end, high_base, high_end)
        if offset < 0:
            return -1 - index
        store64(vector, host + offset)
        store64(vector + 8, length)
        size += length
    return size


@callback(i64(i64, i64, i64, i64))
def has_code(control: int, vectors: int, count: int, host: int) -> int:
    """Was code translated from a page of any of these pieces (:mod:`vmm.cpu.code_pages`)?"""
    pages = load64(control + CODE_PAGES)
    for index in range(count):
        vector = vectors + _VECTOR_SIZE * index
        offset = load64(vector) - host
        last = offset + load64(vector + 8) - 1 >> 12
        for page in range(offset >> 12, last + 1):
            if load8(pages + page) != 0:
                return 1
    return 0
