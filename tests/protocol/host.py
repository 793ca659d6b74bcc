"""The host's time in the simulated world, and limits that a small world reaches.

The rules under which output goes early (:mod:`colo.node.logged` and its like) are the real ones, and ask
their replica what time it is.  While a world runs its steps are that time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from colo.lockstep import writer
from colo.node import compared

LIMITS: tuple[tuple[Any, str, int], ...] = (
    (writer, "INPUTS_MAX", 1),
    (writer, "OUTPUTS_MAX", 2),
    (compared, "INPUTS_MAX", 2),
)


class HostTime:
    """A step of the world takes ``step_ms``."""

    def __init__(self, step_ms: float) -> None:
        self.step_ms = step_ms
        self.now = 0
        """Steps."""

    def monotonic(self) -> float:
        return self.now * self.step_ms / 1000

    def monotonic_ns(self) -> int:
        return round(self.now * self.step_ms * 1_000_000)

    def steps(self, seconds: float) -> int:
        """How many take so long."""
        return max(1, round(seconds * 1000 / self.step_ms))


@contextmanager
def small_limits() -> Iterator[None]:
    """Within, the rules of a node reach their limits after a few words."""
    before = [(module, name, getattr(module, name)) for module, name, _ in LIMITS]
    try:
        for module, name, limit in LIMITS:
            setattr(module, name, limit)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
