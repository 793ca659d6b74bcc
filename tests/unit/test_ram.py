"""Guest RAM: pieces around the device hole, bounds, notices of host writes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import BadAddress, ConfigError
from vmm.ram import HIGH_BASE, LOW_MAX, MIB, PAGE_SIZE, Ram

# Anonymous memory costs nothing until it is touched: a machine with a hole is cheap to make.
BIG_MIB = 4096


@pytest.fixture(scope="module")
def big() -> Ram:
    return Ram(BIG_MIB)


def test_starts_zeroed_and_remembers() -> None:
    ram = Ram(1)
    assert ram.read(0, MIB) == bytes(MIB)
    ram.write(100, b"hello")
    assert ram.read(99, 7) == b"\x00hello\x00"
    assert bytes(ram.array[100:105]) == b"hello"


def test_last_byte_and_one_beyond() -> None:
    ram = Ram(1)
    ram.write(MIB - 1, b"x")
    assert ram.read(MIB - 1, 1) == b"x"
    assert ram.read(MIB, 0) == b""
    for address, length in ((MIB, 1), (MIB - 1, 2), (-1, 1), (0, -1), (HIGH_BASE, 1), (1 << 64, 1)):
        with pytest.raises(BadAddress) as caught:
            ram.read(address, length)
        assert (caught.value.address, caught.value.length) == (address, length)


def test_ram_continues_above_4_gib(big: Ram) -> None:
    assert big.regions == [(0, 0, LOW_MAX), (HIGH_BASE, LOW_MAX, (BIG_MIB * MIB) - LOW_MAX)]
    big.write(HIGH_BASE, b"high")
    assert big.read(HIGH_BASE, 4) == b"high"
    assert bytes(big.array[LOW_MAX : LOW_MAX + 4]) == b"high"
    assert big.offset(HIGH_BASE, 4) == LOW_MAX


def test_no_access_crosses_the_hole(big: Ram) -> None:
    for address, length in ((LOW_MAX - 1, 2), (LOW_MAX, 1), (HIGH_BASE - 1, 2), (HIGH_BASE + MIB * 1024, 1)):
        with pytest.raises(BadAddress):
            big.offset(address, length)


@given(st.integers(-10, 1 << 33), st.integers(-2, 1 << 33))
def test_offset_is_in_the_mapping_or_refused(address: int, length: int) -> None:
    ram = _BIG
    try:
        offset = ram.offset(address, length)
    except BadAddress:
        inside = [base <= address and address + length <= base + size for base, _, size in ram.regions]
        assert length < 0 or not any(inside)
        return
    assert 0 <= offset <= offset + length <= ram.size


_BIG = Ram(BIG_MIB)


def test_host_writes_are_announced() -> None:
    ram, seen = Ram(1), list[tuple[int, int]]()
    ram.on_write = lambda address, length: seen.append((address, length))
    ram.write(0x1234, b"abc")
    ram.write(0x2000, memoryview(b"de"))
    ram.write(0x3000, b"")
    with pytest.raises(BadAddress):
        ram.write(MIB, b"z")
    assert seen == [(0x1234, 3), (0x2000, 2)]


def test_view_is_read_only_and_live() -> None:
    ram = Ram(1)
    view = ram.view(16, 4)
    assert view.readonly
    ram.write(16, b"live")
    assert bytes(view) == b"live"


def test_clear_is_power_on() -> None:
    ram = Ram(1)
    ram.write(0, b"x" * MIB)
    ram.clear()
    assert ram.read(0, MIB) == bytes(MIB)


def test_clears_are_counted() -> None:
    """Who tracks changed pages cannot see them otherwise."""
    ram = Ram(1)
    assert ram.clears == 0
    for _ in range(3):
        ram.clear()
    assert ram.clears == 3


def over_a_file() -> Ram:
    fd = os.memfd_create("image")
    try:
        os.pwrite(fd, b"\x11" * MIB, 0)
        return Ram.map_file(1, fd, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "pages", [[], [0], [255], [0, 1, 2], [3, 5, 6, 7, 100, 255], list(range(256)), list(range(0, 256, 2))]
)
def test_reverted_pages_are_the_files_again_and_the_others_stay(pages: list[int]) -> None:
    ram = over_a_file()
    ram.array[:] = 0x22
    ram.revert(np.array(pages, np.uint32))
    found = ram.array.reshape(-1, PAGE_SIZE)
    assert (found[pages] == 0x11).all()
    assert (np.delete(found, pages, axis=0) == 0x22).all()
    ram.array[:] = 0x33
    assert (found == 0x33).all(), "and they can be written again"


def test_only_ram_over_a_file_can_be_reverted() -> None:
    with pytest.raises(AssertionError):
        Ram(1).revert(np.array([0], np.uint32))


@pytest.mark.parametrize("size_mib", [0, -1, 65537])
def test_impossible_sizes_are_refused(size_mib: int) -> None:
    with pytest.raises(ConfigError, match=str(size_mib)):
        Ram(size_mib)
