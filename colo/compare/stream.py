"""One side of a TCP connection as a stream of bytes: kept by reference, in order, without a gap.

A stream is the frames that its bytes came in.  Positions are unwrapped
(:func:`colo.compare.seq.unwrap`).  Bytes in [start, front) are there without a gap; what came too early
waits in ``later``.  A segment that repeats bytes is compared with them: a host that contradicts itself
is noticed here.

Nothing is copied.  Two short runs are compared by slicing both; from ``LONG`` bytes on ``startswith``
compares in place with a view of the other (a view costs more than the copy of a short run).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

LONG = 2048
LATER_MAX = 256
"""Segments that wait for a gap to close: a full window of ordinary ones."""
CHUNK_COST = 256
"""Bytes that a chunk takes besides its own: a stream of single bytes is not free."""


class Chunk(NamedTuple):
    """Bytes [at, end): the byte at ``at`` stands at ``offset`` in ``frame``."""

    at: int
    end: int
    offset: int
    frame: bytes


def equal(left: bytes, at: int, right: bytes, other: int, length: int) -> bool:
    """Are ``length`` bytes of ``left`` from ``at`` those of ``right`` from ``other``?"""
    if length < LONG:
        return left[at : at + length] == right[other : other + length]
    return left.startswith(memoryview(right)[other : other + length], at)


def first_difference(left: Chunk, right: Chunk, at: int, end: int) -> int:
    """The first position in [at, end), which both hold, where they differ; by halves."""
    while end - at > 1:
        middle = (at + end) // 2
        if equal(
            left.frame, left.offset + at - left.at, right.frame, right.offset + at - right.at, middle - at
        ):
            at = middle
        else:
            end = middle
    return at


def contradiction(chunks: Iterable[Chunk], piece: Chunk) -> int | None:
    """The first byte of ``piece`` that differs from the same byte in ``chunks``."""
    for chunk in chunks:
        at, end = max(chunk.at, piece.at), min(chunk.end, piece.end)
        if at < end and not equal(
            chunk.frame, chunk.offset + at - chunk.at, piece.frame, piece.offset + at - piece.at, end - at
        ):
            return first_difference(chunk, piece, at, end)
    return None


class Overflow(Exception):
    """Too far ahead of its stream: more segments than are kept, or (``far``) further than any window."""

    def __init__(self, what: str, far: bool = False) -> None:
        super().__init__(what)
        self.far = far


class Contradiction(Exception):
    """A byte that is not the one it was before; or (not ``found``) of which no copy is left to tell."""

    def __init__(self, what: str, found: bool = True) -> None:
        super().__init__(what)
        self.found = found


class Stream:
    """``chunks`` hold [``start``, ``front``) without a gap, of which the caller may take from the left."""

    __slots__ = ("chunks", "count", "front", "later", "size", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.front = start
        self.chunks: deque[Chunk] = deque()
        self.later: list[Chunk] = []
        self.count = 0
        self.size = 0
        """Of chunks, and of their bytes, those in ``later`` included."""

    @property
    def top(self) -> int:
        """Behind the last byte known, gaps or not."""
        return max([self.front, *(chunk.end for chunk in self.later)])

    def add(self, piece: Chunk) -> bool:
        """Take what is new in it; whether anything was."""
        if piece.at > self.front:
            if len(self.later) >= LATER_MAX:
                raise Overflow(f"{LATER_MAX} segments wait for the gap at {self.front}")
            insort(self.later, piece)
            self._weigh(1, piece)
            return True
        new = self._append(piece)
        while self.later and self.later[0].at <= self.front:
            piece = self.later.pop(0)
            self._weigh(-1, piece)
            self._append(piece)
        return new

    def _append(self, piece: Chunk) -> bool:
        if piece.at < self.front:
            wrong = contradiction(self.chunks, piece)
            if wrong is not None:
                raise Contradiction(f"byte {wrong} was another one before")
            if piece.end <= self.front:
                return False
            piece = Chunk(self.front, piece.end, piece.offset + self.front - piece.at, piece.frame)
        self.chunks.append(piece)
        self.front = piece.end
        self._weigh(1, piece)
        return True

    def _weigh(self, sign: int, piece: Chunk) -> None:
        self.count += sign
        self.size += sign * (piece.end - piece.at)

    def take(self) -> Chunk:
        """The first chunk, which is here no longer."""
        chunk = self.chunks.popleft()
        self._weigh(-1, chunk)
        return chunk

    def lower(self, start: int) -> None:
        """Begin at ``start``, which is before everything that is here."""
        if start < self.start:
            self.later = sorted([*self.chunks, *self.later])
            self.chunks.clear()
            self.start = self.front = start


class History:
    """The newest bytes that were verified, [start, end), for comparing retransmissions with."""

    __slots__ = ("chunks", "end", "size", "start")

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.chunks: deque[Chunk] = deque()
        self.size = 0

    def add(self, chunk: Chunk, limit: int) -> None:
        """Behind the end; a gap forgets what was before it.  One chunk stays, more only within ``limit``."""
        if chunk.at != self.end:
            self.chunks.clear()
            self.start = chunk.at
            self.size = 0
        self.chunks.append(chunk)
        self.end = chunk.end
        self.size += chunk.end - chunk.at + CHUNK_COST
        while self.size > limit and len(self.chunks) > 1:
            old = self.chunks.popleft()
            self.start = old.end
            self.size -= old.end - old.at + CHUNK_COST
