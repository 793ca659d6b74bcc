"""Buffers of a virtqueue: where their bytes lie in guest memory.

Source: VIRTIO version 1.2, section 2.7.5 (the descriptor table).

A buffer is two lists of ``(address, length)``, what the device may read and what it may write, because most
buffers have one entry and an object per descriptor would cost more than the rest of the work.  A list of
many is a :class:`Table`: descriptors as they came, which the memory uses all at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import starmap

from vmm.device import Memory

DESCRIPTOR_SIZE = 16
MANY = 12
"""Descriptors from which on a list stays a table."""

_SEGMENT = struct.Struct("<QI4x")

Segment = tuple[int, int]
"""Guest physical address and length of one descriptor."""


class Table:
    """Many segments: descriptors, of which only address and length count from here on."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // DESCRIPTOR_SIZE

    def __iter__(self) -> Iterator[Segment]:
        return _SEGMENT.iter_unpack(self.data)

    def __getitem__(self, index: int) -> Segment:
        """Of the last one too, which is -1."""
        address, length = _SEGMENT.unpack_from(self.data, DESCRIPTOR_SIZE * index)
        return address, length


Segments = list[Segment] | Table


def gather(memory: Memory, segments: Segments) -> bytes | memoryview:
    """The bytes of all segments, without a copy where there is one; the caller bounds the total."""
    if len(segments) == 1:
        return memory.view(*segments[0])
    return b"".join(starmap(memory.view, segments))


def scatter(memory: Memory, segments: Segments, data: bytes | memoryview, skip: int = 0) -> None:
    """Write ``data`` over the segments, from their byte ``skip`` on; what does not fit is dropped."""
    at = 0
    data = memoryview(data)  # pieces of it are not copies
    for address, length in segments:
        if skip >= length:
            skip -= length
            continue
        piece = data[at : at + length - skip]
        if not piece:
            return
        memory.write(address + skip, piece)
        at += len(piece)
        skip = 0


def total(segments: Segments) -> int:
    """Bytes in all segments."""
    return sum([length for _, length in segments])


def parts(rows: bytes | memoryview, readers: int, writers: int) -> tuple[Segments, Segments]:
    """What is to be read and what to be written, from descriptors in their order."""
    middle, end = DESCRIPTOR_SIZE * readers, DESCRIPTOR_SIZE * (readers + writers)
    if readers + writers < MANY:
        segments = list(_SEGMENT.iter_unpack(rows[:end]))
        return segments[:readers], segments[readers:]
    return _part(rows[:middle]), _part(rows[middle:end])


def _part(rows: bytes | memoryview) -> Segments:
    many = len(rows) >= MANY * DESCRIPTOR_SIZE
    return Table(bytes(rows)) if many else list(_SEGMENT.iter_unpack(rows))
