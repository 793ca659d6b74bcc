"""Guests that a session boots once: whoever comes first boots, the others wait and resume.

:mod:`colo.pair.warm` keeps a booted guest in the cache; this makes sure that the workers of a parallel run
(pytest-xdist, or two runs at a time) do not all boot it.  They agree by flock(2) on a file in the cache,
which the kernel drops with the process that held it, however that ended: a killed worker blocks nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colo.errors import ColoError
from colo.pair import warm
from vmm.guest.store import cache_directory

WAIT_MAX_S = 900.0
"""To build a guest from downloaded packages and to boot it, on a busy host, with room to spare."""
LOOK_EVERY_S = 0.1


def snapshot(guest: str, ram_mib: int | None = None, append: str | None = None, net: str = "none") -> Path:
    """The snapshot of ``guest``, ready to serve; made by one process at a time."""
    with turn(guest):
        return warm.snapshot(guest, net=net, ram_mib=ram_mib, append=append, say=lambda text: None)


@contextmanager
def turn(guest: str, wait_max_s: float = WAIT_MAX_S) -> Iterator[None]:
    """Be the only process that boots ``guest``; ColoError when another one does for too long."""
    name = hashlib.blake2b(guest.encode(), digest_size=8).hexdigest()
    path = cache_directory() / "locks" / f"booted-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        deadline_s = time.monotonic() + wait_max_s
        while not _taken(file.fileno()):
            if time.monotonic() >= deadline_s:
                raise ColoError(
                    f"guest {guest}: another process has been booting it for {wait_max_s:g} s and holds"
                    f" {path}: expected less; see what it does (fuser names it), then try again"
                )
            time.sleep(LOOK_EVERY_S)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
