"""What a policy is asked, and what it answers: the contract of :mod:`colo.policy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from colo.life import Life

DELAY_MS_MIN, DELAY_MS_MAX = 1, 3_600_000


@dataclass(frozen=True)
class Facts:
    """What is known at the moment of the question."""

    since_ms: float
    """Since the last capture."""
    held_packets: int = 0
    over_limit: bool = False
    """More output is held than the hold's soft limit."""
    requested: str | None = None
    """Somebody asked for a checkpoint, or the two guests differ: why."""


@dataclass(frozen=True)
class Decision:
    """``reason``: checkpoint now, because; otherwise ask again after ``wait_ms`` or when facts change."""

    reason: str | None
    wait_ms: float = 0.0


class Policy(Protocol):
    """A rule for checkpoints, and what the secondary's guest does between them.

    ``life`` decides what output may go before the commit: nothing while it waits, what the log covers
    while it follows, what it said as well while it runs (:mod:`colo.node.early`).
    """

    name: str
    delay_ms: int
    life: Life

    def decide(self, facts: Facts) -> Decision: ...


def by_then(facts: Facts, period_ms: float) -> Decision:
    """A checkpoint that is urgent now, and another one when ``period_ms`` have passed."""
    urgent = at_once(facts)
    if urgent is not None:
        return urgent
    if facts.since_ms >= period_ms:
        return Decision("period")
    return Decision(None, period_ms - facts.since_ms)


def at_once(facts: Facts) -> Decision | None:
    """What every policy does: a checkpoint that was asked for, or that output waits for, is made."""
    if facts.requested is not None:
        return Decision(facts.requested)
    if facts.over_limit:
        return Decision("held output")
    return None
