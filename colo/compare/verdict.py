"""What a comparison says, why it says it, and by which limits: the nouns of :mod:`colo.compare.comparison`.

Every frame that is fed ends in exactly one :class:`Release` or :class:`Drop`; a :class:`Diverged` asks for
a checkpoint.  Each has a :class:`Reason`, counted in all and per connection.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from colo.compare.packet import VNET_HEADER


class Reason(IntEnum):
    """Why.  Of a release, a drop and a divergence, in this order."""

    MATCHED = 0  # the secondary said the same
    RETRANSMITTED = 1  # said before, the same as then
    ACKNOWLEDGED = 2  # nothing but an acknowledgement, and the secondary acknowledged as much
    CHECKPOINT = 3  # a checkpoint made the secondary what the primary was when it said this
    UNCOMPARED = 4  # mode qemu: released without comparison

    CARRIED = 5  # of the secondary: it had no payload, what it told was noted
    STALE = 6  # of the secondary: belongs to a state that it left
    DIVERGED = 7  # of the secondary: its connection awaits a checkpoint
    QUEUE_FULL = 8  # also a divergence
    TABLE_FULL = 9  # also a divergence
    UNSUPPORTED = 10  # mode qemu, of the secondary

    PAYLOAD = 11  # other bytes
    SYN_DIFFERS = 12  # other options, or a SYN that only one of them sent
    FIN_DIFFERS = 13  # the stream ends at another place
    RST_DIFFERS = 14  # one of them goes on after a reset
    CONTENT = 15  # another datagram
    FRAGMENTS = 16  # fragments that contradict each other, or more than are kept
    UNVERIFIABLE = 17  # bytes said again of which no copy is left to compare with
    WINDOW = 18  # a segment further from its stream than any window reaches
    LATE_PAYLOAD = 19  # the secondary did not say it in time
    LATE_ACK = 20  # the secondary did not acknowledge as much in time
    LATE_FLAG = 21  # the secondary did not send its SYN, FIN or RST in time
    LATE_CONTENT = 22  # the secondary did not send this datagram in time
    SECONDARY_ALONE = 23  # the secondary said what the primary did not say in time
    ACK_BEYOND = 24  # mode qemu: equal bytes, acknowledging more than both did
    TIMEOUT = 25  # mode qemu


class Release(msgspec.Struct, frozen=True, gc=False):
    """This frame of the primary may go to the world now."""

    frame: bytes
    reason: Reason


class Drop(msgspec.Struct, frozen=True, gc=False):
    """This frame goes nowhere.  One of the primary is dropped only beyond every limit, as networks do."""

    frame: bytes
    reason: Reason
    primary: bool = False
    """Is it the primary's?"""


class Diverged(msgspec.Struct, frozen=True, gc=False):
    """The two are no longer the same to this connection: a checkpoint is needed."""

    reason: Reason
    connection: str
    detail: str


class Status(NamedTuple):
    """One conversation for a reader."""

    name: str
    diverged: Reason | None
    waits: bool
    counts: dict[str, int]


Decision = Release | Drop | Diverged

REASONS = len(Reason)


class Settings(msgspec.Struct, frozen=True):
    """Limits.  A time is how long a frame waits before that is a divergence."""

    vnet: bool = False
    """Frames have a virtio-net header in front."""
    wait_ms: float = 20.0
    """For what a client may be waiting for: a checkpoint under the periodic policy would come no later."""
    ack_wait_ms: float = 100.0
    """For a pure acknowledgement: delayed ones differ by 40 ms, and a client retransmits after 200 ms."""
    console_wait_ms: float = 100.0
    """For the console, where somebody reads and no protocol waits."""
    alone_ms: float = 500.0
    """For the secondary's words that the primary did not say: they delay nobody."""
    connections_max: int = 16384
    """QEMU's figure; the one unused for longest makes room."""
    idle_ms: float = 7_500_000.0
    """Just over the two hours after which Linux probes an idle connection."""
    linger_ms: float = 120_000.0
    """After its end: twice Linux's TIME_WAIT."""
    queue_max: int = 1024
    """Frames that one connection keeps of one side; QEMU's figure."""
    frames_max: int = 16384
    bytes_max: int = 64 << 20
    """Kept in all, of both sides; the primary's go up to twice as much while a checkpoint is made."""
    history_bytes: int = 64 << 20
    """Of released streams, in all, for comparing retransmissions with."""

    @property
    def l2(self) -> int:
        return VNET_HEADER if self.vnet else 0


HISTORY_MAX = 1 << 20
"""Bytes of history of one connection: more than a host on a local network has in flight."""


class Tally:
    """What is kept, and what was decided, in all; connections have counts of their own."""

    __slots__ = ("bytes_kept", "counts", "divergences", "frames_kept", "history_max", "settings")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.frames_kept = 0
        self.bytes_kept = 0
        self.history_max = HISTORY_MAX
        self.counts = [0] * REASONS  # releases and drops
        self.divergences = [0] * REASONS

    def share_history(self, connections: int) -> None:
        """Each of them may keep its part; those that came before the others keep what they have."""
        self.history_max = min(HISTORY_MAX, self.settings.history_bytes // max(connections, 1))

    def keep(self, frame: bytes) -> None:
        self.frames_kept += 1
        self.bytes_kept += len(frame)

    def let_go(self, frame: bytes) -> None:
        self.frames_kept -= 1
        self.bytes_kept -= len(frame)

    def full(self, share: int = 1) -> bool:
        """Is more kept than the limit, or than ``share`` times it?"""
        limits = self.settings
        return (
            self.frames_kept >= share * limits.frames_max
            or self.bytes_kept >= share * limits.bytes_max
        )  # fmt: skip

    def named(self) -> dict[str, int]:
        """Decisions by the name of their reason; divergences apart, since some reasons are of both."""
        words = {Reason(n).name.lower(): count for n, count in enumerate(self.counts) if count}
        return words | {
            f"diverged_{Reason(n).name.lower()}": count for n, count in enumerate(self.divergences) if count
        }
