"""``colo``: both guests run, and a checkpoint is made when they differ (Dong and others, SoCC 2013).

What the primary says and the secondary says as well goes out at once (:mod:`colo.compare`).  A difference
comes here as a request; the many that one difference causes are one, because a checkpoint ends them all.
"""

from __future__ import annotations

from colo.life import Life
from colo.policy.facts import Decision, Facts, by_then

DELAY_MS_DEFAULT = 10_000
"""When nothing differs a checkpoint only bounds how much must be sent at the next one (QEMU: 20 s)."""


class Colo:
    """At a difference, and every ``delay_ms`` when there is none."""

    __slots__ = ("delay_ms",)
    name = "colo"
    life = Life.RUN

    def __init__(self, delay_ms: int | None = None) -> None:
        self.delay_ms = DELAY_MS_DEFAULT if delay_ms is None else delay_ms

    def decide(self, facts: Facts) -> Decision:
        return by_then(facts, self.delay_ms)
