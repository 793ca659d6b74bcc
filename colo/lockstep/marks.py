"""Do two machines that should be the same differ where neither has said so?  Hashes, at one virtual time.

A mark has a digest of every component's packed state, and of every page in a window of RAM that moves on
from mark to mark, as a memory scrubber's does: a difference in a component is found at the next mark, one
in a page within one round, and either is named.  Hashing all of RAM at each mark would find a page sooner
and stop the guest for tens of milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from colo.errors import Departed
from colo.messages import Mark
from vmm.hashing import page_hashes
from vmm.ram import PAGE_SIZE

WINDOW_PAGES = 1024
"""4 MiB: a third of a millisecond."""
NAMED_MAX = 4

Bytes = npt.NDArray[np.uint8]


def digests(sections: Mapping[str, bytes]) -> dict[str, bytes]:
    """Of each component, 8 bytes."""
    return {name: hashlib.blake2b(data, digest_size=8).digest() for name, data in sections.items()}


def window(ram: Bytes, first_page: int) -> bytes:
    """Hashes of the pages of one window, 16 bytes each."""
    at = first_page * PAGE_SIZE
    return page_hashes(ram[at : at + WINDOW_PAGES * PAGE_SIZE]).tobytes()


def windows(ram_bytes: int) -> int:
    """How many there are."""
    return -(-ram_bytes // (WINDOW_PAGES * PAGE_SIZE))


def next_window(first_page: int, ram_bytes: int) -> int:
    """Where the window after this one begins."""
    following = first_page + WINDOW_PAGES
    return following if following * PAGE_SIZE < ram_bytes else 0


def compare(mark: Mark, ns: int, sections: Mapping[str, bytes], ram: Bytes) -> None:
    """Departed, naming what differs, unless this machine at ``ns`` is what the mark says."""
    if ns != mark.ns:
        raise Departed(f"it stands at {ns} ns, the mark is of {mark.ns} ns")
    mine = digests(sections)
    names = [*mark.components, *(name for name in mine if name not in mark.components)]
    parts = [name for name in names if mine.get(name) != mark.components.get(name)]
    pages = _pages_that_differ(mark, ram)
    if parts or pages:
        raise Departed(f"at {ns} ns these differ: {', '.join([*_few(parts), *_few(pages)])}")


def _pages_that_differ(mark: Mark, ram: Bytes) -> list[str]:
    mine = window(ram, mark.first_page)
    if mine == mark.pages:
        return []
    if len(mine) != len(mark.pages):
        return [f"the size of RAM at page {mark.first_page:#x}"]
    here, there = (np.frombuffer(each, np.uint64).reshape(-1, 2) for each in (mine, mark.pages))
    differ = np.flatnonzero((here != there).any(axis=1)) + mark.first_page
    return [f"page {page:#x} of RAM" for page in differ.tolist()]


def _few(names: list[str]) -> list[str]:
    more = len(names) - NAMED_MAX
    return names if more <= 0 else [*names[:NAMED_MAX], f"and {more} more"]
