"""A raw image file: the medium's sectors and nothing else, as written by ``dd`` and read by other emulators.

An image whose size is no multiple of 512 bytes is rounded up: the missing bytes read as zeroes, and
writing the last sector makes the file longer.

One writer or many readers may have an image open.  The kernel's advisory lock (flock) enforces it
between all who ask, so two machines can share a base image under their overlays, and two machines
that would both write one file are refused instead of corrupting it.

Large requests go between the file and guest memory without a copy in between (:mod:`vmm.dma`).
"""

from __future__ import annotations

import fcntl
import os
import stat

from vmm.device import Pieces
from vmm.devices.block import SECTOR_BYTES
from vmm.errors import BackendError

DISK_MAX = 2 << 40
"""Bytes of the largest disk: what 32 bits of sector number reach, which both controllers can address."""


class RawFile:
    """The image file ``path``, written in place unless ``read_only``."""

    __slots__ = ("_fd", "_path", "read_only", "sectors")

    def __init__(self, path: str, read_only: bool = False) -> None:
        self._path = path
        self.read_only = read_only
        self._fd = _open_image(path, read_only)
        try:
            _lock(self._fd, path, read_only)
            self.sectors = _sectors(self._fd, path)
        except BaseException:
            self.close()
            raise

    def read(self, sector: int, count: int) -> bytes:
        check_range(self._path, self.sectors, sector, count)
        at, wanted = sector * SECTOR_BYTES, count * SECTOR_BYTES
        try:
            data = os.pread(self._fd, wanted, at)
            while len(data) < wanted and (more := os.pread(self._fd, wanted - len(data), at + len(data))):
                data += more
        except OSError as exc:
            raise self._failed("read", sector, exc) from None
        return data.ljust(wanted, b"\0")

    def write(self, sector: int, data: bytes | memoryview) -> None:
        check_range(self._path, self.sectors, sector, sectors_in(len(data)))
        if self.read_only:
            raise _read_only(self._path)
        rest, at = memoryview(data), sector * SECTOR_BYTES
        try:
            while rest:
                done = os.pwrite(self._fd, rest, at)
                rest, at = rest[done:], at + done
        except OSError as exc:
            raise self._failed("written", sector, exc) from None

    def read_into(self, sector: int, pieces: Pieces) -> None:
        check_range(self._path, self.sectors, sector, sectors_in(pieces.size))
        at, done = sector * SECTOR_BYTES, 0
        try:
            while done < pieces.size and (more := pieces.read_file(self._fd, at + done, done)):
                done += more
        except OSError as exc:
            raise self._failed("read", sector, exc) from None
        if done < pieces.size:
            for view in pieces.views(done):
                view[:] = bytes(len(view))

    def write_from(self, sector: int, pieces: Pieces) -> None:
        check_range(self._path, self.sectors, sector, sectors_in(pieces.size))
        if self.read_only:
            raise _read_only(self._path)
        at, done = sector * SECTOR_BYTES, 0
        try:
            while done < pieces.size:
                done += pieces.write_file(self._fd, at + done, done)
        except OSError as exc:
            raise self._failed("written", sector, exc) from None

    def flush(self) -> None:
        if self.read_only:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            raise self._failed("flushed", 0, exc) from None

    def close(self) -> None:
        """Also releases the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed(self, action: str, sector: int, exc: OSError) -> BackendError:
        return BackendError(
            f"disk {self._path}: sector {sector} could not be {action} ({exc.strerror}): expected the image"
            " to stay accessible and its file system to have room; look at df and dmesg"
        )


def sectors_in(size: int) -> int:
    assert size % SECTOR_BYTES == 0, "controllers move whole sectors"
    return size // SECTOR_BYTES


def check_range(name: str, sectors: int, sector: int, count: int) -> None:
    if sector < 0 or count < 0 or sector + count > sectors:
        raise BackendError(
            f"disk {name}: {count} sectors from {sector} on: expected them within its {sectors} sectors;"
            " the controller should have refused the request"
        )


def check_size(name: str, size: int) -> None:
    if not 0 < size <= DISK_MAX:
        raise BackendError(
            f"disk {name}: {size} bytes: expected 1 byte to {DISK_MAX >> 40} TiB; make an image with"
            " truncate -s 1G FILE"
        )


def _read_only(name: str) -> BackendError:
    return BackendError(f"disk {name}: write to a read-only disk: leave out ',ro', or use ',overlay'")


def _open_image(path: str, read_only: bool) -> int:
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)  # never to wait for the other end of a FIFO
    except FileNotFoundError:
        found, mend = "does not exist", "check the path, or make an image with truncate -s 1G FILE"
    except IsADirectoryError:
        found, mend = "is a directory", "name the image in it"
    except OSError as exc:
        action = "read" if read_only else "read and written"
        found = f"may not be {action} ({exc.strerror})"
        mend = "check its owner and mode" + ("" if read_only else ", or add ',overlay' or ',ro'")
    else:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            return fd
        os.close(fd)
        found, mend = "is neither a file nor a block device", "name an image"
    raise BackendError(f"disk {path}: {found}: expected a raw disk image; {mend}")


def _lock(fd: int, path: str, read_only: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackendError(
            f"disk {path}: in use by another machine: expected one writer or any number of readers; stop the"
            " other machine, or give both ',overlay' so that neither writes to it"
        ) from None
    except OSError as exc:
        raise BackendError(
            f"disk {path}: cannot be locked ({exc.strerror}): expected a file system with flock; copy the"
            " image to a local disk"
        ) from None


def _sectors(fd: int, path: str) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)  # which, unlike st_size, also knows block devices
    check_size(path, size)
    return -(-size // SECTOR_BYTES)
