"""The primary's machine in one pairing: what :mod:`colo.primary` calls, on a real machine.

The pause is :meth:`Leading._pause`, a job of the guest thread: take the pages that may have changed,
copy them, pack the device state, cut the held output.  Everything else happens in the loop thread
while the guest runs.

What may go before the commit is a rule of its own (:mod:`colo.node.early`), which begins in the pause.

Nothing is held before epoch 0 is cut, because before that nobody could take over; from that cut on
every packet and console byte belongs to an epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from colo.errors import PeerLost
from colo.filters import protect, unprotect
from colo.life import Life
from colo.messages import HELD_MAX, VmstateSize
from colo.node.changes import Changes
from colo.node.compared import TICK_S, Compared
from colo.node.early import Early, Waiting
from colo.node.fence import OVERDUE, Fence
from colo.node.input_mirror import InputMirror
from colo.node.logged import Logged
from colo.node.precopy import Precopy
from colo.node.replica import EpochRecord, Replica
from colo.node.translation import packed
from colo.pages import dirty
from colo.peer import Peer
from colo.policy import Facts, Policy
from colo.primary import Batches
from colo.transport.companion import Companion

PAUSE_BUDGET_MS_DEFAULT = 5.0
"""The initial synchronisation stops the guest when what is left can be copied in this time."""
LAG_LOOK_S = 0.5
STALL_S = 10.0
"""Without any progress of a checkpoint; a guest's output waits all that time."""
T = TypeVar("T")


@dataclass
class Settings:
    """What a node may be told about its checkpoints (QMP ``migrate-set-parameters``)."""

    pause_budget_ms: float = PAUSE_BUDGET_MS_DEFAULT
    verify: bool = False
    dirty_source: dirty.Wanted = "auto"
    compare: str = "strict"
    """Mode of comparison under policy ``colo`` (:mod:`colo.compare.comparison`)."""


class _Captured:
    """One epoch between its pause and its last batch (:class:`colo.primary.Capture`)."""

    def __init__(self, leading: Leading, epoch: int, reason: str) -> None:
        self.epoch, self.reason = epoch, reason
        self.life = Life.WAIT
        self.sections: dict[str, bytes] = {}
        self.translations: dict[str, bytes] = {}
        self.digest = b""
        self.pages_copied = self.pages_sent = self.bytes_sent = 0
        self.pages_before = 0
        """Sent in live rounds of the same epoch."""
        self.asked_s = self.stopped_s = self.resumed_s = 0.0
        self.held_packets = 0
        self._leading = leading

    def batches(self) -> Batches:
        for count, data in self._leading.changes.encoded():
            self.pages_sent += count
            self.bytes_sent += len(data)
            self._leading.expect_progress()
            yield count, data

    def vmstate(self) -> VmstateSize:
        held = self._leading.replica.hold.taken(self.epoch, HELD_MAX)
        self.bytes_sent += sum(map(len, self.sections.values()))
        pages = self.pages_before + self.pages_sent
        return VmstateSize(self.epoch, self.digest, pages, self.sections, held, self.translations)


class Leading:
    """``replica`` as the primary of one pairing.  Made and used in the loop thread."""

    def __init__(
        self,
        replica: Replica,
        policy: Policy,
        settings: Settings,
        protected: Callable[[], None],
        companion: Companion,
        *,
        overdue: Callable[[], bool] = lambda: False,
        compress: bool = False,
    ) -> None:
        """``protected`` is called when the secondary has installed epoch 0; ``overdue`` tells whether
        this node has been silent for so long that the peer may have taken it for dead.

        ``compress`` pays where the link is slower than two processors at 2 ms a MiB: between hosts.
        """
        self.replica = replica
        self._now_s = replica.now_s
        self._protected = protected
        self._overdue = overdue
        self.policy = policy
        self.settings = settings
        self.pair, self.node, self.generation = replica.pair, replica.node, replica.generation
        self.has_promised = False
        self.epoch = -1
        """The last one committed."""
        self.changes = Changes(replica.machine.ram, settings.dirty_source, compress)
        self._precopy = Precopy(replica.guest, self.changes, replica.now_s())
        self.progress = self._precopy.progress
        self._machine = replica.machine
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._requested: str | None = None
        self._over_limit = False
        self._lost: str | None = None
        self._ended: str | None = None
        self._captured: _Captured | None = None
        self._cut_s, self._cut_epoch = self._now_s(), -1
        self._mirror = InputMirror(replica.statistics.totals)
        self._rules = self._all_rules(companion)
        self.early = self._rules[Life.WAIT]
        self._peer: Peer | None = None
        self._patience = self._ticking = self._loop.call_later(0, lambda: None)

    def _all_rules(self, companion: Companion) -> dict[Life, Early]:
        replica, settings = self.replica, self.settings
        fence = Fence(companion, self._overdue, self._from_guest(self.lose))
        return {
            Life.WAIT: Waiting(replica, self._mirror),
            Life.FOLLOW: Logged(replica, companion, self._from_guest(self._note_divergence), fence),
            Life.RUN: Compared(
                replica, companion, lambda: settings.compare, self._from_guest(self._note_difference), fence
            ),
        }

    def _from_guest(self, act: Callable[[T], None]) -> Callable[[T], None]:
        """``act`` in the loop's thread."""

        def hand_on(told: T) -> None:
            self._loop.call_soon_threadsafe(act, told)

        return hand_on

    # Events, in the loop thread

    def _note_difference(self, told: tuple[int, str]) -> None:
        """The two guests do not say the same: a checkpoint ends that, unless one was made since."""
        epoch, cause = told
        if epoch == self._cut_epoch:
            self.request(cause)

    def _note_divergence(self, facts: dict[str, Any]) -> None:
        """The secondary's guest is not what it should be: only a checkpoint makes it so."""
        self.replica.statistics.totals.divergences += 1
        self.replica.report("diverged", facts)
        if facts["epoch"] == self._cut_epoch:
            self.request("divergence")

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
        self._patience.cancel()
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
                self.expect_progress()  # from its first word on
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
            since_ms=(self._now_s() - self._cut_s) * 1000,
            held_packets=hold.held_frames,
            over_limit=self._over_limit,
            requested=self._requested,
        )

    def live_round(self) -> Batches | None:
        return self._precopy.next_round(self.settings.pause_budget_ms)

    def capture(self, epoch: int) -> _Captured:
        captured = _Captured(self, epoch, self._reason)
        if epoch == 0:
            captured.pages_before = self.progress.pages_sent
        self.expect_progress()
        self.changes.leave(self.changes.take())  # nearly all, while the guest runs; and page tables are warm
        captured.asked_s = self._now_s()
        self.replica.guest.call(lambda: self._pause(captured))
        self._precopy.end()
        self._captured = captured
        return captured

    def _pause(self, captured: _Captured) -> None:
        """In the guest thread, between two blocks: all of the pause."""
        captured.stopped_s = self._now_s()
        machine, replica = self._machine, self.replica
        captured.pages_copied = self.changes.capture()
        captured.sections = machine.everything_unchecked()
        if self.settings.verify:
            captured.digest = machine.state_hash()
        if captured.epoch == 0:
            protect(replica.nets, replica.hold)
            replica.hold.begin()
        captured.held_packets = replica.hold.held_frames
        replica.hold.cut(captured.epoch)
        captured.life = self.policy.life
        captured.translations = packed(replica.nets, machine.clock.now_ns / 1e6)
        self._begin_rule(captured)
        self._cut_epoch = captured.epoch
        captured.resumed_s = self._cut_s = self._now_s()

    def _begin_rule(self, captured: _Captured) -> None:
        rule = self._rules[captured.life]
        if rule is not self.early:
            self.early.end()
            self.replica.hold.gate = None
            self.early = rule
        rule.begin(captured.epoch)

    def promised(self) -> None:
        self.has_promised = True

    def expect_progress(self) -> None:
        """A peer whose heart beats and which does nothing else is as good as dead."""
        self._patience.cancel()
        self._patience = self._loop.call_later(STALL_S, self._stalled, "the checkpoint came no further")

    def _tick(self) -> None:
        """Have the rule look at what waits, for as long as it is the rule."""
        self._ticking.cancel()
        rule = self.early
        if isinstance(rule, Compared) and self._lost is None:
            if rule.waits:
                self.replica.guest.post(rule.tick)
            self._ticking = self._loop.call_later(TICK_S, self._tick)
        elif isinstance(rule, Logged) and self._lost is None:
            if rule.lag_s > STALL_S:
                self._stalled("the log was not followed")
            self._ticking = self._loop.call_later(LAG_LOOK_S, self._tick)

    def _stalled(self, what: str) -> None:
        if self._peer is not None:
            self._peer.close(f"{what} for {STALL_S:g} s")

    def commit(self, epoch: int) -> None:
        self.expect_progress()
        if self._overdue():
            raise PeerLost(OVERDUE)
        released = self.replica.hold.release(epoch)
        if self.early.life is not Life.WAIT:
            self.replica.guest.post(self.early.open)
            self._tick()
        self.epoch = epoch
        captured = self._captured
        assert captured is not None
        now = self._now_s()
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
            held_age_ms=released.age_ns / 1e6,
        )
        self.replica.statistics.add(record)
        self.replica.report("epoch", {"record": record})

    def loaded(self, epoch: int) -> None:
        if epoch == 0:
            self.progress.finished_s = self._now_s()
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
        self.replica.guest.call(self.early.end)

    def go_alone(self) -> None:
        replica = self.replica
        replica.guest.call(self._hold_nothing)
        self._dissolve()
        replica.guest.thaw()

    def halt(self) -> None:
        self.replica.mute()
        self.replica.hold.gate = None
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
        self._ticking.cancel()
        self._precopy.end()
        self.changes.close()
