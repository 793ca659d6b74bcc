"""The TCP header in the first fragment of a segment that IP cut in pieces.

The header is changed there as anywhere, and the checksum with it, since an update needs no other piece.
A header that is itself cut (RFC 1858 tells hosts to refuse those) is left alone.
"""

from __future__ import annotations

import struct

from colo.compare.packet import FRAGMENT, PROTO_TCP, TCP, Packet
from colo.rewrite.options import HEADER

_TCP = struct.Struct("!IIBBH")
_VERSION_6 = 6
_IDENT, _IDENT_6 = 3, 4
"""Bytes of a fragment's key behind the addresses: protocol and identification, or identification."""


def first_of_tcp(packet: Packet) -> bool:
    """Is it the first fragment of a TCP segment?"""
    place = packet.fragment
    return packet.kind is FRAGMENT and place is not None and not place.offset and place.protocol == PROTO_TCP


def header_of(packet: Packet) -> Packet | None:
    """The first fragment as a segment; None when the header is not all there."""
    frame, l4 = packet.frame, packet.l4
    if packet.end < l4 + HEADER:
        return None
    seq, ack, offset, flags, window = _TCP.unpack_from(frame, l4 + 4)
    start = l4 + (offset >> 4 << 2)
    if not l4 + HEADER <= start <= packet.end:
        return None
    behind = _IDENT_6 if frame[packet.l3] >> 4 == _VERSION_6 else _IDENT
    key = packet.key[1:-behind] + frame[l4 : l4 + 4]
    return Packet(frame, TCP, key, packet.l2, packet.l3, l4, start, packet.end, seq, ack, flags, window)
