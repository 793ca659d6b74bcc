"""The internet checksum: whole, partial and brought up to date (RFC 1071, RFC 1624).

The checksum of a header or packet is the complement of the ones' complement sum of its 16-bit words.
Three ways to get at one:

* :func:`checksum` sums everything.  2**16 is 1 modulo 65535, so the sum of all words is the number that
  the bytes spell, modulo 65535: one big integer for a header.  From ``LONG`` bytes on, numpy adds up
  32-bit words, which is ten times as fast for a full segment.
* a *partial* checksum (virtio 1.2, section 5.1.6.2, VIRTIO_NET_HDR_F_NEEDS_CSUM): the field holds the
  sum of the pseudo header, and whoever puts the frame on a wire sums from ``csum_start`` to the end.
  Where a rewriter changes only what is summed later, such a field needs no change at all.
* :func:`updated` corrects a checksum for a changed field without looking at the rest: equation 3 of
  RFC 1624, since equation 4 of RFC 1141 yields -0 where a sum gives +0.

The two forms of zero: a sum of nothing but zero words is 0, any other sum that is a multiple of 65535
is 0xFFFF.  The residue alone cannot tell them apart, so it is looked at once more.

Not here: when a UDP checksum of 0 means "none" (RFC 768): the caller knows the protocol.
"""

from __future__ import annotations

import numpy as np

WORD = 0xFFFF
LONG = 256
"""Bytes from which numpy is faster than one big integer."""


def ones_sum(data: bytes | memoryview, start: int = 0) -> int:
    """Ones' complement sum of ``data`` as big-endian words, an odd end padded with zero, and ``start``."""
    length = len(data)
    if length < LONG:
        total = int.from_bytes(data, "big")
        if length & 1:
            total <<= 8
    else:
        words = np.frombuffer(data, "<u4", length >> 2)
        # The byte order of the words may be swapped in the sum instead of in each of them.
        swapped = int(words.sum(dtype=np.uint64)) + int.from_bytes(data[length & ~3 :], "little")
        low = swapped % WORD or (WORD if swapped else 0)
        total = (low >> 8) | ((low & 0xFF) << 8)
    total += start
    return total % WORD or (WORD if total else 0)


def checksum(data: bytes | memoryview, start: int = 0) -> int:
    """What goes in the field, if the field was zero in ``data``; ``start`` is the pseudo header's sum."""
    return WORD ^ ones_sum(data, start)


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Sum of the pseudo header of IPv4 (RFC 9293, section 3.1) or IPv6 (RFC 8200, section 8.1)."""
    return ones_sum(source + destination, protocol + (length >> 16) + (length & WORD))


def updated(check: int, old: int, new: int) -> int:
    """``check`` after a word that was ``old`` became ``new`` (RFC 1624, equation 3)."""
    total = (check ^ WORD) + (old ^ WORD) + new
    total = (total & WORD) + (total >> 16)
    return WORD ^ ((total & WORD) + (total >> 16))


def updated_long(check: int, old: int, new: int) -> int:
    """``check`` after 32 bits at an even offset that were ``old`` became ``new``."""
    return updated(updated(check, old >> 16, new >> 16), old & WORD, new & WORD)


def checksum_plain(data: bytes | memoryview, start: int = 0) -> int:
    """RFC 1071's own words, one word at a time: what :func:`checksum` is held to."""
    total = start
    padded = bytes(data) + b"\0" * (len(data) & 1)
    for at in range(0, len(padded), 2):
        total += (padded[at] << 8) | padded[at + 1]
    while total >> 16:
        total = (total & WORD) + (total >> 16)
    return total ^ WORD
