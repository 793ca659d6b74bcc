"""Fields of 32 bits changed in a frame, and its checksum with them, whatever the length of the frame.

The checksum is brought up to date as RFC 1624 says, without a look at the rest of the segment: so a
segment that was damaged on its way stays recognizable, and a segment of 64 KiB costs one copy.  Unlike
:func:`colo.compare.checksum.updated`, which corrects for one word, this adds up the differences of all
fields first.  2**16 is 1 modulo 65535, so a field of 32 bits at an even distance from the checksum counts
as the number that it is, and at an odd one (options need not be aligned) as 256 times that.

A *partial* checksum (virtio 1.2, section 5.1.6.2) is left alone: it holds the sum of the pseudo header,
which has none of what is changed here, and whoever puts the frame on a wire sums the rest.  A frame of
several segments (GSO) has one header and is no special case.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from colo.compare.checksum import WORD
from colo.compare.packet import NEEDS_CSUM

Change = tuple[int, int, int]
"""Where, the old value, the new one."""

_U16 = struct.Struct("!H").pack_into
_U32 = struct.Struct("!I").pack_into
_PLACE = struct.Struct("<HH")
_PLACE_AT = 6  # of csum_start and csum_offset in the virtio-net header


def edited(frame: bytes, l2: int, stop: int, check_at: int, changes: Iterable[Change]) -> bytes:
    """``frame`` with ``changes``, all of them before ``stop``; their checksum is at ``check_at``."""
    head = bytearray(frame[:stop])
    difference = 0
    for at, old, new in changes:
        _U32(head, at, new)
        difference += (new - old) << 8 if (at ^ check_at) & 1 else new - old
    if not (l2 and frame[0] & NEEDS_CSUM and is_partial(frame, l2, check_at)):
        total = ((frame[check_at] << 8 | frame[check_at + 1]) ^ WORD) + difference
        _U16(head, check_at, WORD ^ (total % WORD or WORD))
    return b"".join((head, memoryview(frame)[stop:]))


def is_partial(frame: bytes, l2: int, check_at: int) -> bool:
    """Does the virtio-net header, whose flag says so, mean the checksum at ``check_at``?"""
    start, place = _PLACE.unpack_from(frame, _PLACE_AT)
    return bool(l2 + start + place == check_at)
