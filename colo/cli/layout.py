"""``colo layout``: what a machine's state consists of.

Two builds exchange snapshots, and two nodes replicate, only when these digests are equal.
"""

from __future__ import annotations

import argparse
import json

from vmm.backends.disk import MemoryDisk
from vmm.backends.net import Nowhere
from vmm.config import PcConfig
from vmm.errors import SnapshotError, StateError
from vmm.machine import Backends, Machine
from vmm.snapshot import Snapshot
from vmm.state import layout, unpack


def main(arguments: argparse.Namespace) -> int:
    config, recorded = PcConfig(), None
    if arguments.snapshot is not None:
        config, recorded = _read(arguments.snapshot)
    with _machine(config) as machine:
        components = {name: layout(type(state)) for name, state in machine.states().items()}
        digests = {"layout_digest": machine.layout_digest, "engine_digest": machine.engine_digest}
    if arguments.json:
        print(json.dumps({**digests, "components": components}))
    else:
        for name, text in components.items():
            print(f"{name} {text}")
        for what, digest in digests.items():
            print(f"{what.replace('_', ' ')} {digest}")
    if recorded is not None and recorded != digests:
        raise SnapshotError(
            f"snapshot {arguments.snapshot}: layout {recorded['layout_digest']}, engine"
            f" {recorded['engine_digest']}: not those of this build, which cannot load it"
        )
    return 0


def _read(path: str) -> tuple[PcConfig, dict[str, str]]:
    with Snapshot.open(path) as snapshot:
        about = snapshot.about
        try:
            config = unpack(PcConfig, about.config)
        except StateError as exc:
            raise SnapshotError(
                f"snapshot {path}: its configuration is not one of this build: {exc}"
            ) from None
        return config, {"layout_digest": about.layout_digest, "engine_digest": about.engine_digest}


def _machine(config: PcConfig) -> Machine:
    """The board alone: RAM and disks do not matter."""
    config.ram_mib = 1
    for disk in config.disks:
        disk.sectors, disk.read_only = 1, False
    for net in config.nets:
        net.offloads = False
    backends = Backends(
        [Nowhere() for _ in config.nets],
        [MemoryDisk(1) for _ in config.disks],
    )
    return Machine(config, None, backends)
