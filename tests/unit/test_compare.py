"""Comparing two machines: every difference is named once, in few words, and counted when there are many."""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np

from vmm.compare import PAGES_SHOWN_MAX, TEXT_MAX, Difference, Side, address_of, differences, jsonable, report
from vmm.ram import HIGH_BASE, LOW_MAX, MIB, PAGE_SIZE
from vmm.state import State, at_most, field, u8, u16


class Channel(State):
    count: u16 = 0


class Pit(State):
    mode: u8 = 3
    channels: list[Channel] = field(default_factory=lambda: [Channel(), Channel()])


class Uart(State):
    rx: Annotated[bytes, at_most(16)] = b""


def side(size: int = 4 * MIB) -> Side:
    return Side({"pit": Pit(), "uart": Uart(b"abc")}, np.zeros(size, np.uint8))


def test_equal_machines() -> None:
    assert list(differences(side(), side())) == []
    assert report(differences(side(), side())) == "no difference"


def test_fields_are_named_with_their_component() -> None:
    a, b = side(), side()
    assert isinstance(b.states["pit"], Pit)
    assert isinstance(b.states["uart"], Uart)
    b.states["pit"].channels[1].count = 0x1234
    b.states["uart"].rx = b"abd"
    assert report(differences(a, b)).splitlines() == [
        "pit.channels[1].count: 0 != 0x1234",
        "uart.rx[0x2:]: 63 != 64",
    ]


def test_absent_and_exchanged_components() -> None:
    a = Side({"pit": Pit(), "x": Pit()}, np.zeros(MIB, np.uint8))
    b = Side({"x": Uart(), "uart": Uart()}, np.zeros(MIB, np.uint8))
    assert report(differences(a, b)).splitlines() == [
        "pit: Pit != absent",
        "x: Pit != Uart",
        "uart: absent != Uart",
    ]


def test_a_page_shows_its_first_row_that_differs() -> None:
    a, b = side(), side()
    b.ram[2 * MIB + 0x123 : 2 * MIB + 0x126] = [1, 2, 3]
    b.ram[2 * MIB + 0xFFF] = 9
    zero, row = " ".join(["00"] * 16), "00 00 00 01 02 03" + " 00" * 10
    assert report(differences(a, b)) == f"ram[0x200120] (4 bytes of page 0x200000): {zero} != {row}"


def test_addresses_are_the_guests() -> None:
    """Beyond the device hole RAM continues at 4 GiB."""
    assert address_of(LOW_MAX - 1) == LOW_MAX - 1
    assert address_of(LOW_MAX) == HIGH_BASE
    assert address_of(LOW_MAX + 0x1234) == HIGH_BASE + 0x1234


def test_many_pages_are_counted() -> None:
    a, b = side(), side()
    b.ram[:: 2 * PAGE_SIZE] = 1  # every other page: 512 of them
    found = list(differences(a, b))
    assert len(found) == PAGES_SHOWN_MAX + 1
    assert str(found[-1]) == f"ram: ... and {512 - PAGES_SHOWN_MAX} more pages"
    assert [d.kind for d in differences(a, b, pages_max=512)] == ["ram"] * 512


def test_many_fields_are_counted() -> None:
    a, b = (Side({"pit": Pit(0, [Channel(n) for _ in range(100)])}, np.zeros(0, np.uint8)) for n in (1, 2))
    found = list(differences(a, b, fields_max=10))
    assert len(found) == 11
    assert found[-1] == Difference("more", "pit", "... and 90 more fields", "")


def test_long_values_are_cut() -> None:
    a = Side({"pit": Pit(0, [Channel()] * 50)}, np.zeros(0, np.uint8))
    b = Side({"pit": Pit(0, [])}, np.zeros(0, np.uint8))
    (found,) = differences(a, b)
    assert len(found.left) == TEXT_MAX
    assert found.right == "[]"


def test_different_sizes_of_ram() -> None:
    assert report(differences(side(MIB), side(2 * MIB))) == "ram: 1048576 bytes != 2097152 bytes"


def test_json() -> None:
    a, b = side(), side()
    b.ram[5] = 1
    (found,) = json.loads(json.dumps(jsonable(differences(a, b))))
    assert found["kind"] == "ram"
    assert set(found) == {"kind", "where", "left", "right"}
