"""Do the two machines say the same?  Their frames in, decisions out; no I/O, no clock.

    comparison = open_comparison("strict", Settings(vnet=True))
    for decision in comparison.feed_primary(frame, now_ms): ...
    for decision in comparison.feed_secondary(frame, now_ms): ...
    for decision in comparison.tick(now_ms): ...       # every few milliseconds
    for decision in comparison.checkpoint(): ...       # between a capture and its commit

This is the heart of COLO (Dong and others, SoCC 2013): two machines get the same input and run on their
own; as long as a client could not tell which of them it talks to, the primary's answers go out at once.
What "could not tell" means is in :mod:`colo.compare.tcp` and :mod:`colo.compare.other`; mode ``qemu`` is
:mod:`colo.compare.qemu`.

**Every frame ends once.**  A frame of the primary is released, waits, or, beyond every limit, is dropped,
as a network may.  A frame of the secondary is dropped when it comes: what it told is noted.

**Divergence** asks for a checkpoint, once for each conversation and checkpoint.  Frames of that
conversation wait for it; the others go on, since what is released of them is what the secondary said.

**Duties of the caller.**  The secondary's frames come in the order in which it sent them, after its
rewriter, and none from before a checkpoint comes after it.  Between the moment a checkpoint captures the
primary and its commit nothing is fed: what the primary says then belongs to the next epoch, and waits.
:meth:`Comparison.checkpoint` is called in that time.  It takes the primary's word for the secondary's, which
comes true at the commit: what it releases may go then, not before.  So whoever calls it at the capture
gets, as its releases, what has to wait for that commit.  ``now_ms`` never goes back.

**Limits** are :class:`colo.compare.verdict.Settings`.  Memory is bounded whatever either machine sends:
by frames and bytes kept, conversations, history, incomplete datagrams, and segments ahead of a gap.
"""

from __future__ import annotations

from collections.abc import Iterator

from colo.compare.connections import Conversation, Table
from colo.compare.fragments import Reassembly, Refused
from colo.compare.other import Flow, content
from colo.compare.packet import FRAGMENT, TCP, Packet, other, parse
from colo.compare.qemu import QemuComparison
from colo.compare.tcp import TcpConnection
from colo.compare.verdict import Decision, Diverged, Drop, Reason, Release, Settings, Status, Tally

__all__ = ["MODES", "Comparison", "Diverged", "Drop", "Reason", "Release", "Settings", "open_comparison"]


class Comparison:
    """Mode ``strict``."""

    __slots__ = ("_flows", "_fragments", "_l2", "_nowhere", "_tcp", "settings", "tally")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.tally = Tally(self.settings)
        self._l2 = self.settings.l2
        self._tcp = Table[TcpConnection](self.tally, TcpConnection)
        self._flows = Table[Flow](self.tally, Flow)
        self._fragments = {True: Reassembly(), False: Reassembly()}
        self._nowhere = self._make_nowhere()

    def _make_nowhere(self) -> Flow:
        """Where frames wait for a checkpoint that no conversation has room for."""
        flow = Flow(other(b""), self.tally, 0)
        flow.name = "no conversation"
        return flow

    # Frames

    def feed_primary(self, frame: bytes, now_ms: float) -> list[Decision]:
        out: list[Decision] = []
        packet: Packet | None = parse(frame, self._l2)
        if packet is not None and packet.kind is FRAGMENT:
            packet = self._collect(packet, True, now_ms, out)
        if packet is not None:
            table = self._tcp if packet.kind is TCP else self._flows
            found: TcpConnection | Flow | None = table.find(packet, now_ms)
            if found is None:
                self._wait_nowhere([packet], Reason.TABLE_FULL, "every conversation waits", now_ms, out)
            else:
                found.feed_primary(packet, now_ms, out)
                if not found.listed and found.waits():
                    table.list_waiting(found)  # type: ignore[arg-type]
        return out

    def feed_secondary(self, frame: bytes, now_ms: float) -> list[Decision]:
        out: list[Decision] = []
        packet: Packet | None = parse(frame, self._l2)
        if packet is not None and packet.kind is FRAGMENT:
            packet = self._collect(packet, False, now_ms, out)
        if packet is not None:
            table = self._tcp if packet.kind is TCP else self._flows
            found: TcpConnection | Flow | None = table.find(packet, now_ms)
            if found is None:
                self._nowhere.drop(packet, Reason.TABLE_FULL, out)
            else:
                found.feed_secondary(packet, now_ms, out)
                if not found.listed and found.waits():
                    table.list_waiting(found)  # type: ignore[arg-type]
        return out

    def _collect(self, packet: Packet, primary: bool, now_ms: float, out: list[Decision]) -> Packet | None:
        """A fragment; the datagram that it completes."""
        if self.tally.full(2 if primary else 1):
            self._nowhere.drop(packet, Reason.QUEUE_FULL, out, primary)
            return None
        self.tally.keep(packet.frame)
        try:
            whole = self._fragments[primary].add(packet, now_ms)
        except Refused as exc:
            self._give_up(exc.packets, primary, str(exc), now_ms, out)
            return None
        for frame in whole.frames if whole is not None else ():
            self.tally.let_go(frame)
        return whole

    def _give_up(
        self, packets: list[Packet], primary: bool, why: str, now_ms: float, out: list[Decision]
    ) -> None:
        for packet in packets:
            self.tally.let_go(packet.frame)
        if primary:
            self._wait_nowhere(packets, Reason.FRAGMENTS, why, now_ms, out)
        else:
            for packet in packets:
                self._nowhere.drop(packet, Reason.STALE, out)

    def _wait_nowhere(
        self, packets: list[Packet], reason: Reason, why: str, now_ms: float, out: list[Decision]
    ) -> None:
        self._nowhere.diverge(reason, why, out)
        for packet in packets:
            self._nowhere.hold(content(packet), packet, now_ms, out)

    # Time

    def tick(self, now_ms: float) -> list[Decision]:
        """Divergences of what waited for too long.  Forgets old conversations."""
        out: list[Decision] = []
        self._tcp.tick(now_ms, out)
        self._flows.tick(now_ms, out)
        limits = self.settings
        for primary, wait_ms in ((True, limits.wait_ms), (False, limits.alone_ms)):
            packets = self._fragments[primary].take_older(now_ms - wait_ms)
            if packets:
                self._give_up(packets, primary, "a datagram is incomplete", now_ms, out)
        return out

    @property
    def waits(self) -> bool:
        """Is anything outstanding, on either side, that a tick could find too late?"""
        fragments = self._fragments
        return bool(
            self._tcp.waiting
            or self._flows.waiting
            or self._nowhere.held
            or fragments[True].groups
            or fragments[False].groups
        )

    def held_age_ms(self, now_ms: float) -> float:
        """How long the oldest frame of the primary has been waiting."""
        times = [
            self._tcp.held_since_ms(),
            self._flows.held_since_ms(),
            self._nowhere.held_since_ms(),
            self._fragments[True].since_ms(),
        ]
        return max((now_ms - since for since in times if since is not None), default=0.0)

    def checkpoint(self) -> list[Decision]:
        """The secondary becomes what the primary is: all that waits may go at the commit.  No divergences."""
        out: list[Decision] = []
        for primary in (True, False):
            packets = self._fragments[primary].take_older(float("inf"))
            for packet in packets:
                self.tally.let_go(packet.frame)
                if primary:
                    self._nowhere.release(packet, Reason.CHECKPOINT, out)
                else:
                    self._nowhere.drop(packet, Reason.STALE, out)
        self._tcp.checkpoint(out)
        self._flows.checkpoint(out)
        self._nowhere.rebase(0, out)
        return out

    def forget(self) -> None:
        """Right after a checkpoint: the caller did not feed all that the primary said before it.

        Every conversation begins anew, which is safe (:mod:`colo.compare.connections`); one that is taken up
        where it was left might meet numbers, old to us, that are new to its client.
        """
        self._tcp.forget()
        self._flows.forget()

    # For a reader

    @property
    def counts(self) -> dict[str, int]:
        return self.tally.named()

    def conversations(self) -> Iterator[Status]:
        entries: list[Conversation] = [*self._tcp.entries.values(), *self._flows.entries.values()]
        for each in entries:
            counts = {Reason(n).name.lower(): count for n, count in enumerate(each.counts) if count}
            yield Status(each.name, each.diverged, each.waits(), counts)


MODES: dict[str, type[Comparison] | type[QemuComparison]] = {"strict": Comparison, "qemu": QemuComparison}


def open_comparison(mode: str = "strict", settings: Settings | None = None) -> Comparison | QemuComparison:
    """The comparison called ``mode``; KeyError when there is none."""
    return MODES[mode](settings)
