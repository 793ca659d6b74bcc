"""What a world's machines start from: a guest by name, booted already where booting takes long.

The bare guests are up within milliseconds of virtual time and start from their image.  Linux guests start
from the snapshot of a booted one (:mod:`colo.pair.warm`), which is made once and kept in the cache; its
card is a plain one (no offloads), because a world's cables carry whole frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import vmm.guest
from colo.faults.disk import FaultyDisk
from colo.pair import warm
from vmm.backends.console import Console
from vmm.backends.disk import CopyOnWrite, DiskSpec
from vmm.backends.net import UNPLUGGED
from vmm.cards import Wrap
from vmm.launch import Incoming, Launched, LaunchOptions, launch

PLAIN = UNPLUGGED[0]


@dataclass(frozen=True)
class Image:
    """``options`` say what is launched; every machine of a pair is launched from the same."""

    name: str
    options: LaunchOptions

    @classmethod
    def of(cls, guest: str | Image, *, append: str | None = None, ram_mib: int | None = None) -> Image:
        """The guest of this name; KeyError-free: the manifest says what there is."""
        if isinstance(guest, Image):
            return guest
        built = vmm.guest.open(guest).build()
        if built.info.kind == "linux":
            path = warm.snapshot(guest, net=PLAIN, ram_mib=ram_mib, append=append, say=lambda text: None)
            disks = (DiskSpec(str(built.disk), overlay=True),) if built.disk else ()
            return cls(guest, LaunchOptions(load=str(path), nets=(PLAIN,), disks=disks, paced=False))
        nets = (PLAIN,) if "net" in built.info.devices else ()
        return cls(guest, LaunchOptions(guest=guest, nets=nets, append=append, ram_mib=ram_mib, paced=False))

    def launch(self, consoles: Sequence[Console], wrap: Wrap, incoming: Incoming | None) -> Launched:
        """Disks that keep their changes in memory can have faults (:mod:`colo.faults.disk`)."""
        faulty: list[FaultyDisk] = []

        def wrap_disk(number: int, disk: Any) -> Any:
            if not isinstance(disk, CopyOnWrite):
                return disk
            faulty.append(FaultyDisk(disk))
            return faulty[-1]

        launched = launch(self.options, consoles, wrap=wrap, incoming=incoming, wrap_disk=wrap_disk)
        for each in faulty:
            each.attach(launched.machine)
        return launched
