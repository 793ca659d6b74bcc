"""What the machine boots: guests described in guests/manifest.toml, built once and kept in a cache.

    built = vmm.guest.open("redis").build(print)
    built.kernel, built.initrd, built.cmdline

One module a step: manifest (what there is) -> store (what is built) -> build (from recipe to files)
-> apt, debs, kernel (what a distribution gives) -> tree, initramfs, ext4 (what a guest gets).

Nothing here is needed to run a machine, and nothing here knows one.
"""

from __future__ import annotations

from vmm.guest.manifest import GuestInfo
from vmm.guest.store import BuiltGuest, Guest, GuestStatus, Store, info, list_guests
from vmm.guest.store import open_guest as open

__all__ = ["BuiltGuest", "Guest", "GuestInfo", "GuestStatus", "Store", "info", "list_guests", "open"]
