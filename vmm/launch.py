"""From what somebody asks for to a machine that can run, or to a reason why not.

    with launch(LaunchOptions(guest="linux", nets=("tap=tap0",))) as launched:
        launched.machine.run(2_000_000_000)

:class:`LaunchOptions` says everything in words and file names, as a command line does.  A guest's name
is short for its images, command line, disk and RAM (:meth:`LaunchOptions.expanded`); the rest of this
file knows only files.  Where the board comes from:

    --load       the snapshot: RAM size, seed, epoch, cards and disks are part of it
    --replay     the log, which holds the configuration and names the images (``vmm.logbook``)
    otherwise    the options

Whatever was opened is closed by :meth:`Launched.close`, and at once when something later fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from vmm import logbook
from vmm.backends import disk as disks
from vmm.backends import net as nets
from vmm.backends.console import Console
from vmm.backends.disk import DiskSpec
from vmm.backends.net import Nowhere, Plain
from vmm.backends.pcap import PcapTap
from vmm.boot.multiboot import Module
from vmm.boot.source import BootSector, BootSource, LinuxBoot, MultibootBoot, read_image
from vmm.config import DiskConfig, NetConfig, PcConfig, mac
from vmm.devices.block import BlockBackend
from vmm.errors import ConfigError
from vmm.logbook import Part
from vmm.machine import Backends, Machine, resume
from vmm.record import Recorder
from vmm.replay import Replayer
from vmm.snapshot import Snapshot
from vmm.state import unpack

Say = Callable[[str], None]
NO_CARD = "none"
"""The network back end of a card that is plugged into nothing."""
