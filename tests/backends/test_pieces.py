"""Large requests on every kind of disk: pieces of guest memory get and give what plain bytes would."""

from __future__ import annotations

import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.test_disk import MAKERS, SECTORS, pattern
from vmm.backends.disk import CopyOnWrite, MemoryDisk, Overlay
from vmm.backends.image import RawFile
from vmm.devices.block import SECTOR_BYTES
from vmm.dma import PieceList
from vmm.errors import BackendError
from vmm.ram import Ram

Make = Callable[[Path], RawFile | CopyOnWrite]
GAP = 32
AT = 0x1_0000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SECTORS))
    return path


def pieces_of(ram: Ram, count: int, *cuts: int) -> PieceList:
    """So many sectors of guest memory, cut there, with gaps between the pieces."""
    size = count * SECTOR_BYTES
    ends = sorted({cut for cut in cuts if 0 < cut < size} | {size})
    rows, start = [], 0
    for number, end in enumerate(ends):
        rows.append(struct.pack("<QI4x", AT + start + GAP * number, end - start))
        start = end
    return ram.pieces(b"".join(rows))


def taken(pieces: PieceList) -> bytes:
    return b"".join(pieces.views())


def put(pieces: PieceList, data: bytes) -> PieceList:
    at = 0
    for view in pieces.views():
        view[:] = data[at : at + len(view)]
        at += len(view)
    return pieces


CUTS = [
    (),
    (512, 1024),
    (4096, 8192),
    (1, 2, 511, 513, 5000),
    tuple(range(100, 18_000, 100)),
    tuple(range(16, 18_900, 16)),
]
"""The last is more than the kernel takes in one call."""


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("make", MAKERS)
def test_pieces_are_filled(image: Path, make: Make, cuts: tuple[int, ...]) -> None:
    disk, ram = make(image), Ram(1)
    for sector, count in ((0, SECTORS), (5, 9), (36, 1), (8, 8)):
        pieces = pieces_of(ram, count, *cuts)
        disk.read_into(sector, pieces)
        assert taken(pieces) == pattern(SECTORS)[512 * sector : 512 * (sector + count)]
    ram.array[:] = 0xEE
    disk.read_into(0, pieces := pieces_of(ram, SECTORS, *cuts))
    put(pieces, b"\xee" * pieces.size)
    assert (ram.array == 0xEE).all(), "nothing between the pieces"
    disk.close()


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("make", MAKERS)
def test_pieces_are_taken(image: Path, make: Make, cuts: tuple[int, ...]) -> None:
    disk, ram = make(image), Ram(1)
    flat = bytearray(pattern(SECTORS))
    for sector, count in ((5, 9), (36, 1), (8, 16), (0, SECTORS)):
        data = pattern(count, seed=sector + 1)
        disk.write_from(sector, put(pieces_of(ram, count, *cuts), data))
        ram.array[:] = 0  # the guest uses its memory again
        flat[512 * sector : 512 * (sector + count)] = data
        assert disk.read(0, SECTORS) == flat
    disk.close()


writes = st.lists(
    st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 20), st.booleans()).map(
        lambda t: (t[0], min(t[1], SECTORS - t[0]), t[2])
    ),
    max_size=8,
)


@given(writes, st.integers(0, SECTORS - 1), st.lists(st.integers(1, 20_000), max_size=30))
def test_an_overlay_read_in_pieces_is_a_flat_array(
    writes: list[tuple[int, int, bool]], sector: int, cuts: list[int]
) -> None:
    disk, ram = MemoryDisk(pattern(SECTORS)[:-700]), Ram(1)
    flat = bytearray(pattern(SECTORS)[:-700].ljust(512 * disk.sectors, b"\0"))
    for seed, (first, count, whole) in enumerate(writes, 1):
        count = min(count, disk.sectors - first)
        if count <= 0:
            continue
        data = pattern(count, seed)
        if whole:
            disk.write(first, data)
        else:
            disk.write_from(first, put(pieces_of(ram, count, *cuts), data))
        flat[512 * first : 512 * (first + count)] = data
    sector = min(sector, disk.sectors - 1)
    pieces = pieces_of(ram, disk.sectors - sector, *cuts)
    disk.read_into(sector, pieces)
    assert taken(pieces) == flat[512 * sector :]


def test_pieces_and_bytes_change_an_overlay_alike() -> None:
    one, other, ram = MemoryDisk(1 << 20), MemoryDisk(1 << 20), Ram(1)
    for sector, count in ((3, 2), (8, 16), (100, 33)):
        one.write(sector, pattern(count, 7))
        other.write_from(sector, put(pieces_of(ram, count, 1000, 4096), pattern(count, 7)))
    assert one.export() == other.export()


@pytest.mark.parametrize("make", MAKERS)
def test_requests_beyond_the_end_are_refused_whole(image: Path, make: Make) -> None:
    disk, ram = make(image), Ram(1)
    ram.array[:] = 0xEE
    for sector in (SECTORS - 1, SECTORS, -1, 1 << 70):
        for request in (disk.read_into, disk.write_from):
            with pytest.raises(
                BackendError, match=f"2 sectors from {sector} on: expected them within its 37"
            ):
                request(sector, pieces_of(ram, 2, 700))
    assert (ram.array == 0xEE).all()
    assert disk.read(0, SECTORS) == pattern(SECTORS)
    disk.close()


@pytest.mark.parametrize("make", [RawFile, Overlay])
def test_what_a_file_does_not_have_reads_as_zeroes(image: Path, make: Callable[[str], Any]) -> None:
    """An odd end, and an image that somebody shortened meanwhile."""
    image.write_bytes(b"\xee" * 8000)
    disk, ram = make(str(image)), Ram(1)
    for size in (8000, 700, 0):
        os.truncate(image, size)
        for cuts in ((), (600, 700, 800), (7999,)):
            ram.array[:] = 0x11
            pieces = pieces_of(ram, 16, *cuts)
            disk.read_into(0, pieces)
            assert taken(pieces) == b"\xee" * size + bytes(8192 - size)
    disk.close()


def test_a_read_only_disk_is_not_written(image: Path) -> None:
    disk = RawFile(str(image), read_only=True)
    with pytest.raises(BackendError, match="read-only disk"):
        disk.write_from(0, pieces_of(Ram(1), 2))
    disk.close()
    assert image.read_bytes() == pattern(SECTORS)


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """A file system that is full at this point of every file (setrlimit(2), RLIMIT_FSIZE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_system_without_room_is_a_back_end_that_failed(image: Path) -> None:
    """After as much as there was room for."""
    disk, ram = RawFile(str(image)), Ram(1)
    pieces = put(pieces_of(ram, 20, 600, 5000), b"\xaa" * 20 * 512)
    with (
        no_file_beyond(5000),
        pytest.raises(BackendError, match=r"sector 2 could not be written \(File too large\)"),
    ):
        disk.write_from(2, pieces)
    disk.close()
    assert image.read_bytes() == pattern(2) + b"\xaa" * (5000 - 1024) + pattern(SECTORS)[5000:]


def test_a_disk_that_was_closed_has_failed(image: Path) -> None:
    disk = RawFile(str(image))
    disk.close()
    with pytest.raises(BackendError, match=r"sector 3 could not be read \(Bad file descriptor\)"):
        disk.read_into(3, pieces_of(Ram(1), 4))
