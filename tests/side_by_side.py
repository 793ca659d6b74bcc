"""Two processes share a run of the tests: pytest-xdist's workers, and who may be tested beside whom.

What needs more than one core, or names that the host has once (interfaces, namespaces), is one piece of
work: pairs of nodes that wait for each other, real TCP stacks, measurements of pairs.  One process does
it, in the order of the files.  Everything else computes: each file of it is a piece of its own, for
whichever process is free.  A file is never divided, so that what it makes once is made once.

``loadgroup``, xdist's own means, would write the groups into the names of the tests, and a name that is
printed should be one that can be typed.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

ONE_AFTER_ANOTHER = {
    "backends/test_tap.py",
    "compare/test_recorded.py",
    "experiment",
    "filters/test_outside.py",
    "link",
    "network",
    "pair",
    "rewrite/test_real_stacks.py",
    "tools/test_bench.py",
    "tools/test_demo.py",
}
"""Folders and files of ``tests`` that are never run beside each other."""
BUSY = "one after another"
POLITE = 5
"""Of a core that both want, a quarter is left for what only computes."""


def piece(nodeid: str) -> str:
    """What a test belongs to; pieces are handed out, the largest first."""
    file = nodeid.partition("::")[0]
    folder, name = PurePosixPath(file).parts[-2:]
    return BUSY if {folder, f"{folder}/{name}"} & ONE_AFTER_ANOTHER else file


def computes(nodeid: str) -> bool:
    """Whether it matters to nobody how long it takes."""
    return piece(nodeid) != BUSY


@cache
def give_way() -> None:
    """From now on."""
    os.nice(POLITE)


class SideBySide(LoadScopeScheduling):
    """Pieces instead of xdist's scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)
