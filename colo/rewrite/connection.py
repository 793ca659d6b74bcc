"""One connection: how far the guest's sequence numbers are from the client's, and how that is learned.

``shift`` is added to a number of the guest to make it the client's.  What is added on the way out is taken
away on the way in, so whatever a guest derives from the number that it was shown (a reset takes its
sequence number from an acknowledgement) comes out right, even while ``shift`` is not the true one.

The rules, and why they are enough, stand in :mod:`colo.rewrite.rewriter`.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from ipaddress import ip_address

from colo.compare.packet import ACK, FIN, RST, SYN, Packet
from colo.compare.seq import HALF, MASK
from colo.rewrite.causes import Cause, Counts, Translation
from colo.rewrite.edit import Change, edited
from colo.rewrite.options import HEADER, sack_at, stamps_at
from colo.rewrite.timestamps import Stamps

CONTROL = SYN | FIN | RST
WINDOW = 0xFFFF
"""Of a SYN: not scaled (RFC 7323, section 2.2), so the client's first segment is no further than this."""
BOTH = 3
_RST_ACK = RST | ACK
_ONLY_STAMPS = 12
_IPV4_KEY = 20
"""Bytes of the longest key with addresses of IPv4: two tags, addresses, ports; IPv6 takes 36 without tags."""

_U32 = struct.Struct("!I").unpack_from

UNCHANGED, SEQUENCE, ACKNOWLEDGEMENT = Cause.UNCHANGED, Cause.SEQUENCE, Cause.ACKNOWLEDGEMENT
STAMP, ECHO = Cause.STAMP, Cause.ECHO


class Connection:
    """Between the same ports, however often it begins anew."""

    __slots__ = (
        "acked", "client_syn", "counts", "doubted", "epoch", "expects", "fins", "home", "isn", "key",
        "last_ms", "learning", "plain", "reset", "reverse", "shift", "stamps", "syns", "total", "unsettled",
    )  # fmt: skip

    def __init__(self, key: bytes, reverse: bytes, total: Counts) -> None:
        self.key = key
        self.reverse = reverse
        self.total = total.all
        self.counts = Counts().all
        self.epoch = -1  # that of the last checkpoint, once it noticed that
        self.home: OrderedDict[bytes, Connection] | None = None  # the part of the table that it is in
        self.last_ms = 0.0
        self.shift = 0
        self.stamps = Stamps()
        self.isn: int | None = None  # of the guest's last SYN
        self.syns = 0  # times that it was said
        self.doubted = 0  # times that it had been said when its acknowledgement came without a SYN
        self.expects: int | None = None  # what that acknowledged: where the client's bytes begin
        self.client_syn: int | None = None  # what acknowledges the client's last SYN
        self.acked: int | None = None  # what the guest acknowledged last
        self.learning = False  # the guest's SYN was said, the client's answer was not heard
        self.fins = 0
        self.reset = False
        self.plain = True  # neither learning nor reset: most frames need no second look
        self.unsettled = True  # it may belong to the other part of the table

    # Frames

    def outward(self, packet: Packet, alone: bool) -> bytes:
        """The guest's ``packet`` as the client must see it; ``alone``: the primary is gone."""
        flags = packet.flags
        if flags & CONTROL or not self.plain:
            if self._answers_syn(packet):
                self._count(UNCHANGED)
                return packet.frame
            self._note_said(packet, alone)
        if flags & ACK:
            self.acked = packet.ack
        frame, changes = packet.frame, []
        if self.shift:
            self._count(SEQUENCE)
            changes.append((packet.l4 + 4, packet.seq, (packet.seq + self.shift) & MASK))
        at = stamps_at(packet)
        if at:
            own: int = _U32(frame, at)[0]
            shown = self._stamped(own)
            if shown != own:
                changes.append((at, own, shown))
        if not changes:
            self._count(UNCHANGED)
            return frame
        return edited(frame, packet.l2, packet.start, packet.l4 + 16, changes)

    def inward(self, packet: Packet, alone: bool) -> bytes:
        """The client's ``packet`` as the guest must see it; likewise."""
        flags = packet.flags
        if flags & CONTROL or not self.plain:
            if self._is_premature(packet):
                return self._premature(packet)
            self._note_heard(packet, alone)
        if not flags & ACK:  # neither an acknowledgement nor an echo means anything
            self._count(UNCHANGED)
            return packet.frame
        changes: list[Change] = []
        at = stamps_at(packet)
        if self.shift:
            self._count(ACKNOWLEDGEMENT)
            changes.append((packet.l4 + 8, packet.ack, (packet.ack - self.shift) & MASK))
            room = packet.start - packet.l4 - HEADER
            if room > (_ONLY_STAMPS if at else 0):
                self._move_blocks(packet, changes)
        if at:
            self._echoed(packet, at + 4, changes)
        if not changes:
            self._count(UNCHANGED)
            return packet.frame
        return edited(packet.frame, packet.l2, packet.start, packet.l4 + 16, changes)

    def _stamped(self, own: int) -> int:
        stamps = self.stamps
        if stamps.first is None:
            stamps.first = own
        shift = stamps.shift
        shown = stamps.outward(own)
        if shown != own:
            self._count(STAMP)
            if stamps.shift != shift:
                self._count(Cause.RAISED)
                self.unsettled = True
            elif shown != (own + shift) & MASK:
                self._count(Cause.HELD)
        return shown

    def _echoed(self, packet: Packet, at: int, changes: list[Change]) -> None:
        echo: int = _U32(packet.frame, at)[0]
        if not echo:  # of a host that has none to echo
            return
        stamps = self.stamps
        own = stamps.inward(echo)
        if own != echo:
            self._count(ECHO)
            if own != (echo - stamps.shift) & MASK:
                self._count(Cause.CAPPED)
            changes.append((at, echo, own))

    def _move_blocks(self, packet: Packet, changes: list[Change]) -> None:
        at, count = sack_at(packet)
        if count:
            self._count(Cause.SACK)
        for edge_at in range(at, at + 8 * count, 4):
            edge = _U32(packet.frame, edge_at)[0]
            changes.append((edge_at, edge, (edge - self.shift) & MASK))

    # Beginning and end

    def _answers_syn(self, packet: Packet) -> bool:
        """Does this refuse the client's SYN?  Then 0 stands for a sequence number (RFC 9293, 3.10.7.1)."""
        refuses = packet.flags & _RST_ACK == _RST_ACK and not packet.seq
        return refuses and self.client_syn is not None and packet.ack == self.client_syn

    def _note_said(self, packet: Packet, alone: bool) -> None:
        flags = packet.flags
        if flags & SYN:
            if packet.seq != self.isn:
                self._begin(packet.seq, alone)
            self.syns += 1
            if flags & ACK:
                self.expects = packet.ack
        elif self.learning and not flags & RST and self._is_beyond_syn(packet):
            self._count(Cause.CONFIRMED)
            self.learning = False
        if flags & FIN:
            self.fins |= 1
        self.reset = bool(flags & RST)
        self.plain = not (self.learning or self.reset)
        self.unsettled = True

    def _begin(self, isn: int, alone: bool) -> None:
        """The guest's first SYN; the connection before lends its differences until they are known."""
        self.isn = isn
        self.expects = None
        self.syns = self.doubted = 0
        self.stamps.first = None
        self.fins = 0
        if not alone:
            self.learning = True

    def _is_beyond_syn(self, packet: Packet) -> bool:
        """A guest says more than its SYN once it had an answer, which then came with the difference as it is.

        That is so when a checkpoint came in between, and the guest repeated its SYN after it.  What the
        client acknowledges next may be more than the SYN: nothing can be learned from it.  While the guest
        awaits an acknowledgement of its SYN-ACK it may challenge a segment, which proves nothing.
        """
        if self.expects is None:  # in SYN-SENT there is nothing else to say
            return True
        assert self.isn is not None
        further = (packet.seq - 1 - self.isn) & MASK
        if further:
            return further < HALF
        return packet.end > packet.start or bool(packet.flags & FIN)

    def _is_premature(self, packet: Packet) -> bool:
        """Is this an acknowledgement for a guest that has only said SYN?

        Its number is the client's, and tells nothing about the guest's: it may be of the primary's SYN,
        whose SYN-ACK is late or lost, or of a connection that only the client remembers.  The former is
        likelier, so the guest is shown what it ignores.  If its next SYN is answered like this as well, it is
        the latter: then the guest must refuse it (RFC 9293, section 3.5.1), at the client's number.
        """
        if not self.learning or self.expects is not None or packet.flags & (SYN | RST | ACK) != ACK:
            return False
        self.doubted = self.doubted or self.syns
        return self.doubted == self.syns

    def _premature(self, packet: Packet) -> bytes:
        """As an acknowledgement of the guest's own SYN: without a SYN it is dropped (section 3.10.7.3)."""
        self._count(Cause.PREMATURE)
        assert self.isn is not None
        changes = [(packet.l4 + 8, packet.ack, (self.isn + 1) & MASK)]
        at, first = stamps_at(packet), self.stamps.first
        echo: int = _U32(packet.frame, at + 4)[0] if at else 0
        if echo and first is not None:
            changes.append((at + 4, echo, first))
        return edited(packet.frame, packet.l2, packet.start, packet.l4 + 16, changes)

    def _note_heard(self, packet: Packet, alone: bool) -> None:
        flags = packet.flags
        if self.learning and flags & ACK:
            self._learn(packet, alone)
        if flags & RST:
            # One that is not acceptable to the guest (RFC 5961, section 3.2) ends nothing.
            self.reset |= self.learning or packet.seq == self.acked
        elif flags & SYN:
            if not flags & ACK:
                self.client_syn = (packet.seq + 1 + packet.end - packet.start) & MASK
        elif flags & FIN:
            self.fins |= 2
        self.plain = not (self.learning or self.reset)
        self.unsettled = True

    def _learn(self, packet: Packet, alone: bool) -> None:
        """The client acknowledges the SYN that it knows, which has the place of the guest's."""
        flags = packet.flags
        if self.expects is None:  # the guest has heard no SYN: only an answer to its own counts
            expected = bool(flags & (SYN | RST))
            cause = Cause.LEARNED_REFUSED if flags & RST else Cause.LEARNED_OPENED
        else:  # bytes of the client that begin where the guest expects them
            first = (packet.seq + bool(flags & SYN) - self.expects) & MASK
            expected = not flags & RST and first <= WINDOW
            cause = Cause.LEARNED_OPENED if flags & SYN else Cause.LEARNED_ACCEPTED
        if not expected or self.isn is None:
            self._count(Cause.STALE)
            return
        self._count(cause)
        self.shift = (packet.ack - 1 - self.isn) & MASK
        self.learning = False
        at = stamps_at(packet)
        echo: int = _U32(packet.frame, at + 4)[0] if at else 0
        if echo:
            self.stamps.learn(echo, alone)

    def rebase(self, epoch: int, given: Translation | None) -> None:
        """The guest is what the primary was: so are its numbers; ``given``: those are not the client's."""
        self.epoch = epoch
        if given is None:
            self.shift = 0
            self.stamps.rebase(0, None, False)
        else:
            self.shift = given.shift
            self.stamps.rebase(given.clock_shift, given.clock_floor, given.clock_guard)
        self.isn = self.expects = self.client_syn = self.acked = None
        self.learning = self.reset = False
        self.plain = self.unsettled = True

    def translation(self) -> Translation:
        stamps = self.stamps
        return Translation(self.key, self.shift, stamps.shift, stamps.floor, stamps.guard)

    # Questions

    @property
    def translated(self) -> bool:
        """Would its frames be misunderstood without this?"""
        return bool(self.shift or self.stamps.shift) and not self.ended

    @property
    def ended(self) -> bool:
        return self.reset or self.fins == BOTH

    @property
    def name(self) -> str:
        """``tcp 10.77.0.2:80 > 10.77.0.1:40000``."""
        key = self.key
        size = 4 if len(key) <= _IPV4_KEY else 16
        ends = len(key) - 4 - 2 * size
        hosts = [str(ip_address(key[at : at + size])) for at in (ends, ends + size)]
        ports = [int.from_bytes(key[at : at + 2], "big") for at in (len(key) - 4, len(key) - 2)]
        words = [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for host, port in zip(hosts, ports, strict=True)
        ]
        tags = [int.from_bytes(key[at + 2 : at + 4], "big") for at in range(0, ends, 4)]
        return f"tcp {words[0]} > {words[1]}" + (f" vlan {'.'.join(map(str, tags))}" if tags else "")

    def _count(self, cause: Cause) -> None:
        self.counts[cause] += 1
        self.total[cause] += 1
