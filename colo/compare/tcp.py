"""TCP, both hosts' side of one connection: what the primary said may go when the secondary could go on.

Follows RFC 9293; RFC 2018 for what selective acknowledgements promise, RFC 7323 for windows and time
stamps.  Frames of the secondary come as its rewriter leaves them: in the primary's sequence numbers.

**The rule.**  A segment S of the primary is released only when the secondary, since the last checkpoint
or at it,

1. sent every byte of S, the same bytes at the same positions, in whatever segments;
2. sent the SYN, FIN or RST that S has, at the same place, a SYN with the same options;
3. acknowledged at least what S acknowledges;
4. came, if S is without bytes, at least to the number that S stands at.

**Why that is safe.**  Let the primary die after S was released.  The client knows three things from S.
It has the bytes of S and may acknowledge them: by 1 the secondary's SND.NXT is at or beyond their end,
so that acknowledgement is acceptable (RFC 9293, section 3.10.7.4), and whatever the client still lacks
is in the secondary's retransmission queue, with the bytes that it would have got.  It may have changed
state by SYN, FIN or RST: by 2 the secondary's connection made the same step.  It has thrown away what
S acknowledges, which nobody can send again: by 3 the secondary received all of it, since a TCP
acknowledges only what it has, and RCV.NXT never goes back.  So each number that the client may use lies
within what the secondary's TCP can continue from, and the stream that the client reads is a prefix of
the secondary's.  Neither half can be left out: without 1 the client acknowledges bytes that were never
sent, without 3 bytes of the client are lost for good.  4 is for the client's SND.WL1, the number that its
peer was last heard at: it ignores windows from before that, so a secondary that is behind it could not
open its window again.  What S promises beyond these may be taken back by any TCP: selectively acknowledged
bytes (RFC 2018, section 8) and window (RFC 9293, section 3.8.6).

**At a checkpoint** the secondary becomes what the primary was: it has sent all that the primary sent and
received all that the primary acknowledged, so those are where comparison goes on from.  What the former
secondary said is void, above all its acknowledgements.

**Order.**  Segments leave in the order in which the primary sent them, since their numbers grow.  Only what
repeats older numbers may overtake others that wait, as on any network; held back, a retransmission could
starve the secondary of the acknowledgement that it needs in order to say what the primary waits for.

**Ignored, and why.**  Window, selective acknowledgements: see above.  Time stamp values: clocks of two
hosts, the rewriter's business; that they are there is compared.  Initial sequence number: likewise.
PSH and the urgent pointer: advice about a stream that is the same.  ECN, and of IP the identification,
DF, TTL, type of service, flow label and options: about the path or the segment, not the connection.
Checksums: they follow from what is compared, and may be left to the card.  Bytes in a SYN (RFC 7413) are
not tracked: such a connection waits for a checkpoint.
"""

from __future__ import annotations

from collections import deque

from colo.compare.connections import Conversation
from colo.compare.packet import FIN, RST, SYN, Packet
from colo.compare.stream import Chunk, Contradiction, Overflow
from colo.compare.tcp_sides import Sides
from colo.compare.verdict import Decision, Reason, Tally

CONTROL = SYN | FIN | RST
HARD = 2
"""Times its limit that a queue may grow while the checkpoint is made that empties it."""

MATCHED, RETRANSMITTED, ACKNOWLEDGED = Reason.MATCHED, Reason.RETRANSMITTED, Reason.ACKNOWLEDGED
CARRIED = Reason.CARRIED


def reason_of(packet: Packet) -> Reason:
    """Of the release of what was covered."""
    return MATCHED if packet.end > packet.start or packet.flags & CONTROL else ACKNOWLEDGED


class TcpConnection(Conversation):
    """From SYN to the next SYN between the same ports; then :attr:`ahead` is what follows."""

    __slots__ = ("ahead", "ahead_is_primary", "held", "is_ahead", "secondary_since_ms", "sides")

    def __init__(self, first: Packet, tally: Tally, epoch: int) -> None:
        super().__init__(first, tally, epoch)
        self.sides = Sides(tally)
        self.held: deque[Packet] = deque()  # of the primary
        self.secondary_since_ms: float | None = None  # since when it said more than the primary
        self.ahead: TcpConnection | None = None  # the next incarnation, which one side has begun
        self.ahead_is_primary = False
        self.is_ahead = False

    # Frames of the primary

    def feed_primary(self, packet: Packet, now_ms: float, out: list[Decision]) -> None:
        if self.ahead is not None and self.ahead_is_primary:
            self.ahead.feed_primary(packet, now_ms, out)
            return
        flags = packet.flags
        if self.diverged is not None and self._is_crowded():
            self.drop(packet, Reason.QUEUE_FULL, out, True)
            return
        if (
            flags & SYN
            and self.sides.begins_anew(packet, True)
            and self._goes_ahead(packet, True, now_ms, out)
        ):
            return
        self.sides.place(packet, True)
        again = False
        if flags & CONTROL or not self.sides.primary.spoke:
            self._note_flags(packet, True, out)
        if packet.end > packet.start:
            again = self._take(packet, True, now_ms, out)
        if self.held and self.diverged is None:
            self._release_ready(out)  # what the primary said before goes first
        if self.diverged is None and self.sides.covered(packet):
            self.release(packet, RETRANSMITTED if again else reason_of(packet), out)
        else:
            self._hold(packet, now_ms, out)

    def _is_crowded(self) -> bool:
        return len(self.held) >= HARD * self.tally.settings.queue_max or self.tally.full(HARD)

    def _hold(self, packet: Packet, now_ms: float, out: list[Decision]) -> None:
        kept = len(self.held)
        if kept >= self.tally.settings.queue_max or self.tally.full():
            self.diverge(Reason.QUEUE_FULL, f"{kept} frames of the primary wait", out)
        self.keep(packet, now_ms)
        self.held.append(packet)

    def _release_ready(self, out: list[Decision]) -> None:
        """From the left, what is covered now: positions grow, so what is behind is not covered either."""
        while self.held and self.sides.covered(self.held[0]):
            packet = self.held.popleft()
            self.let_go(packet)
            self.release(packet, reason_of(packet), out)

    # Frames of the secondary

    def feed_secondary(self, packet: Packet, now_ms: float, out: list[Decision]) -> None:
        if self.ahead is not None and not self.ahead_is_primary:
            self.ahead.feed_secondary(packet, now_ms, out)
            return
        if self.diverged is not None:
            self.drop(packet, Reason.DIVERGED, out)
            return
        flags = packet.flags
        if (
            flags & SYN
            and self.sides.begins_anew(packet, False)
            and self._goes_ahead(packet, False, now_ms, out)
        ):
            return
        if not flags & (SYN | RST) and self.sides.awaits_secondary_syn():
            self.drop(packet, Reason.STALE, out)
            return
        self.sides.place(packet, False)
        again = False
        if flags & CONTROL or not self.sides.secondary.spoke:
            self._note_flags(packet, False, out)
        if packet.end > packet.start and self.diverged is None:
            again = self._take(packet, False, now_ms, out)
        self.drop(packet, RETRANSMITTED if again else CARRIED, out)
        if self.diverged is None:
            if self.held:
                self._release_ready(out)
            if self.secondary_since_ms is None and self.sides.secondary_alone():
                self.secondary_since_ms = now_ms

    # Both

    def _note_flags(self, packet: Packet, primary: bool, out: list[Decision]) -> None:
        wrong = self.sides.note_flags(packet, primary)
        if wrong is not None:
            self.diverge(*wrong, out)

    def _take(self, packet: Packet, primary: bool, now_ms: float, out: list[Decision]) -> bool:
        """The payload; whether all of it was said before."""
        sides = self.sides
        at = packet.at
        piece = Chunk(at, at + packet.end - packet.start, packet.start, packet.frame)
        try:
            new = sides.add(piece, primary)
            if not new:
                return True
            if self.diverged is not None:  # only kept, so that it can be compared with later
                return False
            before = sides.base
            sides.advance()
            wrong = sides.disagreement()
        except Contradiction as exc:
            reason = Reason.PAYLOAD if exc.found else Reason.UNVERIFIABLE
            self.diverge(reason, str(exc), out)
            return False
        except Overflow as exc:
            self.diverge(Reason.WINDOW if exc.far else Reason.QUEUE_FULL, str(exc), out)
            return False
        if wrong is not None:
            self.diverge(*wrong, out)
        elif not primary and (sides.secondary_count() > self.tally.settings.queue_max or self.tally.full()):
            self.diverge(Reason.QUEUE_FULL, "the secondary is too far ahead", out)
        if sides.base != before and self.secondary_since_ms is not None:
            self.secondary_since_ms = now_ms  # it goes on: the time without progress begins again
        return False

    def _goes_ahead(self, packet: Packet, primary: bool, now_ms: float, out: list[Decision]) -> bool:
        """This SYN begins the next incarnation; one may be ahead, not two: then this is a difference."""
        if self.is_ahead:
            self.diverge(Reason.SYN_DIFFERS, "several new connections of one side", out)
            return False
        if self.ahead is not None:  # where the other side is already
            self._become(self.ahead, out)
            self._feed(packet, primary, now_ms, out)
            return True
        self.ahead = TcpConnection(packet, self.tally, self.epoch)
        self.ahead.is_ahead = True
        self.ahead.counts = self.counts
        self.ahead_is_primary = primary
        self.ahead._feed(packet, primary, now_ms, out)
        return True

    def _feed(self, packet: Packet, primary: bool, now_ms: float, out: list[Decision]) -> None:
        if primary:
            self.feed_primary(packet, now_ms, out)
        else:
            self.feed_secondary(packet, now_ms, out)

    def _become(self, ahead: TcpConnection, out: list[Decision]) -> None:
        left = len(self.held)
        self.forget_secondary()
        self.ahead = None
        self.sides, self.diverged = ahead.sides, ahead.diverged or self.diverged
        self.secondary_since_ms = ahead.secondary_since_ms
        self.held.extend(ahead.held)
        if left:
            self.diverge(Reason.SYN_DIFFERS, f"a new connection while {left} frames waited", out)

    # As a conversation

    def forget_secondary(self) -> None:
        self.sides.forget_secondary()
        if self.ahead is not None:
            self.ahead.forget_secondary()

    def waits(self) -> bool:
        if self.held or self.diverged is not None or self.ahead is not None:
            return True
        return self.sides.secondary_alone()

    def ended(self) -> bool:
        return self.sides.ended()

    def held_since_ms(self) -> float | None:
        times = [self.held[0].since_ms] if self.held else []
        if self.ahead is not None and (since := self.ahead.held_since_ms()) is not None:
            times.append(since)
        return min(times, default=None)

    def expire(self, now_ms: float, out: list[Decision]) -> None:
        limits = self.tally.settings
        if self.diverged is not None:
            return
        for packet in self.held:  # the first that a client may be waiting for, and those before it
            pure = reason_of(packet) is ACKNOWLEDGED
            if now_ms - packet.since_ms >= (limits.ack_wait_ms if pure else limits.wait_ms):
                self.diverge(*self.sides.missing(packet), out)
                return
            if not pure:
                break
        if self.ahead is not None:
            self.ahead.expire(now_ms, out)
        if not self.sides.secondary_alone():
            self.secondary_since_ms = None
        elif self.secondary_since_ms is None:
            self.secondary_since_ms = now_ms
        elif now_ms - self.secondary_since_ms >= limits.alone_ms:
            self.diverge(Reason.SECONDARY_ALONE, "the primary did not say what the secondary said", out)

    def rebase(self, epoch: int, out: list[Decision]) -> None:
        for packet in self.held:
            self.let_go(packet)
            self.release(packet, Reason.CHECKPOINT, out)
        self.held.clear()
        if self.ahead is not None:
            ahead, self.ahead = self.ahead, None
            ahead.rebase(epoch, out)
            if self.ahead_is_primary:
                self.sides.forget_secondary()  # of the connection that is over, which is counted as kept
                self.sides = ahead.sides
        self.epoch = epoch
        self.diverged = None
        self.secondary_since_ms = None
        self.sides.rebase()
