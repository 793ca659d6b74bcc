"""What the world heard of a ``counter``, from one node and then from another: is it one machine's history?

``counter`` has no input, so all that it will ever say is known: what each node said must be a piece of
that text.  Nothing may be missing between the pieces.  The second piece may begin before the first
ends, when a survivor cannot know whether its last words were heard.
"""

from __future__ import annotations

import re

LINE = re.compile(rb"second (\d+) rounds (\d+)\r\n")
PIECE_MIN = len(b"second 1 rounds 100\r\n") * 2
"""A piece this long occurs once."""


def text(seconds: int, mib: int = 1, ms: int = 10) -> bytes:
    lines = (f"second {n} rounds {n * 1000 // ms}\r\n" for n in range(1, seconds + 1))
    return f"GUEST-READY counter mib={mib} ms={ms}\r\n".encode() + "".join(lines).encode()


def seconds(said: bytes) -> list[int]:
    """The lines that are whole, by their number."""
    return [int(found[1]) for found in LINE.finditer(said)]


def last(said: bytes) -> int:
    return max(seconds(said), default=0)


def repeated(first: bytes, second: bytes, mib: int = 1, ms: int = 10) -> int:
    """How many bytes the second node said again; fails unless both together are the one history."""
    whole = text(max(last(first), last(second)) + 3, mib, ms)
    assert first == whole[: len(first)], "the first node contradicts itself"
    assert len(second) >= PIECE_MIN, "the second node says nothing"
    at = whole.find(second)
    assert at >= 0, f"the second node contradicts itself: {second[:80]!r} ... {second[-80:]!r}"
    assert at <= len(first), f"{at - len(first)} bytes were never said: {whole[len(first) : at]!r}"
    return len(first) - at
