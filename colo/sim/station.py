"""Addresses of several machines on one segment: each card has one of its own outside.

Every machine's first card has the address of its configuration, and snapshots of booted guests have
it in their drivers, so the machines of a world would all be one station.  A :class:`Station` stands between a
card and its cable, as a bridge with address translation does (ebtables(8), ``snat`` and ``dnat`` with
``--snat-arp``): in Ethernet headers, ARP (RFC 826) and RARP (RFC 903) the inner address is replaced by the
outer one on the way out, and back on the way in.  Both nodes of a pair are one station.

Not modelled: addresses elsewhere in a frame (IPv6 neighbour discovery, DHCP).
"""

from __future__ import annotations

OUTER_PREFIX = bytes.fromhex("5254 00c0 30")
ARP_TYPES = (b"\x08\x06", b"\x80\x35")
DESTINATION, SOURCE, TYPE = slice(0, 6), slice(6, 12), slice(12, 14)
SENDER, TARGET = slice(22, 28), slice(32, 38)
"""In a frame with an ARP packet for Ethernet and IPv4."""


class Station:
    """``inner`` as seen from the machine, ``outer`` on the cable."""

    def __init__(self, inner: bytes, number: int) -> None:
        self.inner = inner
        self.outer = OUTER_PREFIX + bytes([number])

    def outward(self, frame: bytes) -> bytes:
        return _replaced(frame, SOURCE, (SENDER, TARGET), self.inner, self.outer)

    def inward(self, frame: bytes) -> bytes:
        return _replaced(frame, DESTINATION, (TARGET,), self.outer, self.inner)


def _replaced(frame: bytes, at: slice, in_arp: tuple[slice, ...], old: bytes, new: bytes) -> bytes:
    places = (at, *in_arp) if frame[TYPE] in ARP_TYPES else (at,)
    changed = bytearray(frame)
    for place in places:
        if frame[place] == old:
            changed[place] = new
    return bytes(changed)
