"""A network card's work on its rings, compiled: what :mod:`vmm.cpu.ring` calls.

Source: VIRTIO version 1.2, 5.1.6 (the network device's buffers); read(2) and writev(2) of the C library.

It does what :class:`vmm.devices.virtio_net.VirtioNet` does with a frame, with the same outcome to the last
byte, and does nothing where that is not simple: a buffer with code in its pages, too few of them, a broken
rule.  Python does that one, finds the reason again, and says it.  So does what the kernel refuses: the
second attempt has the same error, and Python knows what it means.
"""

from __future__ import annotations

from vmm.cpu.native import call3, callback, i64, load8, load32, load64, native, store8, store64
from vmm.cpu.ring_block import (
    BYTES,
    DEVICE,
    DRIVER,
    FILLED,
    FRAME,
    FRAME_MIN,
    FRAME_ROOM,
    FRAMES,
    HELD,
    HOST_HEADER,
    LEFT,
    LONGEST,
    MERGEABLE,
    NET_HEADER,
    NEXT_AVAIL,
    NOT_SO_SIMPLE,
    OPTIONS,
    PUBLISHED,
    READ,
    READ_BYTES,
    READERS,
    ROW_SIZE,
    ROWS,
    ROWS_MAX,
    SIZE,
    TOLD,
    WRITE_BYTES,
    WRITEV,
    WRITTEN,
)
from vmm.cpu.ring_kernel import ask_and_show, chain, give, is_code, next_head, pending, place, show

_NUM_BUFFERS = 10


# A frame for the guest: 5.1.6.4.  All of it or nothing, so that what is not simple can be left to Python.


@native
def _room_for(block: int, needed: int) -> int:
    """Take buffers until a frame has room, in RAM without code; how many.  Rows get the host's addresses."""
    available = pending(block)
    buffers, rows, room = 0, 0, 0
    while room < needed:
        if buffers >= available or (buffers > 0 and not load64(block + OPTIONS) & MERGEABLE):
            return NOT_SO_SIMPLE
        head = next_head(block)
        first = block + ROWS + ROW_SIZE * rows
        found = chain(block, head, first, ROWS_MAX - rows) if head >= 0 else head
        if found < 0 or load64(block + READERS) != 0 or load64(block + WRITE_BYTES) < NET_HEADER:
            return NOT_SO_SIMPLE
        for row in range(first, first + ROW_SIZE * found, ROW_SIZE):
            length = load32(row + 8)
            where = place(block, load64(row), 0, length)
            if where == 0:
                return NOT_SO_SIMPLE
            if room < needed and is_code(block, where, min(length, needed - room)):
                return NOT_SO_SIMPLE
            store64(row, where)
            room += length
        store64(block + FILLED + ROW_SIZE * buffers, head)
        store64(block + FILLED + ROW_SIZE * buffers + 8, found)
        buffers, rows = buffers + 1, rows + found
    return buffers


@native
def _copy(to: int, source: int, count: int) -> None:
    words = count & ~7
    for at in range(0, words, 8):
        store64(to + at, load64(source + at))
    for at in range(words, count):
        store8(to + at, load8(source + at))


@native
def _write_frame(block: int, frame: int, at: int, to: int, count: int, buffers: int) -> None:
    """``count`` bytes of header and frame, from byte ``at`` on."""
    has_header = load64(block + OPTIONS) & HOST_HEADER != 0
    while at < NET_HEADER and count > 0:
        if at >= _NUM_BUFFERS:
            store8(to, buffers >> 8 * (at - _NUM_BUFFERS))
        else:
            store8(to, load8(frame + at) if has_header else 0)
        at, to, count = at + 1, to + 1, count - 1
    _copy(to, frame + at - (0 if has_header else NET_HEADER), count)


@native
def _merge(block: int, frame: int) -> int:
    """Put a frame of WRITTEN bytes into as many buffers as it needs, give them back and show them."""
    needed = load64(block + WRITTEN)
    if not load64(block + OPTIONS) & HOST_HEADER:
        needed += NET_HEADER
    buffers = _room_for(block, needed)
    if buffers < 0:
        return buffers
    at, row = 0, block + ROWS
    for number in range(buffers):
        entry = block + FILLED + ROW_SIZE * number
        began = at
        for _ in range(load64(entry + 8)):
            count = min(load32(row + 8), needed - at)
            _write_frame(block, frame, at, load64(row), count, buffers)
            at, row = at + count, row + ROW_SIZE
        wrong = give(block, load64(entry), at - began)
        if wrong < 0:
            return wrong
    return show(block)


@callback(i64(i64, i64))
def ring_merge(block: int, frame: int) -> int:
    """One frame, from Python."""
    return _merge(block, frame)


# Frames between the host's descriptor and the ring, as many as there are.  With both rings in RAM nothing of
# giving back and showing can be wrong; what else is not simple is left as it is, to Python.


@native
def _rings_in_ram(block: int) -> bool:
    size = load64(block + SIZE)
    if size == 0 or place(block, load64(block + DRIVER), 0, 4 + 2 * size + 2) == 0:
        return False
    return place(block, load64(block + DEVICE), 0, 4 + 8 * size + 2) != 0


@native
def _passed(block: int, size: int) -> None:
    store64(block + FRAMES, load64(block + FRAMES) + 1)
    store64(block + BYTES, load64(block + BYTES) + size)
    store64(block + LONGEST, max(load64(block + LONGEST), size))


@callback(i64(i64, i64))
def ring_receive(block: int, descriptor: int) -> int:
    """Frames for the guest, as long as there are some and each finds room; 1: the driver wants an interrupt.

    HELD is the size of a frame that was read and not put anywhere, or -1.  A read that fails is no frame:
    who finds none here asks again and is told why.  No more than the ring has places, for a signal's sake.
    """
    store64(block + HELD, -1)
    wanted = 0
    if not _rings_in_ram(block):
        return wanted
    frame = load64(block + FRAME)
    for _ in range(load64(block + SIZE)):
        size = call3(load64(block + READ), descriptor, frame, FRAME_ROOM)
        if size < 0:
            break
        next_avail = load64(block + NEXT_AVAIL)
        store64(block + WRITTEN, size)
        found = _merge(block, frame) if FRAME_MIN <= size < FRAME_ROOM else NOT_SO_SIMPLE
        if found < 0:
            store64(block + NEXT_AVAIL, next_avail)
            store64(block + HELD, size)
            break
        wanted |= found
        store64(block + TOLD, load64(block + PUBLISHED))
        _passed(block, size - NET_HEADER)
    return wanted


@native
def _send(block: int, head: int, descriptor: int) -> int:
    """The buffer ``head`` as one frame, from where it lies; its size, or -1: nothing was sent."""
    found = chain(block, head, block + ROWS, ROWS_MAX)
    size, readers = load64(block + READ_BYTES), load64(block + READERS)
    if found < 0 or size < FRAME_MIN or size >= FRAME_ROOM:
        return -1
    for row in range(block + ROWS, block + ROWS + ROW_SIZE * readers, ROW_SIZE):
        length = load32(row + 8)
        where = place(block, load64(row), 0, length)
        if where == 0:
            return -1
        store64(row, where)  # and so the row becomes a vector of writev(2)
        store64(row + 8, length)
    if call3(load64(block + WRITEV), descriptor, block + ROWS, readers) < 0:
        return -1
    return size - NET_HEADER


@callback(i64(i64, i64))
def ring_send(block: int, descriptor: int) -> int:
    """Every buffer there is, then show them; 1: the driver wants an interrupt.

    NOT_SO_SIMPLE: LEFT are there still, the first of which is to be looked at, UNREAD: all of them.
    """
    if not _rings_in_ram(block):
        return NOT_SO_SIMPLE
    left = pending(block)
    if left < 0:
        return NOT_SO_SIMPLE
    for more in range(left, 0, -1):
        next_avail = load64(block + NEXT_AVAIL)
        head = next_head(block)
        size = _send(block, head, descriptor)
        if size < 0:
            store64(block + NEXT_AVAIL, next_avail)
            store64(block + LEFT, more)
            return NOT_SO_SIMPLE
        give(block, head, 0)
        _passed(block, size)
    return ask_and_show(block)
