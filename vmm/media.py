"""What a machine's disks hold, as part of its snapshots.

A disk that keeps its changes in memory (:class:`vmm.backends.disk.CopyOnWrite`) gives them to the
snapshot and gets them back from it; its base image must be the same one, which it checks.  A disk
that is a file on the host keeps its contents there, and a snapshot is no copy of it: resume such a
machine only with the file as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmm.backends.disk import CopyOnWrite
from vmm.devices.block import BlockBackend
from vmm.errors import StateError

_PREFIX = "medium"


def export(disks: Sequence[BlockBackend]) -> dict[str, bytes]:
    """Sections with the changes of every disk that keeps them in memory."""
    return {
        f"{_PREFIX}{number}": disk.export()
        for number, disk in enumerate(disks)
        if isinstance(disk, CopyOnWrite)
    }


def split(sections: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The sections of components, and those of disks."""
    parts: dict[str, bytes] = {}
    media: dict[str, bytes] = {}
    for name, data in sections.items():
        (media if name.startswith(_PREFIX) else parts)[name] = data
    return parts, media


def check(disks: Sequence[BlockBackend], media: Mapping[str, bytes]) -> None:
    """StateError when these are not the changes of these disks: all that keep any, and no other."""
    for name, data in media.items():
        _disk_of(disks, name).parsed(data)
    for number, disk in enumerate(disks):
        if isinstance(disk, CopyOnWrite) and f"{_PREFIX}{number}" not in media:
            raise StateError(f"the changes of disk {number} are missing")


def load(disks: Sequence[BlockBackend], media: Mapping[str, bytes]) -> None:
    """Give every disk its changes back; StateError when the disks are others."""
    for name, data in media.items():
        _disk_of(disks, name).load(data)


def _disk_of(disks: Sequence[BlockBackend], name: str) -> CopyOnWrite:
    number = name.removeprefix(_PREFIX)
    disk = disks[int(number)] if number.isdecimal() and int(number) < len(disks) else None
    if not isinstance(disk, CopyOnWrite):
        raise StateError(
            f"the snapshot holds changes of disk {number}, which this machine"
            f" {'lacks' if disk is None else 'keeps in a file'}: give it an overlay on the same image"
        )
    return disk
