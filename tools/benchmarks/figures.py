"""What is measured of a protected guest: ours alone, with many samples, beside constants of QEMU's COLO.

:class:`tools.benchmarks.measure.Measure` compares two emulators that run in turn.  QEMU's COLO cannot be
started from here (``qemu_colo`` says why), so a :class:`Figure` has our samples, what was once measured
there, and a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from tools.benchmarks.measure import aligned, digits

Statistic = Literal["median", "p90", "max"]
STATISTICS: tuple[Statistic, ...] = ("median", "p90", "max")


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least ``percent`` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


@dataclass
class Figure:
    """One thing measured, a sample each time it happened."""

    section: str
    name: str
    unit: str
    peer: float | None = None
    """QEMU COLO's median."""
    limit: float | None = None
    """What ``of`` must not exceed."""
    of: Statistic = "median"
    samples: list[float] = field(default_factory=list)

    def value(self, of: Statistic) -> float | None:
        if not self.samples:
            return None
        if of == "median":
            return median(self.samples)
        return max(self.samples) if of == "max" else percentile(self.samples, 90)

    @property
    def met(self) -> bool | None:
        """Is the goal reached?  None where there is none, or nothing was measured."""
        value = self.value(self.of)
        return None if value is None or self.limit is None else value <= self.limit

    def document(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            "samples": self.samples,
            "median": self.value("median"),
            "p90": self.value("p90"),
            "max": self.value("max"),
            "qemu_colo": self.peer,
            "limit": self.limit,
            "limit_of": self.of,
            "met": self.met,
        }


HEAD = ("", "unit", "n", "min", "median", "p90", "max", "QEMU COLO", "goal")


def rows(figures: Sequence[Figure]) -> Iterator[tuple[str, ...]]:
    for one in figures:
        smallest = min(one.samples) if one.samples else None
        values = [digits(value) for value in (smallest, *(one.value(of) for of in STATISTICS))]
        goal = "" if one.limit is None else f"{one.of} <= {digits(one.limit)}"
        yield (
            one.name,
            one.unit,
            str(len(one.samples)),
            *values,
            "" if one.peer is None else digits(one.peer),
            goal + (" MISSED" if one.met is False else ""),
        )


def table(figures: Sequence[Figure]) -> list[str]:
    """Columns: how many samples, their spread, QEMU COLO's median, the goal."""
    return aligned([HEAD, *rows(figures)])
