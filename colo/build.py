"""Which build this is: the version, and a digest of the sources that decide what two nodes say to each other.

Two checkouts of one version may differ, so the version alone tells nothing.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

PACKAGES = ("colo", "vmm")
DIGEST_SIZE = 8


@functools.cache
def build() -> str:
    """``VERSION+DIGEST`` of the packages as they are on disk now."""
    try:
        version = metadata.version("colo-vmm")
    except metadata.PackageNotFoundError:
        version = "0"  # run from a checkout that was never installed
    return f"{version}+{sources(PACKAGES)}"


@functools.cache
def sources(packages: tuple[str, ...]) -> str:
    """Digest of every Python file of ``packages``, names included."""
    hasher = hashlib.blake2b(digest_size=DIGEST_SIZE)
    root = Path(__file__).resolve().parents[1]
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            for part in (str(path.relative_to(root)).encode(), path.read_bytes()):
                hasher.update(len(part).to_bytes(8, "little"))
                hasher.update(part)
    return hasher.hexdigest()
