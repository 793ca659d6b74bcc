"""Which pages of RAM may have changed since the last time somebody asked.

Two sources answer that.  A *candidate* may have changed; what did not is found out when its delta is
made (:mod:`colo.pages.delta`), so both lead to the same bytes on the wire:

``kernel``
    Every page is write-protected; the first write to one takes a fault of about a microsecond in
    which the kernel lifts the protection by itself and lets the writer go on (userfaultfd with
    ``UFFD_FEATURE_WP_ASYNC``, Linux 6.7; Documentation/admin-guide/mm/userfaultfd.rst).  One ioctl
    lists the pages that are no longer protected and protects them again (``PAGEMAP_SCAN``,
    Documentation/admin-guide/mm/pagemap.rst).  It costs what was written,
    and half a millisecond for each GiB there is.
``scan``
    Says "all", always: everything is compared with the shadow.  It works everywhere, needs nobody's
    permission, and costs some 140 ms for each GiB of RAM.

A third one, ``exact``, is for simulations: from the second time on it says which pages differ from the last
time, whatever the host's kernel can tell, so that a run does not depend on that.  It asks the better of the
two, keeps a copy of RAM, and needs a guest that stands still while it is asked.

Why no write is ever missed.  The mark is in the page table, so it makes no difference who writes: the
engine's compiled code, numpy, or the kernel for a system call (``preadv`` into RAM).  A page is
protected, and other processors' translations of it are flushed, before the ioctl returns; whoever
copies afterwards has every write up to then, and every later one is marked for the next time.  Pages
nobody has touched yet are protected too, by markers in place of pages (``WP_UNPOPULATED``), and so are
the unwritten pages of RAM mapped over a snapshot, and pages in swap.  The markers cost the page tables
of all RAM, 2 MiB for each GiB.

One thing the kernel cannot tell: pages given back with ``MADV_DONTNEED``.  Over a file their
contents change back to the file's, and their protection stays.  So :class:`vmm.ram.Ram` counts the
times it was cleared, and after one of them all pages are candidates.

Not covered: a device of the host that writes to pinned pages after a system call returned (io_uring,
``O_DIRECT`` with aio, vfio).  Nothing here pins RAM.

Huge pages are neither wanted nor refused.  A huge page is protected as one; the first write to it
after that splits it (10 microseconds, once for 2 MiB), and its small pages are tracked one by one.
Where nothing was touched before tracking began none are made any more.  Refusing them
(``MADV_NOHUGEPAGE``) would save the splits and cost the engine its translations while no pair is formed.

All faults are resolved inside the kernel, so ``UFFD_USER_MODE_ONLY`` is no restriction: no privilege
is needed, and no setting of ``vm.unprivileged_userfaultfd``.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from colo.errors import ColoError
from vmm.ram import PAGE_SIZE, Ram

Pages = npt.NDArray[np.uint32]
Wanted = Literal["auto", "kernel", "scan", "exact"]

# <linux/userfaultfd.h>
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFD_USER_MODE_ONLY = 1
UFFD_API = 0xAA
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_API = 0xC018_AA3F
UFFDIO_REGISTER = 0xC020_AA00
UFFDIO_WRITEPROTECT = 0xC018_AA06
UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

# <linux/fs.h>
PAGEMAP_SCAN = 0xC060_6610
PM_SCAN_WP_MATCHING = 1 << 0
PM_SCAN_CHECK_WPASYNC = 1 << 1
PAGE_IS_WRITTEN = 1 << 1
PM_SCAN_ARG = struct.Struct("<12Q")
WALK_END = 4
"""Which field of ``pm_scan_arg`` says how far a scan came."""
REGION = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])

REGIONS_MAX = 1 << 16
"""That one ioctl can return (1.5 MiB): more than 512 MiB can have; a scan of more goes on where it ended."""


COMPARED_AT_ONCE = 1024
"""Pages: their copies stay in the processor's cache."""


class DirtySource(Protocol):
    """Where the candidates come from."""

    @property
    def name(self) -> str:
        """``kernel``, ``scan`` or ``exact``."""

    @property
    def why(self) -> str:
        """Why this one, in a line."""

    def take(self) -> Pages | None:
        """The candidates since the last take, ascending; ``None`` means all pages, as the first time does."""

    def after_fork(self) -> None:
        """In a child of ``os.fork()``: track its memory, and no longer its parent's."""

    def close(self) -> None:
        """Stop tracking.  May be called again."""


def open_source(ram: Ram, wanted: Wanted) -> DirtySource:
    """A source for ``ram``: the one that is ``wanted``; with ``auto`` the kernel, where that is possible."""
    if wanted == "scan":
        return ScanSource("asked for")
    if wanted == "exact":
        return ExactSource(ram, open_source(ram, "auto"))
    try:
        return KernelSource(ram, "asked for" if wanted == "kernel" else "the kernel can")
    except _Unavailable as exc:
        if wanted == "kernel":
            raise ColoError(
                f"dirty pages: cannot track them by the kernel: {exc}; choose 'scan' or 'auto'"
            ) from exc
        return ScanSource(str(exc))


class ScanSource:
    """Knows nothing, so everything is compared."""

    __slots__ = ("name", "why")

    def __init__(self, why: str) -> None:
        self.name = "scan"
        self.why = why

    def take(self) -> None:
        return None

    def after_fork(self) -> None:
        """Nothing is tracked."""

    def close(self) -> None:
        """There is nothing to stop."""


class ExactSource:
    """What differs from the last time, of the candidates of ``source``."""

    __slots__ = ("_known", "_ram", "_source", "name", "why")

    def __init__(self, ram: Ram, source: DirtySource) -> None:
        self.name = "exact"
        self.why = f"asked for; by {source.name}"
        self._ram = ram
        self._source = source
        self._known: npt.NDArray[np.uint8] | None = None

    def take(self) -> Pages | None:
        candidates, known = self._source.take(), self._known
        if known is None:
            self._known = self._ram.array.copy()
            return None
        changed = self._differing(known, candidates)
        now, before = (array.reshape(-1, PAGE_SIZE) for array in (self._ram.array, known))
        before[changed] = now[changed]
        return changed

    def _differing(self, known: npt.NDArray[np.uint8], candidates: Pages | None) -> Pages:
        from colo.pages.delta import differing_pages  # loads numba

        if candidates is None:
            return differing_pages(self._ram.array, known)
        now, before = (array.reshape(-1, PAGE_SIZE) for array in (self._ram.array, known))
        parts = np.split(candidates, range(COMPARED_AT_ONCE, len(candidates), COMPARED_AT_ONCE))
        return np.concatenate([part[(now[part] != before[part]).any(axis=1)] for part in parts])

    def after_fork(self) -> None:
        self._source.after_fork()

    def close(self) -> None:
        self._source.close()


class KernelSource:
    """Write protection of all RAM, lifted by the kernel page by page."""

    __slots__ = ("_clears", "_ram", "_tracker", "name", "why")

    def __init__(self, ram: Ram, why: str) -> None:
        self.name = "kernel"
        self.why = why
        self._ram = ram
        self._clears = -1
        _prove()
        self._tracker = _Tracker(ram.host_address, ram.size)

    def take(self) -> Pages | None:
        clears, before = self._ram.clears, self._clears
        self._clears = -1  # until this has succeeded, nothing is known
        candidates = None
        if clears == before:
            candidates = self._tracker.take()
        else:
            self._tracker.protect()
        self._clears = clears
        return candidates

    def after_fork(self) -> None:
        """A child's memory is registered with nobody, and the descriptors are its parent's."""
        self._tracker.close()
        self._tracker = _Tracker(self._ram.host_address, self._ram.size)
        self._clears = -1

    def close(self) -> None:
        self._tracker.close()


class _Unavailable(Exception):
    """This host cannot do it; says why."""


class _Tracker:
    """One userfaultfd over one piece of this process's memory."""

    __slots__ = ("_address", "_pagemap", "_regions", "_size", "_uffd")

    def __init__(self, address: int, size: int) -> None:
        self._address, self._size = address, size
        self._regions = np.zeros(min(size // PAGE_SIZE, REGIONS_MAX), REGION)
        self._uffd, self._pagemap = _open_userfaultfd(), -1
        try:
            self._pagemap = _open_pagemap()
            register = struct.pack("<4Q", address, size, UFFDIO_REGISTER_MODE_WP, 0)
            fcntl.ioctl(self._uffd, UFFDIO_REGISTER, bytearray(register))
        except OSError as exc:
            self.close()
            raise _Unavailable(f"RAM cannot be registered with userfaultfd: {exc.strerror}") from exc
        except _Unavailable:
            self.close()
            raise

    def protect(self) -> None:
        """Protect everything, whether there is a page or not."""
        argument = struct.pack("<3Q", self._address, self._size, UFFDIO_WRITEPROTECT_MODE_WP)
        try:
            fcntl.ioctl(self._uffd, UFFDIO_WRITEPROTECT, bytearray(argument))
        except OSError as exc:
            raise ColoError(f"dirty pages: RAM cannot be write-protected: {exc.strerror}") from exc

    def take(self) -> Pages:
        """What was written, protected again."""
        at, end = self._address, self._address + self._size
        found = []
        while at < end:
            count, at = self._scan(at, end)
            found.append(self._pages(count))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _scan(self, start: int, end: int) -> tuple[int, int]:
        """Regions found, and where the scan ended: before ``end`` if there was no room for more."""
        argument = bytearray(
            PM_SCAN_ARG.pack(
                PM_SCAN_ARG.size,
                PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start,
                end,
                0,
                self._regions.ctypes.data,
                self._regions.size,
                0,  # pages at most: any
                0,  # categories inverted
                PAGE_IS_WRITTEN,
                0,  # any of
                PAGE_IS_WRITTEN,
            )
        )
        try:
            count = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, argument)
        except OSError as exc:
            raise ColoError(f"dirty pages: PAGEMAP_SCAN failed: {exc.strerror}") from exc
        walk_end: int = PM_SCAN_ARG.unpack(argument)[WALK_END]
        assert start < walk_end <= end
        return count, walk_end

    def _pages(self, count: int) -> Pages:
        """Every page of the first ``count`` regions: its place among all of them, moved by its region."""
        first = (self._regions["start"][:count].astype(np.int64) - self._address) // PAGE_SIZE
        last = (self._regions["end"][:count].astype(np.int64) - self._address) // PAGE_SIZE
        ends = np.cumsum(last - first)
        total = int(ends[-1]) if count else 0
        return (np.arange(total) + np.repeat(last - ends, last - first)).astype(np.uint32)

    def close(self) -> None:
        """The kernel takes the protection away with the descriptor."""
        for fd in (self._uffd, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._uffd = self._pagemap = -1


def _open_userfaultfd() -> int:
    """A userfaultfd whose protection the kernel lifts by itself."""
    number = SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        raise _Unavailable(f"userfaultfd is not known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY))
    if fd < 0:
        raise _Unavailable(
            f"userfaultfd: {os.strerror(ctypes.get_errno())} (not in this kernel, or filtered)"
        )
    features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED
    try:
        fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("<3Q", UFFD_API, features, 0)))
    except OSError as exc:
        os.close(fd)
        raise _Unavailable(
            f"Linux {platform.release()} has no asynchronous write protection (6.7 has)"
        ) from exc
    return fd


def _open_pagemap() -> int:
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise _Unavailable(f"/proc/self/pagemap: {exc.strerror}") from exc


def _prove() -> None:
    """Track four pages and see that it works: a host may have all the calls and yet not what they promise."""
    scratch = mmap.mmap(-1, 4 * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(scratch, np.uint8)
    array[::2] = 1
    tracker = _Tracker(int(array.ctypes.data), array.size)
    try:
        tracker.protect()
        array[[PAGE_SIZE, 3 * PAGE_SIZE]] = 1
        takes = [tracker.take().tolist() for _ in range(2)]
    except ColoError as exc:
        raise _Unavailable(str(exc)) from exc
    finally:
        tracker.close()
    if takes != [[1, 3], []]:
        raise _Unavailable(f"PAGEMAP_SCAN reported pages {takes[0]} and then {takes[1]}, not [1, 3] and none")
