"""Dirty pages: whoever writes, however RAM is mapped, no change is ever missed.

The kernel's source is tried wherever the host has it; what it promises is that the candidates include
every page that changed, and that what nobody wrote is not among them forever.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import colo.pages.dirty
from colo.errors import ColoError
from colo.pages.delta import apply, differing_pages
from colo.pages.dirty import DirtySource, ExactSource, open_source
from vmm.ram import MIB, PAGE_SIZE, Ram

SIZE_MIB = 8
PAGES = SIZE_MIB * MIB // PAGE_SIZE
FILE_OFFSET = 3 * PAGE_SIZE
TAKES = 300

Write = Callable[[Ram, int], None]


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    try:
        open_source(Ram(1), "kernel").close()
    except ColoError as exc:
        if "reported pages" in str(exc):  # the host has it, and we do not get it right
            raise
        pytest.skip(str(exc))


def anonymous() -> Ram:
    return Ram(SIZE_MIB)


def over_a_file(contents: bytes = b"") -> Ram:
    """RAM over a snapshot: zeroes with some pages of ``contents``."""
    fd = os.memfd_create("snapshot")
    try:
        os.ftruncate(fd, FILE_OFFSET + SIZE_MIB * MIB)
        for page in (5, 6, 700):
            os.pwrite(fd, contents or bytes([page & 0xFF]) * PAGE_SIZE, FILE_OFFSET + page * PAGE_SIZE)
        return Ram.map_file(SIZE_MIB, fd, FILE_OFFSET)
    finally:
        os.close(fd)


def touched(ram: Ram, write: bool = False) -> Ram:
    if write:
        ram.array[::PAGE_SIZE] |= 1
    assert ram.array[::PAGE_SIZE].sum() >= 0
    return ram


RAMS: dict[str, Callable[[], Ram]] = {
    "anonymous": anonymous,
    "anonymous, read": lambda: touched(anonymous()),
    "anonymous, written": lambda: touched(anonymous(), write=True),
    "over a file": over_a_file,
    "over a file, read": lambda: touched(over_a_file()),
    "over a file, written": lambda: touched(over_a_file(), write=True),
}


@pytest.fixture(params=sorted(RAMS))
def ram(request: pytest.FixtureRequest) -> Ram:
    return RAMS[request.param]()


@pytest.fixture
def source(ram: Ram) -> Iterator[DirtySource]:
    source = open_source(ram, "kernel")
    yield source
    source.close()


def pages(source: DirtySource) -> list[int]:
    taken = source.take()
    assert taken is not None
    assert taken.dtype == np.uint32
    return taken.tolist()


def by_the_kernel(ram: Ram, page: int) -> None:
    """A system call writes to RAM for us."""
    fd = os.memfd_create("data")
    os.write(fd, b"\x5a" * 16)
    at = page * PAGE_SIZE + 100
    assert os.preadv(fd, [ram.array.data[at : at + 16]], 0) == 16
    os.close(fd)


def by_a_store(ram: Ram, page: int) -> None:
    ram.array[page * PAGE_SIZE + PAGE_SIZE - 1] += 1


WRITES: dict[str, Write] = {
    "a store": by_a_store,
    "a bus master": lambda ram, page: ram.write(page * PAGE_SIZE, b"12345678"),
    "a system call": by_the_kernel,
}


def test_first_everything_and_then_nothing(source: DirtySource) -> None:
    assert source.take() is None
    assert pages(source) == []
    assert pages(source) == []


@pytest.mark.parametrize("how", sorted(WRITES))
def test_a_write_is_reported_once(ram: Ram, source: DirtySource, how: str) -> None:
    source.take()
    for page in (0, 5, 7, 8, 9, 700, PAGES - 1):
        WRITES[how](ram, page)
    assert pages(source) == [0, 5, 7, 8, 9, 700, PAGES - 1]
    assert pages(source) == []
    WRITES[how](ram, 7)
    assert pages(source) == [7], "a page that was reported is watched again"


def test_a_write_across_two_pages_reports_both(ram: Ram, source: DirtySource) -> None:
    source.take()
    ram.write(20 * PAGE_SIZE - 3, b"abcdef")
    assert pages(source) == [19, 20]


def test_reading_is_not_writing(ram: Ram, source: DirtySource) -> None:
    source.take()
    touched(ram)
    fd = os.memfd_create("dump")
    assert os.writev(fd, [ram.array.data]) == ram.size
    os.close(fd)
    assert pages(source) == []


def test_more_regions_than_one_scan_returns(ram: Ram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colo.pages.dirty, "REGIONS_MAX", 7)
    source = open_source(ram, "kernel")
    source.take()
    chosen = sorted({0, PAGES - 1, *range(1, PAGES, 3), *range(600, 650)})
    for page in chosen:
        by_a_store(ram, page)
    assert pages(source) == chosen
    assert pages(source) == []
    source.close()


def test_random_writes_are_all_among_the_candidates(ram: Ram, source: DirtySource) -> None:
    rng = np.random.default_rng(7)
    source.take()
    image = ram.array.copy()
    for _ in range(50):
        for page in rng.integers(0, PAGES, int(rng.integers(0, 40))).tolist():
            WRITES[sorted(WRITES)[int(rng.integers(len(WRITES)))]](ram, page)
        changed, candidates = differing_pages(ram.array, image), source.take()
        assert candidates is not None
        assert set(changed.tolist()) <= set(candidates.tolist())
        image[:] = ram.array


def test_clearing_changes_everything(ram: Ram, source: DirtySource) -> None:
    """Over a file, a page given back holds the file's contents again, and no write has been seen."""
    source.take()
    ram.array[33 * PAGE_SIZE] = 9
    assert pages(source) == [33]
    ram.clear()
    assert ram.array[33 * PAGE_SIZE] == 0, "changed, and read before anyone asks"
    assert source.take() is None
    assert pages(source) == []
    by_a_store(ram, 34)
    assert pages(source) == [34]


def test_clearing_before_the_first_take(ram: Ram, source: DirtySource) -> None:
    ram.clear()
    assert source.take() is None
    assert pages(source) == []


def test_a_writer_that_never_stops_loses_nothing(ram: Ram, source: DirtySource) -> None:
    """Stores of another thread, without the GIL, while candidates are taken and copied."""
    stop = threading.Event()
    rows = np.random.default_rng(3).integers(0, 256, (PAGES, PAGE_SIZE), dtype=np.uint8)

    def write() -> None:
        rng = np.random.default_rng(5)
        while not stop.is_set():
            chosen = rng.choice(PAGES, 200, replace=False).astype(np.uint32)
            apply(ram.array, chosen, rows[chosen])
            rows[chosen, ::512] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        image, takes, taken = np.zeros_like(ram.array), 0, 0
        while takes < TAKES or taken <= PAGES:  # a first take has all pages: it must write while we take
            takes, taken = takes + 1, taken + copy_candidates(source, ram, image)
    finally:
        stop.set()
        writer.join()
    copy_candidates(source, ram, image)
    assert differing_pages(ram.array, image).tolist() == []


def copy_candidates(source: DirtySource, ram: Ram, image: np.ndarray) -> int:
    candidates = source.take()
    if candidates is None:
        candidates = np.arange(PAGES, dtype=np.uint32)
    image.reshape(PAGES, -1)[candidates] = ram.array.reshape(PAGES, -1)[candidates]
    return candidates.size


def test_huge_pages() -> None:
    """On hosts that have them; elsewhere this is one more test of small ones."""
    space = mmap.mmap(-1, 6 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    space.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(space, np.uint8)
    array[:] = 1
    tracker = colo.pages.dirty._Tracker(int(array.ctypes.data), array.size)
    tracker.protect()
    assert tracker.take().tolist() == []
    array[700 * PAGE_SIZE] = 2
    assert 700 in tracker.take()
    assert tracker.take().tolist() == []
    array[[700 * PAGE_SIZE, 701 * PAGE_SIZE, 5]] = 3
    assert {0, 700, 701} <= set(tracker.take().tolist())
    assert tracker.take().tolist() == []
    tracker.close()


def test_two_rams_in_one_process() -> None:
    left, right = anonymous(), over_a_file()
    sources = [open_source(ram, "auto") for ram in (left, right)]
    assert [source.take() for source in sources] == [None, None]
    by_a_store(left, 3)
    by_a_store(right, 4)
    assert [pages(source) for source in sources] == [[3], [4]]
    sources[0].close()
    by_a_store(left, 5)
    by_a_store(right, 6)
    assert pages(sources[1]) == [6]
    sources[1].close()


def test_one_ram_has_one_kernel_source_until_it_is_closed() -> None:
    ram = anonymous()
    first = open_source(ram, "auto")
    assert (first.name, first.why) == ("kernel", "the kernel can")
    with pytest.raises(ColoError, match="busy"):
        open_source(ram, "kernel")
    second = open_source(ram, "auto")
    assert second.name == "scan"
    assert "busy" in second.why
    first.close()
    first.close()
    third = open_source(ram, "kernel")
    assert third.take() is None
    assert pages(third) == []
    third.close()


def test_closing_gives_every_descriptor_back(ram: Ram) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = open_source(ram, "kernel")
    source.take()
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_scanning_source_always_says_everything() -> None:
    source = open_source(anonymous(), "scan")
    assert (source.name, source.why) == ("scan", "asked for")
    assert [source.take() for _ in range(3)] == [None, None, None]
    source.close()


def run(script: str) -> None:
    """In a process of its own: what follows cannot be undone in this one."""
    setup = """
        import ctypes, os, resource
        from colo.pages.dirty import open_source
        from colo.errors import ColoError
        from vmm.ram import Ram
        ram = Ram(4)
    """
    code = textwrap.dedent(setup) + textwrap.dedent(script)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fork_disturbs_nothing() -> None:
    run("""
        source = open_source(ram, "kernel")
        source.take()
        ram.array[0] = 1
        child = os.fork()
        if child == 0:
            ram.array[4096] = 1
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        ram.array[2 * 4096] = 1
        assert source.take().tolist() == [0, 2]
        assert source.take().tolist() == []
    """)


def test_it_needs_no_privilege() -> None:
    run("""
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            # A program that starts without privilege may look at itself; one that dropped it has to say so.
            PR_SET_DUMPABLE = 4
            assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
        source = open_source(ram, "kernel")
        source.take()
        with open("/dev/zero", "rb", buffering=0) as zero:
            assert zero.readinto(ram.array.data[5 * 4096 : 7 * 4096]) == 8192  # by the kernel
        ram.array[0] = 1
        assert source.take().tolist() == [0, 5, 6]
    """)


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_host_that_cannot_is_a_reason_and_not_an_error(spare: int) -> None:
    run(f"""
        first = os.dup(0)
        os.close(first)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + {spare}, first + {spare}))
        source = open_source(ram, "auto")
        if {spare} < 2:
            assert source.name == "scan" and "Too many open files" in source.why, source.why
            assert "\\n" not in source.why
            try:
                open_source(ram, "kernel")
                raise SystemExit("it opened")
            except ColoError as exc:
                assert "Too many open files" in str(exc) and "'auto'" in str(exc)
        else:
            assert source.name == "kernel"
        source.close()
        assert os.dup(0) == first if {spare} else True, "a descriptor was left open"
    """)


@pytest.mark.parametrize("inner", ["scan", "kernel"])
def test_exact_says_what_differs_and_nothing_else(inner: str) -> None:
    """Whatever the host's kernel can tell: a simulation goes by it."""
    ram = Ram(SIZE_MIB)
    source = ExactSource(ram, open_source(ram, inner))  # type: ignore[arg-type]
    assert source.take() is None
    assert source.take().tolist() == []
    ram.write(5 * PAGE_SIZE, b"new")
    ram.write(7 * PAGE_SIZE, bytes(10))
    for page in range(300, 300 + 3000 % (PAGES - 300)):
        ram.write(page * PAGE_SIZE + 4095, b"x")
    expected = [5, *range(300, 300 + 3000 % (PAGES - 300))]
    assert source.take().tolist() == expected
    assert source.take().tolist() == []
    ram.write(5 * PAGE_SIZE, b"old")
    ram.write(5 * PAGE_SIZE, b"new")
    assert source.take().tolist() == []
    ram.clear()
    assert source.take().tolist() == expected
    source.close()
