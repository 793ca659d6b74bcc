"""Marks: what differs between two machines is found within one round, named, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import Departed
from colo.lockstep import marks
from colo.lockstep.marks import NAMED_MAX, WINDOW_PAGES
from colo.messages import MARK_PAGES_MAX, Mark
from vmm.ram import PAGE_SIZE

NS = 5_000
SECTIONS = {"uart": b"state of a chip", "pit": b"\x00\x01", "cpu": b"registers"}
PAGES = 2 * WINDOW_PAGES + 7
"""Two windows and a rest."""


@pytest.fixture(scope="module")
def ram() -> marks.Bytes:
    return np.arange(PAGES * PAGE_SIZE, dtype=np.uint64).astype(np.uint8)


def mark(ram: marks.Bytes, first_page: int = 0, sections: dict[str, bytes] = SECTIONS) -> Mark:
    return Mark(3, NS, marks.digests(sections), first_page, marks.window(ram, first_page))


def test_the_same_machine_is_the_same_in_every_window(ram: marks.Bytes) -> None:
    first_page, seen = 0, []
    while first_page not in seen:
        seen.append(first_page)
        marks.compare(mark(ram, first_page), NS, SECTIONS, ram)
        first_page = marks.next_window(first_page, len(ram))
    assert seen == [0, WINDOW_PAGES, 2 * WINDOW_PAGES], "a round has every page, and begins again"
    assert first_page == 0


@pytest.mark.parametrize("pages", [1, WINDOW_PAGES - 1, WINDOW_PAGES, WINDOW_PAGES + 1, 5 * WINDOW_PAGES])
def test_a_round_ends_where_ram_does(pages: int) -> None:
    first_page, windows = 0, 0
    while windows == 0 or first_page:
        assert first_page < pages
        first_page, windows = marks.next_window(first_page, pages * PAGE_SIZE), windows + 1
    assert windows == -(-pages // WINDOW_PAGES)


def test_a_window_fits_its_message(ram: marks.Bytes) -> None:
    assert len(marks.window(ram, 0)) == 16 * WINDOW_PAGES <= 16 * MARK_PAGES_MAX
    assert len(marks.window(ram, 2 * WINDOW_PAGES)) == 16 * 7


@settings(max_examples=30, deadline=None)
@given(st.integers(0, PAGES * PAGE_SIZE - 1), st.integers(0, 7))
def test_one_bit_of_ram_is_found_in_its_window_and_its_page_is_named(at: int, bit: int) -> None:
    mine = np.arange(PAGES * PAGE_SIZE, dtype=np.uint64).astype(np.uint8)
    theirs = mine.copy()
    theirs[at] ^= 1 << bit
    for first_page in range(0, PAGES, WINDOW_PAGES):
        if first_page <= at // PAGE_SIZE < first_page + WINDOW_PAGES:
            with pytest.raises(Departed, match=f"page {at // PAGE_SIZE:#x} of RAM$"):
                marks.compare(mark(theirs, first_page), NS, SECTIONS, mine)
        else:
            marks.compare(mark(theirs, first_page), NS, SECTIONS, mine)


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        (SECTIONS | {"pit": b"\x00\x02"}, "pit"),
        ({name: SECTIONS[name] for name in ("uart", "cpu")}, "pit"),
        (SECTIONS | {"rtc": b""}, "rtc"),
        (SECTIONS | {"uart": b"", "cpu": b""}, "uart, cpu"),
    ],
)
def test_a_component_that_differs_is_named(ram: marks.Bytes, mine: dict[str, bytes], named: str) -> None:
    with pytest.raises(Departed, match=f"at {NS} ns these differ: {named}$"):
        marks.compare(mark(ram), NS, mine, ram)


def test_of_many_that_differ_a_few_are_named(ram: marks.Bytes) -> None:
    other = ram.copy()
    other[: 9 * PAGE_SIZE : PAGE_SIZE] ^= 1
    with pytest.raises(Departed, match=f"page 0x3 of RAM, and {9 - NAMED_MAX} more$"):
        marks.compare(mark(other), NS, SECTIONS, ram)


def test_another_time_and_another_size_of_ram_are_departures(ram: marks.Bytes) -> None:
    with pytest.raises(Departed, match="it stands at 4999 ns, the mark is of 5000 ns"):
        marks.compare(mark(ram), NS - 1, SECTIONS, ram)
    with pytest.raises(Departed, match="the size of RAM at page 0x800"):
        marks.compare(mark(ram, 2 * WINDOW_PAGES), NS, SECTIONS, ram[: -3 * PAGE_SIZE])
