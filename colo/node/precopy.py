"""The initial synchronisation: rounds of pages while the guest runs, until the rest fits a pause.

Live migration's pre-copy (Clark and others, "Live Migration of Virtual Machines", NSDI 2005).  A guest that
changes pages faster than the link carries them is slowed, more from round to round.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo.node.changes import Candidates, Changes
from colo.node.guest_thread import GuestThread
from colo.primary import Batches
from vmm.ram import PAGE_SIZE

COPY_BYTES_PER_MS = 4 << 20
"""What the pause copies: measured at 5 to 8 MiB a millisecond on one core, taken with a margin."""
ROUNDS_MAX = 40
"""Live rounds after which the rest is copied in a longer pause."""
THROTTLE_FIRST, THROTTLE_STEP, THROTTLE_MAX = 0.2, 0.15, 0.95
"""The share of time that a guest which dirties faster than the link carries stands still."""


@dataclass
class Progress:
    """Of the initial synchronisation."""

    rounds: int = 0
    pages_sent: int = 0
    bytes_sent: int = 0
    remaining: int = 0
    """Bytes that may still have to be sent."""
    total: int = 0
    throttle: float = 0.0
    started_s: float = 0.0
    finished_s: float | None = None


class Precopy:
    """The rounds of one pairing."""

    def __init__(self, guest: GuestThread, changes: Changes, now_s: float) -> None:
        self._guest = guest
        self._changes = changes
        self._pages = guest.machine.ram.size // PAGE_SIZE
        size = guest.machine.ram.size
        self.progress = Progress(started_s=now_s, total=size, remaining=size)
        self._last_round = self._left_before = 0

    def next_round(self, pause_budget_ms: float) -> Batches | None:
        """Pages that changed since the last round; None when the rest fits a pause of this budget."""
        candidates = self._changes.take()
        progress = self.progress
        left = self._left(candidates)
        progress.remaining = left * PAGE_SIZE
        fits = progress.remaining <= pause_budget_ms * COPY_BYTES_PER_MS
        if (fits and progress.rounds) or progress.rounds >= ROUNDS_MAX:
            self._changes.leave(candidates)
            return None
        self._throttle_if_needed(left)
        progress.rounds += 1
        return self._round(candidates)

    def end(self) -> None:
        """The guest runs at its own speed again; Progress keeps what it was slowed to."""
        self._guest.throttle = 0.0

    def _left(self, candidates: Candidates) -> int:
        """Pages still to be sent.  Of a source that cannot tell: about as many as the last round sent."""
        if candidates is not None:
            return len(candidates)
        return self._last_round if self.progress.rounds else self._pages

    def _throttle_if_needed(self, left: int) -> None:
        """Slow the guest when a round left about as much as the one before."""
        progress = self.progress
        if progress.rounds >= 3 and left * 4 > self._left_before * 3:
            step = THROTTLE_STEP if progress.throttle else THROTTLE_FIRST
            self._guest.throttle = progress.throttle = min(progress.throttle + step, THROTTLE_MAX)
        self._left_before = left

    def _round(self, candidates: Candidates) -> Batches:
        self._last_round = 0
        for count, data in self._changes.live(candidates):
            self._last_round += count
            self.progress.pages_sent += count
            self.progress.bytes_sent += len(data)
            yield count, data
