"""Samples, medians, ratios, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

OURS, QEMU = "ours", "qemu"
SIDES = (OURS, QEMU)


@dataclass
class Measure:
    """One thing measured on one or both sides, a sample for each round."""

    section: str
    name: str
    unit: str
    more_is_better: bool = False
    goal: float | None = None
    """The ratio to QEMU that the project aims at, or (if ours alone) the value not to exceed."""
    samples: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})

    def add(self, side: str, value: float) -> None:
        self.samples[side].append(value)

    def value(self, side: str) -> float | None:
        return median(self.samples[side]) if self.samples[side] else None

    def ratios(self) -> list[float]:
        """How many times as good as QEMU we were, round by round."""
        pairs = zip(self.samples[OURS], self.samples[QEMU], strict=False)
        return [a / b if self.more_is_better else b / a for a, b in pairs if a > 0 and b > 0]

    @property
    def ratio(self) -> float | None:
        ratios = self.ratios()
        return median(ratios) if ratios else None

    @property
    def met(self) -> bool | None:
        """Is the goal reached?  None where there is none, or nothing to compare."""
        if self.goal is None:
            return None
        if self.ratio is not None:
            return self.ratio >= self.goal
        ours = self.value(OURS)
        return None if ours is None or self.samples[QEMU] else ours <= self.goal

    def document(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            "better": "more" if self.more_is_better else "less",
            "samples": self.samples,
            "median": {side: self.value(side) for side in SIDES},
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
        }


def digits(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


HEAD = ("", "unit", "ours", "QEMU", "ratio", "rounds", "goal")


def rows(measures: Sequence[Measure]) -> Iterator[tuple[str, ...]]:
    for one in measures:
        ratios = one.ratios()
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}" if len(ratios) > 1 else ""
        goal = "" if one.goal is None else f"{one.goal:g}{'' if one.met is not False else ' MISSED'}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        yield one.name, one.unit, digits(one.value(OURS)), digits(one.value(QEMU)), ratio, spread, goal


def table(measures: Sequence[Measure]) -> list[str]:
    """Columns: medians of both sides, the median of the rounds' ratios, their spread, the goal."""
    return aligned([HEAD, *rows(measures)])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Names and units to the left, numbers to the right, the goal to the left again."""
    last = len(lines[0]) - 1
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 or column == last else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
