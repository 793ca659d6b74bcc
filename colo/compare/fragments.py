"""Fragments of IP, put together so that what was cut apart can be compared as what it was.

Follows RFC 791, section 3.2, and RFC 8200, section 4.5.  Two hosts may cut one datagram in different
places and number it differently, so fragments are not compared: each side's are collected here, and the
datagram is compared, with the frames it came in as its ``parts``.

Fragments that overlap are refused (RFC 5722), unless one repeats another exactly; so is whatever would
be longer than a datagram can be.  Limits: ``GROUPS_MAX`` datagrams of one side at a time,
``FRAGMENTS_MAX`` fragments of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colo.compare.packet import Packet, parse

GROUPS_MAX = 64
FRAGMENTS_MAX = 128
"""A datagram of 64 KiB over a link of 576 bytes is 119."""
DATAGRAM_MAX = 65535


@dataclass(slots=True)
class Group:
    """Fragments of one datagram."""

    since_ms: float
    pieces: dict[int, Packet] = field(default_factory=dict)  # by offset
    packets: list[Packet] = field(default_factory=list)  # all that came, in order
    size: int = 0  # bytes of data in pieces
    total: int | None = None  # known with the last fragment


class Refused(Exception):
    """These packets cannot be put together."""

    def __init__(self, what: str, packets: list[Packet]) -> None:
        super().__init__(what)
        self.packets = packets


class Reassembly:
    """Of one side."""

    __slots__ = ("groups",)

    def __init__(self) -> None:
        self.groups: dict[bytes, Group] = {}

    def add(self, packet: Packet, now_ms: float) -> Packet | None:
        """The whole datagram, when this completes it."""
        group = self.groups.get(packet.key)
        if group is None:
            if len(self.groups) >= GROUPS_MAX:
                raise Refused(f"{GROUPS_MAX} datagrams are incomplete", [packet])
            group = self.groups[packet.key] = Group(now_ms)
        group.packets.append(packet)
        if not self._fits(group, packet):
            del self.groups[packet.key]
            raise Refused("fragments that contradict each other", group.packets)
        if group.total is None or group.size < group.total:
            return None
        del self.groups[packet.key]
        return _whole(group, packet.l2)

    def _fits(self, group: Group, packet: Packet) -> bool:
        assert packet.fragment is not None
        offset, length = packet.fragment.offset, packet.end - packet.start
        same = group.pieces.get(offset)
        if same is not None:
            return packet.payload == same.payload and len(group.packets) <= FRAGMENTS_MAX
        end = offset + length
        if not length or end > DATAGRAM_MAX or len(group.packets) > FRAGMENTS_MAX:
            return False
        if any(at < end and offset < at + piece.end - piece.start for at, piece in group.pieces.items()):
            return False
        if not packet.fragment.more:
            if group.total is not None:
                return False
            group.total = end
        elif length % 8:
            return False
        group.pieces[offset] = packet
        group.size += length
        return (
            group.total is None
            or max(at + piece.end - piece.start for at, piece in group.pieces.items()) <= group.total
        )

    def take_older(self, limit_ms: float) -> list[Packet]:
        """Give up what began before ``limit_ms``."""
        keys = [key for key, group in self.groups.items() if group.since_ms <= limit_ms]
        return [packet for key in keys for packet in self.groups.pop(key).packets]

    def since_ms(self) -> float | None:
        return min((group.since_ms for group in self.groups.values()), default=None)


def _whole(group: Group, l2: int) -> Packet:
    """The datagram as if it had never been cut."""
    first = group.pieces[0]
    fragment = first.fragment
    assert fragment is not None
    data = b"".join(bytes(group.pieces[at].payload) for at in sorted(group.pieces))
    if fragment.header:
        head = bytearray(first.frame[: fragment.header])
        head[fragment.next_at] = fragment.protocol
        length = fragment.header - first.l3 - 40 + len(data)
        head[first.l3 + 4 : first.l3 + 6] = min(length, DATAGRAM_MAX).to_bytes(2, "big")
    else:
        head = bytearray(first.frame[: first.l4])
        length = first.l4 - first.l3 + len(data)
        head[first.l3 + 2 : first.l3 + 4] = min(length, DATAGRAM_MAX).to_bytes(2, "big")
        head[first.l3 + 6 : first.l3 + 8] = b"\0\0"
    packet = parse(bytes(head) + data, l2)
    packet.parts = tuple(frame for each in group.packets for frame in each.frames)
    return packet
