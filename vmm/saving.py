"""A whole machine as data: sections, hashes, snapshots, differences.

All of it is derived from the components' declared states (:mod:`vmm.state`), RAM, and what copy-on-write
disks hold (:mod:`vmm.media`).  Loading is in two phases: everything is unpacked before anything is
touched, then every state is assigned, then every component hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vmm import hashing, media, snapshot
from vmm.compare import Side, differences
from vmm.config import PcConfig
from vmm.cpu.engine import describe
from vmm.errors import StateError
from vmm.snapshot import About, Progress, Snapshot
from vmm.state import State, encode, layout_digest, pack, unpack

if TYPE_CHECKING:
    from vmm.attached import Backends
    from vmm.boot.source import BootSource
    from vmm.machine import Machine


def states(machine: Machine) -> dict[str, State]:
    return {name: part.state for name, part in machine.components.items()}


def sections(machine: Machine) -> dict[str, bytes]:
    """Every component's packed state."""
    return {name: pack(state) for name, state in states(machine).items()}


def layout(machine: Machine) -> str:
    """Digest of what the sections look like: two machines with another one cannot exchange state."""
    return layout_digest({name: type(state) for name, state in states(machine).items()})


def state_hash(machine: Machine) -> bytes:
    """Digest of all that the guest can notice: processor, devices, RAM."""
    return hashing.state_digest(sections(machine), hashing.ram_digest(machine.ram.array))


def about(machine: Machine) -> About:
    return About(layout(machine), describe(), pack(machine.config), machine.clock.now_ns)


def save(machine: Machine, path: Path | str, progress: Progress | None) -> None:
    """Write a snapshot file.  The machine goes on as the loaded one would."""
    machine.door.enter("snapshot", b"\0")
    snapshot.write(path, about(machine), everything(machine), machine.ram, progress)


def hold(machine: Machine) -> Snapshot:
    """A snapshot in memory."""
    machine.door.enter("snapshot", b"\0")
    return Snapshot.hold(about(machine), everything(machine), machine.ram)


def everything(machine: Machine) -> dict[str, bytes]:
    """All but RAM: every component's packed state, and what copy-on-write disks hold."""
    return sections(machine) | media.export(machine.attached.disks)


def everything_unchecked(machine: Machine) -> dict[str, bytes]:
    """:func:`everything`, as fast as can be: the machine that loads it checks it (``unpacked``)."""
    packed = {name: encode(state) for name, state in states(machine).items()}
    return packed | media.export(machine.attached.disks)


def unpacked(machine: Machine, packed: Mapping[str, bytes]) -> dict[str, State]:
    """The states that ``packed`` holds; StateError when they are not those of this machine."""
    parts = machine.components
    if set(packed) != set(parts):
        raise StateError(f"components {sorted(set(packed) ^ set(parts))} are on one side only")
    return {name: unpack(type(part.state), packed[name]) for name, part in parts.items()}


def load_sections(
    machine: Machine, saved: Mapping[str, bytes], changed: npt.NDArray[np.uint32] | None = None
) -> None:
    """Replace every component's state and what copy-on-write disks hold.

    ``changed`` are the pages of the RAM mapping that differ from before: translated code of others
    stays.  None: any may.
    """
    packed, changes = media.split(saved)
    states = unpacked(machine, packed)
    media.load(machine.attached.disks, changes)
    machine.board.release_lines()
    if changed is None:
        machine.cpu.flush()
    else:
        machine.cpu.invalidate_pages(changed)
    for name, part in machine.components.items():
        part.state = states[name]
    for part in machine.components.values():
        part.restored()
    machine.forget_host_side()


def compare(left: Machine, right: Machine) -> list[str]:
    """Where two machines differ: device fields, registers, pages."""
    mine, theirs = Side(states(left), left.ram.array), Side(states(right), right.ram.array)
    return [str(difference) for difference in differences(mine, theirs)]


def compare_sections(machine: Machine, left: Mapping[str, bytes], right: Mapping[str, bytes]) -> list[str]:
    """The same of two packed states, without RAM; StateError when one is not of such a machine."""
    no_ram = np.empty(0, np.uint8)
    one, other = (Side(unpacked(machine, media.split(each)[0]), no_ram) for each in (left, right))
    return [str(difference) for difference in differences(one, other)]


def resume(
    source: Snapshot | Path | str,
    backends: Backends | None = None,
    *,
    boot: BootSource | None = None,
    paced: bool = False,
    verify: bool = True,
) -> Machine:
    """A machine that goes on where the snapshot was taken; refused snapshots leave nothing behind.

    ``boot`` is what a reset of the resumed machine loads; without it a reset ends the run.
    """
    from vmm.machine import Machine

    opened = source if isinstance(source, Snapshot) else Snapshot.open(source)
    try:
        config = unpack(PcConfig, opened.about.config)
        machine = Machine(config, boot, backends, paced=paced, ram=opened.ram(verify))
        try:
            opened.require(machine.layout_digest, machine.engine_digest, machine.ram.size)
            load_sections(machine, opened.sections)
        except BaseException:
            machine.close()
            raise
        return machine
    finally:
        if opened is not source:
            opened.close()
