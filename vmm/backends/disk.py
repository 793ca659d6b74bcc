"""Disk contents on the host: a raw image (:mod:`vmm.backends.image`), one with an overlay, or memory alone.

An overlay holds changed clusters in memory and cannot outgrow its base.  Its clusters travel in
snapshots: ``export`` gives them in ascending order behind a header that names the base by size and
by a digest of sampled clusters, and ``load`` refuses anything else, whole, before it changes
anything.  The digest tells images apart; it is no proof against a base altered between samples.

Not modelled: image formats with headers (qcow2), discard, errors of single sectors, hot resizing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vmm.backends.image import RawFile, check_range, check_size, sectors_in
from vmm.device import Pieces
from vmm.devices.block import SECTOR_BYTES
from vmm.errors import ConfigError, StateError

CLUSTER_BYTES = 4096
"""What an overlay copies at once.  Guests write whole pages and ext4 blocks, both 4 KiB, so that most
writes replace a whole cluster and none has to be read first; a smaller one would only cost entries."""
CLUSTER_SECTORS = CLUSTER_BYTES // SECTOR_BYTES
SAMPLES = 64
"""Clusters of a base that enter its digest: the first, and others at equal distances."""

_HEADER = struct.Struct("<QQ16s")  # sectors, changed clusters, digest of the base
_ENTRY = struct.Struct(f"<Q{CLUSTER_BYTES}s")
_OPTIONS = ("ro", "ide", "overlay")


class Base(Protocol):
    """What lies under an overlay."""

    @property
    def sectors(self) -> int: ...

    def read(self, sector: int, count: int) -> bytes: ...

    def read_into(self, sector: int, pieces: Pieces) -> None: ...


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
        check_range(self._name, self.sectors, sector, count)
        data = self._base.read(sector, count)
        if not self._changed:
            return data
        whole = bytearray(data)
        self._lay_over(sector, [memoryview(whole)])
        return bytes(whole)

    def read_into(self, sector: int, pieces: Pieces) -> None:
        count = sectors_in(pieces.size)
        check_range(self._name, self.sectors, sector, count)
        clusters = range(sector // CLUSTER_SECTORS, _clusters(sector + count))
        changed = sum(map(self._changed.__contains__, clusters))
        if changed < len(clusters):
            self._base.read_into(sector, pieces)
        if changed:
            self._lay_over(sector, pieces.views())

    def write(self, sector: int, data: bytes | memoryview) -> None:
        check_range(self._name, self.sectors, sector, sectors_in(len(data)))
        self._replace(sector, [memoryview(data)])

    def write_from(self, sector: int, pieces: Pieces) -> None:
        check_range(self._name, self.sectors, sector, sectors_in(pieces.size))
        self._replace(sector, pieces.views())

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

    def _lay_over(self, sector: int, views: Iterable[memoryview]) -> None:
        """What was changed, over what the base has."""
        for cluster, inside, part in _parts(sector, views):
            changed = self._changed.get(cluster)
            if changed is not None:
                part[:] = changed[inside : inside + len(part)]

    def _replace(self, sector: int, views: Iterable[memoryview]) -> None:
        for cluster, inside, part in _parts(sector, views):
            data = bytes(part)
            if len(data) < CLUSTER_BYTES:
                old = self._cluster(cluster)
                data = old[:inside] + data + old[inside + len(data) :]
            self._changed[cluster] = data

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
        check_size("in memory", size)
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

    def read_into(self, sector: int, pieces: Pieces) -> None:
        at = sector * SECTOR_BYTES
        for view in pieces.views():
            view[:] = self._data[at : at + len(view)].ljust(len(view), b"\0")
            at += len(view)


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


def _parts(sector: int, views: Iterable[memoryview]) -> Iterator[tuple[int, int, memoryview]]:
    """``views``, in which sectors from ``sector`` on lie, cut by clusters: cluster, offset in it, part."""
    at = sector * SECTOR_BYTES
    for view in views:
        while view:
            cluster, inside = divmod(at, CLUSTER_BYTES)
            part = view[: CLUSTER_BYTES - inside]
            yield cluster, inside, part
            at += len(part)
            view = view[len(part) :]


def _clusters(sectors: int) -> int:
    return -(-sectors // CLUSTER_SECTORS)
