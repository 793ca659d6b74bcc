"""Mode ``qemu``: the rules of QEMU's colo-compare, for whoever reproduces results that were made with it.

Described from how ``net/colo-compare.c`` and ``net/colo.c`` of QEMU 2.8 and later behave; none of their
text is here.  Rules, in their order; what is marked QUIRK is kept although it is unsafe or loses performance.

Parsing and tracking

 1. Untagged IPv4 is compared.  QUIRK: everything else (VLAN, ARP, IPv6, short frames) of the primary goes
    out uncompared, of the secondary is dropped.
 2. QUIRK: fragments are taken for whole packets; ports are whatever stands behind the IP header.
 3. A connection is addresses, protocol, and ports for TCP, UDP, DCCP, ESP, SCTP and UDP-Lite (the first four
    bytes) and AH (from the fourth byte).  QUIRK: for any other protocol it is the protocol alone, so all ICMP
    between all hosts is one connection.
 4. QUIRK: when the table is full it is cleared, with every frame that waits in it.
 5. QUIRK: a queue takes ``queue_max`` + 1 packets, then drops what comes, the primary's too.
 6. TCP queues are sorted by sequence number, others are in order of arrival.

TCP, while both queues hold something, p and s their heads

 7. QUIRK: p without payload (ACK, SYN, FIN, RST) is released whatever s says; s without is dropped.  So
    differences in these flags are not found, and a pure ACK waits until the secondary sends anything.
 8. p that ends no later than what was compared is released, without looking at it; likewise s is dropped.
 9. Same range, same bytes: p is released, s dropped.
10. p ends no later than s: the rest of p is compared with as much of s, from where s was compared to.  QUIRK:
    "from where" counts from the start of each payload, also when the two start at different numbers.
    Equal, and p acknowledges no more than both sides did: p is released.  Equal but acknowledging more is
    a difference.
11. QUIRK: what a side "acknowledged" is its latest number, not its highest, and the smaller of the two is
    taken without regard for wrapping.  Rule 9 does not look at acknowledgements at all.
12. p longer: the same the other way round; equal means that s is dropped.
13. Anything else: both stay, and a checkpoint is asked for, again at each new frame until it comes.
14. QUIRK: payload is whatever the frame has behind its headers, padding included.  Ignored: options, flags,
    window, checksums, IP header, stations.

Others, while both queues hold something

15. p is compared with every s.  UDP and ICMP: the same frame length, and the same bytes behind the IP header.
    QUIRK: that includes the checksum of UDP and ICMP, and for other protocols the whole frame, so that an
    IP identification makes them differ.
16. No s fits: p goes back to the head and a checkpoint is asked for at once.

Time and checkpoints

17. Every ``SCAN_CYCLE_MS`` one look for a packet of either side that is older than ``TIMEOUT_MS``; the first
    asks for a checkpoint.
18. A checkpoint releases all of the primary's and drops all of the secondary's.  QUIRK: what was compared and
    acknowledged before is kept, although the secondary is another one now.

Different here: time is the caller's; a connection's queues are lists in memory, not of packets with headers.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from functools import cmp_to_key
from ipaddress import ip_address
from typing import Any

import msgspec

from colo.compare.packet import ETHERNET, ETHERTYPE_IPV4, PROTO_ICMP, PROTO_TCP, PROTO_UDP
from colo.compare.seq import advance, after, distance
from colo.compare.stream import equal
from colo.compare.verdict import Decision, Diverged, Drop, Reason, Release, Settings, Status, Tally

TIMEOUT_MS = 3000.0
SCAN_CYCLE_MS = 1000.0
PORTS_AT = {PROTO_TCP: 0, PROTO_UDP: 0, 33: 0, 50: 0, 132: 0, 136: 0, 51: 4}
"""Offset of what stands for ports: DCCP 33, ESP 50, SCTP 132, UDP-Lite 136, AH 51."""
IPV4_HEADER, TCP_HEADER = 20, 20


class Entry(msgspec.Struct, gc=False):
    """One packet in a queue; offsets into its frame."""

    frame: bytes
    since_ms: float
    protocol: int
    key: bytes
    l4: int
    seq: int = 0
    ack: int = 0
    seq_end: int = 0
    payload: int = 0
    compared: int = 0  # bytes of payload

    @property
    def rest(self) -> int:
        return len(self.frame) - self.payload - self.compared


_in_order: Callable[[Entry], Any] = cmp_to_key(lambda one, other: distance(other.seq, one.seq))


def entry(frame: bytes, l2: int, now_ms: float) -> Entry | None:
    """Rules 1 to 3; None: unsupported."""
    l3 = l2 + ETHERNET
    if len(frame) < l3 + IPV4_HEADER or int.from_bytes(frame[l3 - 2 : l3], "big") != ETHERTYPE_IPV4:
        return None
    l4 = l3 + ((frame[l3] & 15) << 2)
    if l4 < l3 + IPV4_HEADER or l4 > len(frame):
        return None
    protocol = frame[l3 + 9]
    key = bytes((protocol,))
    if protocol in PORTS_AT:
        ports = l4 + PORTS_AT[protocol]
        if ports + 4 > len(frame):
            return None
        key += frame[l3 + 12 : l3 + 20] + frame[ports : ports + 4]
    made = Entry(frame, now_ms, protocol, key, l4)
    if protocol == PROTO_TCP:
        if l4 + TCP_HEADER > len(frame):
            return None
        made.payload = l4 + (frame[l4 + 12] >> 4 << 2)
        if made.payload > len(frame):
            return None
        made.seq = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")
        made.ack = int.from_bytes(frame[l4 + 8 : l4 + 12], "big")
        made.seq_end = advance(made.seq, len(frame) - made.payload)
    return made


def _name(key: bytes) -> str:
    if len(key) == 1:
        return f"protocol {key[0]}"
    ports = int.from_bytes(key[9:11], "big"), int.from_bytes(key[11:13], "big")
    return f"protocol {key[0]} {ip_address(key[1:5])}:{ports[0]} > {ip_address(key[5:9])}:{ports[1]}"


class Connection:
    __slots__ = ("compare_seq", "counts", "key", "pack", "primary", "sack", "secondary")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.primary: list[Entry] = []
        self.secondary: list[Entry] = []
        self.compare_seq: int | None = None
        self.pack = self.sack = 0
        self.counts = [0] * len(Reason)


class QemuComparison:
    """Mode ``qemu``.  The same calls as :class:`colo.compare.comparison.Comparison`."""

    __slots__ = ("_connections", "_l2", "_scanned_ms", "settings", "tally")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.tally = Tally(self.settings)
        self._l2 = self.settings.l2
        self._connections: dict[bytes, Connection] = {}
        self._scanned_ms: float | None = None

    def feed_primary(self, frame: bytes, now_ms: float) -> list[Decision]:
        return self._feed(frame, True, now_ms)

    def feed_secondary(self, frame: bytes, now_ms: float) -> list[Decision]:
        return self._feed(frame, False, now_ms)

    def _feed(self, frame: bytes, primary: bool, now_ms: float) -> list[Decision]:
        out: list[Decision] = []
        made = entry(frame, self._l2, now_ms)
        if made is None:
            reason = Reason.UNCOMPARED if primary else Reason.UNSUPPORTED
            self.tally.counts[reason] += 1
            out.append(Release(frame, reason) if primary else Drop(frame, reason))
            return out
        connection = self._find(made.key, out)
        if self._enqueue(connection, made, primary, out):
            if made.protocol == PROTO_TCP:
                self._compare_tcp(connection, out)
            else:
                self._compare_other(connection, out)
        return out

    def _find(self, key: bytes, out: list[Decision]) -> Connection:
        found = self._connections.get(key)
        if found is None:
            if len(self._connections) >= self.settings.connections_max:  # rule 4
                for each in self._connections.values():
                    for queued in each.primary:
                        self._drop(each, queued, Reason.TABLE_FULL, out, primary=True)
                    for queued in each.secondary:
                        self._drop(each, queued, Reason.TABLE_FULL, out)
                self._connections.clear()
            found = self._connections[key] = Connection(key)
        return found

    def _enqueue(self, connection: Connection, made: Entry, primary: bool, out: list[Decision]) -> bool:
        queue = connection.primary if primary else connection.secondary
        self.tally.keep(made.frame)
        if len(queue) > self.settings.queue_max:  # rule 5
            self._drop(connection, made, Reason.QUEUE_FULL, out, primary=primary)
            return False
        if made.protocol != PROTO_TCP:
            queue.append(made)
            return True
        insort(queue, made, key=_in_order)
        if primary:  # rule 11
            connection.pack = made.ack
        else:
            connection.sack = made.ack
        return True

    # TCP

    def _compare_tcp(self, connection: Connection, out: list[Decision]) -> None:
        mine, its = connection.primary, connection.secondary
        while mine and its:
            p, s = mine[0], its[0]
            done = connection.compare_seq
            if p.seq == p.seq_end:
                self._release(connection, mine.pop(0), Reason.UNCOMPARED, out)
            elif done is not None and not after(p.seq_end, done):
                self._release(connection, mine.pop(0), Reason.RETRANSMITTED, out)
            elif s.seq == s.seq_end:
                self._drop(connection, its.pop(0), Reason.CARRIED, out)
            elif done is not None and not after(s.seq_end, done):
                self._drop(connection, its.pop(0), Reason.RETRANSMITTED, out)
            else:
                wrong = self._compare_bytes(connection, p, s, out)
                if wrong is not None:
                    self._diverge(connection, wrong, f"segments at {p.seq} and {s.seq}", out)
                    return

    def _compare_bytes(
        self, connection: Connection, p: Entry, s: Entry, out: list[Decision]
    ) -> Reason | None:  # fmt: skip
        """Rules 9 to 13: a decision was made, or why not."""
        if p.seq == s.seq and p.seq_end == s.seq_end:
            if not equal(p.frame, p.payload, s.frame, s.payload, len(p.frame) - p.payload):
                return Reason.PAYLOAD
            self._release(connection, connection.primary.pop(0), Reason.MATCHED, out)
            self._drop(connection, connection.secondary.pop(0), Reason.MATCHED, out)
            connection.compare_seq = p.seq_end
            return None
        primary_first = not after(p.seq_end, s.seq_end)
        length = p.rest if primary_first else s.rest
        at, other = p.payload + p.compared, s.payload + s.compared
        if length > (s.rest if primary_first else p.rest):
            return Reason.PAYLOAD
        if not equal(p.frame, at, s.frame, other, length):
            return Reason.PAYLOAD
        if not primary_first:
            self._drop(connection, connection.secondary.pop(0), Reason.MATCHED, out)
            p.compared += length
            connection.compare_seq = s.seq_end
            return None
        if after(p.ack, min(connection.pack, connection.sack)):
            return Reason.ACK_BEYOND
        self._release(connection, connection.primary.pop(0), Reason.MATCHED, out)
        s.compared += length
        connection.compare_seq = p.seq_end
        return None

    # Others

    def _compare_other(self, connection: Connection, out: list[Decision]) -> None:
        mine, its = connection.primary, connection.secondary
        while mine and its:
            found = next((n for n, s in enumerate(its) if self._same(mine[0], s)), None)
            if found is None:
                self._diverge(connection, Reason.CONTENT, f"none of {len(its)} is the same", out)
                return
            self._release(connection, mine.pop(0), Reason.MATCHED, out)
            self._drop(connection, its.pop(found), Reason.MATCHED, out)

    def _same(self, p: Entry, s: Entry) -> bool:
        if len(p.frame) != len(s.frame):
            return False
        if p.protocol in (PROTO_UDP, PROTO_ICMP):
            return p.frame[p.l4 :] == s.frame[p.l4 :]
        return p.frame[self._l2 :] == s.frame[self._l2 :]

    # Decisions

    def _release(self, connection: Connection, queued: Entry, reason: Reason, out: list[Decision]) -> None:
        self.tally.let_go(queued.frame)
        connection.counts[reason] += 1
        self.tally.counts[reason] += 1
        out.append(Release(queued.frame, reason))

    def _drop(
        self,
        connection: Connection,
        queued: Entry,
        reason: Reason,
        out: list[Decision],
        primary: bool = False,
    ) -> None:
        self.tally.let_go(queued.frame)
        connection.counts[reason] += 1
        self.tally.counts[reason] += 1
        out.append(Drop(queued.frame, reason, primary))

    def _diverge(self, connection: Connection, reason: Reason, detail: str, out: list[Decision]) -> None:
        connection.counts[reason] += 1
        self.tally.divergences[reason] += 1
        out.append(Diverged(reason, _name(connection.key), detail))

    # Time

    def tick(self, now_ms: float) -> list[Decision]:
        """Rule 17."""
        out: list[Decision] = []
        if self._scanned_ms is not None and now_ms - self._scanned_ms < SCAN_CYCLE_MS:
            return out
        self._scanned_ms = now_ms
        for connection in self._connections.values():
            for queued in (*connection.primary, *connection.secondary):
                if now_ms - queued.since_ms > TIMEOUT_MS:
                    self._diverge(connection, Reason.TIMEOUT, "a packet is too old", out)
                    return out
        return out

    @property
    def waits(self) -> bool:
        return self.tally.frames_kept > 0

    def held_age_ms(self, now_ms: float) -> float:
        times = [now_ms - each.since_ms for one in self._connections.values() for each in one.primary]
        return max(times, default=0.0)

    def checkpoint(self) -> list[Decision]:
        """Rule 18."""
        out: list[Decision] = []
        for connection in self._connections.values():
            for queued in connection.primary:
                self._release(connection, queued, Reason.CHECKPOINT, out)
            for queued in connection.secondary:
                self._drop(connection, queued, Reason.CHECKPOINT, out)
            connection.primary.clear()
            connection.secondary.clear()
        return out

    def forget(self) -> None:
        """Right after a checkpoint: as when the table is full."""
        self._connections.clear()

    # For a reader

    @property
    def counts(self) -> dict[str, int]:
        return self.tally.named()

    def conversations(self) -> Iterator[Status]:
        for key, each in self._connections.items():
            counts = {Reason(n).name.lower(): count for n, count in enumerate(each.counts) if count}
            yield Status(_name(key), None, bool(each.primary or each.secondary), counts)
