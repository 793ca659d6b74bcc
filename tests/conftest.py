"""What every test may ask for: a tool of the host, or a guest that is ready to boot.

Neither is a reason to fail when the host lacks it: the test is skipped and the summary says what to
install.  On a machine where ``tools/test`` may install packages, nothing is missing.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import vmm.guest
from vmm.errors import GuestBuildError

PACKAGE_OF = {
    "curl": "curl",
    "gcc": "gcc",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "objcopy": "binutils",
    "openssl": "openssl",
    "qemu-system-x86_64": "qemu-system-x86",
    "redis-cli": "redis-tools",
    "socat": "socat",
    "tshark": "tshark",
}
"""Debian's name for what brings a command; ``tools/test`` installs the same ones."""

SYSTEM_FOLDERS = "/usr/sbin:/sbin"
"""Where `ip` and `mkfs.ext4` are, which is not on every user's PATH."""

# A shared 2-core host may stall for longer than any deadline of an example.  In CI the examples are
# always the same ones: a red run is then caused by the change, and a local run finds new examples.
STALLS = (HealthCheck.too_slow,)
settings.register_profile("local", deadline=None, suppress_health_check=STALLS)
settings.register_profile(
    "ci", deadline=None, suppress_health_check=STALLS, derandomize=True, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """``tool("curl")`` is the command's path; without it the test is skipped, naming the package."""

    def find(command: str) -> str:
        search = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_FOLDERS}"
        path = shutil.which(command, path=search)
        if path is None:
            pytest.skip(f"{command} is not installed: apt install {PACKAGE_OF[command]}")
        return path

    return find


@pytest.fixture(scope="session")
def guest() -> Callable[[str], vmm.guest.BuiltGuest]:
    """``guest("linux")`` is that guest's files, built or taken from the cache.

    A recipe that cannot be carried out (no network, no apt) skips the test with the recipe's own reason.
    """
    built: dict[str, vmm.guest.BuiltGuest] = {}

    def ready(name: str) -> vmm.guest.BuiltGuest:
        if name not in built:
            try:
                built[name] = vmm.guest.open(name).build(lambda text: print(f"{name}: {text}"))
            except GuestBuildError as exc:
                pytest.skip(str(exc))
        return built[name]

    return ready


def pytest_collection_finish() -> None:
    """Thousands of tests and their modules stay until the end: a collection of garbage passes them by.

    Every simulated world ends with one, and would take several times as long as it needs itself.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: which tests may run beside each other."""
    from tests.side_by_side import SideBySide

    return SideBySide(config, log)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Of two processes the one that only computes lets the other go first: pairs wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests import side_by_side

        if side_by_side.computes(nodeid):
            side_by_side.give_way()
