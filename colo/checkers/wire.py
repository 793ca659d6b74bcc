"""Does a TCP endpoint contradict itself?  Judged from captured frames, without looking into anybody.

A sequence number names a byte (RFC 9293, section 3.4): whatever is sent for it again, by the same node or by
the one that took its place, must be the same byte.  That is output commit on the wire, and it is sharper than
comparing streams at the end: a client that has not read yet is contradicted too.  Three things are wrong:

- two segments of one direction of a connection that have different bytes for one number,
- a second SYN of one connection with another number, or a FIN at two places,
- an acknowledgement of something that the other side never sent.

Feed it every frame that passed one place (a switch, a capture), in order, with its virtual time and who sent
it.  Frames that are not TCP are passed over.  A connection ends with its RST, or when both FINs were
acknowledged and a new SYN comes.  A capture that begins in the middle of a connection is judged from there.

Not judged: checksums, options, windows; loss and order, which a network may change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colo.checkers.history import seconds
from colo.checkers.verdict import Verdict, right, wrong
from colo.compare.packet import ACK, FIN, RST, SYN, Kind, Packet, parse
from colo.compare.seq import unwrap
from colo.rewrite.table import reversed_key

JUDGE = "one history on the wire"
KEPT_MAX = 64 << 20
"""Bytes kept of one direction; what is longer is judged in its last part."""


@dataclass
class _Direction:
    """What one endpoint has sent on a connection.  Positions are sequence numbers that do not wrap."""

    base: int
    """The position of ``data[0]``."""
    whole: bool
    """Its SYN was seen: nothing was sent before ``base``."""
    data: bytearray = field(default_factory=bytearray)
    seen: bytearray = field(default_factory=bytearray)
    """1 for each byte of ``data`` that was seen: captures have gaps."""
    speaker: str = ""
    fin: int | None = None

    @property
    def end(self) -> int:
        """Behind everything that was sent."""
        return max(self.base + len(self.data), self.base if self.fin is None else self.fin + 1)

    def place(self, at: int, payload: bytes) -> int | None:
        """Keep what is new; the position of the first byte that was another one before, or None."""
        if at < self.base:  # older than what is kept
            payload, at = payload[self.base - at :], self.base
        start = at - self.base
        old, seen = (each[start : start + len(payload)] for each in (self.data, self.seen))
        if old != payload[: len(old)]:
            for index, byte in enumerate(old):
                if seen[index] and payload[index] != byte:
                    return at + index
        grown = start + len(payload) - len(self.data)
        if grown > 0:
            self.data += bytes(grown)
            self.seen += bytes(grown)
        self.data[start : start + len(payload)] = payload
        self.seen[start : start + len(payload)] = b"\x01" * len(payload)
        if len(self.data) > KEPT_MAX:
            cut = len(self.data) - KEPT_MAX // 2
            del self.data[:cut], self.seen[:cut]
            self.base += cut
        return None


@dataclass
class _Connection:
    ways: dict[bytes, _Direction] = field(default_factory=dict)
    over: bool = False
    """Reset: whatever comes next is another connection."""

    @property
    def closed(self) -> bool:
        return self.over or (len(self.ways) == 2 and all(way.fin is not None for way in self.ways.values()))


class Wire:
    """Everything that passed one place of a network."""

    def __init__(self) -> None:
        self._connections: dict[bytes, _Connection] = {}
        self._wrong: list[str] = []
        self.segments = 0

    def frame(self, at_ns: int, speaker: str, frame: bytes) -> None:
        """``speaker`` sent ``frame``: the name of a machine or client, for the text of a verdict."""
        packet = parse(frame)
        if packet.kind is not Kind.TCP:
            return
        self.segments += 1
        back = reversed_key(packet.key)
        name = min(packet.key, back)
        connection = self._connections.setdefault(name, _Connection())
        if connection.over or (packet.flags & SYN and not packet.flags & ACK and connection.closed):
            connection = self._connections[name] = _Connection()
        if packet.flags & RST:
            connection.over = True
            return
        told = self._sent(connection, packet, speaker) or self._acknowledged(connection, packet, back)
        if told:
            self._wrong.append(f"{seconds(at_ns)} {speaker}: {told}")

    def verdict(self) -> Verdict:
        if self._wrong:
            return wrong(JUDGE, f"{len(self._wrong)} of {self.segments} segments", tuple(self._wrong))
        return right(JUDGE, f"{self.segments} TCP segments, {len(self._connections)} connections")

    def _sent(self, connection: _Connection, packet: Packet, speaker: str) -> str:
        """What is wrong with its bytes, if anything."""
        syn = bool(packet.flags & SYN)
        payload = bytes(packet.payload)
        way = connection.ways.get(packet.key)
        if way is None:
            way = connection.ways[packet.key] = _Direction(packet.seq + syn, whole=syn)
        at = unwrap(packet.seq, way.end) + syn
        if syn and at != way.base and way.whole:
            return f"a second SYN, numbered {packet.seq}; it was {(way.base - 1) & 0xFFFF_FFFF}"
        differs = way.place(at, payload)
        said_by, way.speaker = way.speaker, speaker
        if differs is not None:
            old, new = way.data[differs - way.base], payload[differs - at]
            return (
                f"byte {differs - way.base} of its stream is {new:#04x} now, and was {old:#04x} by {said_by}"
            )
        if packet.flags & FIN:
            fin, way.fin = way.fin, at + len(payload)
            if fin not in (None, way.fin):
                return f"a second FIN, at byte {way.fin - way.base}; it was at {fin - way.base}"
        return ""

    @staticmethod
    def _acknowledged(connection: _Connection, packet: Packet, back: bytes) -> str:
        way = connection.ways.get(back)
        if way is None or not way.whole or not packet.flags & ACK:
            return ""
        ahead = unwrap(packet.ack, way.end) - way.end
        return f"it acknowledges {ahead} bytes that were never sent" if ahead > 0 else ""
