"""What the two hosts have said on one TCP connection, and how far it is the same.

The theory is in :mod:`colo.compare.tcp`; here is the bookkeeping.  Positions are unwrapped sequence
numbers.  ``base`` is how far the streams were compared and found equal; it is unknown until both have
spoken on a connection that was not seen to begin, and then the earlier of their first positions.
"""

from __future__ import annotations

from itertools import chain

from colo.compare import tcp_options
from colo.compare.packet import ACK, FIN, RST, SYN, Packet
from colo.compare.seq import unwrap
from colo.compare.stream import (
    Chunk,
    Contradiction,
    History,
    Overflow,
    Stream,
    contradiction,
    equal,
    first_difference,
)
from colo.compare.verdict import Reason, Tally

WINDOW_MAX = 1 << 30
"""RFC 7323, section 2.2: no sound segment is further than this from where its stream is."""
RESETS_MAX = 8
"""Of one side: one for each segment of a client that meets a closed port."""
CONTROL = SYN | FIN | RST

Wrong = tuple[Reason, str]


class Side:
    """What one of the two has said."""

    __slots__ = ("ack", "fin", "isn", "profile", "resets", "spoke", "stream", "top")

    def __init__(self) -> None:
        self.ack: int | None = None  # the furthest position acknowledged
        self.top: int | None = None  # the furthest position that a frame ends at, bytes or none
        self.fin: int | None = None  # the position behind the last byte
        self.isn: int | None = None
        self.profile: tuple[object, ...] = ()  # of its SYN
        self.resets: dict[int, None] = {}  # sequence numbers
        self.spoke = False  # anything but a SYN
        self.stream: Stream | None = None


class Sides:
    """Both, and ``base``."""

    __slots__ = ("base", "closed", "history", "primary", "secondary", "tally")

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.primary = Side()
        self.secondary = Side()
        self.base: int | None = None
        self.closed = False  # the primary sent RST
        self.history = History(0)

    # Where a frame belongs

    def begins_anew(self, packet: Packet, primary: bool) -> bool:
        """Is this SYN of another incarnation than what its sender said before?"""
        me = self.primary if primary else self.secondary
        if me.isn is None:
            return me.spoke
        # The secondary's SYN again, this time translated by its rewriter, is still the same one.
        return packet.seq != me.isn and (primary or packet.seq != self.primary.isn)

    def awaits_secondary_syn(self) -> bool:
        """Then what the secondary says without one is of the time before the primary's."""
        return self.primary.isn is not None and self.secondary.isn is None

    def place(self, packet: Packet, primary: bool) -> None:
        """Turn its numbers into positions, and note what it acknowledges."""
        me, peer = (self.primary, self.secondary) if primary else (self.secondary, self.primary)
        near = self.base
        if near is None:
            known = me.stream or peer.stream
            near = known.front if known is not None else packet.seq
        packet.at = unwrap(packet.seq, near)
        if primary and packet.flags & CONTROL in (0, FIN):
            end = packet.at + packet.end - packet.start
            if me.top is None or me.top < end < me.top + WINDOW_MAX:
                me.top = end
        if packet.flags & ACK:
            near_ack = me.ack
            if near_ack is None:
                near_ack = packet.ack if peer.ack is None else peer.ack
            ack = packet.ack_at = unwrap(packet.ack, near_ack)
            # What nobody sent cannot be acknowledged: such a frame waits, and moves nothing.
            if ack - near_ack < WINDOW_MAX and (me.ack is None or ack > me.ack):
                me.ack = ack

    # Flags

    def note_flags(self, packet: Packet, primary: bool) -> Wrong | None:
        """SYN, FIN, RST, or a first word of any kind; what is wrong with it."""
        me = self.primary if primary else self.secondary
        flags = packet.flags
        if flags & SYN:
            return self._note_syn(packet, me)
        if flags & RST:
            if len(me.resets) >= RESETS_MAX:
                del me.resets[next(iter(me.resets))]
            me.resets[packet.seq] = None
            self.closed |= primary
            return self.disagreement()
        if not me.spoke:
            me.spoke = True
            if me.stream is None:
                me.stream = Stream(packet.at if self.base is None else self.base)
                self._align()
        if flags & FIN:
            end = packet.at + packet.end - packet.start
            if me.fin is not None and me.fin != end:
                return Reason.FIN_DIFFERS, f"a second end, at {end} instead of {me.fin}"
            me.fin = end
            return self.disagreement()
        return None

    def _note_syn(self, packet: Packet, me: Side) -> Wrong | None:
        me.isn = packet.seq
        me.resets.clear()
        me.top = None
        me.profile = (packet.flags & ACK, *tcp_options.options(packet).profile)
        if me is self.primary and self.base is None:
            self._begin(packet.seq + 1)
        packet.at = self.base if self.base is not None else packet.seq + 1
        if packet.end > packet.start:
            return Reason.SYN_DIFFERS, "bytes in a SYN are not tracked"
        both = self.primary.isn is not None and self.secondary.isn is not None
        if both and self.primary.profile != self.secondary.profile:
            return Reason.SYN_DIFFERS, f"options {self.primary.profile} and {self.secondary.profile}"
        return None

    def _begin(self, base: int) -> None:
        """The primary's first byte will be at ``base``; the secondary may have sent some of its own."""
        its = self.secondary.stream
        if its is not None:
            base = unwrap(base, its.start)
            if self.secondary.isn is None or not base <= its.start < base + WINDOW_MAX:
                self.forget_secondary()
                its = None
        self.base, self.history = base, History(base)
        self.primary.stream, self.secondary.stream = Stream(base), its or Stream(base)
        self._lower_secondary(base)

    def disagreement(self) -> Wrong | None:
        """Did one of them go on where the other had ended?"""
        mine, its = self.primary, self.secondary
        if mine.fin is None and its.fin is None and not mine.resets and not its.resets:
            return None
        if mine.fin is not None and its.fin is not None and mine.fin != its.fin:
            return Reason.FIN_DIFFERS, f"the primary ends at {mine.fin}, the secondary at {its.fin}"
        if mine.stream is None or its.stream is None:
            return None
        for one, other in ((mine, its), (its, mine)):
            assert one.stream is not None
            assert other.stream is not None
            if one.fin is not None and max(one.stream.front, other.stream.front) > one.fin:
                return Reason.FIN_DIFFERS, f"bytes behind the end at {one.fin}"
            if one.resets and other.stream.front > one.stream.front:
                return Reason.RST_DIFFERS, "one of them goes on where the other was reset"
        return None

    # Bytes

    def _align(self) -> None:
        """Both have spoken for the first time on a connection that was not seen to begin."""
        mine, its = self.primary.stream, self.secondary.stream
        if self.base is None and mine is not None and its is not None:
            self.base = min(mine.start, its.start)
            self.history = History(self.base)
            mine.lower(self.base)
            self._lower_secondary(self.base)

    def _lower_secondary(self, base: int) -> None:
        its = self.secondary.stream
        assert its is not None
        self._charge(its, -1)
        its.lower(base)
        self._charge(its, 1)

    def _charge(self, stream: Stream, sign: int) -> None:
        self.tally.frames_kept += sign * stream.count
        self.tally.bytes_kept += sign * stream.size

    def add(self, piece: Chunk, primary: bool) -> bool:
        """Take what is new in it; whether anything was."""
        stream = self.primary.stream if primary else self.secondary.stream
        if stream is None:  # in an RST: no part of the stream
            return False
        if not -WINDOW_MAX < piece.at - stream.front < WINDOW_MAX:
            raise Overflow(f"a segment at {piece.at} where the stream is at {stream.front}", far=True)
        base = self.base
        if base is not None and piece.at < (self.history.end if primary else base):
            self._check_again(piece, primary)
            if piece.end <= base:
                return False
            if piece.at < base:
                piece = Chunk(base, piece.end, piece.offset + base - piece.at, piece.frame)
        count, size = stream.count, stream.size
        try:
            if base is None:
                stream.lower(piece.at)
            return stream.add(piece)
        finally:
            if not primary:
                self.tally.frames_kept += stream.count - count
                self.tally.bytes_kept += stream.size - size

    def _check_again(self, piece: Chunk, primary: bool) -> None:
        """Compare what was verified with what is said now."""
        if primary and piece.at < self.history.start:
            raise Contradiction(f"byte {piece.at} was sent again, and no copy is left", found=False)
        assert self.primary.stream is not None
        wrong = contradiction(chain(self.history.chunks, self.primary.stream.chunks), piece)
        if wrong is not None:
            raise Contradiction(f"byte {wrong} was another one before")

    def advance(self) -> None:
        """Compare as far as both have spoken."""
        mine, its, base = self.primary.stream, self.secondary.stream, self.base
        if mine is None or its is None or base is None:
            return
        end = min(mine.front, its.front)
        while base < end:
            left, right = mine.chunks[0], its.chunks[0]
            stop = min(left.end, right.end)
            at, other = left.offset + base - left.at, right.offset + base - right.at
            if not equal(left.frame, at, right.frame, other, stop - base):
                wrong = first_difference(left, right, base, stop)
                raise Contradiction(f"byte {wrong} of the stream differs")
            base = self.base = stop
            if left.end == stop:
                self.history.add(mine.take(), self.tally.history_max)
            if right.end == stop:
                its.take()
                self.tally.frames_kept -= 1
                self.tally.bytes_kept -= right.end - right.at

    # Questions

    def covered(self, packet: Packet) -> bool:
        """The rule: could the secondary go on from where this leaves the client?"""
        flags, its, base = packet.flags, self.secondary, self.base
        if flags & ACK and (its.ack is None or packet.ack_at > its.ack):
            return False
        if not flags & (SYN | RST):
            if base is None:
                return False
            end = packet.at + packet.end - packet.start
            # Behind its FIN, which takes a number, the primary only acknowledges.
            if end > base and (its.fin is None or end > base + 1 or its.fin != base != self.primary.fin):
                return False
        return not flags & CONTROL or self._flags_covered(packet)

    def _flags_covered(self, packet: Packet) -> bool:
        flags, its, base = packet.flags, self.secondary, self.base
        if flags & SYN:
            return its.isn is not None and its.profile == self.primary.profile
        if flags & FIN:
            end = packet.at + packet.end - packet.start
            if base is None or its.fin != end or base < end:
                return False
        if flags & RST:
            front = self.primary.stream.front if self.primary.stream is not None else 0
            waits = base is not None and base < packet.at <= front
            return packet.seq in its.resets and not waits
        return True

    def missing(self, packet: Packet) -> Wrong:
        """Why ``packet`` is not covered."""
        its, end = self.secondary, packet.at + packet.end - packet.start
        if packet.flags & ACK and (its.ack is None or packet.ack_at > its.ack):
            return Reason.LATE_ACK, f"{packet.ack_at} is acknowledged, by the secondary {its.ack}"
        if packet.flags & CONTROL and (self.base is None or end <= self.base):
            return Reason.LATE_FLAG, f"flags {packet.flags:#x} at {packet.at}"
        return Reason.LATE_PAYLOAD, f"bytes up to {end}, verified up to {self.base}"

    def secondary_count(self) -> int:
        return self.secondary.stream.count if self.secondary.stream is not None else 0

    def secondary_alone(self) -> bool:
        """Did the secondary say anything that the primary did not say?"""
        mine, its = self.primary, self.secondary
        if its.stream is not None and its.stream.count:
            return True
        if (its.fin is not None and mine.fin is None) or (its.isn is not None and mine.isn is None):
            return True
        return bool(its.resets) and any(seq not in mine.resets for seq in its.resets)

    def ended(self) -> bool:
        return self.closed or self.primary.fin is not None

    # Checkpoint

    def forget_secondary(self) -> None:
        stream = self.secondary.stream
        if stream is not None:
            self._charge(stream, -1)
            front = stream.front
            self.secondary.stream = Stream(front)

    def rebase(self) -> None:
        """The secondary has said what the primary said, no more and no less."""
        mine, its = self.primary, self.secondary
        self.forget_secondary()
        if mine.stream is not None:
            self._settle(mine.stream)
        else:
            self.base = None
        its.ack, its.fin, its.isn, its.profile = mine.ack, mine.fin, mine.isn, mine.profile
        its.spoke = mine.spoke
        # A reset that is said again is compared again: one that was no end must not look like one for ever.
        mine.resets.clear()
        its.resets.clear()
        its.stream = Stream(self.base) if self.base is not None else None

    def _settle(self, stream: Stream) -> None:
        """What the primary said is verified, whether or not it was compared."""
        if self.base is None:
            self.history = History(stream.start)
        base = stream.top if self.primary.top is None else max(stream.top, self.primary.top)
        if self.primary.fin is not None:
            base = min(base, self.primary.fin)
        for chunk in (*stream.chunks, *stream.later):
            if chunk.end > self.history.end:
                skip = max(self.history.end - chunk.at, 0)
                rest = Chunk(chunk.at + skip, chunk.end, chunk.offset + skip, chunk.frame)
                self.history.add(rest, self.tally.history_max)
        if self.history.end != base:
            self.history = History(base)
        self.primary.stream = Stream(base)
        self.base = base
