"""Build every guest that the tests boot, one line each.

A guest that cannot be built here is reported and left out: the tests that boot it say the same when
they are skipped.  Everything is kept in the user's cache (``colo guest list`` shows where).
"""

from __future__ import annotations

import sys
import time

import vmm.guest
from vmm.errors import GuestBuildError


def prepare(name: str) -> None:
    """Build one guest, or find it in the cache; says how it went."""
    started = time.monotonic()
    try:
        vmm.guest.open(name).build(lambda text: print(f"     {text}", flush=True))
    except GuestBuildError as exc:
        print(f"   {name}: left out: {exc}", flush=True)
    else:
        print(f"   {name:<20}{time.monotonic() - started:6.1f} s", flush=True)


def main() -> int:
    try:
        names = [status.info.name for status in vmm.guest.list_guests()]
    except GuestBuildError as exc:
        print(f"   no guests: {exc}", flush=True)
        return 0
    for name in names:
        prepare(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
