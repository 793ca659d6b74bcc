"""Frames that wait for the secondary's word, by port, in the order in which the guest said them.

A comparison (:mod:`colo.compare`) is fed frames and says which may go; it has an order for each
conversation and none among them.  Here stands which frame was said when, so that what is left at a cut
is handed over in the guest's order, and how long each waited.
"""

from __future__ import annotations

from collections import deque

from colo.compare.comparison import Comparison
from colo.compare.console import ConsoleComparison
from colo.compare.qemu import QemuComparison

AnyComparison = Comparison | QemuComparison | ConsoleComparison
Taken = tuple[int, str, bytes, float]
"""A frame that waits: its number in the order of offering, its port, itself, and since when."""


class Lane:
    """A card's port: its comparison, and the frames that wait there."""

    __slots__ = ("comparison", "lossy", "port", "waiting")

    def __init__(self, port: str, comparison: AnyComparison, lossy: bool = False) -> None:
        """``lossy``: what the comparison does not keep is lost."""
        self.port = port
        self.comparison = comparison
        self.lossy = lossy
        # By identity, which a comparison keeps; the same object may wait several times.
        self.waiting: dict[int, list[Taken]] = {}

    def keep(self, taken: Taken) -> None:
        self.waiting.setdefault(id(taken[2]), []).append(taken)

    def take(self, frame: bytes) -> tuple[int, float]:
        """``frame`` goes: how many wait no longer, and since when the first of them did."""
        same = self.waiting[id(frame)]
        if len(same) == 1:
            del self.waiting[id(frame)]
        return 1, same.pop(0)[3]

    def take_all(self) -> list[Taken]:
        everything = [taken for same in self.waiting.values() for taken in same]
        self.waiting.clear()
        return everything

    def since_ms(self) -> float | None:
        """Of the oldest; from any thread."""
        waiting = [same[:1] for same in tuple(self.waiting.values())]  # the tuple is made in one step
        return next((taken[3] for first in waiting for taken in first), None)


class ConsoleLane(Lane):
    """A stream of bytes, which goes from the left in other pieces than it came in."""

    __slots__ = ("pieces",)

    def __init__(self, port: str, comparison: ConsoleComparison) -> None:
        super().__init__(port, comparison)
        self.pieces: deque[Taken] = deque()

    def keep(self, taken: Taken) -> None:
        self.pieces.append(taken)

    def take(self, frame: bytes) -> tuple[int, float]:
        """As many bytes as ``frame`` has."""
        ended, left, first_ms = 0, len(frame), self.pieces[0][3]
        while left:
            number, port, data, since_ms = self.pieces.popleft()
            if len(data) > left:
                self.pieces.appendleft((number, port, data[left:], since_ms))
                break
            ended += 1
            left -= len(data)
        return ended, first_ms

    def take_all(self) -> list[Taken]:
        everything = list(self.pieces)
        self.pieces.clear()
        return everything

    def since_ms(self) -> float | None:
        return next((taken[3] for taken in tuple(self.pieces)), None)
