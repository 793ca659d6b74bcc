"""What is attached to a machine on the host: a back end for each card and each disk, and consoles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from vmm.backends.console import Console
from vmm.backends.net import NetBackend, Nowhere
from vmm.config import PcConfig
from vmm.devices.block import BlockBackend
from vmm.errors import ConfigError


@runtime_checkable
class Around(Protocol):
    """A back end around another one, such as one that adds filters."""

    @property
    def backend(self) -> NetBackend: ...


@dataclass
class Backends:
    """The host side of a configuration: one entry per card and per disk, in order."""

    nets: Sequence[NetBackend] = ()
    disks: Sequence[BlockBackend] = ()
    consoles: Sequence[Console] = field(default_factory=list)

    def fitted(self, config: PcConfig) -> Backends:
        """Checked against ``config``; without any network back end its cards are plugged into nothing."""
        nets = list(self.nets) or [Nowhere() for _ in config.nets]
        if len(nets) != len(config.nets) or len(self.disks) != len(config.disks):
            raise ConfigError(
                f"the configuration has {len(config.nets)} network cards and {len(config.disks)} disks,"
                f" {len(nets)} and {len(self.disks)} back ends were given"
            )
        for net, backend in zip(config.nets, nets, strict=True):
            if net.offloads != backend.offloads and not _is_unplugged(backend):
                raise ConfigError("a card and its back end do not agree on offloads (NetConfig.offloads)")
        for disk, medium in zip(config.disks, self.disks, strict=True):
            if (disk.sectors, disk.read_only) != (medium.sectors, medium.read_only):
                raise ConfigError(
                    f"a disk of {disk.sectors} sectors (read-only: {disk.read_only}) is configured,"
                    f" its back end has {medium.sectors} (read-only: {medium.read_only})"
                )
        return Backends(nets, list(self.disks), list(self.consoles))


def _is_unplugged(backend: NetBackend) -> bool:
    """A card with offloads may be plugged into nothing: nobody reads its headers there."""
    while isinstance(backend, Around):
        backend = backend.backend
    return isinstance(backend, Nowhere)
