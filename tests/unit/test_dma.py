"""Large transfers: lists of pieces, what the kernel does with them, and the compiled way to make them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cpu import compile as native
from vmm.cpu.control import ControlBlock
from vmm.cpu.dma import Dma
from vmm.dma import VECTORS_MAX, Vectors, listed
from vmm.errors import BadAddress
from vmm.ram import HIGH_BASE, LOW_MAX, MIB, PAGE_SIZE, Ram

Piece = tuple[int, int]
BIG_MIB = 4096
HIGH_END = HIGH_BASE + BIG_MIB * MIB - LOW_MAX


def table(*pieces: Piece) -> bytes:
    """With something in the four bytes that mean nothing."""
    return b"".join(struct.pack("<QII", address, length, 0xFFFF_FFFF) for address, length in pieces)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def contents(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


PIECES = (0x3000, 300), (0x1000, 1), (0x8_0000, 4096), (0x2FFF, 1), (MIB - 2, 2)
SIZE = 4400


def test_a_file_fills_the_pieces_in_their_order(file: int) -> None:
    ram = Ram(1)
    pieces = ram.pieces(table(*PIECES))
    assert pieces.size == SIZE
    assert pieces.read_file(file, 1000) == SIZE
    assert b"".join(ram.read(*piece) for piece in PIECES) == contents(file)[1000 : 1000 + SIZE]
    assert np.count_nonzero(ram.array) <= SIZE, "and nothing else"
    assert b"".join(pieces.views()) == contents(file)[1000 : 1000 + SIZE]


def test_a_file_takes_the_pieces_in_their_order(file: int) -> None:
    ram = Ram(1)
    data = os.urandom(SIZE)
    at = 0
    for address, length in PIECES:
        ram.write(address, data[at : at + length])
        at += length
    before = contents(file)
    assert ram.pieces(table(*PIECES)).write_file(file, 77) == SIZE
    assert contents(file) == before[:77] + data + before[77 + SIZE :]


@pytest.mark.parametrize("skip", [1, 299, 300, 301, 302, 4000, 4396, 4397, 4398, SIZE - 1])
def test_what_is_done_is_skipped(file: int, skip: int) -> None:
    ram = Ram(1)
    pieces = ram.pieces(table(*PIECES))
    assert pieces.read_file(file, 0, skip) == SIZE - skip
    whole = b"".join(ram.read(*piece) for piece in PIECES)
    assert whole == bytes(skip) + contents(file)[: SIZE - skip]
    assert b"".join(pieces.views(skip)) == whole[skip:]
    assert all(pieces.views(skip)), "none of them is empty"
    assert pieces.write_file(file, 5000, skip) == SIZE - skip
    assert contents(file)[5000 : 5000 + SIZE - skip] == whole[skip:]


def test_the_end_of_a_file(file: int) -> None:
    pieces = Ram(1).pieces(table(*PIECES))
    end = len(contents(file))
    assert pieces.read_file(file, end - 301) == 301
    assert pieces.read_file(file, end, 301) == 0


def test_pieces_over_each_other(file: int) -> None:
    ram = Ram(1)
    ram.pieces(table((0, 512), (256, 512), (0, 16))).read_file(file, 0)
    data = contents(file)
    assert ram.read(0, 768) == data[1024:1040] + data[16:256] + data[512:1024]


def test_more_pieces_than_one_call_takes(file: int) -> None:
    ram = Ram(1)
    pieces = ram.pieces(table(*((2 * n, 1) for n in range(VECTORS_MAX + 100))))
    assert pieces.read_file(file, 0) == VECTORS_MAX
    assert pieces.read_file(file, VECTORS_MAX, VECTORS_MAX) == 100
    assert bytes(ram.array[: 2 * pieces.size : 2]) == contents(file)[: pieces.size]


def test_a_failure_of_the_kernel_is_an_os_error(file: int) -> None:
    pieces = Ram(1).pieces(table((0, 4096)))
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        pieces.read_file(read_end, 0)
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pieces.write_file(-1, 0)


def test_views_write_to_ram() -> None:
    ram = Ram(1)
    for number, view in enumerate(ram.pieces(table(*PIECES)).views(), 1):
        view[:] = bytes([number]) * len(view)
    for number, piece in enumerate(PIECES, 1):
        if number != 1:  # its first byte is the neighbour of another's last
            assert ram.read(*piece) == bytes([number]) * piece[1]


def test_written_pieces_are_announced() -> None:
    ram, seen = Ram(1), list[Piece]()
    pieces = ram.pieces(table(*PIECES))
    pieces.written()
    ram.on_write = lambda address, length: seen.append((address, length))
    pieces.written()
    assert tuple(seen) == PIECES


# The compiled way and the plain one.

_BIG = Ram(BIG_MIB)
"""Nothing of it is touched but a few pages."""


class Watched:
    """A compiled ``Dma``, and the code pages that it looks at."""

    def __init__(self, ram: Ram) -> None:
        self.block = ControlBlock()
        self.code = np.zeros(ram.size // PAGE_SIZE, np.uint8)
        self.block["CODE_PAGES"], self.block["CODE_PAGES_COUNT"] = int(self.code.ctypes.data), len(self.code)
        self.dma = Dma(ram, native.callbacks(), self.block.address)
        self.host_address = ram.host_address


_WATCHED = Watched(_BIG)

edges = st.sampled_from((0, LOW_MAX, HIGH_BASE, HIGH_END, MIB, 1 << 63, (1 << 64) - 1))
addresses = st.builds(
    lambda edge, more: (edge + more) % (1 << 64), edges, st.integers(-9000, 9000)
) | st.integers(0, (1 << 64) - 1)
lengths = st.integers(1, 9000) | st.integers(1, 0xFFFF_FFFF)


@given(st.lists(st.tuples(addresses, lengths), min_size=1, max_size=40))
def test_compiled_lists_are_the_plain_ones(pieces: list[Piece]) -> None:
    rows = table(*pieces)
    plain = outcome(lambda vectors: listed(rows, vectors, _BIG.offset, _BIG.host_address), len(pieces))
    assert outcome(lambda vectors: _WATCHED.dma.listed(rows, vectors), len(pieces)) == plain


def outcome(fill: Callable[[Vectors], int], count: int) -> tuple[int, bytes] | Piece:
    vectors = Vectors(count)
    try:
        return fill(vectors), bytes(vectors.data)
    except BadAddress as bad:
        return bad.address, bad.length


inside = st.builds(
    lambda base, at, length: (base + at, length),
    st.sampled_from((0, LOW_MAX - 70_000, HIGH_BASE, HIGH_END - 70_000)),
    st.integers(0, 50_000),
    st.integers(1, 20_000),
)


@given(st.lists(inside, min_size=1, max_size=5), st.lists(inside, min_size=1, max_size=3))
def test_code_is_seen_wherever_a_piece_touches_its_page(pieces: list[Piece], translated: list[Piece]) -> None:
    vectors = Vectors(len(pieces))
    _WATCHED.dma.listed(table(*pieces), vectors)
    pages = {_BIG.offset(address, 1) // PAGE_SIZE for address, _ in translated}
    touched = {
        page
        for address, length in pieces
        for page in range(
            _BIG.offset(address, 1) // PAGE_SIZE, (_BIG.offset(address, 1) + length - 1) // PAGE_SIZE + 1
        )
    }
    _WATCHED.code[list(pages)] = 1
    try:
        assert _WATCHED.dma.has_code(vectors) == bool(pages & touched)
    finally:
        _WATCHED.code[list(pages)] = 0


@pytest.mark.parametrize(
    ("piece", "pages"), [((0, PAGE_SIZE), 1), ((4095, 1), 1), ((4095, 2), 2), ((1, 8192), 3)]
)
def test_the_page_after_a_piece_does_not_count(piece: Piece, pages: int) -> None:
    vectors = Vectors(1)
    _WATCHED.dma.listed(table(piece), vectors)
    found = []
    for page in range(4):
        _WATCHED.code[page] = 1
        found.append(_WATCHED.dma.has_code(vectors))
        _WATCHED.code[page] = 0
    assert found == [page < pages for page in range(4)]


def test_ram_above_the_hole(file: int) -> None:
    ram = Ram(BIG_MIB)
    ram.dma = Watched(ram).dma
    pieces = ram.pieces(table((HIGH_BASE, 4096), (LOW_MAX - 4096, 4096), (HIGH_END - 100, 100)))
    assert pieces.read_file(file, 0) == 8292
    assert ram.read(HIGH_BASE, 4096) + ram.read(LOW_MAX - 4096, 4096) == contents(file)[:8192]
    assert ram.read(HIGH_END - 100, 100) == contents(file)[8192:8292]


def test_only_code_is_announced_where_a_processor_knows() -> None:
    ram, seen = Ram(1), list[Piece]()
    watched = Watched(ram)
    ram.dma = watched.dma
    ram.on_write = lambda address, length: seen.append((address, length))
    pieces = ram.pieces(table(*PIECES))
    pieces.written()
    assert not seen
    watched.code[0x8_0000 // PAGE_SIZE] = 1
    pieces.written()
    assert tuple(seen) == PIECES
