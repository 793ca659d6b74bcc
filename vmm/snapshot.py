"""Snapshot files: a whole machine, resumed by mapping.

::

    0           magic, format, header length, file length, BLAKE2b of all that and of the header
    56          header: MessagePack of Header below (what machine this is; table of sections)
                sections, one component's packed state each, end to end in the table's order
                zeroes to the next page
    ram_offset  RAM, byte for byte; a page of zeroes is a hole in the file

RAM comes last and page-aligned so that loading is one private mapping of the file: the guest reads
pages straight from the page cache, a page that it writes becomes its own, and any number of
machines resumed from one file share the rest.  The same layout in a sealed memory file
(:meth:`Snapshot.hold`) is how a machine forks.

:meth:`Snapshot.open` checks everything but RAM; :meth:`Snapshot.ram` checks RAM, unless told not to.
RAM has one check word per MiB, made of column XORs and page sums.  CRC-32 would be the classic
choice and takes three times as long (7 GiB/s against 2.4 on one core); the check finds damage, it
is no signature.  Holes are not even read where the host can tell that they are holes.

There is no version ladder.  A file of another format, layout or engine is refused; a machine is
touched only after the whole snapshot was accepted, so a refusal leaves it as it was.

Not handled: a file that somebody shortens in place while a machine runs from it kills the process
(SIGBUS).  :func:`write` never does that: it makes a new file and renames it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vmm.errors import SnapshotError, StateError
from vmm.ram import MIB, PAGE_SIZE, Ram
from vmm.snapshot_file import CHECK_SIZE, About, aligned, front, read_header, read_sections

__all__ = ["About", "Progress", "Snapshot", "write"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int, int], None]
"""Told how many bytes of RAM were written, and how many there are to write."""


class Snapshot:
    """A snapshot that was found whole, RAM excepted.  Its maps outlive it."""

    __slots__ = ("_fd", "_ram_offset", "digest", "header", "name", "sections")

    def __init__(self, fd: int, name: str, checked: bool = True) -> None:
        """Read and check the file open at ``fd``, which from now on belongs to this object.

        ``checked``: it must hold check words for RAM.
        """
        self._fd = fd
        self.name = name
        self.header, self.digest, offset = read_header(fd)
        expected = CHECK_SIZE * self.header.ram_mib if checked else 0
        if len(self.header.ram_checks) != expected:
            raise SnapshotError(f"{len(self.header.ram_checks)} bytes of RAM check words, not {expected}")
        self.sections = read_sections(fd, self.header.sections, offset)
        self._ram_offset = aligned(offset + sum(section.size for section in self.header.sections))

    @classmethod
    def open(cls, path: Path | str) -> Snapshot:
        """The snapshot at ``path``; SnapshotError when it is anything else."""
        with _explained(f"snapshot {path}"):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not make us wait
            return cls._owning(fd, str(path), checked=True)

    @classmethod
    def hold(cls, about: About, sections: Mapping[str, bytes], ram: Ram, name: str = "fork") -> Snapshot:
        """A snapshot in memory that nobody can change: the image from which machines fork."""
        with _explained(f"snapshot {name} in memory"):
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                _emit(fd, about, sections, ram, _scan(ram, checked=False), None)
                seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            except BaseException:
                os.close(fd)
                raise
            return cls._owning(fd, name, checked=False)

    @classmethod
    def _owning(cls, fd: int, name: str, checked: bool) -> Snapshot:
        try:
            return cls(fd, name, checked)
        except BaseException:
            os.close(fd)
            raise

    @property
    def about(self) -> About:
        return self.header.about

    @property
    def ram_size(self) -> int:
        return self.header.ram_mib * MIB

    def require(self, layout_digest: str, engine_digest: str, ram_size: int) -> None:
        """Refuse, by SnapshotError, a machine that this snapshot does not fit."""
        about = self.about
        facts = (
            ("device layout", about.layout_digest, layout_digest, "it needs the build that wrote it"),
            ("CPU engine", about.engine_digest, engine_digest, "it needs the engine that ran it"),
            ("RAM", f"{self.header.ram_mib} MiB", f"{ram_size // MIB} MiB", "configure the machine alike"),
        )
        for what, found, expected, advice in facts:
            if found != expected:
                raise SnapshotError(
                    f"snapshot {self.name}: {what} is {found}, this machine's is {expected}: {advice}"
                )

    def ram(self, verify: bool = True) -> Ram:
        """RAM mapped copy-on-write; ``verify`` reads what is not a hole and checks it.

        A snapshot held in memory has nothing to check.
        """
        with _explained(f"snapshot {self.name}: map {self.header.ram_mib} MiB of RAM"):
            ram = Ram.map_file(self.header.ram_mib, self._fd, self._ram_offset)
            if verify and self.header.ram_checks:
                self._verify(ram)
            return ram

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verify(self, ram: Ram) -> None:
        data = _data_chunks(self._fd, self._ram_offset, self.header.ram_mib)
        for chunk in range(self.header.ram_mib):
            expected = self.header.ram_checks[chunk * CHECK_SIZE : (chunk + 1) * CHECK_SIZE]
            found = _check(_chunk(ram, chunk)) if data[chunk] else _ZERO_CHECK
            if found != expected:
                raise SnapshotError(
                    f"RAM is damaged at offsets {chunk * MIB:#x} to {(chunk + 1) * MIB:#x}:"
                    f" check word {found.hex()}, expected {expected.hex()}; take the snapshot again"
                )


def write(
    path: Path | str,
    about: About,
    sections: Mapping[str, bytes],
    ram: Ram,
    progress: Progress | None = None,
    durable: bool = True,
) -> None:
    """Make or replace the snapshot at ``path`` at once: it is whole, or as it was before.

    The machine must not run meanwhile.  Only the owner may read the file: RAM holds secrets.
    ``durable=False`` does not wait for the disk.
    """
    path = Path(path)
    with _explained(f"snapshot {path}"):
        scan = _scan(ram, checked=True)
        needed = scan.data_bytes + sum(len(data) for data in sections.values())
        if needed > _free(path.parent):
            raise SnapshotError(_no_room(needed, _free(path.parent)))
        fd, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            _emit(fd, about, sections, ram, scan, progress)
            if durable:
                os.fsync(fd)
            Path(part).rename(path)
        except BaseException as exc:
            Path(part).unlink(missing_ok=True)
            if isinstance(exc, OSError) and exc.errno in _NO_ROOM:
                raise SnapshotError(_no_room(needed, _free(path.parent))) from exc
            raise
        finally:
            os.close(fd)
        if durable:
            _sync_directory(path.parent)


# Writing


class _Scan:
    """Which pages of RAM are not zero, and the check words."""

    __slots__ = ("checks", "filled")

    def __init__(self, filled: npt.NDArray[np.bool_], checks: bytes) -> None:
        self.filled = filled
        self.checks = checks

    @property
    def data_bytes(self) -> int:
        return int(np.count_nonzero(self.filled)) * PAGE_SIZE

    def runs(self) -> Iterator[tuple[int, int]]:
        """``(first, end)`` of each run of filled pages."""
        edges = np.flatnonzero(np.diff(self.filled, prepend=False, append=False))
        yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _scan(ram: Ram, checked: bool) -> _Scan:
    filled = np.empty(ram.size // PAGE_SIZE, np.bool_)
    checks = []
    per_chunk = MIB // PAGE_SIZE
    for chunk in range(ram.size // MIB):
        pages = _chunk(ram, chunk)
        some = np.bitwise_or.reduce(pages, axis=1) != 0
        filled[chunk * per_chunk : (chunk + 1) * per_chunk] = some
        if checked:
            checks.append(_check(pages) if some.any() else _ZERO_CHECK)
    return _Scan(filled, b"".join(checks))


def _emit(
    fd: int,
    about: About,
    sections: Mapping[str, bytes],
    ram: Ram,
    scan: _Scan,
    progress: Progress | None,
) -> None:
    """Write everything to the empty file ``fd``."""
    start = front(about, sections, ram.size, scan.checks)
    ram_offset = aligned(len(start))
    os.ftruncate(fd, ram_offset + ram.size)
    _write_all(fd, memoryview(start), 0)
    data = ram.array.data
    done, total = 0, scan.data_bytes
    for first, end in scan.runs():
        for at in range(first * PAGE_SIZE, end * PAGE_SIZE, MIB):
            piece = data[at : min(at + MIB, end * PAGE_SIZE)]
            _write_all(fd, piece, ram_offset + at)
            done += len(piece)
            if progress is not None:
                progress(done, total)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _free(directory: Path) -> int:
    host = os.statvfs(directory)
    return host.f_bavail * host.f_frsize


def _no_room(needed: int, free: int) -> str:
    return (
        f"needs {needed / MIB:.1f} MiB of disk, {free / MIB:.1f} MiB are free:"
        " make room, raise the quota or the file size limit, or choose another place"
    )


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _data_chunks(fd: int, ram_offset: int, chunks: int) -> npt.NDArray[np.bool_]:
    """Which MiB of RAM have anything in the file; a host that cannot tell says all of them."""
    data = np.zeros(chunks, np.bool_)
    at, end = ram_offset, ram_offset + chunks * MIB
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # holes up to the end
                break
            raise
        at = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        data[(first - ram_offset) // MIB : -(-(at - ram_offset) // MIB)] = True
    return data


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the host's errors and a state's into SnapshotError that begins with ``what``."""
    try:
        yield
    except StateError as exc:
        raise SnapshotError(f"{what}: {exc}") from exc
    except (OSError, ValueError) as exc:
        raise SnapshotError(f"{what}: {getattr(exc, 'strerror', None) or exc}") from exc


def _chunk(ram: Ram, chunk: int) -> npt.NDArray[np.uint64]:
    """One MiB of RAM as rows of pages."""
    piece = ram.array[chunk * MIB : (chunk + 1) * MIB]
    return piece.view(np.uint64).reshape(-1, PAGE_SIZE // 8)


def _check(pages: npt.NDArray[np.uint64]) -> bytes:
    """A changed word changes its column's XOR and its page's sum, and so this."""
    hasher = hashlib.blake2b(np.bitwise_xor.reduce(pages, axis=0), digest_size=CHECK_SIZE)
    hasher.update(np.add.reduce(pages, axis=1))
    return hasher.digest()


_ZERO_CHECK = _check(np.zeros((MIB // PAGE_SIZE, PAGE_SIZE // 8), np.uint64))
