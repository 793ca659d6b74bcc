"""TCP sequence numbers: 32 bits that wrap, compared and moved by name (RFC 9293, section 3.4).

A sequence number has no place in a total order: of two numbers, one is *after* the other when it is
less than half the space ahead of it.  That is sound only between numbers of one connection that are
within a window of each other, and a window is at most 2**30 (RFC 7323, section 2.2).  Raw arithmetic is
where comparisons go wrong: a difference of two unsigned numbers is never negative, and the smaller of
two is not the earlier one.  So nobody subtracts: everyone uses these words, and whoever keeps numbers
for longer than a window turns them into *positions* with :func:`unwrap`: plain integers that do not wrap.

Exactly half the space apart, two numbers are neither after nor before each other.
"""

from __future__ import annotations

MASK = 0xFFFF_FFFF
SPACE = 1 << 32
HALF = 1 << 31


def advance(seq: int, count: int) -> int:
    """``seq`` moved by ``count``, which may be negative."""
    return (seq + count) & MASK


def span(start: int, end: int) -> int:
    """How many numbers lie in [start, end), going upwards from ``start``: 0 to 2**32 - 1."""
    return (end - start) & MASK


def distance(start: int, end: int) -> int:
    """From ``start`` to ``end`` the short way: negative when ``end`` is before, -2**31 at half the space."""
    return (((end - start) + HALF) & MASK) - HALF


def after(seq: int, other: int) -> bool:
    """Is ``seq`` later than ``other``?"""
    return 0 < ((seq - other) & MASK) < HALF


def before(seq: int, other: int) -> bool:
    """Is ``seq`` earlier than ``other``?"""
    return 0 < ((other - seq) & MASK) < HALF


def between(seq: int, start: int, end: int) -> bool:
    """Does ``seq`` lie in [start, end), going upwards from ``start``?  An empty range holds nothing."""
    return ((seq - start) & MASK) < ((end - start) & MASK)


def latest(seq: int, other: int) -> int:
    """The later of two; ``seq`` when they are half the space apart."""
    return other if after(other, seq) else seq


def unwrap(seq: int, near: int) -> int:
    """The position, within half the space of the position ``near``, whose number is ``seq``."""
    return near + (((seq - near + HALF) & MASK) - HALF)
