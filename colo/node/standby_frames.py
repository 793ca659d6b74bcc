"""Frames that clients sent and the primary's guest may not have been given.

The bridge of a pair never learns (:mod:`colo.network.links`), so a standing-by node's TAP gets every frame
that the primary's gets.  Most of them the primary's guest is given, of which the input mirror tells
(:mod:`colo.node.input_mirror`).  What is left when the primary is gone was on its way to a dead machine: the
survivor's guest is given it at once, where its client would have found out by a retransmission time-out.

A guest that runs by itself (:mod:`colo.node.runner`) is given a frame as soon as it comes, and waits for no
mirror.  It *has* the frame then, until it is taken back to what the primary's guest was at a cut.

What came until the first epoch was sealed is forgotten: the primary's guest was given most of it before its
first cut, when there was no mirror to tell of it, and must not be asked again.  What the primary's guest says
comes here, too, and is no frame for any guest.

A frame of which no mirror tells is forgotten at the second commit after it came: the primary had its
chance and dropped it, as cards do.  The same holds for tidings of frames that never come here, which is
so wherever the two nodes' networks are no such bridge.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from colo.filters import FilteredNet
from vmm.backends.net import VNET_HEADER

KEPT_MAX = 2048
"""Frames; a TAP's own queue holds 500."""
TOLD_MAX = 2048
"""Tidings between two commits of frames that did not come: the primary's may be ahead of ours by a queue."""
GENERATIONS = 2


@dataclass(slots=True)
class _Kept:
    commit: int
    frame: bytes
    had: bool = False
    """By our guest."""


class StandbyFrames:
    """Of one card.  For one thread."""

    def __init__(self, net: FilteredNet, mac: bytes = b"") -> None:
        """``mac`` is the card's, and the primary's."""
        self._net = net
        self._mac = mac
        self._source = slice(VNET_HEADER + 6, VNET_HEADER + 12) if net.offloads else slice(6, 12)
        self._kept: deque[_Kept] = deque()
        self._told: deque[Counter[bytes]] = deque((Counter() for _ in range(GENERATIONS)), GENERATIONS)
        self._tidings = 0
        """In this generation."""
        self._commit = 0
        self.lost = 0
        """Frames beyond the limit."""

    def collect(self) -> None:
        """Take what the back end has."""
        for frame in self._net.collect():
            if frame[self._source] != self._mac and not self._was_told(frame):
                self._kept.append(_Kept(self._commit, frame))
        while len(self._kept) > KEPT_MAX:
            self._kept.popleft()
            self.lost += 1

    def _was_told(self, frame: bytes) -> bool:
        for counter in self._told:
            if counter[frame] > 0:
                counter[frame] -= 1
                return True
        return False

    def fresh(self) -> list[bytes]:
        """What the primary's guest may not have been given and ours has not had, oldest first; now it has."""
        self.collect()
        fresh = [kept for kept in self._kept if not kept.had]
        for kept in fresh:
            kept.had = True
        return [kept.frame for kept in fresh]

    def taken_back(self) -> None:
        """Our guest is what the primary's was at a cut."""
        for kept in self._kept:
            kept.had = False

    def given(self, frame: bytes) -> bool:
        """The primary's guest was given this frame.  Has ours had it?"""
        for number, kept in enumerate(self._kept):
            if kept.frame == frame:
                del self._kept[number]
                return kept.had
        if self._tidings < TOLD_MAX:
            self._told[-1][frame] += 1
            self._tidings += 1
        return False

    def committed(self) -> None:
        """A checkpoint was committed."""
        self._commit += 1
        self._told.append(Counter())
        self._tidings = 0
        while self._kept and self._kept[0].commit <= self._commit - GENERATIONS:
            self._kept.popleft()

    def forget(self) -> None:
        """All that came until now."""
        while self._net.collect():
            continue
        self._kept.clear()

    def take(self) -> list[bytes]:
        """Everything that is left and our guest has not had, oldest first."""
        frames = self.fresh()
        self._kept.clear()
        return frames
