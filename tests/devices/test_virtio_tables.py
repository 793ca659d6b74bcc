"""VIRTIO 1.2, 2.7.5.3: long indirect tables mean what a walk finds in them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.devices.test_virtio_queue import DATA, Pair, indirect
from tests.devices.virtio_driver import INDIRECT, NEXT, WRITE
from vmm.devices.virtio_buffer import MANY, Segments, Table, gather, scatter, total
from vmm.devices.virtio_queue import CHAIN_MAX, RingViolation, Violation

pytestmark = pytest.mark.usefixtures("ways")

Descriptor = tuple[int, int, int, int]
PAGE = 4096


def straight(readable: int, writable: int, length: int = PAGE) -> list[Descriptor]:
    """A table as Linux makes it: header first, status last, pages in between; ``next`` is set to the end."""
    count = readable + writable
    table = []
    for index in range(count):
        flags = (WRITE if index >= readable else 0) | (NEXT if index + 1 < count else 0)
        own = 16 if index == 0 else 1 if index + 1 == count else length
        table.append((0x10_0000 + PAGE * index, own, flags, index + 1))
    return table


def followed(table: list[Descriptor]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | Violation:
    """The text of 2.7.5 and 2.7.5.3, one descriptor after the other."""
    parts: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    index = 0
    for _ in table:
        address, length, flags, following = table[index]
        if flags & INDIRECT:
            return Violation.INDIRECT_NESTED
        if not length:
            return Violation.ZERO_LENGTH
        if parts[1] and not flags & WRITE:
            return Violation.ORDER
        parts[bool(flags & WRITE)].append((address, length))
        if not flags & NEXT:
            return parts
        if following >= len(table):
            return Violation.NEXT_RANGE
        index = following
    return Violation.CHAIN_LENGTH


def found(table: list[Descriptor]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | Violation:
    pair = Pair()
    indirect(pair, *table)
    try:
        ((head, readable, writable),) = pair.taken()
    except RingViolation as violation:
        return violation.kind
    assert head == 0
    for part in (readable, writable):
        assert len(part) == len(list(part))
        assert total(part) == sum(length for _, length in part)
        if part:
            first, *_, last = (*part, *part)
            assert (part[0], part[-1]) == (first, last)
    return list(readable), list(writable)


def parts_of(table: list[Descriptor]) -> tuple[Segments, Segments]:
    pair = Pair()
    indirect(pair, *table)
    ((_, readable, writable),) = pair.taken()
    return readable, writable


lengths = st.sampled_from((0, 1, 16, 255, 256, 512, 4096, 1 << 16, 1 << 24, 0xFFFF_FFFF)) | st.integers(
    0, 0xFFFF_FFFF
)
flags = st.sampled_from((0, 1, 2, 3, 4, 5, 7, 8, 0x100, 0x101, 0x8002, 0xFFFF))


@given(st.integers(0, 300), st.integers(0, 300), st.data())
@example(0, MANY, None)
@example(MANY, 0, None)
@example(1, CHAIN_MAX - 1, None)
@example(CHAIN_MAX - 1, 1, None)
def test_a_table_means_what_following_it_finds(
    readable: int, writable: int, data: st.DataObject | None
) -> None:
    table = straight(readable, writable) or straight(1, 0)
    if data is not None:
        for _ in range(data.draw(st.integers(0, 2))):
            index = data.draw(st.integers(0, len(table) - 1))
            address, length, flag, following = table[index]
            match data.draw(st.sampled_from(("length", "flags", "next", "address"))):
                case "length":
                    length = data.draw(lengths)
                case "flags":
                    flag = data.draw(flags)
                case "next":
                    following = data.draw(st.integers(0, len(table)) | st.integers(0, 0xFFFF))
                case _:
                    address = data.draw(st.integers(0, (1 << 64) - 1))
            table[index] = address, length, flag, following
    assert found(table) == followed(table)


@pytest.mark.parametrize("at", [0, 1, 7, MANY, 38, 39])
def test_an_empty_descriptor_in_a_long_table(at: int) -> None:
    table = straight(1, 39)
    address, _, flag, following = table[at]
    table[at] = address, 0, flag, following
    assert found(table) == Violation.ZERO_LENGTH


@pytest.mark.parametrize("at", [0, 1, 20, 38])
@pytest.mark.parametrize("change", [0x100, 0x8000, 1, -1])
def test_a_table_that_is_out_of_order(at: int, change: int) -> None:
    table = straight(1, 39)
    address, length, flag, following = table[at]
    table[at] = address, length, flag, following + change & 0xFFFF
    assert found(table) == followed(table) != followed(straight(1, 39))


def test_many_descriptors_stay_a_table() -> None:
    """The way that is fast is taken for what drivers do: otherwise it would be tested and never used."""
    readable, writable = parts_of(straight(1, 257))
    assert isinstance(writable, Table)
    assert isinstance(readable, list)
    readable, writable = parts_of(straight(257, 1))
    assert isinstance(readable, Table)
    assert isinstance(writable, list)
    assert isinstance(parts_of(straight(MANY, 0))[0], Table)
    assert not isinstance(parts_of(straight(1, MANY - 2))[1], Table)


def test_gather_and_scatter_take_tables() -> None:
    pair = Pair()
    indirect(pair, *straight(1, 30, length=300))
    ((_, _, writable),) = pair.taken()
    assert isinstance(writable, Table)
    data = struct.pack("<2000H", *range(2000))
    scatter(pair.ram, writable, data, skip=100)
    assert bytes(gather(pair.ram, writable))[100 : 100 + len(data)] == data
    assert pair.ram.read(0x10_0000 + PAGE * 2, 300) == data[200:500]


def test_the_table_is_read_once() -> None:
    """What is written over it while its buffer is in use, by the device's own doing, changes nothing."""
    pair = Pair()
    indirect(pair, *straight(1, 30))
    ((_, _, writable),) = pair.taken()
    before = list(writable)
    pair.ram.write(DATA, bytes(16 * 31))
    assert list(writable) == before
