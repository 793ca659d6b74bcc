"""What a machine is made of: everything that decides its board, and nothing about the host.

A configuration is part of a snapshot and of a recording: the same configuration gives the same
board, so the guest sees the same machine in another process.  Host-side things (which TAP, which
file) are given beside it when the machine is made.
"""

from __future__ import annotations

from typing import Annotated

from vmm.cpu.engine import Costs
from vmm.errors import ConfigError
from vmm.state import State, at_most, field, length, u16, u32, u64

EPOCH_2026_S = 1_767_225_600
"""2026-01-01 00:00:00 UTC: when the machine believes it was switched on, unless told otherwise."""
NETS_MAX = 8
DISKS_MAX = 8
IDE_DISKS_MAX = 4
RAM_MIB_DEFAULT = 256
MAC_PREFIX = b"\x52\x54\x00\xc0\x10"
"""Locally administered; the last byte counts the cards."""


class NetConfig(State):
    """One virtio network card."""

    mac: Annotated[bytes, length(6)]
    offloads: bool = False
    """Frames carry a virtio header and may be segments: both sides must agree."""


class DiskConfig(State):
    """One disk, as the guest sees it."""

    sectors: u64
    """Of 512 bytes."""
    read_only: bool = False
    ide: bool = False
    serial: Annotated[str, at_most(20)] = ""


class CostConfig(State):
    """What the virtual clock is charged; see vmm.cpu.engine.Costs."""

    instruction: u16 = Costs().instruction
    access: u32 = Costs().access
    pause: u32 = Costs().pause
    tsc: u32 = Costs().tsc


class PcConfig(State):
    """A PC.  Defaults: 256 MiB, no network, no disk."""

    ram_mib: u32 = RAM_MIB_DEFAULT
    epoch_s: u32 = EPOCH_2026_S
    seed: Annotated[bytes, at_most(64)] = b"colo-vmm"
    """Of the virtio-rng stream."""
    nets: Annotated[list[NetConfig], at_most(NETS_MAX)] = field(default_factory=list)
    disks: Annotated[list[DiskConfig], at_most(DISKS_MAX)] = field(default_factory=list)
    costs: CostConfig = field(default_factory=CostConfig)
    bios: bool = False
    """BIOS services for boot sectors."""

    def check(self) -> None:
        """Raise ConfigError for what the types cannot say."""
        macs = [net.mac for net in self.nets]
        if len(set(macs)) != len(macs):
            raise ConfigError("two network cards have one MAC address; give each its own")
        if self.costs.instruction == 0:
            raise ConfigError("an instruction cost of 0: virtual time would stand still; use 1 or more")
        if sum(disk.ide for disk in self.disks) > IDE_DISKS_MAX:
            raise ConfigError(f"more than {IDE_DISKS_MAX} IDE disks: two channels have two drives each")


def mac(index: int) -> bytes:
    """The MAC address of the card with this number, by default."""
    return MAC_PREFIX + bytes([2 + index])
