"""Disk contents: raw images, overlays and memory, all behind the controllers' contract."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.backends.disk import CLUSTER_BYTES, CopyOnWrite, DiskSpec, MemoryDisk, Overlay, parse
from vmm.backends.image import DISK_MAX, RawFile
from vmm.devices.block import SECTOR_BYTES, BlockBackend
from vmm.errors import BackendError, ConfigError, StateError

SECTORS = 37  # four whole clusters and five sectors of a fifth


def pattern(sectors: int, seed: int = 0) -> bytes:
    return b"".join(struct.pack("<II", seed, number) * (SECTOR_BYTES // 8) for number in range(sectors))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SECTORS))
    return path


def test_a_raw_image_is_its_sectors(image: Path) -> None:
    disk = RawFile(str(image))
    backend: BlockBackend = disk
    assert (backend.sectors, backend.read_only) == (SECTORS, False)
    assert backend.read(0, SECTORS) == pattern(SECTORS)
    assert backend.read(36, 1) == pattern(SECTORS)[36 * 512 :]
    assert backend.read(SECTORS, 0) == b""
    backend.write(35, memoryview(b"\xaa" * 1024))
    backend.flush()
    disk.close()
    disk.close()
    assert image.read_bytes() == pattern(SECTORS)[: 35 * 512] + b"\xaa" * 1024


def test_an_odd_size_is_rounded_up_with_zeroes(image: Path) -> None:
    image.write_bytes(b"\xee" * 700)
    disk = RawFile(str(image))
    assert disk.sectors == 2
    assert disk.read(0, 2) == b"\xee" * 700 + bytes(324)
    disk.write(1, b"\x11" * 512)
    disk.close()
    assert image.read_bytes() == b"\xee" * 512 + b"\x11" * 512


def test_a_read_only_disk_is_not_written(image: Path) -> None:
    image.chmod(0o444)
    disk = RawFile(str(image), read_only=True)
    assert disk.read_only
    with pytest.raises(BackendError, match=r"read-only disk: leave out ',ro', or use ',overlay'"):
        disk.write(0, bytes(512))
    disk.flush()
    disk.close()


MAKERS: list[Callable[[Path], RawFile | CopyOnWrite]] = [
    lambda image: RawFile(str(image)),
    lambda image: Overlay(str(image)),
    lambda image: MemoryDisk(pattern(SECTORS)),
]


@pytest.mark.parametrize("make", MAKERS)
def test_requests_beyond_the_end_are_refused_whole(
    image: Path, make: Callable[[Path], RawFile | CopyOnWrite]
) -> None:
    disk = make(image)
    for sector, count in ((SECTORS, 1), (SECTORS - 1, 2), (-1, 1), (0, -1), (1 << 70, 1), (0, 1 << 70)):
        with pytest.raises(
            BackendError, match=rf"{count} sectors from {sector} on: expected them within its 37"
        ):
            disk.read(sector, count)
    with pytest.raises(BackendError, match="2 sectors from 36 on"):
        disk.write(SECTORS - 1, b"x" * 1024)
    assert disk.read(0, SECTORS) == pattern(SECTORS)
    disk.close()


def test_one_writer_or_many_readers(image: Path) -> None:
    writer = RawFile(str(image))
    for opened in (RawFile, Overlay):
        with pytest.raises(BackendError, match=r"in use by another machine: .* give both ',overlay'"):
            opened(str(image))
    writer.close()
    readers: list[RawFile | CopyOnWrite] = [
        Overlay(str(image)),
        Overlay(str(image)),
        RawFile(str(image), read_only=True),
    ]
    with pytest.raises(BackendError, match="in use by another machine"):
        RawFile(str(image))
    for reader in readers:
        reader.close()
    RawFile(str(image)).close()


def test_an_overlay_keeps_its_base_as_it_is(image: Path) -> None:
    disk = Overlay(str(image))
    backend: BlockBackend = disk
    assert not backend.read_only
    backend.write(7, b"\x77" * 1024)  # across clusters 0 and 1
    assert backend.read(6, 4) == pattern(10)[6 * 512 : 7 * 512] + b"\x77" * 1024 + pattern(10)[9 * 512 :]
    assert disk.changed == 2
    backend.flush()
    disk.close()
    assert image.read_bytes() == pattern(SECTORS)


requests = st.lists(
    st.tuples(st.integers(0, SECTORS - 1), st.integers(0, 20), st.integers(1, 255)).map(
        lambda t: (t[0], min(t[1], SECTORS - t[0]), t[2])
    ),
    max_size=12,
)


@given(requests)
def test_an_overlay_is_a_flat_array_of_bytes(writes: list[tuple[int, int, int]]) -> None:
    disk = MemoryDisk(pattern(SECTORS))
    flat = bytearray(pattern(SECTORS))
    for sector, count, seed in writes:
        data = pattern(count, seed)
        disk.write(sector, data)
        flat[sector * 512 : (sector + count) * 512] = data
        assert disk.read(sector, SECTORS - sector) == flat[sector * 512 :]
    assert disk.read(0, SECTORS) == flat
    assert disk.changed <= 5
    twin = MemoryDisk(pattern(SECTORS))
    twin.write(0, pattern(SECTORS, 9))  # forgotten by load
    twin.load(disk.export())
    assert twin.read(0, SECTORS) == flat
    assert twin.export() == disk.export()


def test_export_is_canonical() -> None:
    one, other = MemoryDisk(1 << 20), MemoryDisk(1 << 20)
    places = [5, 200, 63, 0]
    for place in places:
        one.write(place * 8, pattern(8, place))
    for place in reversed(places):
        other.write(place * 8, bytes(8 * 512))
        other.write(place * 8, pattern(8, place))
    data = one.export()
    assert data == other.export()
    assert struct.unpack_from("<QQ", data) == (2048, 4)
    assert [entry[0] for entry in struct.iter_unpack(f"<Q{CLUSTER_BYTES}s", data[32:])] == [0, 5, 63, 200]


def test_changes_travel_to_another_process_with_the_same_base(image: Path) -> None:
    disk = Overlay(str(image))
    disk.write(36, b"\x36" * 512)  # the last, partial cluster
    data = disk.export()
    disk.close()
    again = Overlay(str(image))
    again.load(memoryview(data))
    assert again.read(36, 1) == b"\x36" * 512
    assert again.read(0, 36) == pattern(36)
    again.close()


def test_changes_of_another_base_are_refused(image: Path) -> None:
    disk = MemoryDisk(pattern(SECTORS))
    disk.write(0, bytes(512))
    data = disk.export()
    for other in (
        MemoryDisk(pattern(SECTORS, 1)),
        MemoryDisk(pattern(SECTORS + 1)),
        MemoryDisk(SECTORS * 512),
    ):
        with pytest.raises(StateError, match="the changes belong to another base of 37 sectors"):
            other.load(data)


def broken(data: bytes) -> list[bytes]:
    """Every way in which an export of clusters 1 and 3 of 5 can be wrong."""
    head, body = data[:32], data[32:]
    one, three = body[: len(body) // 2], body[len(body) // 2 :]
    beyond = struct.pack("<Q", 5) + three[8:]

    def count(entries: int) -> bytes:
        return head[:8] + struct.pack("<Q", entries) + head[16:]

    return [
        b"",
        data[:31],
        data[:-1],
        data + b"\0",
        head + three + one,
        head + one + one,
        head + one + beyond,
        count(1) + body,
        count(3) + body,
        count(6) + one * 6,
        count(1 << 63) + body,
    ]


def test_damaged_changes_are_refused_and_nothing_changes() -> None:
    source = MemoryDisk(pattern(SECTORS))
    source.write(8, bytes(512))
    source.write(24, bytes(512))
    disk = MemoryDisk(pattern(SECTORS))
    disk.write(3, b"\x03" * 512)
    before = disk.export()
    for data in broken(source.export()):
        with pytest.raises(StateError, match="disk in memory: "):
            disk.load(data)
        assert disk.export() == before
    disk.load(source.export())
    assert disk.export() == source.export()


def test_memory_disks() -> None:
    blank = MemoryDisk(1000)
    assert blank.sectors == 2
    assert blank.read(0, 2) == bytes(1024)
    blank.write(1, b"\x01" * 512)
    assert blank.read(0, 2) == bytes(512) + b"\x01" * 512
    assert MemoryDisk(b"abc").read(0, 1) == b"abc".ljust(512, b"\0")
    for size in (0, DISK_MAX + 1):
        with pytest.raises(BackendError, match="expected 1 byte to 2 TiB"):
            MemoryDisk(size)
    with pytest.raises(BackendError, match="0 bytes"):
        MemoryDisk(b"")


def test_a_sparse_base_of_the_largest_size_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    disk = Overlay(str(path))
    disk.write(disk.sectors - 1, b"\xff" * 512)
    assert disk.changed == 1
    assert len(disk.export()) == 32 + 8 + CLUSTER_BYTES
    disk.close()


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "missing", "does not exist: expected a raw disk image; check the path"),
        (tmp_path, "is (neither a file nor|a directory)"),
        (tmp_path / "fifo", "is neither a file nor a block device"),
        (empty, "0 bytes: expected 1 byte to 2 TiB; make an image with truncate"),
    ):
        for opened in (RawFile, Overlay):
            with pytest.raises(BackendError, match=message):
                opened(str(path))


def test_a_file_that_may_not_be_written_suggests_an_overlay() -> None:
    """In a child process that has given up root, where it had it."""
    program = (
        "import os, sys; from vmm.backends.image import RawFile\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setuid(65534)\n"
        "try: RawFile(sys.argv[1])\n"
        "except Exception as exc: print(exc)"
    )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "disk.img"
        path.write_bytes(bytes(512))
        path.chmod(0o444)
        done = subprocess.run(
            (sys.executable, "-c", program, path), capture_output=True, text=True, check=True
        )
    assert "may not be read and written (Permission denied)" in done.stdout
    assert "add ',overlay' or ',ro'" in done.stdout


def test_parse() -> None:
    assert parse("a.img") == DiskSpec("a.img")
    assert parse("a.img,ro") == DiskSpec("a.img", read_only=True)
    assert parse("/d/a.img,ide,overlay") == DiskSpec("/d/a.img", ide=True, overlay=True)
    assert parse("a,,b.img,ro,ide") == DiskSpec("a,b.img", read_only=True, ide=True)
    for spec, found in (
        ("a.img,rw", "option 'rw'"),
        ("", "no file name"),
        (",ro", "no file name"),
        ("a,", "''"),
    ):
        with pytest.raises(ConfigError, match=rf"{found}: expected FILE\[,ro\]\[,ide\]\[,overlay\]"):
            parse(spec)
    with pytest.raises(ConfigError, match="both ro and overlay"):
        parse("a.img,ro,overlay")


def test_a_spec_opens_what_it_says(image: Path) -> None:
    for spec, kind, read_only in (("", RawFile, False), (",ro", RawFile, True), (",overlay", Overlay, False)):
        disk = parse(f"{image}{spec}").open()
        assert type(disk) is kind
        assert disk.read_only == read_only
        disk.close()
