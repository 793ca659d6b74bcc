"""The host: what it is, what it must have, and programs compiled on it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmm.guest.store import cache_directory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SYSTEM_FOLDERS = "/usr/sbin:/sbin"
"""Where `ip` is, which is not on every user's PATH."""
PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86",
    "gcc": "gcc libc6-dev",
    "ip": "iproute2",
}
"""Debian's names for what a section may need."""
DISTRIBUTIONS = ("unicorn", "numba", "numpy")


class Unavailable(Exception):
    """A section cannot run here; the text says why and what to do."""


def program(name: str) -> str:
    """The path of a command; Unavailable says which package brings it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_FOLDERS}")
    if found is None:
        raise Unavailable(f"{name} is not installed: apt install {PACKAGE_OF[name]}")
    return found


def compiled(source: Path, flags: Sequence[str], name: str) -> Path:
    """The program that gcc makes of ``source``, kept in the cache by what it is made of."""
    gcc = program("gcc")
    digest = hashlib.blake2b(digest_size=8)
    for part in (source.read_bytes(), " ".join(flags).encode(), first_line([gcc, "--version"]).encode()):
        digest.update(part)
    out = cache_directory() / "bench" / f"{name}-{digest.hexdigest()}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        part_file = out.with_suffix(f".{os.getpid()}")
        command = [gcc, *flags, "-o", str(part_file), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{source.name}: gcc failed:\n{done.stderr[-1000:]}")
        part_file.rename(out)
    return out


def first_line(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def describe(qemu: bool = True) -> dict[str, str]:
    """The machine that this runs on, as it is now; ``qemu``: its version is wanted, so it must be there."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS)
    about = {
        "cpu": f"{cpu_model()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "memory": f"{memory_mib()} MiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load": f"{load} (1, 5, 15 minutes, at the start)",
        "ours": f"colo-vmm {revision()}, Python {platform.python_version()}, {versions}",
    }
    if qemu:
        about["qemu"] = first_line([program("qemu-system-x86_64"), "--version"])
    return about


def revision() -> str:
    """The commit, in a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "(no git)"
    return done.stdout.strip() or "(no checkout)"
