"""Guests that are booted already: snapshots that a pair starts from.

A guest is booted once, alone and free-running, until it says that it is ready; its snapshot is kept in
the cache under a key that covers everything it came from (images, command line, RAM, this build of the
machine).  Its card is plugged into nothing meanwhile, and offers the guest what the network that it will
be plugged into does.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import vmm.guest
from colo.build import sources
from colo.errors import ColoError
from vmm.guest.store import cache_directory

LIMIT_FACTOR = 12
"""Times the manifest's limit: a guest that is this late will not come."""
DIRECTORY = "booted"


def snapshot(
    guest: str,
    *,
    net: str,
    ram_mib: int | None = None,
    append: str | None = None,
    say: Callable[[str], None],
) -> Path:
    """The snapshot of ``guest``, ready to serve; made now when there is none.

    ``net`` is the word for its card (:mod:`vmm.backends.net`) until it is plugged in.
    """
    built = vmm.guest.open(guest).build(say)
    wanted = (built.key, built.cmdline, net, str(ram_mib), str(append), sources(("vmm",)))
    key = hashlib.blake2b("\0".join(wanted).encode(), digest_size=12).hexdigest()
    path = cache_directory() / DIRECTORY / f"{built.info.name}-{key}.snapshot"
    if not path.exists():
        say(f"booting {guest} once; later starts resume from here")
        path.parent.mkdir(parents=True, exist_ok=True)
        words = ["--net", net, *_options(ram_mib, append)]
        _boot(guest, built.info.expect, built.info.within_ms, path, words)
        _forget_others(path, built.info.name)
    return path


def _options(ram_mib: int | None, append: str | None) -> list[str]:
    ram = [] if ram_mib is None else ["--ram", str(ram_mib)]
    return ram if append is None else [*ram, "--append", append]


def _boot(guest: str, expect: str, within_ms: int, path: Path, options: list[str]) -> None:
    """In a process of its own, so that nothing of the engine stays in this one."""
    part = path.with_suffix(f".{os.getpid()}")
    limit_s = str(within_ms * LIMIT_FACTOR / 1000)
    command = ["run", guest, "--free-running", "--until-virtual", limit_s]
    command += ["--exit-on", expect, "--save", str(part), *options]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "colo.cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            last = " | ".join(done.stdout.strip().splitlines()[-3:])
            raise ColoError(f"booting {guest} until it says {expect!r}: {last}; try it: colo run {guest}")
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _forget_others(path: Path, guest: str) -> None:
    """Snapshots of the same guest that an older build made; one in use stays readable for its users."""
    kept = 4
    stale = sorted(path.parent.glob(f"{guest}-*.snapshot"), key=lambda each: each.stat().st_mtime)
    for old in stale[:-kept]:
        old.unlink(missing_ok=True)
