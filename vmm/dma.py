"""Large transfers of bus masters: many pieces of guest memory that the kernel fills or takes by itself.

A disk request of a megabyte is 256 pages from anywhere in guest memory.  An object and a few calls for
each of them cost more than moving its bytes.  So a device hands over descriptors as they lie in its
ring, a *table*; they become the vectors of preadv(2) and pwritev(2) all at once, and the bytes go
between a file and guest memory without a copy in between.  (``os.preadv`` wants an object a piece; the
C library's function takes the vectors as they are.)

:meth:`vmm.ram.Ram.pieces` makes the lists, with :func:`listed` or, where a processor is attached, with
what it has compiled (:mod:`vmm.cpu.dma`).  Pieces may overlap: they are filled in their order.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

ROW = struct.Struct("<QI4x")
"""A row of a table: address and length; the rest is the device's."""
VECTOR = struct.Struct("=QQ")
"""``struct iovec``: where a piece lies in this process, and its length."""
VECTORS_MAX = 1024
"""What the kernel takes in one call (UIO_MAXIOV)."""

_Transfer = Callable[[int, int, int, int], int]


class Vectors:
    """Room for the vectors of ``count`` pieces, and its address."""

    __slots__ = ("_pinned", "address", "count", "data")

    def __init__(self, count: int) -> None:
        self.count = count
        self.data = bytearray(VECTOR.size * count)
        self._pinned = ctypes.c_char.from_buffer(self.data)
        self.address = ctypes.addressof(self._pinned)


class CompiledDma(Protocol):
    """What a processor brings."""

    def listed(self, table: bytes, vectors: Vectors) -> int:
        """Fill ``vectors``; bytes in all.  BadAddress for the first piece that is not in RAM."""

    def has_code(self, vectors: Vectors) -> bool:
        """Was code translated from a page of any of these pieces?"""


def listed(table: bytes, vectors: Vectors, offset: Callable[[int, int], int], host_address: int) -> int:
    """The same, one by one; ``offset`` finds a piece in the mapping or raises BadAddress."""
    size = 0
    for index, (address, length) in enumerate(ROW.iter_unpack(table)):
        where = host_address + offset(address, length)
        VECTOR.pack_into(vectors.data, VECTOR.size * index, where, length)
        size += length
    return size


class PieceList:
    """The pieces of ``mapping`` where ``vectors`` say, ``size`` bytes in all (:class:`vmm.device.Pieces`)."""

    __slots__ = ("_host_address", "_mapping", "_vectors", "size", "written")

    def __init__(
        self, mapping: memoryview, host_address: int, vectors: Vectors, size: int, written: Callable[[], None]
    ) -> None:
        self._mapping = mapping
        self._host_address = host_address
        self._vectors = vectors
        self.size = size
        self.written = written

    def read_file(self, fd: int, at: int, skip: int = 0) -> int:
        return self._move(_preadv, fd, at, skip)

    def write_file(self, fd: int, at: int, skip: int = 0) -> int:
        return self._move(_pwritev, fd, at, skip)

    def views(self, skip: int = 0) -> Iterator[memoryview]:
        vectors = self._after(skip) if skip else self._vectors
        for where, length in VECTOR.iter_unpack(vectors.data):
            at = where - self._host_address
            yield self._mapping[at : at + length]

    def _move(self, transfer: _Transfer, fd: int, at: int, skip: int) -> int:
        vectors = self._after(skip) if skip else self._vectors
        while (done := transfer(fd, vectors.address, min(vectors.count, VECTORS_MAX), at)) < 0:
            error = ctypes.get_errno()
            if error != errno.EINTR:
                raise OSError(error, os.strerror(error))
        return done

    def _after(self, skip: int) -> Vectors:
        """The vectors without their first ``skip`` bytes."""
        rest = []
        for where, length in VECTOR.iter_unpack(self._vectors.data):
            if skip < length:
                rest.append(VECTOR.pack(where + skip, length - skip))
            skip -= min(skip, length)
        vectors = Vectors(len(rest))
        vectors.data[:] = b"".join(rest)
        return vectors


def _transfer(name: str) -> _Transfer:
    function: Any = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
    function.restype = ctypes.c_ssize_t
    found: _Transfer = function
    return found


_preadv, _pwritev = _transfer("preadv"), _transfer("pwritev")
