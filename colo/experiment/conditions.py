"""The machine that an experiment ran on, and everything else without which its figures say little."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import vmm.guest
from colo.build import build
from colo.experiment.workloads import Workload

BUSY = 0.5
"""Of the processors, by the load average: above it somebody else's work is measured too."""
DISTRIBUTIONS = ("unicorn", "numba", "numpy")
VERSION_LIMIT_S = 5.0


def describe(guest: str, workloads: Iterable[Workload]) -> dict[str, str]:
    """Name and value, in the order in which they are shown."""
    foreign = dict.fromkeys(each.client for each in workloads if each.client != "loadgen")
    return {
        "cpu": f"{cpu_model()}, {cpus()} of {os.cpu_count()} cores; guest, secondary and clients share them",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20} MiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load": f"{load_average()} (1, 5, 15 minutes, at the start)",
        "program": f"colo-vmm {build()}",
        "python": ", ".join(
            [platform.python_version(), *(f"{each} {version(each)}" for each in DISTRIBUTIONS)]
        ),
        "guest": guest_line(guest),
        **{client: client_version(client) for client in foreign},
    }


def cpus() -> int:
    return len(os.sched_getaffinity(0))


def load_average() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def busy() -> str | None:
    """A warning, when the host has other work."""
    load = os.getloadavg()[0]
    if load <= BUSY * cpus():
        return None
    return (
        f"the host is busy (load average {load:.2f}, {cpus()} processors): expect slow and unsteady figures"
    )


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"  # a checkout that was never installed


def guest_line(guest: str) -> str:
    """The guest, its kernel and what serves in it."""
    built = vmm.guest.open(guest).build()
    shown = [
        f"{name} {version}"
        for name, version in built.packages.items()
        if name.startswith(("linux-image", guest))
    ]
    return f"{guest} ({', '.join([built.info.title, f'{built.info.ram_mib} MiB', *shown])})"


def client_version(program: str) -> str:
    """The first line of what it says of itself."""
    path = shutil.which(program)
    if path is None:
        return "(not installed)"
    done = subprocess.run(
        [path, "--version"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=VERSION_LIMIT_S,
    )
    return done.stdout.partition("\n")[0].strip()
