"""A secondary's guest speaks with other numbers than the primary's: they are made the same for the client.

    rewriter = Rewriter(Settings(vnet=True))
    to_guest = rewriter.inward(frame_of_client, now_ms)
    to_compare_or_world = rewriter.outward(frame_of_guest, now_ms)
    rewriter.reset()               # an epoch was installed
    rewriter.take_over(now_ms)     # the primary is gone: the guest's next frame goes to the world
    rewriter.tick(now_ms)          # now and then
    rewriter.active                # after a take-over: may a frame still have to be changed?

Two guests run from one checkpoint and get the same frames.  For a connection that begins after it each
draws an initial sequence number of its own (RFC 9293, section 3.4.1) and, maybe, an offset of its own for
its time stamps (RFC 7323, section 5.4).  The client knows the primary's, since the primary's frames are
what it gets.  So, on the secondary: what the guest sends is moved to the primary's numbers, first for the
comparison (:mod:`colo.compare.tcp`), after a take-over for the client itself; what the client sends is moved
to the guest's.  QEMU's filter-rewriter has this place; it leaves time stamps, selective acknowledgements and
connections that the guest opens alone.

**What is moved.**  Outward the sequence number and the time stamp; inward the acknowledgement number, the
edges of selective acknowledgements, the echoed time stamp, and the number of a segment that an ICMP error
quotes (:mod:`colo.rewrite.quoted`).  Everything else in either direction is the client's own number, which
both guests have from the same frames, or no number.  A frame in which nothing is moved comes back as the
same object.

**What is known.**  Only the client's frames and those of this guest are seen.  Two facts make that enough.

1. *A checkpoint makes the two the same*: a connection that is part of it has the primary's numbers.  So
   everything is zero until a SYN of the guest was seen, and again after :meth:`Rewriter.reset`.
2. *The client acknowledges the SYN that it knows.*  A frame of the primary is released only after the
   secondary said the same.  So the client's first acknowledgement after the guest's SYN is of the primary's
   SYN and nothing more: bytes behind it are released only when this guest has sent them, which it does only
   when its own handshake is complete, which takes an acknowledgement that came through here.  The number
   before it has the place of the guest's own initial number: the difference is ``shift``.

Both SYNs and both SYN-ACKs teach the same way, whoever began: a SYN-ACK or RST that answers the guest's SYN
(RFC 9293, section 3.10.7.3), or, when the guest has heard the client's SYN, any segment that begins where it
expects the client's bytes.  The latter keeps out what is left of the last connection between these ports.
A SYN with another initial number begins anew; one with the same is said again.  As long as ``shift`` is
unknown that of the last connection between these ports, or zero, serves as well: initial numbers are not
compared, a client that has the primary's answers with it, and one that has none takes any.

Where a checkpoint falls into a handshake, the two facts meet: the guest may repeat a SYN whose answer has
passed, or waited in the primary's card.  Once it says more than SYN it had its answer, and nothing is left
to be learned.  An answer without a SYN to a guest that has only said SYN cannot be told from one of a
connection that it forgot; it is made harmless once, and left to be refused the next time.

**Why nothing can go wrong in between.**  The same ``shift`` is added and taken away.  A reset by which a
guest refuses an acknowledgement has that acknowledgement's number, so it comes out as the client's own
number, which is the only one that the client accepts.  A reset that refuses a SYN has 0 in place of a number
(RFC 9293, section 3.10.7.1) and is not moved.  Resets by the client stand at the client's own numbers.

**Why it goes on working after a failover.**  The client then knows the primary's numbers, and the
difference to the guest's stays what it is for the life of the connection.  It was learned before the guest
got the acknowledgement that opens the connection.  If that acknowledgement was lost, both ends repeat what
they said, and the client's answer, even one by which it refuses the repeated SYN, teaches.  Connections that
begin after the take-over are the guest's own: nothing is learned or changed, and no record is made.  Time
stamps go on from the last that the client can have had: :mod:`colo.rewrite.timestamps`.

**The next secondary.**  A survivor whose clients still know another machine's numbers is protected again as
any: its frames are translated before they are compared, and its :meth:`Rewriter.translations` go to the new
secondary with every epoch, which starts from them in place of zero: ``reset(translations)``.

**Duties of the caller.**  One thread.  Every frame of the guest and for it passes here, once, in order,
and none that passed before a checkpoint reaches the new guest after it.  ``now_ms`` never goes back.

**Not done.**  TCP-MD5 and TCP-AO (RFC 2385, RFC 5925) sign the numbers, MPTCP (RFC 8684) has secrets of its
own: such connections survive only if they were part of a checkpoint.  Bytes in a SYN-ACK's wake (RFC 7413,
Fast Open) break fact 2; the comparison lets such a connection wait for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from colo.compare.packet import ICMP, ICMPV6, RST, SYN, TCP, Packet, parse
from colo.compare.seq import MASK, distance
from colo.rewrite.causes import Cause, Counts, Settings, Status, Translation
from colo.rewrite.connection import Connection
from colo.rewrite.edit import edited
from colo.rewrite.fragment import first_of_tcp, header_of
from colo.rewrite.options import stamps_at
from colo.rewrite.quoted import quoted
from colo.rewrite.table import Table, reversed_key

__all__ = ["Cause", "Rewriter", "Settings", "Status", "Translation"]


class Rewriter:
    """Between one guest and the world."""

    __slots__ = ("_alone_since_ms", "_counts", "_l2", "_settled", "_table", "settings")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._l2 = self.settings.l2
        self._counts = Counts()
        self._table = Table(self.settings, self._counts)
        self._alone_since_ms: float | None = None
        self._settled = False

    # Frames

    def outward(self, frame: bytes, now_ms: float) -> bytes:
        """``frame`` of the guest as the client must see it."""
        packet = parse(frame, self._l2)
        if packet.kind is not TCP:
            header = self._header(packet)
            if header is None:
                return frame
            packet = header
        connection = self._table.outward.get(packet.key)
        if connection is None:
            connection = self._meet(packet, packet.key)
            if connection is None:
                return frame
        elif connection.epoch != self._table.epoch:
            self._table.rebase(connection)
        shown = connection.outward(packet, self._alone_since_ms is not None)
        self._used(connection, now_ms)
        return shown

    def inward(self, frame: bytes, now_ms: float) -> bytes:
        """``frame`` of the client as the guest must see it."""
        packet = parse(frame, self._l2)
        if packet.kind is not TCP:
            if packet.kind is ICMP or packet.kind is ICMPV6:
                return self._error(packet)
            header = self._header(packet)
            if header is None:
                return frame
            packet = header
        connection = self._table.inward.get(packet.key)
        if connection is None:
            connection = self._meet(packet, None)
            if connection is None:
                return frame
        elif connection.epoch != self._table.epoch:
            self._table.rebase(connection)
        shown = connection.inward(packet, self._alone_since_ms is not None)
        self._used(connection, now_ms)
        return shown

    def once_more(self, frame: bytes) -> bytes:
        """``frame``, shown before and to be said again.

        A SYN is shown as it is while its number's difference is not known; a client that has heard the
        primary's since would find two beginnings of one connection.
        """
        packet = parse(frame, self._l2)
        if packet.kind is not TCP or not packet.flags & SYN:
            return frame
        connection = self._table.outward.get(packet.key)
        if connection is None or packet.seq != connection.isn or not connection.shift:
            return frame
        shown = (packet.seq + connection.shift) & MASK
        return edited(frame, packet.l2, packet.start, packet.l4 + 16, ((packet.l4 + 4, packet.seq, shown),))

    def _used(self, connection: Connection, now_ms: float) -> None:
        connection.last_ms = now_ms
        home = connection.home
        if connection.unsettled or home is None:
            self._table.settle(connection)
        else:
            home.move_to_end(connection.key)

    def _header(self, packet: Packet) -> Packet | None:
        """The segment in a frame that is not plainly one."""
        if not first_of_tcp(packet):
            return None
        found = header_of(packet)
        if found is None:
            self._counts.all[Cause.SPLIT] += 1
        return found

    def _meet(self, packet: Packet, key: bytes | None) -> Connection | None:
        """A connection that has no record; ``key`` if this is a frame of the guest.  None: it needs none."""
        if self._alone_since_ms is not None:  # it began since then
            return None
        if packet.flags & SYN:
            worth = key is not None
        else:  # part of a checkpoint, then: only its time stamps need care
            worth = not packet.flags & RST and bool(stamps_at(packet))
        if not worth and not self._table.given:
            return None
        key = key or reversed_key(packet.key)
        found = self._table.find(key)
        return found if found is not None or not worth else self._table.add(key)

    def _error(self, packet: Packet) -> bytes:
        """An ICMP message for the guest."""
        found = quoted(packet)
        if found is not None:
            key, at, number = found
            connection = self._table.find(key)
            if connection is not None and connection.shift:
                self._counts.all[Cause.QUOTED] += 1
                own = (number - connection.shift) & MASK
                return edited(packet.frame, self._l2, at + 4, packet.l4 + 2, ((at, number, own),))
        return packet.frame

    # Epochs

    def reset(self, translations: Iterable[Translation] = ()) -> None:
        """The guest is now what the primary was, whose own numbers differ from the client's by these.

        Costs nothing for connections, which notice it when they are next used.  What is known of the client's
        clock stays.
        """
        self._table.reset(translations)

    def translations(self) -> list[Translation]:
        """Of this guest, at the moment that a checkpoint captures it: for :meth:`reset` on its secondary."""
        used = [
            each.translation()
            for each in self._table
            if each.shift or each.stamps.shift or each.stamps.is_behind()
        ]
        return [*used, *self._table.given.values()]

    def take_over(self, now_ms: float) -> None:
        """The primary said its last word; what the guest says from now on goes to the clients."""
        if self._alone_since_ms is None:
            self._alone_since_ms = now_ms
            for key in tuple(self._table.given):
                self._table.add(key).last_ms = now_ms
            for each in self._table:
                each.stamps.take_over()

    def tick(self, now_ms: float) -> None:
        """Forget old connections, some at a time."""
        self._table.age(now_ms)
        if self._alone_since_ms is not None:
            self._settled |= now_ms - self._alone_since_ms >= self.settings.settle_ms

    # For a reader

    @property
    def active(self) -> bool:
        """May a frame still have to be changed?  Always, before a take-over.  Walks through the table."""
        if self._alone_since_ms is None:
            return True
        return any(
            each.shift
            or each.stamps.shift
            or each.learning
            or (not self._settled and each.stamps.is_behind())
            for each in self._table
        )

    @property
    def counts(self) -> dict[str, int]:
        return self._counts.named()

    def conversations(self) -> Iterator[Status]:
        for each in self._table:
            clock_shift = distance(0, each.stamps.shift)
            counts = {Cause(number).name.lower(): count for number, count in enumerate(each.counts) if count}
            yield Status(each.name, each.learning, distance(0, each.shift), clock_shift, counts)
