"""What is compared, and in which order: balanced, so that no policy gains by its place.

A host drifts while it is measured: caches warm up, other people's work comes and goes.  In every round each
configuration is measured once; the orders of the rounds are rows of a Williams design (E. J. Williams,
"Experimental designs balanced for the estimation of residual effects of treatments", 1949): a Latin square,
in which each configuration stands at each place equally often, and in which each one follows each other one
equally often, so that what one leaves behind (a warm cache, a busy disk) falls on all alike.  For an odd
number that takes a second square, the first one mirrored.  Fewer rounds than rows are balanced as far as
they go: nobody stands at one place twice before everybody did once.

Shares of unprotected are taken round by round (:mod:`colo.experiment.results`), where drift is least.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

UNPROTECTED = "unprotected"
INTERVALS_MS = (20, 100)
TIMED = "periodic"
"""The policy whose interval is what one asks about; the others have one of their own."""

T = TypeVar("T")


@dataclass(frozen=True)
class Configuration:
    """A way to run the guest."""

    label: str
    policy: str | None = None
    """None: unprotected."""
    interval_ms: int | None = None
    """None: the policy's own."""

    @property
    def words(self) -> tuple[str, ...]:
        """For ``colo node``."""
        if self.policy is None:
            return ()
        timed = () if self.interval_ms is None else ("--checkpoint-delay", str(self.interval_ms))
        return ("--policy", self.policy, *timed)


def configurations(policies: Sequence[str], intervals_ms: Sequence[int]) -> list[Configuration]:
    """Unprotected first, then each policy, ``periodic`` once for each interval."""
    found = [Configuration(UNPROTECTED)]
    for policy in dict.fromkeys(policies):
        if policy == TIMED:
            times = dict.fromkeys(intervals_ms)
            found += [Configuration(f"{policy} {each} ms", policy, each) for each in times]
        elif policy != UNPROTECTED:
            found.append(Configuration(policy, policy))
    return found


def design(count: int) -> list[list[int]]:
    """The rows of a Williams design for ``count`` treatments: ``count`` of them, or twice as many if odd."""
    zigzag = [(each + 1) // 2 if each % 2 else (count - each // 2) % count for each in range(count)]
    square = [[(each + row) % count for each in zigzag] for row in range(count)]
    return square + [row[::-1] for row in square] if count % 2 and count > 1 else square


def orders(items: Sequence[T], rounds: int, seed: int) -> list[list[T]]:
    """The order of each round.  ``seed`` decides who is called what in the design, and which row is first."""
    chance = random.Random(seed)
    named = chance.sample(list(items), len(items))
    rows = design(len(items))
    squares = [rows[start : start + len(items)] for start in range(0, len(rows), len(items))]
    shuffled = [row for square in squares for row in chance.sample(square, len(square))]
    return [[named[each] for each in shuffled[number % len(shuffled)]] for number in range(rounds)]
