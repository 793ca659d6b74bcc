"""RAM in two views: the committed image, and what a guest wrote on top of it and gives back."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.node.standby_ram import StandbyRam
from tests.replica.support import descriptors
from vmm.ram import MIB, PAGE_SIZE

PAGES = MIB // PAGE_SIZE
MADV_PAGEOUT = 21
"""<asm-generic/mman-common.h>, Linux 5.4."""


def filled(seed: int = 1, size_mib: int = 1) -> StandbyRam:
    standby = StandbyRam(size_mib)
    standby.image[:] = np.random.default_rng(seed).integers(0, 256, standby.image.size, dtype=np.uint8)
    return standby


def alike(standby: StandbyRam) -> bool:
    return bool((standby.ram.array == standby.image).all())


def scribble(standby: StandbyRam, *pages: int) -> None:
    for page in pages:
        standby.ram.array[page * PAGE_SIZE + page % PAGE_SIZE] ^= 0xFF


def test_it_begins_as_zeroes_and_nobodys() -> None:
    standby = StandbyRam(1)
    assert standby.image.size == standby.ram.size == MIB
    assert not standby.image.any()
    assert alike(standby)
    assert standby.own_pages().tolist() == []
    assert standby.give_back().tolist() == []


def test_what_is_installed_shows_at_once_whether_it_was_read_before_or_not() -> None:
    standby = StandbyRam(1)
    assert not standby.ram.array[:PAGE_SIZE].any()
    standby.image[:] = 7
    assert (standby.ram.array == 7).all()
    standby.image[5 * PAGE_SIZE] = 8
    assert standby.ram.read(5 * PAGE_SIZE, 1) == b"\x08"
    assert standby.own_pages().tolist() == [], "reading makes no copy"


def test_what_the_guest_writes_stays_beside_the_image() -> None:
    standby = filled()
    before = standby.image.copy()
    standby.ram.write(3 * PAGE_SIZE + 10, b"mine")
    scribble(standby, 9)
    assert (standby.image == before).all()
    assert standby.ram.read(3 * PAGE_SIZE + 10, 4) == b"mine"
    standby.image[100 * PAGE_SIZE] ^= 1
    assert standby.own_pages().tolist() == [3, 9], "the image's writer is not the guest"
    standby.image[3 * PAGE_SIZE] ^= 1
    assert not alike(standby), "a page that the guest wrote no longer shows what is installed"


@pytest.mark.parametrize(
    "pages",
    [
        [0],
        [PAGES - 1],
        [0, PAGES - 1],
        [0, 1, 2, 7, 8, 100, PAGES - 2, PAGES - 1],
        list(range(0, PAGES, 2)),
        list(range(PAGES)),
    ],
)
def test_giving_back_names_exactly_what_was_written(pages: list[int]) -> None:
    standby = filled()
    assert standby.ram.array.any(), "all of it was read"
    scribble(standby, *pages)
    assert standby.own_pages().tolist() == pages
    given_back = standby.give_back()
    assert given_back.tolist() == pages
    assert given_back.dtype == np.uint32
    assert alike(standby)
    assert standby.own_pages().tolist() == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["guest", "install", "read", "give back"]), st.integers(0, PAGES - 1)),
        max_size=60,
    )
)
def test_any_order_of_writing_installing_and_giving_back(steps: list[tuple[str, int]]) -> None:
    standby, mine = filled(), set[int]()
    image = standby.image.copy()
    for what, page in steps:
        at = page * PAGE_SIZE + page
        if what == "guest":
            standby.ram.array[at] ^= 1
            mine.add(page)
        elif what == "install":
            standby.image[at] ^= 2
            image[at] ^= 2
        elif what == "read":
            assert page in mine or standby.ram.array[at] == image[at]
        else:
            assert set(standby.give_back().tolist()) == mine
            mine.clear()
    assert set(standby.own_pages().tolist()) == mine
    standby.give_back()
    assert (standby.image == image).all()
    assert alike(standby)


def test_a_write_that_changes_nothing_is_a_write() -> None:
    standby = filled()
    standby.ram.array[PAGE_SIZE] = standby.ram.array[PAGE_SIZE]
    assert standby.own_pages().tolist() == [1]


def test_a_system_call_that_writes_is_a_write() -> None:
    """As a disk that reads into guest RAM does."""
    standby, data = filled(), os.memfd_create("data")
    try:
        os.write(data, b"\x5a" * 64)
        os.preadv(data, [standby.ram.array.data[200 * PAGE_SIZE : 200 * PAGE_SIZE + 64]], 0)
    finally:
        os.close(data)
    assert standby.give_back().tolist() == [200]
    assert alike(standby)


def test_pages_that_the_host_reclaimed_are_still_found() -> None:
    """MADV_PAGEOUT: the guest's copies go to swap where there is any, the image's pages leave our table."""
    standby = filled()
    assert standby.ram.array.any()
    scribble(standby, 0, 17, PAGES - 1)
    try:
        standby.ram._map.madvise(MADV_PAGEOUT)
    except OSError as exc:
        pytest.skip(f"madvise(MADV_PAGEOUT): {exc.strerror}")
    assert standby.own_pages().tolist() == [0, 17, PAGES - 1]
    assert standby.give_back().tolist() == [0, 17, PAGES - 1]
    assert alike(standby)


def test_clearing_is_zeroes_in_both_views() -> None:
    standby = filled()
    scribble(standby, 0, 5, PAGES - 1)
    standby.clear()
    assert not standby.image.any()
    assert not standby.ram.array.any()
    assert standby.own_pages().tolist() == []
    standby.image[PAGE_SIZE] = 1
    scribble(standby, 2)
    assert standby.ram.array[PAGE_SIZE] == 1
    assert standby.give_back().tolist() == [2]
    assert alike(standby)


def test_a_machine_that_clears_its_ram_has_written_to_it() -> None:
    """A reset in the middle of being tried out: zeroes are the guest's own, and are taken back."""
    standby = filled()
    standby.ram.clear()
    assert not standby.ram.array.any()
    assert standby.image.any()
    assert standby.give_back().tolist() == list(range(PAGES))
    assert alike(standby)


def test_two_of_them_do_not_see_each_other() -> None:
    one, other = filled(1), filled(2)
    scribble(one, 1, 2)
    scribble(other, 2, 3)
    assert one.give_back().tolist() == [1, 2]
    assert other.own_pages().tolist() == [2, 3]
    assert alike(one)
    one.clear()
    assert other.image.any()
    assert other.give_back().tolist() == [2, 3]
    assert alike(other)


def test_a_larger_one_costs_what_is_written() -> None:
    """RAM of 256 MiB of which nobody touched anything takes no memory, and giving back little is little."""
    standby = StandbyRam(256)
    last = 256 * MIB // PAGE_SIZE - 1
    scribble(standby, 0, 30_000, last)
    assert standby.give_back().tolist() == [0, 30_000, last]
    assert os.fstat(standby._fd).st_blocks * 512 <= 4 * PAGE_SIZE


def test_descriptors_and_memory_go_with_it() -> None:
    before = descriptors()
    for _ in range(3):
        standby = filled()
        scribble(standby, 1)
        standby.give_back()
        del standby
    assert descriptors() == before


def test_a_child_of_a_fork_has_an_image_of_its_own() -> None:
    """At the same addresses, with the pages that its guest wrote; what either does stays its own."""
    standby = filled()
    standby.clear()
    standby.image[5 * PAGE_SIZE : 9 * PAGE_SIZE] = 7
    scribble(standby, 6, 20)
    before = standby.image.tobytes(), standby.ram.array.tobytes(), standby.own_pages().tolist()
    shared = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)  # what the child says

    def child() -> None:
        standby.after_fork()
        same = (standby.image.tobytes(), standby.ram.array.tobytes(), standby.own_pages().tolist()) == before
        standby.image[7 * PAGE_SIZE] = 99
        shows = int(standby.ram.array[7 * PAGE_SIZE]) == 99
        given_back = standby.give_back().tolist() == [6, 20] and alike(standby)
        standby.clear()
        shared[:4] = (same, shows, given_back, not standby.ram.array.any())

    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert shared[:4].tolist() == [1, 1, 1, 1]
    now = standby.image.tobytes(), standby.ram.array.tobytes(), standby.own_pages().tolist()
    assert now == before
