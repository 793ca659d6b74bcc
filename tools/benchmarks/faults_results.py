"""What ``tools/bench --only faults`` found, a row for each way of doing trials, and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from colo.faults.model import Outcome
from tools.benchmarks.measure import aligned, digits

TRIALS, SPEED = "trials", "speed"
TRIALS_HEAD = (
    "trials",
    "how",
    "n",
    "a minute",
    "set-up s",
    *(each.value for each in Outcome),
    "twice",
    "all",
)
SPEED_HEAD = ("simulated", "how", "virtual s", "wall s", "virtual s/wall s", "answers", "answers/wall s")


def rate(stamps: Sequence[float]) -> float | None:
    """Trials a minute, by when each of them was done: set-up and the first trial are not in it."""
    if len(stamps) < 2:
        return None
    return 60 * (len(stamps) - 1) / (stamps[-1] - stamps[0])


def equal(first: Iterable[Any], second: Iterable[Any]) -> str:
    """``9 of 10``"""
    same = [a == b for a, b in zip(first, second, strict=True)]
    return f"{sum(same)} of {len(same)}"


def trials_row(
    what: str, how: str, outcomes: Sequence[str], stamps: Sequence[float], set_up_s: float, **more: Any
) -> dict[str, Any]:
    counts = Counter(outcomes)
    return {
        "kind": TRIALS,
        "what": what,
        "how": how,
        "trials": len(outcomes),
        "per_minute": rate(stamps),
        "set_up_s": round(set_up_s, 3),
        **{each.value: counts[each.value] for each in Outcome},
        **more,
    }


def trials_cells(row: dict[str, Any]) -> tuple[str, ...]:
    shown = (str(row[each.value] or "") for each in Outcome)
    head = (row["what"], row["how"], str(row["trials"]), digits(row["per_minute"]), digits(row["set_up_s"]))
    return *head, *shown, row.get("equal_outcomes", ""), row.get("equal_all", "")


def speed_cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (row["virtual_s"], row["wall_s"], row["virtual_s"] / row["wall_s"])
    answers = (f"{row['answers']:,}", digits(row["answers"] / row["wall_s"]))
    return row["what"], row["how"], *map(digits, numbers), *answers


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Trials first, then how fast worlds go."""
    lines: list[str] = []
    for kind, head, cells in ((TRIALS, TRIALS_HEAD, trials_cells), (SPEED, SPEED_HEAD, speed_cells)):
        rows = [cells(record) for record in records if record["kind"] == kind]
        lines += [*aligned([head, *rows]), ""] if rows else []
    return lines[:-1]
