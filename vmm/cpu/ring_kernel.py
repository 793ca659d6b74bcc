"""Split virtqueues, compiled: what :mod:`vmm.cpu.ring` calls.

Source: VIRTIO version 1.2, 2.7 (split virtqueues) and 5.1.6 (the network device's buffers).

It does what :class:`vmm.devices.virtio_queue.VirtQueue` does, check by check, and its outcome is the same to
the last byte.  The guest owns every byte of the rings: what it says is an address is used only after it was
found in RAM, and no loop runs longer than the queue, or ROWS_MAX.  A rule that was broken is a
negative number, ``-1 - kind`` of ``virtio_queue.Violation``.

The *block* (:mod:`vmm.cpu.ring_block`) is what one call needs, in words, and the rows of the buffer that it
took.  What a network card does with rings is in :mod:`vmm.cpu.frames_kernel`.
"""

from __future__ import annotations

from vmm.cpu.control import CODE_PAGES
from vmm.cpu.dma_kernel import in_ram
from vmm.cpu.native import (
    callback,
    i64,
    load8,
    load16,
    load32,
    load64,
    native,
    store16,
    store32,
    store64,
)
from vmm.cpu.ring_block import (
    ASK,
    CONTROL,
    DESC,
    DEVICE,
    DRIVER,
    EVENT_IDX,
    HAD_CODE,
    HEAD,
    HIGH_BASE,
    HIGH_END,
    HOST,
    INDIRECT,
    LEFT,
    LOW_END,
    NEXT_AVAIL,
    OPTIONS,
    PUBLISHED,
    READ_BYTES,
    READERS,
    ROW_SIZE,
    ROWS,
    ROWS_MAX,
    SIZE,
    TOLD,
    USED,
    WRITE_BYTES,
    WRITERS,
    WRITTEN,
)

_AVAIL_JUMP, _HEAD_RANGE, _NEXT_RANGE, _CHAIN_LENGTH, _ORDER, _ZERO_LENGTH, _OUTSIDE_RAM = range(-3, -10, -1)
_INDIRECT_NOT_OFFERED, _INDIRECT_NESTED, _INDIRECT_SIZE = range(-10, -13, -1)
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1
_RING_HEADER, _USED_ELEMENT = 4, 8
_PAGE_BITS = 12


@native
def place(block: int, base: int, offset: int, length: int) -> int:
    """The host's address of so many bytes at ``offset`` of a ring or table, or 0: not in RAM."""
    if base < 0:
        return 0
    at = in_ram(
        base + offset, length, load64(block + LOW_END), load64(block + HIGH_BASE), load64(block + HIGH_END)
    )
    return load64(block + HOST) + at if at >= 0 else 0


@native
def is_code(block: int, where: int, length: int) -> bool:
    """Was code translated from a page of what is to be written?"""
    pages = load64(load64(block + CONTROL) + CODE_PAGES)
    offset = where - load64(block + HOST)
    for page in range(offset >> _PAGE_BITS, (offset + length - 1 >> _PAGE_BITS) + 1):
        if load8(pages + page) != 0:
            return True
    return False


@native
def _note(block: int, where: int, length: int) -> None:
    if is_code(block, where, length):
        store64(block + HAD_CODE, 1)


# Taking: 2.7.13, 2.7.5.


@native
def pending(block: int) -> int:
    """Buffers made available and not yet taken."""
    where = place(block, load64(block + DRIVER), 2, 2)
    if where == 0:
        return _OUTSIDE_RAM
    count = (load16(where) - load64(block + NEXT_AVAIL)) & 0xFFFF
    return count if count <= load64(block + SIZE) else _AVAIL_JUMP


@native
def next_head(block: int) -> int:
    """The head of the next buffer, which is taken with that."""
    next_avail = load64(block + NEXT_AVAIL)
    slot = 2 * (next_avail & (load64(block + SIZE) - 1))
    where = place(block, load64(block + DRIVER), _RING_HEADER + slot, 2)
    if where == 0:
        return _OUTSIDE_RAM
    store64(block + NEXT_AVAIL, (next_avail + 1) & 0xFFFF)
    return load16(where)


@native
def _indirect_count(block: int, length: int, flags: int) -> int:
    """Entries of an indirect table (2.7.5.3)."""
    if load64(block + INDIRECT) == 0:
        return _INDIRECT_NOT_OFFERED
    if flags & _NEXT:
        return _INDIRECT_NESTED
    if length == 0 or length % ROW_SIZE != 0 or length > ROW_SIZE * ROWS_MAX:
        return _INDIRECT_SIZE
    return length // ROW_SIZE


@native
def _follow(block: int, table: int, count: int, index: int, rows: int, rows_max: int) -> int:
    """The chain that begins at ``index`` of a table of ``count``, as ``rows``: how many, or what is wrong."""
    readers, read_bytes, write_bytes = 0, 0, 0
    for number in range(min(count, rows_max)):
        row, to = table + ROW_SIZE * index, rows + ROW_SIZE * number
        store64(to, load64(row))
        store64(to + 8, load64(row + 8))  # from here on the row is ours
        length, flags, index = load32(to + 8), load16(to + 12), load16(to + 14)
        if flags & _INDIRECT:
            return _INDIRECT_NESTED
        if length == 0:
            return _ZERO_LENGTH
        if flags & _WRITE:
            write_bytes += length
        elif readers != number:
            return _ORDER
        else:
            readers += 1
            read_bytes += length
        if not flags & _NEXT:
            store64(block + READERS, readers)
            store64(block + WRITERS, number + 1 - readers)
            store64(block + READ_BYTES, read_bytes)
            store64(block + WRITE_BYTES, write_bytes)
            return number + 1
        if index >= count:
            return _NEXT_RANGE
    return _CHAIN_LENGTH


@native
def chain(block: int, head: int, rows: int, rows_max: int) -> int:
    """The rows of buffer ``head``: how many, or what is wrong."""
    count = load64(block + SIZE)
    if head >= count:
        return _HEAD_RANGE
    table = place(block, load64(block + DESC), 0, ROW_SIZE * count)
    if table == 0:
        return _OUTSIDE_RAM
    row = table + ROW_SIZE * head
    flags = load16(row + 12)
    if not flags & _INDIRECT:
        return _follow(block, table, count, head, rows, rows_max)
    length = load32(row + 8)
    count = _indirect_count(block, length, flags)
    if count < 0:
        return count
    table = place(block, load64(row), 0, length)
    if table == 0:
        return _OUTSIDE_RAM
    return _follow(block, table, count, 0, rows, rows_max)


@native
def _taken(block: int) -> int:
    """Take the next buffer; how many more there are, or what is wrong."""
    left = load64(block + LEFT)
    if left < 0:
        left = pending(block)
        if left <= 0:
            return left
    head = next_head(block)
    if head < 0:
        return head
    store64(block + HEAD, head)
    found = chain(block, head, block + ROWS, ROWS_MAX)
    return found if found < 0 else left - 1


# Giving back: 2.7.8, 2.7.7, 2.7.10.


@native
def give(block: int, head: int, written: int) -> int:
    """The next element of the used ring."""
    used = load64(block + USED)
    element = _USED_ELEMENT * (used & (load64(block + SIZE) - 1))
    where = place(block, load64(block + DEVICE), _RING_HEADER + element, _USED_ELEMENT)
    if where == 0:
        return _OUTSIDE_RAM
    store32(where, head)
    store32(where + 4, written)
    _note(block, where, _USED_ELEMENT)
    store64(block + USED, (used + 1) & 0xFFFF)
    return 0


@native
def _write_index(block: int, offset: int, index: int) -> int:
    """``idx`` of the used ring, or ``avail_event`` behind it."""
    where = place(block, load64(block + DEVICE), offset, 2)
    if where == 0:
        return _OUTSIDE_RAM
    store16(where, index)
    _note(block, where, 2)
    return 0


@native
def _wants_interrupt(block: int) -> int:
    """1: the driver wants one for what it can see."""
    published, told = load64(block + PUBLISHED), load64(block + TOLD)
    if published == told:
        return 0
    if load64(block + EVENT_IDX) == 0:
        flags = place(block, load64(block + DRIVER), 0, 1)
        if flags == 0:
            return _OUTSIDE_RAM
        return 1 - (load8(flags) & _NO_INTERRUPT)
    event = place(block, load64(block + DRIVER), _RING_HEADER + 2 * load64(block + SIZE), 2)
    if event == 0:
        return _OUTSIDE_RAM
    return 1 if (published - load16(event) - 1) & 0xFFFF < (published - told) & 0xFFFF else 0


@native
def show(block: int) -> int:
    """Let the driver see what was given back; 1: it wants an interrupt."""
    used = load64(block + USED)
    if used != load64(block + PUBLISHED):
        wrong = _write_index(block, 2, used)
        if wrong < 0:
            return wrong
        store64(block + PUBLISHED, used)
    return _wants_interrupt(block)


@callback(i64(i64))
def ring_take(block: int) -> int:
    """Give back HEAD, if it is one; then take a buffer.  LEFT is the outcome."""
    store64(block + READERS, 0)
    store64(block + WRITERS, 0)
    head = load64(block + HEAD)
    left = give(block, head, load64(block + WRITTEN)) if head >= 0 else 0
    if left == 0:
        left = _taken(block)
    store64(block + LEFT, left)
    return left


@native
def ask_and_show(block: int) -> int:
    """Ask to be told of the next buffer, and show what was given back; 1: the driver wants an interrupt."""
    if load64(block + EVENT_IDX) != 0:
        behind = _RING_HEADER + _USED_ELEMENT * load64(block + SIZE)
        wrong = _write_index(block, behind, load64(block + NEXT_AVAIL))
        if wrong < 0:
            return wrong
    return show(block)


@callback(i64(i64))
def ring_finish(block: int) -> int:
    """Give back HEAD, if it is one; ask for the next if that is wanted; show what was given back."""
    head = load64(block + HEAD)
    wrong = give(block, head, load64(block + WRITTEN)) if head >= 0 else 0
    if wrong < 0:
        return wrong
    return ask_and_show(block) if load64(block + OPTIONS) & ASK else show(block)
