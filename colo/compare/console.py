"""The two machines' consoles: one stream of bytes each, and what is the same from the left may go.

A serial line has no packets: where a piece ends depends on when somebody looked, so pieces are not
compared, bytes are, in their order.  What both said, as far as both have spoken without a difference, is
released; so a reader may see a part of what was written at once.  That is safe for the reason that bytes of
TCP are (:mod:`colo.compare.tcp`), and simpler: nobody acknowledges anything, so a reader who has seen a
prefix of what the secondary said can be served by the secondary.

A difference is a divergence at the first byte that differs; so is what one of the two did not say in time.
:attr:`Settings.console_wait_ms` is longer than for frames, because a program prints a line in pieces and a
person reads them.

The calls are those of :class:`colo.compare.comparison.Comparison`.  **Limits**: ``BYTES_MAX`` of each
side; the primary's go up to twice as much while a checkpoint is made, then what comes is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from colo.compare.stream import Chunk, first_difference
from colo.compare.verdict import Decision, Diverged, Drop, Reason, Release, Settings, Status, Tally

BYTES_MAX = 1 << 20
"""Of one side: what a back end keeps for a peer that is slow to read."""
HARD = 2
"""Times ``BYTES_MAX`` that may wait while the checkpoint is made that ends it."""


class ConsoleComparison:
    """Of one console, called ``name``."""

    __slots__ = (
        "_diverged",
        "_mine",
        "_position",
        "_since",
        "_theirs",
        "_theirs_since_ms",
        "name",
        "settings",
        "tally",
    )

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.name = name
        self.settings = settings or Settings()
        self.tally = Tally(self.settings)
        self._mine = bytearray()  # of the primary, not released
        self._theirs = bytearray()  # of the secondary, not said by the primary
        self._position = 0  # of the first byte that is not released
        self._since: deque[tuple[int, float]] = deque()  # where a piece of the primary ends, and since when
        self._theirs_since_ms = 0.0
        self._diverged: Reason | None = None

    # Bytes

    def feed_primary(self, data: bytes, now_ms: float) -> list[Decision]:
        out: list[Decision] = []
        if len(self._mine) + len(data) > HARD * BYTES_MAX:
            self._diverge(Reason.QUEUE_FULL, "the primary's console waits", out)
            self.tally.counts[Reason.QUEUE_FULL] += 1
            out.append(Drop(data, Reason.QUEUE_FULL, True))
            return out
        self._mine += data
        self._since.append((self._position + len(self._mine), now_ms))
        self._advance(now_ms, out)
        if len(self._mine) > BYTES_MAX:
            self._diverge(Reason.QUEUE_FULL, "the primary's console waits", out)
        return out

    def feed_secondary(self, data: bytes, now_ms: float) -> list[Decision]:
        reason = Reason.CARRIED if self._diverged is None else Reason.DIVERGED
        self.tally.counts[reason] += 1
        out: list[Decision] = [Drop(data, reason)]
        if self._diverged is None:
            if not self._theirs:
                self._theirs_since_ms = now_ms
            self._theirs += data
            self._advance(now_ms, out)
            if len(self._theirs) > BYTES_MAX:
                self._diverge(Reason.QUEUE_FULL, "the secondary is too far ahead", out)
        return out

    def _advance(self, now_ms: float, out: list[Decision]) -> None:
        """Release what both said; find the first difference."""
        length = min(len(self._mine), len(self._theirs))
        if not length or self._diverged is not None:
            return
        mine, theirs = bytes(self._mine[:length]), bytes(self._theirs[:length])
        same = length
        if mine != theirs:
            same = first_difference(Chunk(0, length, 0, mine), Chunk(0, length, 0, theirs), 0, length)
        if same:
            del self._theirs[:same]
            self._theirs_since_ms = now_ms
            self._release(mine[:same], Reason.MATCHED, out)
        if same < length:
            self._diverge(Reason.PAYLOAD, f"byte {self._position} differs", out)

    def _release(self, data: bytes, reason: Reason, out: list[Decision]) -> None:
        """``data`` is what waits from the left."""
        del self._mine[: len(data)]
        self._position += len(data)
        while self._since and self._since[0][0] <= self._position:
            self._since.popleft()
        self.tally.counts[reason] += 1
        out.append(Release(data, reason))

    def _diverge(self, reason: Reason, detail: str, out: list[Decision]) -> None:
        if self._diverged is None:
            self._diverged = reason
            self.tally.divergences[reason] += 1
            out.append(Diverged(reason, self.name, detail))
            self._theirs.clear()

    # Time

    @property
    def waits(self) -> bool:
        return bool(self._mine or self._theirs)

    def tick(self, now_ms: float) -> list[Decision]:
        out: list[Decision] = []
        limits = self.settings
        if self._mine and self.held_age_ms(now_ms) >= limits.console_wait_ms:
            self._diverge(Reason.LATE_PAYLOAD, f"{len(self._mine)} bytes of the primary wait", out)
        elif self._theirs and now_ms - self._theirs_since_ms >= limits.alone_ms:
            self._diverge(Reason.SECONDARY_ALONE, f"{len(self._theirs)} bytes", out)
        return out

    def held_age_ms(self, now_ms: float) -> float:
        return now_ms - self._since[0][1] if self._since else 0.0

    def checkpoint(self) -> list[Decision]:
        """The secondary becomes what the primary is: all that waits may go at the commit."""
        out: list[Decision] = []
        if self._mine:
            self._release(bytes(self._mine), Reason.CHECKPOINT, out)
        self._theirs.clear()
        self._diverged = None
        return out

    def forget(self) -> None:
        """Nothing is remembered beyond a checkpoint."""

    # For a reader

    @property
    def counts(self) -> dict[str, int]:
        return self.tally.named()

    def conversations(self) -> Iterator[Status]:
        counts = {Reason(n).name.lower(): count for n, count in enumerate(self.tally.counts) if count}
        yield Status(self.name, self._diverged, self.waits, counts)
