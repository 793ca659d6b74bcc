"""The primary's machine in one pairing: what :mod:`colo.primary` calls, on a real machine.

The pause is :meth:`Leading._pause`, a job of the guest thread: take the pages that may have changed,
copy them, pack the device state, cut the held output.  Everything else happens in the loop thread
while the guest runs.

Nothing is held before epoch 0 is cut, because before that nobody could take over; from that cut on
every packet and console byte belongs to an epoch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from colo.errors import PeerLost
from colo.filters import protect, unprotect
from colo.messages import HELD_MAX, VmstateSize
from colo.node.input_mirror import InputMirror
from colo.node.replica import EpochRecord, Replica
from colo.pages import dirty
from colo.pages.delta import Outgoing
from colo.peer import Peer
from colo.policy import Facts, Policy
from colo.primary import Batches
from vmm.ram import PAGE_SIZE

PAUSE_BUDGET_MS_DEFAULT = 5.0
"""The initial synchronisation stops the guest when what is left can be copied in this time."""
COPY_BYTES_PER_MS = 4 << 20
"""What the pause copies: measured at 5 to 8 MiB a millisecond on one core, taken with a margin."""
STALL_S = 10.0
"""Without any progress of a checkpoint; a guest's output waits all that time."""
ROUNDS_MAX = 40
"""Live rounds after which the rest is copied in a longer pause."""
THROTTLE_FIRST, THROTTLE_STEP, THROTTLE_MAX = 0.2, 0.15, 0.95
"""The share of time that a guest which dirties faster than the link carries stands still."""

Candidates = npt.NDArray[np.uint32] | None
"""Pages that may have changed; None: any."""


@dataclass
class Settings:
    """What a node may be told about its checkpoints (QMP ``migrate-set-parameters``)."""

    pause_budget_ms: float = PAUSE_BUDGET_MS_DEFAULT
    verify: bool = False
    dirty_source: dirty.Wanted = "auto"


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


class _Captured:
    """One epoch between its pause and its last batch (:class:`colo.primary.Capture`)."""

    def __init__(self, leading: Leading, epoch: int, reason: str) -> None:
        self.epoch, self.reason = epoch, reason
        self.sections: dict[str, bytes] = {}
        self.digest = b""
        self.pages_copied = self.pages_sent = self.bytes_sent = 0
        self.pages_before = 0
        """Sent in live rounds of the same epoch."""
        self.asked_s = self.stopped_s = self.resumed_s = 0.0
        self.held_packets = 0
        self._leading = leading

    def batches(self) -> Batches:
        for count, data in self._leading.encoded():
            self.pages_sent += count
            self.bytes_sent += len(data)
            self._leading.expect_progress()
            yield count, data

    def vmstate(self) -> VmstateSize:
        held = self._leading.replica.hold.taken(self.epoch, HELD_MAX)
        self.bytes_sent += sum(map(len, self.sections.values()))
        pages = self.pages_before + self.pages_sent
        return VmstateSize(self.epoch, self.digest, pages, self.sections, held)


class Leading:
    """``replica`` as the primary of one pairing.  Made and used in the loop thread."""

    def __init__(
        self,
        replica: Replica,
        policy: Policy,
        settings: Settings,
        protected: Callable[[], None],
        *,
        overdue: Callable[[], bool] = lambda: False,
        compress: bool = False,
    ) -> None:
        """``protected`` is called when the secondary has installed epoch 0; ``overdue`` tells whether
        this node has been silent for so long that the peer may have taken it for dead.

        ``compress`` pays where the link is slower than two processors at 2 ms a MiB: between hosts.
        """
        self.replica = replica
        self._protected = protected
        self._overdue = overdue
        self.policy = policy
        self.settings = settings
        self.pair, self.node, self.generation = replica.pair, replica.node, replica.generation
        self.has_promised = False
        self.epoch = -1
        """The last one committed."""
        self.progress = Progress(started_s=time.monotonic())
        self.throttle = 0.0
        self._machine = replica.machine
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._requested: str | None = None
        self._over_limit = False
        self._lost: str | None = None
        self._ended: str | None = None
        self._captured: _Captured | None = None
        self._left_over: Candidates = np.empty(0, np.uint32)
        self._cut_s = time.monotonic()
        self._mirror = InputMirror(replica.statistics.totals)
        self._peer: Peer | None = None
        self._patience = self._loop.call_later(0, lambda: None)
        self.source = dirty.open_source(self._machine.ram, settings.dirty_source)
        size = self._machine.ram.size
        self._shadow = np.zeros(size, np.uint8)
        self._outgoing = Outgoing(size, compress)
        self.progress.total = self.progress.remaining = size

    # Events, in the loop thread

    def request(self, reason: str) -> None:
        """A checkpoint is wanted at once."""
        self._requested = self._requested or reason
        self._changed.set()

    def lose(self, reason: str) -> None:
        """The peer is gone: nothing may go on waiting for it."""
        self._lost = self._lost or reason
        self._changed.set()

    def guest_ended(self, reason: str) -> None:
        """The guest switched itself off, or was."""
        self._ended = reason
        self._changed.set()

    def output_held(self, too_much: bool) -> None:
        """Output is held that was not, or more than there should be."""
        self._over_limit = self._over_limit or too_much
        self._changed.set()

    # What colo.primary asks

    async def due(self) -> str | None:
        while True:
            self._changed.clear()
            if self._lost is not None:
                raise PeerLost(self._lost)
            if self._ended is not None:
                return None
            decision = self.policy.decide(self._facts())
            if decision.reason is not None:
                self._requested, self._over_limit = None, False
                self._reason = decision.reason
                return decision.reason
            await self._changed_within(decision.wait_ms)

    async def _changed_within(self, wait_ms: float) -> None:
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._changed.wait()
        except TimeoutError:
            return

    _reason = "synchronisation"

    def _facts(self) -> Facts:
        hold = self.replica.hold
        return Facts(
            since_ms=(time.monotonic() - self._cut_s) * 1000,
            held_packets=hold.held_frames,
            over_limit=self._over_limit,
            requested=self._requested,
        )

    def live_round(self) -> Batches | None:
        candidates = self._take()
        progress = self.progress
        left = self._left(candidates)
        progress.remaining = left * PAGE_SIZE
        fits = left * PAGE_SIZE <= self.settings.pause_budget_ms * COPY_BYTES_PER_MS
        if (fits and progress.rounds) or progress.rounds >= ROUNDS_MAX:
            self._left_over = candidates
            return None
        self._throttle_if_needed(left)
        progress.rounds += 1
        return self._live(candidates)

    def _left(self, candidates: Candidates) -> int:
        """Pages still to be sent.  Of a source that cannot tell: about as many as the last round sent."""
        if candidates is not None:
            return len(candidates)
        return self._last_round if self.progress.rounds else self._machine.ram.size // PAGE_SIZE

    _last_round = _left_before = 0

    def _throttle_if_needed(self, left: int) -> None:
        """Slow the guest when a round left about as much as the one before."""
        if self.progress.rounds >= 3 and left * 4 > self._left_before * 3:
            step = THROTTLE_FIRST if not self.throttle else THROTTLE_STEP
            self.throttle = min(self.throttle + step, THROTTLE_MAX)
            self.replica.guest.throttle = self.progress.throttle = self.throttle
        self._left_before = left

    def _live(self, candidates: Candidates) -> Batches:
        """A page that is written while it is copied is written after it was taken, so comes again."""
        self._last_round = 0
        for count, data in self._outgoing.live(self._machine.ram.array, self._shadow, candidates):
            self._last_round += count
            self.progress.pages_sent += count
            self.progress.bytes_sent += len(data)
            yield count, data

    def encoded(self) -> Batches:
        """What the last capture found changed; the shadow is then what the secondary will have."""
        return self._outgoing.batches(self._shadow)

    def capture(self, epoch: int) -> _Captured:
        captured = _Captured(self, epoch, self._reason)
        if epoch == 0:
            captured.pages_before = self.progress.pages_sent
        self.expect_progress()
        self._left_over = self._take()  # nearly all of it, while the guest runs; and the page tables are warm
        captured.asked_s = time.monotonic()
        self.replica.guest.call(lambda: self._pause(captured))
        if self.throttle:
            self.throttle = self.replica.guest.throttle = 0.0
        self._captured = captured
        return captured

    def _pause(self, captured: _Captured) -> None:
        """In the guest thread, between two blocks: all of the pause."""
        captured.stopped_s = time.monotonic()
        machine, replica = self._machine, self.replica
        candidates = self._take()
        captured.pages_copied = self._outgoing.capture(machine.ram.array, self._shadow, candidates)
        captured.sections = machine.everything_unchecked()
        if self.settings.verify:
            captured.digest = machine.state_hash()
        if captured.epoch == 0:
            machine.door.heard = self._mirror.hear
            protect(replica.nets, replica.hold)
            replica.hold.begin()
        captured.held_packets = replica.hold.held_frames
        replica.hold.cut(captured.epoch)
        self._mirror.epoch = captured.epoch + 1
        captured.resumed_s = self._cut_s = time.monotonic()

    def _take(self) -> Candidates:
        """What may have changed since the last take, and what an earlier take left over."""
        fresh, left_over = self.source.take(), self._left_over
        self._left_over = np.empty(0, np.uint32)
        if fresh is None or left_over is None:
            return None
        return np.union1d(fresh, left_over) if len(left_over) else fresh

    def promised(self) -> None:
        self.has_promised = True

    def expect_progress(self) -> None:
        """A peer whose heart beats and which does nothing else is as good as dead."""
        self._patience.cancel()
        self._patience = self._loop.call_later(STALL_S, self._stalled)

    def _stalled(self) -> None:
        if self._peer is not None:
            self._peer.close(f"the checkpoint came no further for {STALL_S:g} s")

    def commit(self, epoch: int) -> None:
        self._patience.cancel()
        if self._overdue():
            raise PeerLost("this node stood still for longer than its peer waits: it may have gone on alone")
        self.replica.hold.release(epoch)
        self.epoch = epoch
        captured = self._captured
        assert captured is not None
        now = time.monotonic()
        record = EpochRecord(
            epoch=epoch,
            reason=captured.reason,
            pause_ms=(captured.resumed_s - captured.stopped_s) * 1000,
            stop_ms=(captured.stopped_s - captured.asked_s) * 1000,
            pages_copied=captured.pages_copied,
            pages_sent=captured.pages_sent,
            bytes_sent=captured.bytes_sent,
            held_packets=captured.held_packets,
            commit_ms=(now - captured.stopped_s) * 1000,
        )
        self.replica.statistics.add(record)
        self.replica.report("epoch", {"record": record})

    def loaded(self, epoch: int) -> None:
        if epoch == 0:
            self.progress.finished_s = time.monotonic()
            self._protected()
        if self._captured is not None and self._captured.digest:
            self.replica.statistics.totals.verified += 1

    def ended(self) -> str:
        return self._ended or ""

    def attach(self, peer: Peer) -> None:
        """Where inputs go, and what is shut when nothing moves."""
        self._peer = peer
        self._mirror.attach(peer)

    # The end of the pairing

    def freeze(self) -> None:
        self.replica.guest.freeze()
        self.replica.guest.call(self._stop_mirroring)

    def _stop_mirroring(self) -> None:
        self._machine.door.heard = None

    def go_alone(self) -> None:
        replica = self.replica
        replica.guest.call(self._hold_nothing)
        self._dissolve()
        replica.guest.thaw()

    def halt(self) -> None:
        self.replica.mute()
        self.replica.hold.drop_all()
        self._dissolve()

    def shut_down(self) -> None:
        """The guest ended and the secondary knows: its last words may go."""
        self.replica.guest.call(self._hold_nothing)
        self._dissolve()

    def _hold_nothing(self) -> None:
        self.replica.hold.end()
        unprotect(self.replica.nets)

    def _dissolve(self) -> None:
        self._patience.cancel()
        self.replica.guest.throttle = 0.0
        self.source.close()
