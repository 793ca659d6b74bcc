"""What a frame is: headers found, nothing copied, and never an exception, whatever a guest sends.

Follows IEEE 802.3 and 802.1Q (one tag or two), RFC 826 (ARP), RFC 791 (IPv4, options, fragments),
RFC 8200 (IPv6 and the extension headers that a host may send), RFC 9293 (TCP), RFC 768 (UDP), RFC 792
and RFC 4443 (ICMP); in front there may be the 12 bytes of virtio 1.2, section 5.1.6, ``virtio_net_hdr_v1``.

:func:`parse` gives a :class:`Packet`: the frame itself and offsets into it.  A frame whose headers
contradict each other or its length is ``Kind.OTHER``, which is compared as a whole: a parser that
guesses is one that two machines can be told apart by.  Trailing bytes behind the IP packet are padding.

**The hot path.**  A TCP segment in untagged IPv4 without options, which is nearly everything, takes one
``unpack_from`` and one slice; only other frames are walked header by header.  No byte is looked at in
Python one by one.

**The key** of a packet is what makes two packets part of one conversation: tags, addresses, and ports or
what a protocol has in their place.  Keys of TCP and of the others are told apart by ``kind``.

Not looked at: checksums (:mod:`colo.compare.checksum`), addresses of Ethernet, encapsulation (GRE,
IPsec), and options of TCP, which :mod:`colo.compare.tcp_options` reads where they matter.  An extension
header that is not known, encryption (ESP) included, ends the walk: the packet is ``Kind.IP``.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

VNET_HEADER = 12
ETHERNET = 14
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
ETHERTYPES_VLAN = (0x8100, 0x88A8, 0x9100)
VLANS_MAX = 2
PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION = 0, 43, 44, 60
EXTENSIONS_MAX = 8
"""Extension headers walked: each kind may come once, destination options twice (RFC 8200, section 4.1)."""
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
ARP_LENGTH = 28
ICMP_QUERIES = (0, 8, 13, 14, 15, 16, 17, 18)
"""Types with an identifier behind the checksum: echo, timestamp, information, mask (RFC 792, RFC 950)."""
ICMPV6_ECHO = (128, 129)
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
NEEDS_CSUM, DATA_VALID = 1, 2

_TCP4 = struct.Struct("!HBxHxxHxB14xIIBBH")  # from the type of Ethernet to the window of TCP
_TCP4_MIN = 54
_TCP4_OFFSET, _KEY4, _KEY4_END = 34, 26, 38
_IPV4 = struct.Struct("!BxHHHxB")
_IPV6 = struct.Struct("!IHB")
_TCP = struct.Struct("!IIBBH")
_VNET = struct.Struct("<BBHHHHH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")


class Kind(IntEnum):
    TCP = 0
    UDP = 1
    ICMP = 2
    ICMPV6 = 3
    IP = 4  # another protocol in IPv4 or IPv6
    FRAGMENT = 5
    ARP = 6
    OTHER = 7


TCP, UDP, ICMP, ICMPV6, IP, FRAGMENT, OTHER_KIND = (
    Kind.TCP,
    Kind.UDP,
    Kind.ICMP,
    Kind.ICMPV6,
    Kind.IP,
    Kind.FRAGMENT,
    Kind.OTHER,
)


class Fragment(NamedTuple):
    """Where a fragment belongs.  The group is the packet's key."""

    offset: int
    more: bool
    header: int  # offset of the IPv6 fragment header; 0: IPv4
    next_at: int  # offset of the byte that announced it
    protocol: int


class Packet(msgspec.Struct, gc=False):
    """Offsets are into ``frame``; payload is [start, end): what stands behind the last header known."""

    frame: bytes
    kind: Kind
    key: bytes
    l2: int
    l3: int = 0
    l4: int = 0
    start: int = 0
    end: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    fragment: Fragment | None = None
    parts: tuple[bytes, ...] = ()
    """The frames that this was put together from; none: ``frame`` is one that was sent."""
    since_ms: float = 0.0
    """Since when it waits; written by whoever lets it wait."""
    at: int = 0
    """Position of the payload in its stream, as above; likewise what is acknowledged."""
    ack_at: int = 0

    @property
    def payload(self) -> memoryview:
        return memoryview(self.frame)[self.start : self.end]

    @property
    def frames(self) -> tuple[bytes, ...]:
        """What was sent."""
        return self.parts or (self.frame,)


class VnetHeader(NamedTuple):
    """``struct virtio_net_hdr_v1``: what the card still has to do to the frame."""

    flags: int
    gso_type: int
    header_length: int
    gso_size: int
    csum_start: int
    csum_offset: int
    buffers: int


class Arp(NamedTuple):
    hardware: int
    protocol: int
    hardware_length: int
    protocol_length: int
    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


def vnet_header(frame: bytes) -> VnetHeader | None:
    return VnetHeader(*_VNET.unpack_from(frame)) if len(frame) >= VNET_HEADER else None


def arp(packet: Packet) -> Arp:
    """The fields of a packet of kind ARP."""
    return Arp(*_ARP.unpack_from(packet.frame, packet.l3))


def parse(frame: bytes, l2: int = 0) -> Packet:
    """What ``frame`` is, whose Ethernet header stands at ``l2``: 0, or ``VNET_HEADER`` behind one."""
    if len(frame) >= l2 + _TCP4_MIN:
        ethertype, version, length, cut, proto, seq, ack, offset, flags, window = _TCP4.unpack_from(
            frame, l2 + 12
        )
        if ethertype == ETHERTYPE_IPV4 and version == 0x45 and proto == PROTO_TCP and not cut & 0x3FFF:
            start = l2 + _TCP4_OFFSET + (offset >> 4 << 2)
            end = l2 + ETHERNET + length if length or not l2 else len(frame)
            if offset >= 0x50 and start <= end <= len(frame):
                return Packet(
                    frame, TCP, frame[l2 + _KEY4 : l2 + _KEY4_END], l2, l2 + ETHERNET, l2 + _TCP4_OFFSET,
                    start, end, seq, ack, flags, window,
                )  # fmt: skip
    try:
        return _walk(frame, l2)
    except (struct.error, IndexError):  # a header that the frame is too short for
        return other(frame, l2)


def other(frame: bytes, l2: int = 0) -> Packet:
    """``frame`` as something to compare as a whole."""
    return Packet(frame, OTHER_KIND, frame[l2 : l2 + ETHERNET], l2, start=min(l2, len(frame)), end=len(frame))


def _walk(frame: bytes, l2: int) -> Packet:
    at = l2 + 12
    ethertype = _word(frame, at)
    tags = b""
    while ethertype in ETHERTYPES_VLAN and len(tags) < 4 * VLANS_MAX:
        tags += frame[at : at + 2] + bytes((frame[at + 2] & 0x0F, frame[at + 3]))  # priority is no identity
        at += 4
        ethertype = _word(frame, at)
    at += 2
    if ethertype == ETHERTYPE_IPV4:
        return _ipv4(frame, l2, at, tags)
    if ethertype == ETHERTYPE_IPV6:
        return _ipv6(frame, l2, at, tags)
    if ethertype == ETHERTYPE_ARP and _ARP.unpack_from(frame, at)[:4] == (1, ETHERTYPE_IPV4, 6, 4):
        key = b"%c%b%b%b" % (Kind.ARP, tags, frame[at + 14 : at + 18], frame[at + 24 : at + 28])
        return Packet(frame, Kind.ARP, key, l2, at, at, at, at + ARP_LENGTH)
    return other(frame, l2)


def _word(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


def _ipv4(frame: bytes, l2: int, l3: int, tags: bytes) -> Packet:
    version, length, ident, cut, proto = _IPV4.unpack_from(frame, l3)
    l4 = l3 + ((version & 15) << 2)
    end = l3 + length if length or not l2 else len(frame)  # 0, offloaded: more than the field can say
    addresses = tags + frame[l3 + 12 : l3 + 20]
    if version >> 4 != 4 or l4 < l3 + 20 or not l4 <= end <= len(frame):
        return other(frame, l2)
    if cut & 0x3FFF:
        group = b"%c%b%c%c%c" % (FRAGMENT, addresses, proto, ident >> 8, ident & 0xFF)
        place = Fragment((cut & 0x1FFF) << 3, bool(cut & 0x2000), 0, l3 + 9, proto)
        return Packet(frame, FRAGMENT, group, l2, l3, l4, l4, end, fragment=place)
    return _transport(frame, l2, l3, l4, end, proto, addresses)


def _ipv6(frame: bytes, l2: int, l3: int, tags: bytes) -> Packet:
    version, length, proto = _IPV6.unpack_from(frame, l3)
    at, next_at = l3 + 40, l3 + 6
    end = at + length if length or not l2 else len(frame)  # as above, RFC 2675
    addresses = tags + frame[l3 + 8 : at]
    if version >> 28 != 6 or not at <= end <= len(frame):
        return other(frame, l2)
    for _ in range(EXTENSIONS_MAX):
        if proto == FRAGMENT_HEADER:
            if at + 8 > end:
                return other(frame, l2)
            cut = _word(frame, at + 2)
            group = b"%c%b%b" % (FRAGMENT, addresses, frame[at + 4 : at + 8])
            place = Fragment(cut & 0xFFF8, bool(cut & 1), at, next_at, frame[at])
            return Packet(frame, FRAGMENT, group, l2, l3, at + 8, at + 8, end, fragment=place)
        if proto not in (HOP_BY_HOP, ROUTING, DESTINATION):
            return _transport(frame, l2, l3, at, end, proto, addresses)
        proto, next_at, at = frame[at], at, at + ((frame[at + 1] + 1) << 3)
        if at > end:
            break
    return other(frame, l2)


def _transport(
    frame: bytes, l2: int, l3: int, l4: int, end: int, proto: int, addresses: bytes
) -> Packet:  # fmt: skip
    """The last header; one that its packet is too short for makes the frame ``OTHER``."""
    if proto == PROTO_TCP:
        seq, ack, offset, flags, window = _TCP.unpack_from(frame, l4 + 4)
        start = l4 + (offset >> 4 << 2)
        if start < l4 + 20 or start > end:
            return other(frame, l2)
        key = addresses + frame[l4 : l4 + 4]
        return Packet(frame, TCP, key, l2, l3, l4, start, end, seq, ack, flags, window)
    if proto == PROTO_UDP:
        if l4 + 8 > end:
            return other(frame, l2)
        key = b"%c%b%b" % (UDP, addresses, frame[l4 : l4 + 4])
        return Packet(frame, UDP, key, l2, l3, l4, l4 + 8, end)
    if proto in (PROTO_ICMP, PROTO_ICMPV6):
        if l4 + 8 > end:
            return other(frame, l2)
        queries = ICMP_QUERIES if proto == PROTO_ICMP else ICMPV6_ECHO
        kind = ICMP if proto == PROTO_ICMP else ICMPV6
        ident = frame[l4 + 4 : l4 + 6] if frame[l4] in queries else b""
        key = b"%c%b%c%b" % (kind, addresses, frame[l4], ident)
        return Packet(frame, kind, key, l2, l3, l4, l4 + 8, end)
    return Packet(frame, IP, b"%c%b%c" % (IP, addresses, proto), l2, l3, l4, l4, end)


def source(packet: Packet) -> bytes:
    """The sender's address; empty where there is no IP."""
    if not packet.l3 or packet.kind is Kind.ARP:
        return b""
    six = packet.frame[packet.l3] >> 4 == 6
    return packet.frame[packet.l3 + 8 : packet.l3 + 24] if six else packet.frame[packet.l3 + 12 :][:4]


def destination(packet: Packet) -> bytes:
    if not packet.l3 or packet.kind is Kind.ARP:
        return b""
    six = packet.frame[packet.l3] >> 4 == 6
    return packet.frame[packet.l3 + 24 : packet.l3 + 40] if six else packet.frame[packet.l3 + 16 :][:4]


def describe(packet: Packet) -> str:
    """The conversation for a reader: ``tcp 10.77.0.2:80 > 10.77.0.1:40000``."""
    name = packet.kind.name.lower()
    if packet.kind is Kind.ARP:
        return f"arp {ip_address(arp(packet).sender_ip)} > {ip_address(arp(packet).target_ip)}"
    if not packet.l3:
        return f"other {packet.frame[packet.l2 : packet.l2 + ETHERNET].hex()}"
    ends = [str(ip_address(source(packet))), str(ip_address(destination(packet)))]
    if packet.kind in (TCP, UDP):
        for number, at in enumerate((packet.l4, packet.l4 + 2)):
            host = f"[{ends[number]}]" if ":" in ends[number] else ends[number]
            ends[number] = f"{host}:{_word(packet.frame, at)}"
    tags = [_word(packet.frame, at) & 0xFFF for at in range(packet.l2 + ETHERNET, packet.l3 - 2, 4)]
    tagged = f" vlan {'.'.join(map(str, tags))}" if tags else ""
    return f"{name} {ends[0]} > {ends[1]}{tagged}"
