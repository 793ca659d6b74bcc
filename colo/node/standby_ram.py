"""RAM of a machine that stands by: the last committed image, and what a guest does on top of it.

The image lies in a memory file.  Epochs are installed into it through a shared mapping; the machine's
own mapping is private (copy-on-write), so pages that its guest writes become copies beside the image,
and giving them back (``madvise``) makes the image show again.  A standing-by machine can so be run and
taken back at the cost of the pages that it wrote, without a second copy of RAM.

A child of fork(2) shares the memory file with its parent; :meth:`StandbyRam.after_fork` gives it a copy of
its own behind the same addresses, which the engine and others know.

Which pages are copies is in /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst): bit 63 present
or bit 62 swapped, and not bit 61, file page.  It needs no privilege.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vmm.ram import MIB, PAGE_SIZE, Ram

PAGEMAP = "/proc/self/pagemap"
PRESENT, SWAPPED, FILE = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1 << 61)
ENTRY = 8
MAP_FIXED = 0x10
"""mmap(2): in place of what is mapped there; Python's mmap does not have it."""

Pages = npt.NDArray[np.uint32]
NO_PAGES: Pages = np.empty(0, np.uint32)


class StandbyRam:
    """``ram`` for the machine, ``image`` for what is committed; both show the same while nobody writes."""

    def __init__(self, size_mib: int) -> None:
        self._size = size_mib * MIB
        self._fd = os.memfd_create("colo-standby", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, self._size)
        self.ram = Ram.map_file(size_mib, self._fd, 0)
        self._shared = mmap.mmap(self._fd, self._size)
        self.image: npt.NDArray[np.uint8] = np.frombuffer(self._shared, np.uint8)

    def own_pages(self) -> Pages:
        """The pages that the machine wrote since they were last given back, ascending."""
        fd = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = self.ram.host_address // PAGE_SIZE * ENTRY
            raw = os.pread(fd, self._size // PAGE_SIZE * ENTRY, at)
        finally:
            os.close(fd)
        entries = np.frombuffer(raw, np.uint64)
        mine = ((entries & (PRESENT | SWAPPED)) != 0) & ((entries & FILE) == 0)
        return np.flatnonzero(mine).astype(np.uint32)

    def give_back(self) -> Pages:
        """Make the machine's RAM the image again; the pages that differed or may have."""
        pages = self.own_pages()
        self.ram.revert(pages)
        return pages

    def clear(self) -> None:
        """All zeroes, in the image and for the machine.  The guest must not run."""
        self.give_back()
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, self._size)

    def after_fork(self) -> None:
        """In a child of ``os.fork()``: a file of its own.  Neither process may write meanwhile."""
        own = self.own_pages()
        pages = self.ram.array.reshape(-1, PAGE_SIZE)
        kept = pages[own]
        fd = os.memfd_create("colo-standby", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, self._size)
            for first, end in _extents(self._fd):
                _write_all(fd, self.image[first:end], first)
            os.dup2(fd, self._fd, inheritable=False)
        finally:
            os.close(fd)
        _map_over(self.image.ctypes.data, self._size, mmap.MAP_SHARED, self._fd)
        _map_over(self.ram.host_address, self._size, mmap.MAP_PRIVATE, self._fd)
        pages[own] = kept


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data; the rest is holes (lseek(2))."""
    end = 0
    while True:
        try:
            first = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(fd, first, os.SEEK_HOLE)
        yield first, end


def _write_all(fd: int, data: npt.NDArray[np.uint8], at: int) -> None:
    rest = memoryview(data.data)
    while rest:
        written = os.pwrite(fd, rest, at)
        rest, at = rest[written:], at + written


def _map_over(address: int, size: int, flags: int, fd: int) -> None:
    """Map the file where something else is mapped now."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    arguments = (ctypes.c_void_p(address), ctypes.c_size_t(size), protection, flags | MAP_FIXED, fd)
    if libc.mmap(*arguments, ctypes.c_long(0)) != address:
        raise OSError(ctypes.get_errno(), "the standing-by machine's image could not be mapped anew")
