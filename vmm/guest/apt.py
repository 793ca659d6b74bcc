"""Debian and Ubuntu packages as an ordinary user, with the machine's own apt (apt-get(8), apt.conf(5)).

``apt-get download`` needs no root: it reads the system's package lists and writes to the current
directory.  Where those lists are empty or stale (a fresh container, a mirror that has moved on), a
private state directory in our cache gets its own ``apt-get update``; sources and keys stay the
system's, so the archive's signatures are checked as always.

A downloaded package is kept under its own name in the cache and checked against the digest that apt
has for it, so a damaged cache is noticed and a build can be repeated without a network.

Not done: no package is installed, no maintainer script runs, no dependency is resolved by apt; the
few packages a guest needs are chosen in vmm.guest.debs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from vmm.errors import GuestBuildError

Progress = Callable[[str], None]

OFFLINE_ADVICE = "Use a guest that is already built (colo guest list) or the built-in one: hello"

NETWORK_OPTIONS = ("-oAcquire::Retries=2", "-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20")
"""A dead mirror is reported after a minute or so instead of apt's several."""

COMMAND_LIMIT_S = 900
"""The longest apt-get may take: a 100 MB kernel over a line of 1 Mbit/s."""

_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<digest>\S*)$")


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one package, as apt would download it now.  ``digest`` is ``SHA256:<hex>``."""

    name: str
    version: str
    filename: str
    size: int
    digest: str


class Apt:
    """The machine's apt.  ``cache/debs`` keeps packages, ``cache/apt`` private lists."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        self._debs = cache / "debs"
        self._private = cache / "apt"
        self._progress = progress
        self._options: tuple[str, ...] = ()
        self._refreshed = False
        self._known: dict[str, Package] = {}
        self._unknown: set[str] = set()

    def candidates(self, names: Sequence[str]) -> list[Package]:
        """What apt would download for ``names``; a GuestBuildError names the first that it does not know."""
        missing = [name for name in names if not self.exists(name)]
        if missing and not self._refreshed:
            self._refresh(f"package {missing[0]} is not in the system's lists")
            missing = [name for name in missing if not self.exists(name)]
        if missing:
            raise GuestBuildError(
                f"package {missing[0]}: apt-get does not know it. Check the sources in /etc/apt. "
                f"{OFFLINE_ADVICE}"
            )
        return [self._known[name] for name in names]

    def first_known(self, names: Sequence[str]) -> str:
        """The first of ``names`` that the archive has: distributions call the same thing differently."""
        found = next((name for name in names if self.exists(name)), None)
        if found is None and not self._refreshed:
            self._refresh(f"none of {', '.join(names)} is in the system's lists")
            found = next((name for name in names if self.exists(name)), None)
        if found is None:
            raise GuestBuildError(
                f"apt-get knows none of {', '.join(names)}. Check the sources in /etc/apt. {OFFLINE_ADVICE}"
            )
        return found

    def exists(self, name: str) -> bool:
        """Is there a package of this name that apt could download?"""
        self.look_up([name])
        return name in self._known

    def look_up(self, names: Sequence[str]) -> None:
        """Ask apt about many names in one go; what it does not know stays unknown."""
        new = [name for name in names if name not in self._known and name not in self._unknown]
        if not new:
            return
        done = self._run(["download", "--print-uris", *new], self._private.parent)
        if done.returncode and len(new) > 1:  # one unknown name spoils the whole answer
            for name in new:
                self.look_up([name])
            return
        for line in done.stdout.splitlines():
            if match := _URI_LINE.match(line):
                package = _package(match["file"], int(match["size"]), match["digest"])
                self._known[package.name] = package
        self._unknown.update(name for name in new if name not in self._known)

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """The .deb files of ``names``, from the cache or the archive, digests checked."""
        packages = self.candidates(names)
        wanted = [package for package in packages if not self._good(package)]
        if wanted:
            self._progress(
                f"downloading {', '.join(p.name for p in wanted)} ({sum(p.size for p in wanted) >> 10} KiB)"
            )
            if not self._download(wanted) and not self._refreshed:
                self._refresh("the archive no longer has what the system's lists name")
                return self.fetch(names)
        for package in packages:
            if not self._good(package):
                raise GuestBuildError(
                    f"package {package.name} {package.version}: apt-get could not fetch it:\n"
                    f"{self._last_error}\n{OFFLINE_ADVICE}"
                )
        return {package.name: self._debs / package.filename for package in packages}

    # -- private ------------------------------------------------------------------------------------

    _last_error = ""

    def _download(self, packages: Sequence[Package]) -> bool:
        self._debs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self._debs) as directory:
            specs = [f"{package.name}={package.version}" for package in packages]
            done = self._run(["download", *specs], Path(directory))
            for package in packages:
                found = Path(directory) / package.filename
                if found.is_file():
                    found.replace(self._debs / package.filename)
        return all(self._good(package) for package in packages) and done.returncode == 0

    def _good(self, package: Package) -> bool:
        path = self._debs / package.filename
        if not path.is_file() or path.stat().st_size != package.size:
            return False
        algorithm, _, expected = package.digest.partition(":")
        if algorithm not in ("SHA256", "SHA512"):
            return True  # an archive without strong digests: apt has checked what it could
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm.lower()).hexdigest() == expected

    def _refresh(self, why: str) -> None:
        """Make private package lists and use them from here on."""
        self._progress(f"updating private package lists ({why})")
        state, cache = self._private / "state", self._private / "cache"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        self._options = (
            f"-oDir::State={state}",
            f"-oDir::State::lists={state / 'lists'}",
            "-oDir::State::status=/var/lib/dpkg/status",
            f"-oDir::Cache={cache}",
        )
        self._refreshed = True
        self._known.clear()
        self._unknown.clear()
        done = self._run(["update"], self._private)
        if done.returncode:
            raise GuestBuildError(f"apt-get update failed:\n{self._last_error}\n{OFFLINE_ADVICE}")

    def _run(self, arguments: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
        program = shutil.which("apt-get")
        if program is None:
            raise GuestBuildError(
                "apt-get was not found: Linux guests are made from Debian or Ubuntu packages and need a "
                f"Debian or Ubuntu host (or container) to be built on. {OFFLINE_ADVICE}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        command = [program, "-q", *NETWORK_OPTIONS, *self._options, *_sandbox(), *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                env=dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=COMMAND_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise GuestBuildError(
                f"{shlex.join(command)}: no end after {COMMAND_LIMIT_S} s. {OFFLINE_ADVICE}"
            ) from None
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:", "Err:"))]
        self._last_error = "\n".join(f"  {line}" for line in lines[-6:]) or "  (apt-get gave no reason)"
        return done


def _sandbox() -> tuple[str, ...]:
    """As root, apt drops to the user _apt, who may not write to our cache: stay who we are."""
    return ("-oAPT::Sandbox::User=root",) if os.geteuid() == 0 else ()


def _package(filename: str, size: int, digest: str) -> Package:
    """From ``name_version_architecture.deb``; apt writes the epoch's colon as %3a."""
    name, version, _ = filename.split("_", 2)
    return Package(name, unquote(version), filename, size, digest)
