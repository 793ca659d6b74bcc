"""``lockstep``: the secondary repeats what the primary's log says; checkpoints repair, and nothing else.

The machine is deterministic, so a log of its inputs, each with its virtual time, is all that another
machine needs in order to be the same (Bressoud and Schneider, "Hypervisor-based Fault Tolerance", SOSP
1995; Scales, Nelson and Venkitachalam, "The Design of a Practical System for Fault-Tolerant Virtual
Machines", 2010).  A checkpoint is made when the two begin, when they were found to differ, and when
somebody asks.
"""

from __future__ import annotations

from colo.life import Life
from colo.policy.facts import DELAY_MS_MAX, Decision, Facts, by_then


class Lockstep:
    """``delay_ms`` bounds the interval between two checkpoints: an hour, unless somebody wants it shorter."""

    __slots__ = ("delay_ms",)
    name = "lockstep"
    life = Life.FOLLOW

    def __init__(self, delay_ms: int | None = None) -> None:
        self.delay_ms = DELAY_MS_MAX if delay_ms is None else delay_ms

    def decide(self, facts: Facts) -> Decision:
        return by_then(facts, self.delay_ms)
