"""Snapshots: what was written comes back, shared and copy-on-write; anything else is refused by name."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vmm import snapshot_file
from vmm.errors import SnapshotError, StateError
from vmm.ram import MIB, PAGE_SIZE, Ram
from vmm.snapshot import About, Snapshot, write
from vmm.snapshot_file import FORMAT, MAGIC, PREAMBLE, Header, Section
from vmm.state import unpack

ABOUT = About("layout-1", "engine-1", b"cfg", 123_456_789)
SECTIONS = {"cpu": bytes(range(200)), "pit": b"", "uart": b"\x93\1\2\3"}


def some_ram(size_mib: int = 4) -> Ram:
    """Data at both ends, a lone page in a MiB of zeroes, and a MiB that is one hole."""
    ram = Ram(size_mib)
    rng = np.random.default_rng(7)
    ram.array[: MIB + 5] = rng.integers(0, 256, MIB + 5, dtype=np.uint8)
    ram.array[2 * MIB + 9 * PAGE_SIZE + 17] = 1
    ram.array[-1] = 0xAA
    return ram


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good snapshot."""
    made = tmp_path / "guest.vmm"
    write(made, ABOUT, SECTIONS, some_ram())
    return made


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def refused(path: Path) -> str:
    with pytest.raises(SnapshotError) as caught:
        Snapshot.open(path)
    assert str(caught.value).startswith(f"snapshot {path}: ")
    return str(caught.value)


# Round trip


def test_everything_comes_back(path: Path) -> None:
    with Snapshot.open(path) as snapshot:
        assert snapshot.about == ABOUT
        assert snapshot.sections == SECTIONS
        assert list(snapshot.sections) == list(SECTIONS), "component order is kept"
        assert snapshot.ram_size == 4 * MIB
        ram = snapshot.ram()
    assert (ram.array == some_ram().array).all(), "and the mapping outlives the snapshot"


def test_zero_pages_are_holes(path: Path) -> None:
    filled = 257 + 1 + 1  # MIB + 5 bytes, the lone page, the last page
    front = 4 * PAGE_SIZE  # header, sections and the file system's own rounding
    assert filled * PAGE_SIZE <= path.stat().st_blocks * 512 <= filled * PAGE_SIZE + front
    assert path.stat().st_size % PAGE_SIZE == 0


def test_resumed_machines_own_what_they_write_and_share_the_rest(path: Path) -> None:
    before = path.read_bytes()
    with Snapshot.open(path) as snapshot:
        one, other = snapshot.ram(), snapshot.ram()
    one.write(0x1000, b"mine")
    one.array[3 * MIB] = 0x55  # a hole
    assert one.read(0x1000, 4) == b"mine"
    assert (other.array == some_ram().array).all()
    assert path.read_bytes() == before


def test_clear_gives_zeroes_not_the_file_again(path: Path) -> None:
    with Snapshot.open(path) as snapshot:
        ram = snapshot.ram()
    ram.write(0x2000, b"mine")
    ram.clear()
    assert not ram.array.any()


def test_same_machine_same_file(path: Path, tmp_path: Path) -> None:
    with Snapshot.open(path) as snapshot:
        write(tmp_path / "again.vmm", snapshot.about, snapshot.sections, snapshot.ram())
        assert (tmp_path / "again.vmm").read_bytes() == path.read_bytes()
        with Snapshot.open(tmp_path / "again.vmm") as again:
            assert again.digest == snapshot.digest


def test_progress_counts_what_is_written(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write(tmp_path / "s", ABOUT, SECTIONS, some_ram(), lambda done, total: calls.append((done, total)))
    assert calls[-1] == (259 * PAGE_SIZE, 259 * PAGE_SIZE)
    assert calls == sorted(calls)


# Forks


def test_fork_is_private_and_its_image_cannot_change(tmp_path: Path) -> None:
    ram = some_ram()
    with Snapshot.hold(ABOUT, SECTIONS, ram) as held:
        ram.array[:] = 0x11  # the original goes on
        one, other = held.ram(), held.ram()
        assert held.sections == SECTIONS
        with pytest.raises(PermissionError):
            os.pwrite(held._fd, b"x", 0)
        write(tmp_path / "s", held.about, held.sections, other)
    one.array[0] ^= 0xFF
    assert (other.array == some_ram().array).all()
    with Snapshot.open(tmp_path / "s") as snapshot:
        assert (snapshot.ram().array == some_ram().array).all()


def test_a_file_without_check_words_is_refused(tmp_path: Path) -> None:
    with Snapshot.hold(ABOUT, SECTIONS, some_ram()) as held:
        size = os.fstat(held._fd).st_size
        (tmp_path / "s").write_bytes(os.pread(held._fd, size, 0))
    assert "0 bytes of RAM check words, not 32" in refused(tmp_path / "s")


# Refusals


@pytest.mark.parametrize(
    ("digests", "words"),
    [
        (("layout-2", "engine-1", 4 * MIB), "device layout is layout-1, this machine's is layout-2"),
        (("layout-1", "engine-2", 4 * MIB), "CPU engine is engine-1, this machine's is engine-2"),
        (("layout-1", "engine-1", 8 * MIB), "RAM is 4 MiB, this machine's is 8 MiB"),
    ],
)
def test_another_machine(path: Path, digests: tuple[str, str, int], words: str) -> None:
    with Snapshot.open(path) as snapshot:
        snapshot.require("layout-1", "engine-1", 4 * MIB)
        with pytest.raises(SnapshotError) as caught:
            snapshot.require(*digests)
    assert words in str(caught.value)


def test_not_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert "No such file" in refused(path)
    path.write_bytes(b"")
    assert "starts with nothing" in refused(path)
    path.write_bytes(b"\x7fELF" + bytes(100))
    assert "not a snapshot: starts with 7f 45 4c 46" in refused(path)
    path.write_bytes(MAGIC + bytes(3))
    assert "truncated: 11 bytes of a preamble of 56" in refused(path)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refused(path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


def test_another_format(path: Path) -> None:
    change(path, 8, (FORMAT + 1).to_bytes(4, "little"))
    assert f"format {FORMAT + 1}; this build reads format {FORMAT}" in refused(path)


def test_truncated_and_too_long(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert f"truncated: {size - 1} bytes, its header says {size}" in refused(path)
    os.truncate(path, size + 1)
    assert "too long" in refused(path)


def test_damaged_header_and_section(path: Path) -> None:
    good = path.read_bytes()
    change(path, PREAMBLE.size + 3, b"\xff")
    assert "header is damaged" in refused(path)
    path.write_bytes(good)
    at = good.index(SECTIONS["cpu"])
    change(path, at + 100, b"\0")
    assert f"section cpu at {at:#x}+0xc8 is damaged" in refused(path)


@pytest.mark.parametrize("offset", [0, 5000, MIB + 4, 2 * MIB, 3 * MIB - 1, 3 * MIB + 12345, 4 * MIB - 1])
def test_damaged_ram(path: Path, offset: int) -> None:
    """In data, in a zero page beside data, and in a MiB that was a hole."""
    at = path.stat().st_size - 4 * MIB + offset
    old = path.read_bytes()[at]
    change(path, at, bytes([old ^ 0x10]))
    with Snapshot.open(path) as snapshot:
        with pytest.raises(SnapshotError) as caught:
            snapshot.ram()
        chunk = offset // MIB
        assert f"damaged at offsets {chunk * MIB:#x} to {(chunk + 1) * MIB:#x}" in str(caught.value)
        assert snapshot.ram(verify=False).array[offset] == old ^ 0x10


def test_ram_pages_exchanged_zeroed_or_repeated_are_damage(path: Path) -> None:
    """What disks and copy tools do: whole sectors lost, stale or in the wrong place."""
    good = path.read_bytes()
    base = len(good) - 4 * MIB
    one, other = good[base : base + PAGE_SIZE], good[base + PAGE_SIZE : base + 2 * PAGE_SIZE]
    for pair in (other + one, one + one, bytes(PAGE_SIZE) + other, one[512:] + one[:512] + other):
        path.write_bytes(good)
        change(path, base, pair)
        with Snapshot.open(path) as snapshot, pytest.raises(SnapshotError, match="RAM is damaged"):
            snapshot.ram()


def test_a_copy_that_lost_its_holes_is_the_same_snapshot(path: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(path.read_bytes())
    with Snapshot.open(tmp_path / "copy") as snapshot:
        assert (snapshot.ram().array == some_ram().array).all()


def resealed(data: bytes, edit: Callable[[Header], None], length: int | None = None) -> bytes:
    """``data`` with its header edited and its checksum made right: a lie, not damage."""
    _, _, header_length, file_length, _ = PREAMBLE.unpack_from(data)
    end = PREAMBLE.size + header_length
    header = unpack(Header, data[PREAMBLE.size : end])
    edit(header)
    packed = msgspec.msgpack.encode(header)  # vmm.state.pack would refuse some lies
    bare = PREAMBLE.pack(MAGIC, FORMAT, len(packed), length or file_length, b"")[:-32]
    return bare + hashlib.blake2b(bare + packed, digest_size=32).digest() + packed + data[end:]


def ram_mib(value: int) -> Callable[[Header], None]:
    return lambda header: setattr(header, "ram_mib", value)


def section(index: int, name: str, value: object) -> Callable[[Header], None]:
    return lambda header: setattr(header.sections[index], name, value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (ram_mib(0), "RAM of 0 MiB; 1 to 65536 are possible"),
        (ram_mib(1 << 20), "RAM of 1048576 MiB"),
        (ram_mib(1 << 40), "ram_mib"),
        (ram_mib(5), "its parts add up to"),
        (section(0, "size", 1 << 31), "cpu: 2147483648 bytes; at most 67108864"),
        (section(0, "size", 70 << 20), "at most 67108864 are allowed"),
        (section(0, "size", 5000), "its parts add up to"),
        (section(1, "name", "cpu"), "two sections have one name"),
        (section(0, "digest", b"short"), "sections"),
        (lambda header: header.sections.extend([Section("x", 0, bytes(16))] * 300), "sections"),
        (lambda header: header.sections.pop(), "is damaged|add up to"),
        (lambda header: setattr(header.about, "config", bytes(1 << 19)), r"about\[2\]"),
    ],
)
def test_lying_headers(path: Path, edit: Callable[[Header], None], words: str) -> None:
    data = resealed(path.read_bytes(), edit)
    data = resealed(path.read_bytes(), edit, length=len(data))
    path.write_bytes(data)
    assert re.search(words, refused(path))


def test_header_with_text_that_is_none(path: Path) -> None:
    data = path.read_bytes()
    header_length = PREAMBLE.unpack_from(data)[2]
    packed = data[PREAMBLE.size : PREAMBLE.size + header_length].replace(b"layout-1", b"layout-\xff")
    bare = data[: PREAMBLE.size - 32]
    seal = hashlib.blake2b(bare + packed, digest_size=32).digest()
    path.write_bytes(bare + seal + packed + data[PREAMBLE.size + header_length :])
    assert "Header: 'utf-8' codec can't decode byte 0xff" in refused(path)


def test_header_length_beyond_the_limit(path: Path) -> None:
    change(path, 12, (1 << 31).to_bytes(4, "little"))
    assert "header: 2147483648 bytes; at most 2097152" in refused(path)


# Writing that fails


def test_limits_hold_for_the_writer(tmp_path: Path) -> None:
    many = {str(n): b"" for n in range(snapshot_file.SECTIONS_MAX + 1)}
    big = {"disk": bytes(snapshot_file.SECTION_MAX + 1)}
    for sections, words in ((many, "257 sections; at most 256"), (big, "disk: 67108865 bytes; at most")):
        with pytest.raises(SnapshotError, match=words):
            write(tmp_path / "s", ABOUT, sections, Ram(1))
    assert list(tmp_path.iterdir()) == []


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="No such file or directory"):
        write(tmp_path / "none" / "s", ABOUT, SECTIONS, Ram(1))


def test_a_failed_write_leaves_the_old_snapshot_and_no_half_one(path: Path) -> None:
    before = path.read_bytes()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, ABOUT, {}, some_ram(), stop)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_file_size_limit(tmp_path: Path) -> None:
    """The host refuses in the middle (EFBIG), as a quota or a full disk would."""
    code = (
        "import resource, sys; from vmm.snapshot import *; from vmm.ram import Ram;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {resource.RLIM_INFINITY}));"
        "ram = Ram(1); ram.array[:] = 1;"
        "write(sys.argv[1], About('', '', b'', 0), {}, ram)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert "SnapshotError" in run.stderr
    assert "needs 1.0 MiB of disk" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_disk_full(tmp_path: Path) -> None:
    """On a real file system of one MiB, in a mount namespace of its own."""
    code = (
        "import os, sys; from vmm.snapshot import *; from vmm.ram import Ram;"
        "ram = Ram(4); ram.array[:] = 1\n"
        "try: write(sys.argv[1] + '/s', About('', '', b'', 0), {}, ram)\n"
        "except Exception as exc: print(type(exc).__name__, exc, os.listdir(sys.argv[1]))"
    )
    unshare, mount = shutil.which("unshare"), shutil.which("mount")
    if unshare is None or mount is None:
        pytest.skip("no unshare or no mount here")
    script = f'{mount} -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    run = subprocess.run(
        [unshare, "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode and "SnapshotError" not in run.stdout:
        pytest.skip(f"no mount namespace here: {run.stderr.strip()}")
    assert "SnapshotError" in run.stdout
    assert "needs 4.0 MiB of disk, 1.0 MiB are free" in run.stdout
    assert run.stdout.rstrip().endswith("[]")


def test_snapshot_errors_are_state_errors() -> None:
    assert issubclass(SnapshotError, StateError)
