"""Where tools/same_digest.py runs: environments with another Python, and Debian trees entered with chroot(2).

A place that is made here lies in a directory of its own and has a cache of its own (``COLO_CACHE``), into
which the guests that this host has built are copied: releases of a distribution have different packages, and
another guest would have other digests.  What is not copied is a booted guest: every place boots its own.

``3.13``     an environment of that Python, made by tools/env.sh
``trixie``   a minimal tree of that Debian release, made by debootstrap(8), with the release's own Python.  It
             is entered in a mount namespace of its own (unshare(1)), in which the checkout is bound to
             /opt/colo-vmm, read-only; so nothing stays mounted, whatever happens.  Needs root.

A container made like this shares the host's kernel and processor.  For others there is
``tools/same_digest.py --compare``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON_VERSION = re.compile(r"3\.\d+(\.\d+)?")
DEBIAN = ("bookworm", "trixie")
"""Releases whose python3 is 3.11 or newer."""
PACKAGES = "python3,python3-venv,ca-certificates"
PIP_SETTINGS = ("/etc/pip.conf", "/etc/xdg/pip", "~/.config/pip", "~/.pip")
NAMED_PATH = re.compile(r"(?<![\w/:])(file://)?(/[\w./+-]+)")
GUEST = "redis"
"""Of the scenarios' guests the one that is built, from packages; the others come with the project."""
IN_TREE = ("/opt/colo-vmm", "/opt/colo-venv", "/var/cache/colo-vmm")
"""Checkout, environment and cache, as seen from inside."""
ENTER = """\
set -e
tree=$1 checkout=$2 at=$3; shift 3
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
mkdir -p "$tree$at"
mount --bind "$checkout" "$tree$at"
mount -o remount,bind,ro "$tree$at"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$tree$1"; else mkdir -p "$tree$(dirname "$1")"; touch "$tree$1"; fi
    mount --bind "$1" "$tree$1"
    shift
done
shift
exec chroot "$tree" "$@"
"""
"""In a mount namespace of its own: whatever is mounted goes with it.  The words before ``--`` are paths of
this host that are seen inside by the same names."""

Say = Callable[[str], None]


class PlaceError(Exception):
    """A place could not be made, with what to do."""


@dataclass(frozen=True)
class Place:
    """``words`` run a Python; the last of them is the interpreter."""

    name: str
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    own_cache: bool = False
    """Nobody else boots guests there, so what was booted may be forgotten."""

    def command(self, more: dict[str, str], *words: str) -> list[str]:
        """env(1) stands right before the interpreter: what comes earlier may be another host."""
        settings = [f"{name}={value}" for name, value in {**self.environment, **more}.items()]
        return [*self.words[:-1], "env", *settings, self.words[-1], *words]


def cache_directory() -> Path:
    """As vmm.guest.store has it; the Python that runs this tool need not have the project."""
    if chosen := os.environ.get("COLO_CACHE"):
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache").absolute() / "colo-vmm"


def made(work: Path) -> list[str]:
    """The names of places that were made before."""
    marks = {path.parent.name for path in work.glob("*/complete")}
    return sorted(name for name in marks if PYTHON_VERSION.fullmatch(name) or name in DEBIAN)


def make(name: str, work: Path, say: Say) -> Place:
    """The place of this name, made now as far as it is not there."""
    directory = work / name
    directory.mkdir(parents=True, exist_ok=True)
    if PYTHON_VERSION.fullmatch(name):
        place = _python(name, directory, say)
    elif name in DEBIAN:
        place = _debian(name, directory, say)
    else:
        raise PlaceError(f"{name!r} is neither a version of Python (3.12) nor one of {', '.join(DEBIAN)}")
    (directory / "complete").touch()
    return place


def _run(doing: str, command: list[str], log: Path, more: dict[str, str] | None = None) -> None:
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | (more or {}),
                check=False,
            ).returncode
        except FileNotFoundError:
            raise PlaceError(f"{doing}: there is no {command[0]}; apt install {command[0]}") from None
    if status != 0:
        last = "\n  ".join(log.read_text(errors="replace").strip().splitlines()[-5:])
        raise PlaceError(f"{doing}: exit status {status}; the end of {log}:\n  {last}")


# Another Python


def find_python(version: str) -> str | None:
    """A Python of this version that runs: on PATH, or one that pyenv made."""
    candidates = [shutil.which(f"python{version}")]
    installed = Path("~/.pyenv/versions").expanduser().glob(f"{version}*/bin/python3")
    candidates += sorted(map(str, installed), reverse=True)
    say_version = "import platform; print(platform.python_version())"
    for path in filter(None, candidates):
        done = subprocess.run([path, "-c", say_version], capture_output=True, text=True, check=False)
        if done.returncode == 0 and f"{done.stdout.strip()}.".startswith(f"{version}."):
            return path
    return None


def _python(version: str, directory: Path, say: Say) -> Place:
    found = find_python(version)
    if found is None:
        raise PlaceError(f"no Python {version} on PATH or in ~/.pyenv/versions; or: --python PATH")
    venv, cache = directory / "venv", directory / "cache"
    say(f"environment {venv} of {found}")
    settings = {"COLO_VENV": str(venv), "COLO_PYTHON": found, "COLO_NO_APT": "1"}
    _run(f"making the environment {venv}", _environment(ROOT), directory / "log", settings)
    _copy_guests(cache)
    return Place(version, (str(venv / "bin/python"),), {"COLO_CACHE": str(cache)}, own_cache=True)


def _environment(checkout: Path | str) -> list[str]:
    script = 'set -euo pipefail; source "$1/tools/env.sh"; environment'
    return ["bash", "-c", script, "same_digest", str(checkout)]


def _copy_guests(cache: Path) -> None:
    """The builds that this host uses; they are checked whenever they are used (vmm.guest.store)."""
    for receipt in (cache_directory() / "receipts").glob(f"{GUEST}-*.json"):
        build = Path("builds") / json.loads(receipt.read_text())["key"]
        if (cache_directory() / build).is_dir():
            shutil.copytree(cache_directory() / build, cache / build, dirs_exist_ok=True)
            (cache / "receipts").mkdir(exist_ok=True)
            shutil.copy2(receipt, cache / "receipts")


# A Debian tree


def _debian(suite: str, directory: Path, say: Say) -> Place:
    tree = directory / "tree"
    if os.geteuid() != 0:
        raise PlaceError(f"{suite}: debootstrap and chroot need root")
    if not (tree / "complete").exists():
        say(f"Debian {suite} in {tree}, some 300 MiB")
        shutil.rmtree(tree, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(tree)]
        _run(f"making a tree of Debian {suite}", command, directory / "log")
        (tree / "complete").touch()
    checkout, venv, cache = IN_TREE
    inside = {"COLO_VENV": venv, "COLO_PYTHON": "/usr/bin/python3", "COLO_NO_APT": "1", "COLO_CACHE": cache}
    say(f"environment {venv} in {tree}")
    enter = entering(tree, pip_paths())
    _run(f"making the environment in {tree}", [*enter, *_environment(checkout)], directory / "log", inside)
    _copy_guests(tree / cache[1:])
    words = (*entering(tree, []), f"{venv}/bin/python")
    return Place(suite, words, {"COLO_CACHE": cache, "HOME": "/root"}, own_cache=True)


def entering(tree: Path, paths: list[str]) -> list[str]:
    """The words before a command that is to run inside."""
    where = (str(tree), str(ROOT), IN_TREE[0])
    return ["unshare", "--mount", "sh", "-c", ENTER, "enter", *where, *paths, "--"]


def pip_paths() -> list[str]:
    """pip's settings on this host, and the files and folders that they name, such as one of wheels."""
    files = [Path(each).expanduser() for each in PIP_SETTINGS]
    texts = [value for name, value in os.environ.items() if name.startswith("PIP_")]
    found = [str(path) for path in files if path.exists()]
    for path in files:
        inside = path.rglob("*") if path.is_dir() else [path]
        texts += [each.read_text(errors="replace") for each in inside if each.is_file()]
    for url, name in (named for text in texts for named in NAMED_PATH.findall(text)):
        path = Path(name).parent if url else Path(name)  # an index refers to files that lie beside it
        if path.exists() and path != Path("/"):
            found.append(str(path))
    return list(dict.fromkeys(found))
