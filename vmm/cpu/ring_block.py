"""The block of words that :mod:`vmm.cpu.ring` and its kernel share; importable without numba."""

from __future__ import annotations

(
    # where guest memory and the code pages are: vmm.cpu.dma
    CONTROL,
    HOST,
    LOW_END,
    HIGH_BASE,
    HIGH_END,
    # functions of libc, and room for a frame
    READ,
    WRITEV,
    FRAME,
    # what is asked
    OPTIONS,
    WRITTEN,  # bytes of the buffer that is given back; of a frame, its bytes
    # the queue, as in vmm.device.RingRegisters
    DESC,
    DRIVER,
    DEVICE,
    SIZE,
    EVENT_IDX,
    INDIRECT,
    # frames that passed between a descriptor and the ring
    FRAMES,
    BYTES,  # of them, without the header
    LONGEST,
    HELD,  # bytes of one that was read and is not in the ring, or -1
    # the queue again
    TOLD,
    PUBLISHED,
    USED,
    NEXT_AVAIL,
    # the answer
    HAD_CODE,  # 1: code was translated from a page of the used ring that was written
    LEFT,  # buffers, as one asks and as it is then
    HEAD,  # of the buffer that is given back, then of the one that was taken
    READERS,
    WRITERS,
    READ_BYTES,
    WRITE_BYTES,
    ROWS,
) = range(0, 8 * 32, 8)
"""Byte offsets in the block."""
ROWS_MAX = 1024
"""CHAIN_MAX of virtio_queue: rows that a buffer has, and that there is room for."""
ROW_SIZE = 16
FILLED = ROWS + ROW_SIZE * ROWS_MAX
"""Head and rows of each buffer that a frame is to fill."""
BLOCK_SIZE = FILLED + ROW_SIZE * ROWS_MAX

ASK = 1
"""Option of giving back: write ``avail_event``."""
MERGEABLE, HOST_HEADER = 1, 2
"""Options of a frame: it may fill several buffers; it begins with a header."""
NOT_SO_SIMPLE = -100
"""This frame is for Python; nothing was done."""

NET_HEADER = 12
FRAME_MIN, FRAME_ROOM = NET_HEADER + 14, NET_HEADER + 65550 + 1
"""Bytes of a frame with its header, and those that are read: one that fills them is too long."""
