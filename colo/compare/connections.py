"""Conversations and the table of them: who is compared with whom, within limits.

A conversation is a TCP connection or a flow of datagrams.  The table is ordered by last use.  When it is
full, the one unused for longest that waits for nothing makes room; it is never cleared whole, so one
flood of new connections costs the idle ones, not those at work.  Ageing takes the rest: what was unused
for ``idle_ms``, or for ``linger_ms`` after its end.  A forgotten conversation that speaks again starts
anew, which is safe: nothing of it is released before the secondary said it again.

A checkpoint touches only conversations that wait for something; the others notice it by ``epoch`` when
they are next used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from colo.compare.packet import Packet, describe
from colo.compare.verdict import REASONS, Decision, Diverged, Drop, Reason, Release, Tally

TRIES_MAX = 16
"""Conversations looked at for one that may make room, and by one ageing."""


class Conversation:
    """What all have in common: a name, counts, and decisions that are counted."""

    __slots__ = ("counts", "diverged", "epoch", "last_ms", "listed", "name", "tally")

    def __init__(self, first: Packet, tally: Tally, epoch: int) -> None:
        self.name = describe(first)
        self.tally = tally
        self.epoch = epoch
        self.counts = [0] * REASONS
        self.diverged: Reason | None = None
        self.last_ms = 0.0
        self.listed = False  # among those that wait for something

    # Decisions

    def release(self, packet: Packet, reason: Reason, out: list[Decision]) -> None:
        for frame in packet.parts or (packet.frame,):
            self.counts[reason] += 1
            self.tally.counts[reason] += 1
            out.append(Release(frame, reason))

    def drop(self, packet: Packet, reason: Reason, out: list[Decision], primary: bool = False) -> None:
        for frame in packet.parts or (packet.frame,):
            self.counts[reason] += 1
            self.tally.counts[reason] += 1
            out.append(Drop(frame, reason, primary))

    def diverge(self, reason: Reason, detail: str, out: list[Decision]) -> None:
        """Say so, once for each checkpoint; from now on the primary's frames wait for that."""
        if self.diverged is None:
            self.diverged = reason
            self.counts[reason] += 1
            self.tally.divergences[reason] += 1
            out.append(Diverged(reason, self.name, detail))
            self.forget_secondary()

    def keep(self, packet: Packet, now_ms: float) -> None:
        """Count it among what waits."""
        packet.since_ms = now_ms
        for frame in packet.parts or (packet.frame,):
            self.tally.keep(frame)

    def let_go(self, packet: Packet) -> None:
        for frame in packet.parts or (packet.frame,):
            self.tally.let_go(frame)

    # What each kind does its own way

    def forget_secondary(self) -> None:
        """Give back what was kept of the secondary."""
        raise NotImplementedError

    def waits(self) -> bool:
        """Is anything outstanding, on either side?"""
        raise NotImplementedError

    def ended(self) -> bool:
        raise NotImplementedError

    def held_since_ms(self) -> float | None:
        """Since when the oldest frame of the primary waits."""
        raise NotImplementedError

    def expire(self, now_ms: float, out: list[Decision]) -> None:
        """Diverge if something waited for too long."""
        raise NotImplementedError

    def rebase(self, epoch: int, out: list[Decision]) -> None:
        """The secondary is what the primary was: release everything, go on from there."""
        raise NotImplementedError


C = TypeVar("C", bound=Conversation)


class Table(Generic[C]):
    """Conversations of one kind by key, the one used last at the end."""

    __slots__ = ("_make", "_tally", "entries", "epoch", "evicted", "waiting")

    def __init__(self, tally: Tally, make: Callable[[Packet, Tally, int], C]) -> None:
        self._tally = tally
        self._make = make
        self.entries: OrderedDict[bytes, C] = OrderedDict()
        self.waiting: dict[C, None] = {}
        self.epoch = 0
        self.evicted = 0

    def find(self, packet: Packet, now_ms: float) -> C | None:
        """The conversation of ``packet``, made if need be; None when there is no room for it."""
        found = self.entries.get(packet.key)
        if found is None:
            if len(self.entries) >= self._tally.settings.connections_max and not self._make_room():
                return None
            found = self.entries[packet.key] = self._make(packet, self._tally, self.epoch)
            self._tally.share_history(len(self.entries))
        else:
            self.entries.move_to_end(packet.key)
            if found.epoch != self.epoch:
                found.rebase(self.epoch, [])
        found.last_ms = now_ms
        return found

    def _make_room(self) -> bool:
        for _ in range(min(TRIES_MAX, len(self.entries))):
            key, oldest = next(iter(self.entries.items()))
            if not oldest.waits():
                self._forget(key, oldest)
                self.evicted += 1
                return True
            self.entries.move_to_end(key)
        return False

    def _forget(self, key: bytes, conversation: C) -> None:
        conversation.forget_secondary()
        self.waiting.pop(conversation, None)
        del self.entries[key]

    def list_waiting(self, conversation: C) -> None:
        conversation.listed = True
        self.waiting[conversation] = None

    def tick(self, now_ms: float, out: list[Decision]) -> None:
        for conversation in list(self.waiting):
            if conversation.waits():
                conversation.expire(now_ms, out)
            else:
                conversation.listed = False
                del self.waiting[conversation]
        self._age(now_ms)

    def _age(self, now_ms: float) -> None:
        """Look at some of those unused for longest; those that stay go to the end only if they wait."""
        limits = self._tally.settings
        for _ in range(min(TRIES_MAX, len(self.entries))):
            key, oldest = next(iter(self.entries.items()))
            idle_ms = now_ms - oldest.last_ms
            if idle_ms < limits.linger_ms:
                return
            if oldest.waits():
                self.entries.move_to_end(key)
            elif oldest.ended() or idle_ms >= limits.idle_ms:
                self._forget(key, oldest)
            else:
                return

    def held_since_ms(self) -> float | None:
        """Since when the oldest frame of the primary waits."""
        times = [since for each in self.waiting if (since := each.held_since_ms()) is not None]
        return min(times, default=None)

    def checkpoint(self, out: list[Decision]) -> None:
        self.epoch += 1
        for conversation in self.waiting:
            conversation.listed = False
            conversation.rebase(self.epoch, out)
        self.waiting.clear()

    def forget(self) -> None:
        """Everything; nothing may wait."""
        assert not self.waiting, "what waits is released first"
        self.entries.clear()
