"""When to checkpoint: a pure function of facts, chosen by name.

``periodic`` is Remus's rule (and that of COLO's first series): a checkpoint every
``x-checkpoint-delay``, and at once when more is held back than should be.  An idle pair, in which
nothing is held and nobody asked, waits longer, because nobody waits for it: up to ``IDLE_FACTOR``
delays.

A policy decides from :class:`Facts` alone.  A new one is a class with ``decide`` and a line in
:data:`POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

DELAY_MS_DEFAULT = 20
"""Remus's shortest period was 25 ms; a pause here is well under a millisecond for a quiet guest."""
DELAY_MS_MIN, DELAY_MS_MAX = 1, 3_600_000
IDLE_FACTOR = 5


@dataclass(frozen=True)
class Facts:
    """What is known at the moment of the question."""

    since_ms: float
    """Since the last capture."""
    held_packets: int = 0
    over_limit: bool = False
    """More output is held than the hold's soft limit."""
    requested: str | None = None
    """Somebody asked for a checkpoint: why."""


@dataclass(frozen=True)
class Decision:
    """``reason``: checkpoint now, because; otherwise ask again after ``wait_ms`` or when facts change."""

    reason: str | None
    wait_ms: float = 0.0


class Policy(Protocol):
    """A rule for checkpoints."""

    name: str
    delay_ms: int

    def decide(self, facts: Facts) -> Decision: ...


class Periodic:
    """Every ``delay_ms`` while something is held, rarely otherwise."""

    __slots__ = ("delay_ms",)
    name = "periodic"

    def __init__(self, delay_ms: int = DELAY_MS_DEFAULT) -> None:
        self.delay_ms = delay_ms

    def decide(self, facts: Facts) -> Decision:
        if facts.requested is not None:
            return Decision(facts.requested)
        if facts.over_limit:
            return Decision("held output")
        period = self.delay_ms if facts.held_packets else self.delay_ms * IDLE_FACTOR
        if facts.since_ms >= period:
            return Decision("period")
        return Decision(None, period - facts.since_ms)


POLICIES: dict[str, Callable[[int], Policy]] = {"periodic": Periodic}


def choose(name: str, delay_ms: int) -> Policy:
    """The policy called ``name``; KeyError when there is none."""
    return POLICIES[name](delay_ms)
