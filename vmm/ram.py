"""Guest physical RAM: one private mapping, seen by the engine, by bus masters and by replication.

The PC has a hole below 4 GiB for memory-mapped devices, so RAM beyond ``LOW_MAX`` continues at
4 GiB.  The mapping itself is contiguous: *address* is what the guest says, *offset* is where it is
in the mapping, and a *page* is an offset divided by 4096.

Writes from the host (DMA, loaders, restored pages) tell the engine through ``on_write`` which
addresses changed, because translated code of a changed page must go.  Reads need nothing.  Large
transfers of bus masters have a way of their own (:mod:`vmm.dma`), and so has the work on virtqueues
(``rings``, :class:`vmm.device.Rings`); both are compiled where a processor is attached.

The mapping is anonymous, or copy-on-write over a snapshot (:meth:`Ram.map_file`): pages that nobody
wrote are then the host's page cache, shared by every machine that was resumed from the same file.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vmm.device import Rings
from vmm.dma import ROW, CompiledDma, PieceList, Vectors, listed
from vmm.errors import BadAddress, ConfigError

PAGE_SIZE = 4096
MIB = 1 << 20
LOW_MAX = 3 << 30
"""RAM below the device hole."""
HIGH_BASE = 4 << 30
RAM_MIB_MIN, RAM_MIB_MAX = 1, 65536


class Ram:
    """``size_mib`` MiB of zeroed guest memory."""

    __slots__ = (
        *("_backed", "_low", "_map", "_view", "_window", "array", "clears", "dma", "host_address"),
        *("on_write", "rings", "size"),
    )

    def __init__(self, size_mib: int, fd: int = -1, file_offset: int = 0) -> None:
        if not RAM_MIB_MIN <= size_mib <= RAM_MIB_MAX:
            raise ConfigError(f"RAM of {size_mib} MiB: need {RAM_MIB_MIN} to {RAM_MIB_MAX} MiB")
        self.size = size_mib * MIB
        self._backed = fd >= 0
        flags = mmap.MAP_PRIVATE if self._backed else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(fd, self.size, flags=flags, offset=file_offset)
        self._window = memoryview(self._map)
        self._view = self._window.toreadonly()
        self._low = min(self.size, LOW_MAX)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.host_address = int(self.array.ctypes.data)
        """Where the mapping lies in this process."""
        self.on_write: Callable[[int, int], None] | None = None
        self.dma: CompiledDma | None = None
        self.rings: Rings | None = None
        self.clears = 0
        """How often all of it was cleared: the host gives pages back then, which nothing else records."""

    @classmethod
    def map_file(cls, size_mib: int, fd: int, file_offset: int) -> Ram:
        """RAM that starts as the bytes of a file from ``file_offset``, a multiple of the page size.

        The file is never written, may be closed, and must not be shortened or changed in place.
        """
        return cls(size_mib, fd, file_offset)

    @property
    def regions(self) -> list[tuple[int, int, int]]:
        """``(address, offset, length)`` of each piece, low one first."""
        pieces = [(0, 0, self._low)]
        if self.size > self._low:
            pieces.append((HIGH_BASE, self._low, self.size - self._low))
        return pieces

    def offset(self, address: int, length: int) -> int:
        """Offset in the mapping of ``[address, address + length)``, which must lie in one piece."""
        if address >= 0 and length >= 0:
            if address + length <= self._low:
                return address
            if HIGH_BASE <= address and address + length <= HIGH_BASE + self.size - LOW_MAX:
                return address - HIGH_BASE + LOW_MAX
        raise BadAddress(address, length)

    def address(self, offset: int) -> int:
        """The inverse: where the guest finds an offset of the mapping."""
        return offset if offset < self._low else offset - self._low + HIGH_BASE

    def read(self, address: int, length: int) -> bytes:
        at = self.offset(address, length)
        return self._map[at : at + length]

    # Bus masters live on these two, so they ask offset() only above the device hole.

    def view(self, address: int, length: int) -> memoryview:
        at, end = address, address + length
        if not 0 <= at <= end <= self._low:
            at = self.offset(address, length)
            end = at + length
        return self._view[at:end]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        length = len(data)
        at, end = address, address + length
        if not 0 <= at <= end <= self._low:
            at = self.offset(address, length)
            end = at + length
        self._map[at:end] = data
        if self.on_write is not None and length:
            self.on_write(address, length)

    def pieces(self, table: bytes) -> PieceList:
        vectors = Vectors(len(table) // ROW.size)
        if self.dma is not None:
            size = self.dma.listed(table, vectors)
        else:
            size = listed(table, vectors, self.offset, self.host_address)
        return PieceList(
            self._window, self.host_address, vectors, size, lambda: self._written(table, vectors)
        )

    def _written(self, table: bytes, vectors: Vectors) -> None:
        if self.on_write is None or (self.dma is not None and not self.dma.has_code(vectors)):
            return
        for address, length in ROW.iter_unpack(table):
            self.on_write(address, length)

    def revert(self, pages: npt.NDArray[np.uint32]) -> None:
        """Of RAM over a file: these pages, which ascend, are the file's again."""
        assert self._backed
        breaks = np.flatnonzero(np.diff(pages.astype(np.int64)) != 1) + 1
        for run in np.split(pages, breaks) if pages.size else ():
            self._map.madvise(mmap.MADV_DONTNEED, int(run[0]) * PAGE_SIZE, run.size * PAGE_SIZE)

    def clear(self) -> None:
        """Power-on contents: zeroes, with the pages given back to the host."""
        self.clears += 1
        self._map.madvise(mmap.MADV_DONTNEED)
        if self._backed:  # what is left is the file
            for at in range(0, self.size, MIB):
                pages = self.array[at : at + MIB].view(np.uint64).reshape(-1, PAGE_SIZE // 8)
                pages[np.bitwise_or.reduce(pages, axis=1) != 0] = 0
