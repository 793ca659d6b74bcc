"""Dirty pages after fork(2): what is registered with the kernel is the parent's memory, not the child's."""

from __future__ import annotations

import mmap
import os

import pytest

from colo.errors import ColoError
from colo.pages.dirty import Wanted, open_source
from vmm.ram import PAGE_SIZE, Ram


@pytest.mark.parametrize("wanted", ["kernel", "exact"])
def test_a_child_of_a_fork_tracks_its_own_memory(wanted: Wanted) -> None:
    """And its parent goes on tracking its own."""
    ram = Ram(8)
    try:
        source = open_source(ram, wanted)
    except ColoError as exc:
        pytest.skip(str(exc))
    source.take()
    ram.array[3 * PAGE_SIZE] ^= 1
    told = mmap.mmap(-1, PAGE_SIZE)
    pid = os.fork()
    if pid == 0:
        try:
            source.after_fork()
            first = source.take()
            ram.array[9 * PAGE_SIZE] ^= 1
            second = source.take()
            assert first is None or 3 in first
            assert second is not None
            assert second.tolist() == [9]
            told[:4] = b"good"
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert told[:4] == b"good"
    found = source.take()
    assert found is not None
    assert found.tolist() == [3]
    source.close()
