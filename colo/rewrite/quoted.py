"""The guest's segment that an ICMP error quotes.

An error (RFC 792, RFC 4443) comes with the beginning of the packet that caused it: IP header, ports and
sequence number.  A host takes it seriously only when that number is one that it has in flight (RFC 5927,
section 4.1), so a secondary would ignore that its packets are too big, or that nobody is there.  Sent to
the guest, the quoted number is the client's and is made the guest's.  The quoted acknowledgement and the
quoted checksum are not looked at by anybody, and an error that the guest sends quotes the client's own
sequence number: those are left alone.
"""

from __future__ import annotations

import struct

from colo.compare.packet import ICMP, ICMPV6, PROTO_TCP, Packet

ERRORS, ERRORS_6 = (3, 4, 11, 12), (1, 2, 3, 4)
"""Types: unreachable, quench, time exceeded, parameter problem; unreachable, too big, likewise."""
_HEADER, _IPV4, _IPV6 = 8, 20, 40
_PORTS_AND_NUMBER = 8
_U32 = struct.Struct("!I")


def quoted(packet: Packet) -> tuple[bytes, int, int] | None:
    """The key of the connection, the offset of the number and the number, in an error that quotes TCP."""
    frame, at = packet.frame, packet.l4 + _HEADER
    if packet.kind is ICMP and frame[packet.l4] in ERRORS:
        if packet.end < at + _IPV4 or frame[at] >> 4 != 4:
            return None
        proto, addresses, l4 = frame[at + 9], frame[at + 12 : at + 20], at + ((frame[at] & 15) << 2)
        if l4 < at + _IPV4 or frame[at + 6] & 0x1F or frame[at + 7]:  # a later fragment: no ports
            return None
    elif packet.kind is ICMPV6 and frame[packet.l4] in ERRORS_6:
        if packet.end < at + _IPV6 or frame[at] >> 4 != 6:
            return None
        proto, addresses, l4 = frame[at + 6], frame[at + 8 : at + 40], at + _IPV6
    else:
        return None
    if proto != PROTO_TCP or packet.end < l4 + _PORTS_AND_NUMBER:
        return None
    tags = packet.key[1 : -1 - len(addresses)]
    number = _U32.unpack_from(frame, l4 + 4)[0]
    return tags + addresses + frame[l4 : l4 + 4], l4 + 4, number
