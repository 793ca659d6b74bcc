"""Frames made field by field, for what is compared."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import ip_address

from colo.compare.checksum import checksum, pseudo_sum
from colo.compare.packet import (
    ACK,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
)
from colo.compare.verdict import Decision, Diverged, Drop, Reason, Release

GUEST, CLIENT = "10.77.0.2", "10.77.0.1"
GUEST6, CLIENT6 = "fd00::2", "fd00::1"
MASK = 0xFFFF_FFFF


def ethernet(
    ethertype: int, body: bytes, vlans: Iterable[int] = (), *, to: int = 1, sender: int = 2
) -> bytes:
    tags = b"".join(struct.pack("!HH", 0x8100, vlan) for vlan in vlans)
    return b"\x02\0\0\0\0%c\x02\0\0\0\0%c" % (to, sender) + tags + struct.pack("!H", ethertype) + body


def ip(
    proto: int,
    body: bytes,
    *,
    source: str = GUEST,
    destination: str = CLIENT,
    ident: int = 0,
    ttl: int = 64,
    tos: int = 0,
    options: bytes = b"",
    cut: int = 0,
    vlans: Iterable[int] = (),
) -> bytes:
    """In IPv4 or IPv6, as the addresses say; ``options`` are extension headers there, ``cut`` is not."""
    start, end = ip_address(source).packed, ip_address(destination).packed
    if len(start) == 16:
        flow = 6 << 28 | tos << 20 | ident & 0xFFFFF
        head = struct.pack("!IHBB", flow, len(options) + len(body), proto, ttl) + start + end
        return ethernet(ETHERTYPE_IPV6, head + options + body, vlans)
    size = 20 + len(options)
    fields = (0x40 | size // 4, tos, (size + len(body)) & 0xFFFF, ident, cut, ttl, proto, 0)
    head = struct.pack("!BBHHHBBH", *fields) + start + end + options
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return ethernet(ETHERTYPE_IPV4, head + body, vlans)


def tcp(
    seq: int,
    payload: bytes = b"",
    *,
    ack: int | None = 0,
    flags: int = 0,
    options: bytes = b"",
    window: int = 1000,
    ports: tuple[int, int] = (80, 40000),
    **around: object,
) -> bytes:
    """``ack`` of None: no acknowledgement."""
    source = str(around.get("source", GUEST))
    destination = str(around.get("destination", CLIENT))
    flags |= 0 if ack is None else ACK
    options += b"\1" * (-len(options) % 4)
    words = (*ports, seq & MASK, (ack or 0) & MASK, (5 + len(options) // 4) << 4, flags, window, 0, 0)
    body = struct.pack("!HHIIBBHHH", *words) + options + payload
    ends = ip_address(source).packed, ip_address(destination).packed
    check = checksum(body, pseudo_sum(*ends, PROTO_TCP, len(body)))
    body = body[:16] + check.to_bytes(2, "big") + body[18:]
    return ip(PROTO_TCP, body, **around)  # type: ignore[arg-type]


def udp(payload: bytes, *, ports: tuple[int, int] = (53, 40000), check: int = 0, **around: object) -> bytes:
    body = struct.pack("!HHHH", *ports, 8 + len(payload), check) + payload
    return ip(PROTO_UDP, body, **around)  # type: ignore[arg-type]


def echo(query: int, seq: int, payload: bytes = b"ping", *, kind: int = 0, **around: object) -> bytes:
    body = struct.pack("!BBHHH", kind, 0, 0, query, seq) + payload
    six = ":" in str(around.get("source", ""))
    return ip(PROTO_ICMPV6 if six else PROTO_ICMP, body, **around)  # type: ignore[arg-type]


def arp(operation: int = 1, sender: str = GUEST, target: str = CLIENT, *, to: int = 255) -> bytes:
    body = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, operation)
    body += b"\2\0\0\0\0\2" + ip_address(sender).packed + bytes(6) + ip_address(target).packed
    return ethernet(ETHERTYPE_ARP, body, to=to)


def fragments(frame: bytes, size: int, ident: int = 7) -> list[bytes]:
    """An IPv4 frame cut in pieces of ``size`` bytes of data."""
    head, data = frame[14:34], frame[34:]
    pieces = []
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        cut = at // 8 | (0x2000 if at + size < len(data) else 0)
        fields = struct.pack("!HHH", 20 + len(piece), ident, cut)
        pieces.append(frame[:14] + head[:2] + fields + head[8:] + piece)
    return pieces


def fragments6(frame: bytes, size: int, ident: int = 7) -> list[bytes]:
    head, data = frame[14:54], frame[54:]
    pieces = []
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        more = int(at + size < len(data))
        extra = struct.pack("!BBHI", head[6], 0, at | more, ident)
        length = struct.pack("!HB", 8 + len(piece), 44)
        pieces.append(frame[:14] + head[:4] + length + head[7:] + extra + piece)
    return pieces


def released(decisions: Iterable[Decision]) -> list[bytes]:
    return [each.frame for each in decisions if isinstance(each, Release)]


def dropped(decisions: Iterable[Decision]) -> list[bytes]:
    return [each.frame for each in decisions if isinstance(each, Drop)]


def differences(decisions: Iterable[Decision]) -> list[Reason]:
    return [each.reason for each in decisions if isinstance(each, Diverged)]
