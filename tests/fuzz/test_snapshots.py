"""Hostile snapshot files and input logs: refused by their own error, soon, and in little memory.

The checksums would stop nearly every mutation at the door, so each kind is also tried with the
checksums made right again: that reaches the decoders and the limits behind them.
"""

from __future__ import annotations

import hashlib
import os
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm import record, snapshot_file
from vmm.errors import ReplayError, SnapshotError
from vmm.ram import MIB, PAGE_SIZE, Ram
from vmm.record import LogHeader, Recorder
from vmm.replay import Replayer
from vmm.snapshot import About, Snapshot, write

MEMORY_MAX = 8 * MIB
"""What reading a hostile file of some KiB may allocate: a snapshot's header may have 2 MiB."""

relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Mutation = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "s"
    ram = Ram(1)
    ram.array[5 * PAGE_SIZE : 7 * PAGE_SIZE] = 0x5A
    write(path, About("l", "e", b"cfg", 5), {f"device{n}": bytes([n]) * 40 for n in range(20)}, ram)
    return path.read_bytes()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "log"
    with Recorder(path, LogHeader("l", "e", b"cfg", bytes(16))) as recorder:
        for n in range(20):
            recorder.input(n * 10, "com1", b"x" * n)
            recorder.output(n * 10 + 1, "net0", b"y" * n)
            recorder.mark(n * 10 + 2, bytes([n]) * 16)
    return path.read_bytes()


def load_snapshot(path: Path, data: bytes) -> bool:
    """Whether the file was accepted; anything raised but SnapshotError fails the test."""
    path.write_bytes(data)
    try:
        with little_memory(), Snapshot.open(path) as opened:
            opened.ram()
    except SnapshotError:
        return False
    return True


def load_log(path: Path, data: bytes) -> Replayer | None:
    path.write_bytes(data)
    try:
        with little_memory():
            return Replayer(path)
    except ReplayError:
        return None


def mutated(data: bytes, mutation: list[tuple[float, int]], start: int, end: int) -> bytes:
    changed = bytearray(data)
    for where, value in mutation:
        changed[start + int(where * (end - start))] = value
    return bytes(changed)


# Snapshots


def front_length(data: bytes) -> int:
    """Up to RAM."""
    return len(data) - MIB


def test_snapshot_cut_at_many_offsets(snapshot: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(snapshot)
    front = front_length(snapshot)
    for size in [*range(front, 0, -37), *range(56, -1, -1)]:
        os.truncate(path, size)
        with pytest.raises(SnapshotError):
            Snapshot.open(path)
    for size in range(len(snapshot) - 1, front, -99_991):
        assert not load_snapshot(path, snapshot[:size])


@relaxed
@given(Mutation)
def test_snapshot_with_any_bytes_changed(
    snapshot: bytes, tmp_path: Path, mutation: list[tuple[float, int]]
) -> None:
    """Accepted only if nothing that matters changed: the padding before RAM does not."""
    data = mutated(snapshot, mutation, 0, len(snapshot))
    header_length = snapshot_file.PREAMBLE.unpack_from(data)[2]
    used = snapshot_file.PREAMBLE.size + header_length + 20 * 40
    ram = front_length(snapshot)
    if load_snapshot(tmp_path / "s", data):
        assert (data[:used], data[ram:]) == (snapshot[:used], snapshot[ram:])


@relaxed
@given(Mutation)
def test_snapshot_with_a_changed_and_resealed_header(
    snapshot: bytes, tmp_path: Path, mutation: list[tuple[float, int]]
) -> None:
    _, _, header_length, length, _ = snapshot_file.PREAMBLE.unpack_from(snapshot)
    start = snapshot_file.PREAMBLE.size
    data = mutated(snapshot, mutation, start, start + header_length)
    packed = data[start : start + header_length]
    bare = snapshot_file.PREAMBLE.pack(snapshot_file.MAGIC, snapshot_file.FORMAT, header_length, length, b"")[
        :-32
    ]
    seal = hashlib.blake2b(bare + packed, digest_size=32).digest()
    load_snapshot(tmp_path / "s", bare + seal + data[start:])


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=200))
def test_snapshot_with_any_preamble(tmp_path: Path, header_length: int, length: int, packed: bytes) -> None:
    """Lengths that lie, with and without a right seal and a file that is really that long."""
    bare = snapshot_file.PREAMBLE.pack(snapshot_file.MAGIC, snapshot_file.FORMAT, header_length, length, b"")[
        :-32
    ]
    data = bare + hashlib.blake2b(bare + packed, digest_size=32).digest() + packed
    assert not load_snapshot(tmp_path / "s", data)
    exact = snapshot_file.PREAMBLE.pack(
        snapshot_file.MAGIC, snapshot_file.FORMAT, len(packed), len(data), b""
    )[:-32]
    seal = hashlib.blake2b(exact + packed, digest_size=32).digest()
    assert not load_snapshot(tmp_path / "s", exact + seal + packed)


def test_sparse_file_of_a_tebibyte(snapshot: bytes, tmp_path: Path) -> None:
    """A file may truly have the length that its preamble claims and cost nothing to make."""
    path = tmp_path / "s"
    for header_length in (0, 100, snapshot_file.HEADER_MAX, 2**32 - 1):
        bare = snapshot_file.PREAMBLE.pack(
            snapshot_file.MAGIC, snapshot_file.FORMAT, header_length, 1 << 40, b""
        )[:-32]
        seen = bytes(min(header_length, snapshot_file.HEADER_MAX))
        path.write_bytes(bare + hashlib.blake2b(bare + seen, digest_size=32).digest())
        os.truncate(path, 1 << 40)
        with little_memory(), pytest.raises(SnapshotError):
            Snapshot.open(path)


# Input logs


def records_start(data: bytes) -> int:
    return record.PREAMBLE.size + int(record.PREAMBLE.unpack_from(data)[2])


def test_log_cut_at_every_offset(log: bytes, tmp_path: Path) -> None:
    start = records_start(log)
    for size in range(0, len(log), 7):
        found = load_log(tmp_path / "log", log[:size])
        assert (found is not None) == (size >= start)
        if found is not None:
            found.close()


@relaxed
@given(Mutation)
def test_log_with_any_bytes_changed(log: bytes, tmp_path: Path, mutation: list[tuple[float, int]]) -> None:
    """What is accepted is a prefix of the original: never a record that was not written."""
    data = mutated(log, mutation, 0, len(log))
    found = load_log(tmp_path / "log", data)
    if found is None:
        return
    with found:
        assert data == log or found.torn is not None
        inputs = []
        while found.next_input_ns < 1000:
            inputs += found.due(found.next_input_ns)
        assert inputs == [("com1", b"x" * n) for n in range(len(inputs))]


@relaxed
@given(st.lists(st.one_of(st.binary(max_size=40), Mutation), max_size=6))
def test_log_with_any_well_sealed_records(
    log: bytes, tmp_path: Path, bodies: list[bytes | list[tuple[float, int]]]
) -> None:
    """Random bodies, and true ones with bytes changed, under right CRCs."""
    start = records_start(log)
    data = log[:start]
    crc = record.PREAMBLE.unpack_from(log)[3]
    at = start
    for body in bodies:
        size = record.FRAME.unpack_from(log, at)[0]
        if not isinstance(body, bytes):
            body = mutated(log[at + 8 : at + 8 + size], body, 0, size)
        crc = zlib.crc32(body, crc)
        data += record.FRAME.pack(len(body), crc) + body
        at += 8 + size
    found = load_log(tmp_path / "log", data)
    if found is not None:
        with found:
            while found.next_input_ns < found.end_ns:
                found.due(found.next_input_ns)


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=100))
def test_log_with_any_frame(log: bytes, tmp_path: Path, length: int, crc: int, rest: bytes) -> None:
    found = load_log(tmp_path / "log", log + record.FRAME.pack(length, crc) + rest)
    if found is not None:
        with found:
            assert found.records == 60
            assert found.torn is not None
