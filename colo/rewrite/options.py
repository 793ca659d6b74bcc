"""Where the time stamps of a segment are, without a walk through its options where that can be helped.

RFC 7323, appendix A, recommends one layout, which Linux and most others use: two NOPs and the option, so
that it is aligned.  Anything else is left to :mod:`colo.compare.tcp_options`.
"""

from __future__ import annotations

from colo.compare.packet import Packet
from colo.compare.tcp_options import options

HEADER = 20
_RECOMMENDED = bytes.fromhex("0101080a")
_SHORTEST = 10


def stamps_at(packet: Packet) -> int:
    """Offset of TSval, which TSecr follows; 0: there are none."""
    at = packet.l4 + HEADER
    room = packet.start - at
    if room < _SHORTEST:
        return 0
    if room > _SHORTEST + 1 and packet.frame[at : at + 4] == _RECOMMENDED:
        return at + 4
    return options(packet).timestamps_at


def sack_at(packet: Packet) -> tuple[int, int]:
    """Offset of the first block, and how many there are."""
    found = options(packet)
    return found.sack_at, found.sack_count
