"""Frames of the world's clients, built and read: Ethernet, ARP (RFC 826), IPv4 (RFC 791), UDP (RFC 768).

As much as a client needs that talks to guests on its own segment.  Not modelled: fragments (they are ignored,
and none is sent), IP options, VLANs, IPv6.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from colo.compare.checksum import checksum, pseudo_sum

BROADCAST = b"\xff" * 6
TYPE_IPV4, TYPE_ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17
ARP_REQUEST, ARP_REPLY = 1, 2
TTL = 64
DONT_FRAGMENT = 0x4000
FRAGMENT = 0x3FFF
"""More fragments, or an offset."""
PADDED = 60

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")


class Arp(NamedTuple):
    operation: int
    mac: bytes
    ip: bytes
    target_ip: bytes


class Ip(NamedTuple):
    source: bytes
    destination: bytes
    protocol: int
    payload: bytes


class Datagram(NamedTuple):
    source_port: int
    port: int
    payload: bytes


def address(text: str) -> bytes:
    """An IPv4 address in dotted form; ValueError for anything else."""
    parts = [int(part) for part in text.split(".")]
    if len(parts) != 4:
        raise ValueError(f"{text!r} is no IPv4 address")
    return bytes(parts)


def dotted(ip: bytes) -> str:
    return ".".join(map(str, ip))


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return (_ETHERNET.pack(destination, source, kind) + payload).ljust(PADDED, b"\0")


def arp(operation: int, mac: bytes, ip: bytes, target_mac: bytes, target_ip: bytes) -> bytes:
    return _ARP.pack(1, TYPE_IPV4, 6, 4, operation, mac, ip, target_mac, target_ip)


def read_arp(payload: bytes) -> Arp | None:
    if len(payload) < _ARP.size:
        return None
    hardware, kind, mac_size, ip_size, operation, mac, ip, _, target_ip = _ARP.unpack_from(payload)
    if (hardware, kind, mac_size, ip_size) != (1, TYPE_IPV4, 6, 4):
        return None
    return Arp(operation, mac, ip, target_ip)


def ipv4(source: bytes, destination: bytes, protocol: int, number: int, payload: bytes) -> bytes:
    length = _IPV4.size + len(payload)
    head = _IPV4.pack(0x45, 0, length, number, DONT_FRAGMENT, TTL, protocol, 0, source, destination)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def read_ipv4(packet: bytes) -> Ip | None:
    """None for what is damaged, or not whole."""
    if len(packet) < _IPV4.size or packet[0] >> 4 != 4:
        return None
    head = (packet[0] & 0xF) * 4
    _, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    if head < _IPV4.size or not head <= length <= len(packet) or fragment & FRAGMENT:
        return None
    if checksum(packet[:head]):
        return None
    return Ip(source, destination, protocol, packet[head:length])


def udp(source: bytes, destination: bytes, source_port: int, port: int, payload: bytes) -> bytes:
    length = _UDP.size + len(payload)
    head = _UDP.pack(source_port, port, length, 0)
    found = checksum(head + payload, pseudo_sum(source, destination, UDP, length)) or 0xFFFF
    return head[:6] + found.to_bytes(2, "big") + payload


def read_udp(ip: Ip) -> Datagram | None:
    data = ip.payload
    if len(data) < _UDP.size:
        return None
    source_port, port, length, found = _UDP.unpack_from(data)
    if not _UDP.size <= length <= len(data):
        return None
    if found and checksum(data[:length], pseudo_sum(ip.source, ip.destination, UDP, length)):
        return None
    return Datagram(source_port, port, data[_UDP.size : length])
