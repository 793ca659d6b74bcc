"""What every test may ask for: a tool of the host, or a guest that is ready to boot.

Neither is a reason to fail when the host lacks it: the test is skipped and the summary says what to
install.  On a machine where ``tools/test`` may install packages, nothing is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

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
