"""What both halves of a pair know of their machine: names, cards, what is held, what is counted.

:class:`colo.node.leading.Leading` and :class:`colo.node.following.Following` add a half each, for one
pairing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from colo.filters import FilteredNet, OutputHold
from colo.filters.console import PORT, HeldConsole
from colo.node.guest_thread import GuestThread
from colo.node.standby_ram import StandbyRam
from vmm.backends.disk import CopyOnWrite
from vmm.machine import Machine

EPOCHS_KEPT = 256
"""Records of past epochs that a status may ask for."""

Report = Callable[[str, dict[str, Any]], None]
"""Told of every event, one line each: a name and facts."""


@dataclass(frozen=True)
class EpochRecord:
    """What one checkpoint cost."""

    epoch: int
    reason: str
    pause_ms: float
    """The guest stood still, wake-up of its thread excluded."""
    stop_ms: float
    """From the request to the guest's stop."""
    pages_copied: int
    pages_sent: int
    bytes_sent: int
    """Encoded pages and device state."""
    held_packets: int
    commit_ms: float
    """From the stop to the commit: how long output waited at least."""
    held_age_ms: float = 0.0
    """How long the oldest of it had waited when it went."""


@dataclass
class Totals:
    """Of one node, over all its pairings."""

    checkpoints: int = 0
    pages_sent: int = 0
    bytes_sent: int = 0
    pause_ms: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    inputs_dropped: int = 0
    """Inputs that no longer fitted the queue to the secondary: a survivor cannot repeat them."""
    divergences: int = 0
    """The secondary's guest was found to differ."""
    verified: int = 0
    """Whole-machine comparisons that were made, all equal."""


class Statistics:
    """What a node's checkpoints cost, totals and the last few."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.epochs: deque[EpochRecord] = deque(maxlen=EPOCHS_KEPT)

    def add(self, record: EpochRecord) -> None:
        totals = self.totals
        totals.checkpoints += 1
        totals.pages_sent += record.pages_sent
        totals.bytes_sent += record.bytes_sent
        totals.pause_ms += record.pause_ms
        totals.reasons[record.reason] = totals.reasons.get(record.reason, 0) + 1
        self.epochs.append(record)


@dataclass
class Replica:
    """A node's machine and everything around it that outlives a pairing."""

    guest: GuestThread
    nets: list[FilteredNet]
    consoles: list[HeldConsole]
    hold: OutputHold
    pair: str
    node: str
    generation: int
    report: Report
    now_s: Callable[[], float]
    """The host's time; from any thread."""
    standby: StandbyRam | None = None
    """The machine's RAM, when it was made to stand by."""
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def machine(self) -> Machine:
        return self.guest.machine

    @property
    def may_run_twice(self) -> bool:
        """Can two guests run at once, and one be taken back?  Not with a disk that keeps what each writes."""
        return all(isinstance(disk, CopyOnWrite) or disk.read_only for disk in self.machine.disks)

    def mute(self) -> None:
        """From here on this node says nothing to the world."""
        for net in self.nets:
            net.mute()
        for console in self.consoles:
            console.mute()

    def unmute(self) -> None:
        """This node serves."""
        for net in self.nets:
            net.unmute()
        for console in self.consoles:
            console.unmute()

    def as_sent(self, port: str, payload: bytes) -> bytes:
        """What the guest was given, as it came from outside; in the guest's thread."""
        for net in self.nets:
            if net.name == port:
                return net.as_sent(payload)
        return payload

    def to_guest(self, port: str, payload: bytes) -> bytes:
        """What came from outside, as the guest must be given it; in the guest's thread."""
        for net in self.nets:
            if net.name == port:
                return net.to_guest(payload)
        return payload

    def divert(self, hear: Callable[[str, bytes], None] | None) -> None:
        """While muted, what the guest says goes there instead of nowhere."""
        for net in self.nets:
            net.diverted = hear
        for console in self.consoles:
            console.diverted = hear

    def say(self, port: str, payload: bytes) -> None:
        """What the world may not have heard of another node's guest; ports that we lack are not ours."""
        for net in self.nets:
            if net.name == port:
                net.say(payload)
        if port == PORT:
            for console in self.consoles:
                console.say(payload)
