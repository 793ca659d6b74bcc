"""Disk contents on the host: a raw image, an image with a copy-on-write overlay, or memory alone.

A raw image is the medium's sectors and nothing else, as written by ``dd`` and read by every other
emulator.  An image whose size is no multiple of 512 bytes is rounded up: the missing bytes read as
zeroes, and writing the last sector makes the file longer.

One writer or many readers may have an image open.  The kernel's advisory lock (flock) enforces it
between all who ask, so two machines can share a base image under their overlays, and two machines
that would both write one file are refused instead of corrupting it.

An overlay holds changed clusters in memory and cannot outgrow its base.  Its clusters travel in
snapshots: ``export`` gives them in ascending order behind a header that names the base by size and
by a digest of sampled clusters, and ``load`` refuses anything else, whole, before it changes
anything.  The digest tells images apart; it is no proof against a base altered between samples.

Not modelled: image formats with headers (qcow2), discard, errors of single sectors, hot resizing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from typing import Protocol

from vmm.devices.block import SECTOR_BYTES
from vmm.errors import BackendError, ConfigError, StateError

CLUSTER_BYTES = 4096
"""What an overlay copies at once.  Guests write whole pages and ext4 blocks, both 4 KiB, so that most
writes replace a whole cluster and none has to be read first; a smaller one would only cost entries."""
CLUSTER_SECTORS = CLUSTER_BYTES // SECTOR_BYTES
DISK_MAX = 2 << 40
"""Bytes of the largest disk: what 32 bits of sector number reach, which both controllers can address."""
SAMPLES = 64
"""Clusters of a base that enter its digest: the first, and others at equal distances."""

_HEADER = struct.Struct("<QQ16s")  # sectors, changed clusters, digest of the base
_ENTRY = struct.Struct(f"<Q{CLUSTER_BYTES}s")
_OPTIONS = ("ro", "ide", "overlay")


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
        _check_range(self._path, self.sectors, sector, count)
        at, wanted = sector * SECTOR_BYTES, count * SECTOR_BYTES
        try:
            data = os.pread(self._fd, wanted, at)
            while len(data) < wanted and (more := os.pread(self._fd, wanted - len(data), at + len(data))):
                data += more
        except OSError as exc:
            raise self._failed("read", sector, exc) from None
        return data.ljust(wanted, b"\0")

    def write(self, sector: int, data: bytes | memoryview) -> None:
        _check_range(self._path, self.sectors, sector, _whole_sectors(data))
        if self.read_only:
            raise _read_only(self._path)
        rest, at = memoryview(data), sector * SECTOR_BYTES
        try:
            while rest:
                done = os.pwrite(self._fd, rest, at)
                rest, at = rest[done:], at + done
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


class Base(Protocol):
    """What lies under an overlay."""

    @property
    def sectors(self) -> int: ...

    def read(self, sector: int, count: int) -> bytes: ...


class CopyOnWrite:
    """A base that is never written, and the clusters that were changed."""

    __slots__ = ("_base", "_changed", "_digest", "_name", "read_only", "sectors")

    def __init__(self, base: Base, name: str) -> None:
        self._base = base
        self._name = name
        self._changed: dict[int, bytes] = {}
        self._digest = b""
        self.sectors = base.sectors
        self.read_only = False

    @property
    def changed(self) -> int:
        """Clusters held in memory."""
        return len(self._changed)

    def read(self, sector: int, count: int) -> bytes:
        _check_range(self._name, self.sectors, sector, count)
        data = self._base.read(sector, count)
        if not self._changed:
            return data
        whole = bytearray(data)
        for cluster, inside, at, length in _pieces(sector, count):
            changed = self._changed.get(cluster)
            if changed is not None:
                whole[at : at + length] = changed[inside : inside + length]
        return bytes(whole)

    def write(self, sector: int, data: bytes | memoryview) -> None:
        count = _whole_sectors(data)
        _check_range(self._name, self.sectors, sector, count)
        for cluster, inside, at, length in _pieces(sector, count):
            piece = bytes(data[at : at + length])
            if length < CLUSTER_BYTES:
                old = self._cluster(cluster)
                piece = old[:inside] + piece + old[inside + length :]
            self._changed[cluster] = piece

    def flush(self) -> None:
        """Memory is as durable as this process, and a snapshot takes it along."""

    def close(self) -> None:
        pass

    def sibling(self) -> CopyOnWrite:
        """Another disk on the same base, without changes; the base is not copied."""
        return CopyOnWrite(self._base, self._name)

    def export(self) -> bytes:
        """The changed clusters: the same bytes for the same changes, in whatever order they came."""
        header = _HEADER.pack(self.sectors, len(self._changed), self._base_digest())
        return header + b"".join(
            _ENTRY.pack(cluster, data) for cluster, data in sorted(self._changed.items())
        )

    def load(self, data: bytes | memoryview) -> None:
        """Replace the changed clusters by exported ones; StateError leaves everything as it was."""
        self._changed = self.parsed(data)

    def parsed(self, data: bytes | memoryview) -> dict[int, bytes]:
        """The clusters that were exported; StateError when they are not of this disk."""
        if len(data) < _HEADER.size:
            raise StateError(f"disk {self._name}: {len(data)} bytes of changes, less than their header")
        sectors, count, digest = _HEADER.unpack_from(data)
        if sectors != self.sectors or digest != self._base_digest():
            raise StateError(
                f"disk {self._name}: the changes belong to another base of {sectors} sectors: expected"
                f" this one of {self.sectors}; give the machine the image that it had when they were saved"
            )
        body = memoryview(data)[_HEADER.size :]
        if count > _clusters(sectors) or len(body) != count * _ENTRY.size:
            raise StateError(
                f"disk {self._name}: {count} changed clusters in {len(body)} bytes: expected"
                f" {_ENTRY.size} bytes each and at most {_clusters(sectors)}"
            )
        changed: dict[int, bytes] = dict(_ENTRY.iter_unpack(body))
        order = list(changed)
        if len(order) != count or order != sorted(order) or (order and order[-1] >= _clusters(sectors)):
            raise StateError(f"disk {self._name}: changed clusters out of order or beyond the end")
        return changed

    def _cluster(self, cluster: int) -> bytes:
        """The cluster as it is now; beyond the end of the disk it is zeroes."""
        changed = self._changed.get(cluster)
        if changed is not None:
            return changed
        first = cluster * CLUSTER_SECTORS
        data = self._base.read(first, min(CLUSTER_SECTORS, self.sectors - first))
        return data.ljust(CLUSTER_BYTES, b"\0")

    def _base_digest(self) -> bytes:
        """Which base this is; found out once, because a base does not change."""
        if not self._digest:
            digest = hashlib.blake2b(digest_size=16)
            step = max(1, _clusters(self.sectors) // SAMPLES)
            for cluster in range(0, _clusters(self.sectors), step):
                first = cluster * CLUSTER_SECTORS
                digest.update(self._base.read(first, min(CLUSTER_SECTORS, self.sectors - first)))
            self._digest = digest.digest()
        return self._digest


class Overlay(CopyOnWrite):
    """The image file ``base_path``, opened for reading, with changes kept in memory."""

    __slots__ = ("_file", "path")

    def __init__(self, base_path: str) -> None:
        self.path = base_path
        self._file = RawFile(base_path, read_only=True)
        super().__init__(self._file, base_path)

    def sibling(self) -> Overlay:
        return Overlay(self.path)

    def close(self) -> None:
        self._file.close()


class MemoryDisk(CopyOnWrite):
    """A disk of ``contents``, or of that many zeroed bytes, rounded up to whole sectors."""

    __slots__ = ()

    def __init__(self, contents: int | bytes) -> None:
        size = contents if isinstance(contents, int) else len(contents)
        _check_size("in memory", size)
        data = b"" if isinstance(contents, int) else contents
        super().__init__(_Contents(data, -(-size // SECTOR_BYTES)), "in memory")


class _Contents:
    """Given bytes, then zeroes: the base of a disk in memory."""

    __slots__ = ("_data", "sectors")

    def __init__(self, data: bytes, sectors: int) -> None:
        self._data = data
        self.sectors = sectors

    def read(self, sector: int, count: int) -> bytes:
        at, wanted = sector * SECTOR_BYTES, count * SECTOR_BYTES
        return self._data[at : at + wanted].ljust(wanted, b"\0")


@dataclass(frozen=True)
class DiskSpec:
    """A disk as asked for on the command line."""

    path: str
    read_only: bool = False
    ide: bool = False
    overlay: bool = False

    def open(self) -> RawFile | Overlay:
        return Overlay(self.path) if self.overlay else RawFile(self.path, self.read_only)


def parse(spec: str) -> DiskSpec:
    """``FILE[,ro][,ide][,overlay]``; a comma in the name of the file is written twice."""
    path, *options = [word.replace("\0", ",") for word in spec.replace(",,", "\0").split(",")]
    unknown = [word for word in options if word not in _OPTIONS]
    if not path or unknown:
        found = f"option {unknown[0]!r}" if unknown else "no file name"
        raise ConfigError(
            f"disk {spec!r}: {found}: expected FILE[,ro][,ide][,overlay]; a comma in a file name is"
            " written ',,'"
        )
    if {"ro", "overlay"} <= set(options):
        raise ConfigError(
            f"disk {spec!r}: both ro and overlay: a disk is either write-protected or takes writes in memory;"
            " leave one out"
        )
    return DiskSpec(path, "ro" in options, "ide" in options, "overlay" in options)


def _pieces(sector: int, count: int) -> list[tuple[int, int, int, int]]:
    """``(cluster, offset in it, offset in the request, length)`` of each part of a request."""
    start, end = sector * SECTOR_BYTES, (sector + count) * SECTOR_BYTES
    pieces = []
    for cluster in range(start // CLUSTER_BYTES, -(-end // CLUSTER_BYTES)):
        first = max(start, cluster * CLUSTER_BYTES)
        last = min(end, (cluster + 1) * CLUSTER_BYTES)
        pieces.append((cluster, first - cluster * CLUSTER_BYTES, first - start, last - first))
    return pieces


def _clusters(sectors: int) -> int:
    return -(-sectors // CLUSTER_SECTORS)


def _whole_sectors(data: bytes | memoryview) -> int:
    assert len(data) % SECTOR_BYTES == 0, "controllers write whole sectors"
    return len(data) // SECTOR_BYTES


def _check_range(name: str, sectors: int, sector: int, count: int) -> None:
    if sector < 0 or count < 0 or sector + count > sectors:
        raise BackendError(
            f"disk {name}: {count} sectors from {sector} on: expected them within its {sectors} sectors;"
            " the controller should have refused the request"
        )


def _check_size(name: str, size: int) -> None:
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
    _check_size(path, size)
    return -(-size // SECTOR_BYTES)
