"""``periodic``: Remus's rule, and that of COLO's first series.

A checkpoint every ``x-checkpoint-delay``, and at once when more is held back than should be.  An idle
pair, in which nothing is held and nobody asked, waits longer, because nobody waits for it: up to
``IDLE_FACTOR`` delays.
"""

from __future__ import annotations

from colo.life import Life
from colo.policy.facts import Decision, Facts, by_then

DELAY_MS_DEFAULT = 20
"""Remus's shortest period was 25 ms; a pause here is well under a millisecond for a quiet guest."""
IDLE_FACTOR = 5


class Periodic:
    """Every ``delay_ms`` while something is held, rarely otherwise."""

    __slots__ = ("delay_ms",)
    name = "periodic"
    life = Life.WAIT

    def __init__(self, delay_ms: int | None = None) -> None:
        self.delay_ms = DELAY_MS_DEFAULT if delay_ms is None else delay_ms

    def decide(self, facts: Facts) -> Decision:
        return by_then(facts, self.delay_ms if facts.held_packets else self.delay_ms * IDLE_FACTOR)
