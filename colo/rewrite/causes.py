"""What was done to frames and connections, counted by cause, and by which limits.

A frame that is changed counts once for each thing that was changed in it; one that is not counts as
``UNCHANGED``.  Frames that are not TCP, and TCP that nothing has to be known of, are not counted.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from colo.compare.packet import VNET_HEADER


class Cause(IntEnum):
    """Of frames, then of connections."""

    UNCHANGED = 0
    SEQUENCE = 1  # outward: the sequence number
    STAMP = 2  # outward: the time stamp
    HELD = 3  # outward: the time stamp waits at the last one that the client had
    RAISED = 4  # outward: the guest's clock is too far behind for that, and is taken to be ahead from now on
    ACKNOWLEDGEMENT = 5  # inward: the acknowledgement number
    SACK = 6  # inward: blocks of selective acknowledgement
    ECHO = 7  # inward: the echo of a time stamp
    CAPPED = 8  # inward: an echo of what the guest's clock has not come to yet
    STALE = 9  # inward: while a handshake is under way, an acknowledgement of something else
    PREMATURE = (
        10  # inward: an acknowledgement of the guest's SYN, or of another one, before the client's SYN
    )
    QUOTED = 11  # inward: a guest's segment that an ICMP error quotes
    SPLIT = 12  # a TCP header that is cut by fragmentation: left alone

    LEARNED_ACCEPTED = 13  # the client opened: the offset, from its first acknowledgement
    LEARNED_OPENED = 14  # the guest opened: from the client's SYN
    LEARNED_REFUSED = 15  # the guest opened: from the client's RST
    CONFIRMED = 16  # the guest goes on without that: it had its answer before the last checkpoint
    EVICTED = 17  # made room; nothing was lost by it
    EVICTED_TRANSLATED = 18  # made room; its next frame will not be understood
    FORGOTTEN = 19  # ended, or not used for long


CAUSES = len(Cause)


class Settings(msgspec.Struct, frozen=True):
    """Limits."""

    vnet: bool = False
    """Frames have a virtio-net header in front."""
    connections_max: int = 16384
    """As many as are compared."""
    idle_ms: float = 7_500_000.0
    """Just over the two hours after which Linux probes an idle connection."""
    linger_ms: float = 120_000.0
    """After its end, and for a handshake: twice Linux's TIME_WAIT, and about how long Linux repeats a SYN."""
    settle_ms: float = 60_000.0
    """After a take-over: every guest's clock is by then past what the client had from the primary."""

    @property
    def l2(self) -> int:
        return VNET_HEADER if self.vnet else 0


class Translation(msgspec.Struct, frozen=True, gc=False):
    """What one connection's numbers need, for whoever becomes this guest's secondary."""

    key: bytes
    """Of its frames from the guest, as :mod:`colo.compare.packet` makes it."""
    shift: int
    clock_shift: int
    clock_floor: int | None
    clock_guard: bool


class Status(NamedTuple):
    """One connection for a reader."""

    name: str
    learning: bool
    shift: int
    """From the guest's sequence numbers to the client's, the short way."""
    clock_shift: int
    counts: dict[str, int]


class Counts:
    """How often, by cause."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all = [0] * CAUSES

    def named(self) -> dict[str, int]:
        return {Cause(number).name.lower(): count for number, count in enumerate(self.all) if count}
