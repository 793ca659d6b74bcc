"""Everything that is no TCP: datagrams and whole frames, compared flow by flow.

A flow is a UDP conversation (RFC 768), the queries of one ICMP identifier or the messages of one ICMP type
(RFC 792, RFC 4443; neighbour discovery, RFC 4861, among them), what one ARP sender asks of one target
(RFC 826), another protocol between two addresses, or, for what is none of these, the frames between two
stations.

**The rule.**  A datagram of the primary is released when the secondary sent one with the same content in
the same flow.  Each of the secondary's answers for one of the primary's.  The order within a flow is free,
since no protocol here promises one; but as soon as either has something that the other has not, while the
other has something else, they differ: waiting would not help.

**Content** is what a receiving program could see or keep: the payload, with options of IP and extension
headers; for UDP the length and how the card was to cut it; for ICMP type, code and everything behind the
checksum.  Of an unknown frame it is all of it.

**Ignored, and why.**  Checksums: they follow from the rest, or are left to the card.  IP identification:
a counter or a random number whose one use is to tell fragments apart, which ends before this.  DF, flow
label, type of service: about the path.  TTL and hop limit: likewise; the few protocols that check for 255
fix it in the socket, which is part of the state that both share.  Stations' addresses (Ethernet) of IP and
ARP: how the next hop was found, which is asked again when it is lost.
"""

from __future__ import annotations

from collections import deque

from colo.compare.connections import Conversation
from colo.compare.packet import ICMP, ICMPV6, UDP, VNET_HEADER, Kind, Packet, vnet_header
from colo.compare.verdict import Decision, Reason, Tally

IPV4_HEADER, IPV6_HEADER = 20, 40
HARD = 2
"""Times its limit that a queue may grow while the checkpoint is made that empties it."""


def content(packet: Packet) -> bytes:
    """What is compared; two packets of one flow with equal content are the same."""
    frame, kind = packet.frame, packet.kind
    if kind is Kind.ARP or kind is Kind.OTHER:
        return frame[packet.start : packet.end]
    fixed = IPV6_HEADER if frame[packet.l3] >> 4 == 6 else IPV4_HEADER
    options = frame[packet.l3 + fixed : packet.l4]
    if kind is UDP:
        cut = b""
        if packet.l2 == VNET_HEADER and not packet.parts:
            header = vnet_header(frame)
            cut = b"%d" % header.gso_size if header is not None and header.gso_type else b""
        return b"%b%b%b%b" % (
            frame[packet.l4 + 4 : packet.l4 + 6],
            frame[packet.start : packet.end],
            options,
            cut,
        )
    if kind is ICMP or kind is ICMPV6:
        return frame[packet.l4 : packet.l4 + 2] + frame[packet.l4 + 4 : packet.end] + options
    return frame[packet.start : packet.end] + options


class Flow(Conversation):
    """Datagrams between the same two ends.  At most one of the two queues holds anything."""

    __slots__ = ("held", "theirs")

    def __init__(self, first: Packet, tally: Tally, epoch: int) -> None:
        super().__init__(first, tally, epoch)
        self.held: deque[tuple[bytes, Packet]] = deque()  # of the primary
        self.theirs: deque[tuple[bytes, float]] = deque()  # of the secondary, and since when

    def feed_primary(self, packet: Packet, now_ms: float, out: list[Decision]) -> None:
        said = content(packet)
        if self.diverged is None:
            for at, (theirs, _) in enumerate(self.theirs):
                if theirs == said:
                    self._spend(at)
                    self.release(packet, Reason.MATCHED, out)
                    return
            if self.theirs:
                self.diverge(Reason.CONTENT, f"{len(said)} bytes that the secondary did not send", out)
        self.hold(said, packet, now_ms, out)

    def hold(self, said: bytes, packet: Packet, now_ms: float, out: list[Decision]) -> None:
        limit, kept = self.tally.settings.queue_max, len(self.held)
        if kept >= limit or self.tally.full():
            self.diverge(Reason.QUEUE_FULL, f"{kept} frames of the primary wait", out)
            if kept >= HARD * limit or self.tally.full(HARD):
                self.drop(packet, Reason.QUEUE_FULL, out, True)
                return
        self.keep(packet, now_ms)
        self.held.append((said, packet))

    def feed_secondary(self, packet: Packet, now_ms: float, out: list[Decision]) -> None:
        if self.diverged is not None:
            self.drop(packet, Reason.DIVERGED, out)
            return
        said = content(packet)
        for at, (mine, held) in enumerate(self.held):
            if mine == said:
                del self.held[at]
                self.let_go(held)
                self.drop(packet, Reason.MATCHED, out)
                self.release(held, Reason.MATCHED, out)
                return
        self.drop(packet, Reason.CARRIED, out)
        if self.held:
            self.diverge(Reason.CONTENT, f"{len(said)} bytes that the primary did not send", out)
        elif len(self.theirs) >= self.tally.settings.queue_max or self.tally.full():
            self.diverge(Reason.QUEUE_FULL, "the secondary is too far ahead", out)
        else:
            self.tally.keep(said)
            self.theirs.append((said, now_ms))

    def _spend(self, at: int) -> None:
        self.tally.let_go(self.theirs[at][0])
        del self.theirs[at]

    # As a conversation

    def forget_secondary(self) -> None:
        while self.theirs:
            self._spend(0)

    def waits(self) -> bool:
        return bool(self.held or self.theirs) or self.diverged is not None

    def ended(self) -> bool:
        return True

    def held_since_ms(self) -> float | None:
        return self.held[0][1].since_ms if self.held else None

    def expire(self, now_ms: float, out: list[Decision]) -> None:
        limits = self.tally.settings
        if self.held and now_ms - self.held[0][1].since_ms >= limits.wait_ms:
            self.diverge(Reason.LATE_CONTENT, f"{len(self.held)} frames of the primary wait", out)
        elif self.theirs and now_ms - self.theirs[0][1] >= limits.alone_ms:
            self.diverge(Reason.SECONDARY_ALONE, f"{len(self.theirs)} datagrams", out)

    def rebase(self, epoch: int, out: list[Decision]) -> None:
        for _, packet in self.held:
            self.let_go(packet)
            self.release(packet, Reason.CHECKPOINT, out)
        self.held.clear()
        self.forget_secondary()
        self.epoch = epoch
        self.diverged = None
