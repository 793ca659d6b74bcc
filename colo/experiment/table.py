"""The table for people: a block for each load, a line for each configuration, and what is out of order.

Columns in which nothing stands are left out, so an unprotected guest's table has no checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import msgspec

from colo.experiment.results import Line, Row
from colo.experiment.workloads import Workload

PERCENT = 100


@dataclass(frozen=True)
class Column:
    """Its head, its unit under that, and what stands in it."""

    head: str
    unit: str
    cell: Callable[[Line], str]


def digits(value: float | None) -> str:
    """Three significant digits, without an exponent; nothing for nothing."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(line: Line) -> str:
    """In per cent, and between which of the rounds it was."""
    row = line.row
    if row.share is None:
        return ""
    if row.policy is None or line.rounds < 2 or line.share_low is None or line.share_high is None:
        return _percent(row.share)
    return f"{_percent(row.share)} ({_percent(line.share_low)}-{_percent(line.share_high)})"


def _percent(value: float) -> str:
    """Below a tenth a decimal place is worth it."""
    return f"{value * PERCENT:.{0 if value >= 0.1 else 1}f}"


def faults(row: Row) -> str:
    """The kinds that there are, or 0."""
    found = {name: count for name, count in msgspec.structs.asdict(row.faults).items() if count}
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "0"


def _number(name: str) -> Callable[[Line], str]:
    return lambda line: digits(getattr(line.row, name))


LOAD_COLUMNS = (
    Column("", "", lambda line: line.row.configuration),
    Column("answers", "/s", _number("answers_per_s")),
    Column("data", "MB/s", _number("mb_per_s")),
    Column("share", "%", share),
    Column("p50", "ms", _number("p50_ms")),
    Column("p90", "ms", _number("p90_ms")),
    Column("p99", "ms", _number("p99_ms")),
    Column("p99.9", "ms", _number("p99_9_ms")),
    Column("max", "ms", _number("max_ms")),
    Column("checkpoints", "/s", _number("checkpoints_per_s")),
    Column("pause", "ms", _number("pause_median_ms")),
    Column("longest", "ms", _number("pause_max_ms")),
    Column("state", "KiB/s", _number("state_kib_per_s")),
    Column("link", "KiB/s", _number("link_kib_per_s")),
    Column("held", "ms", _number("held_median_ms")),
    Column("longest", "ms", _number("held_max_ms")),
    Column("waited", "ms", _number("waited_mean_ms")),
    Column("faults", "", lambda line: faults(line.row) if line.rounds else ""),
)
KILL_COLUMNS = (
    Column("", "", lambda line: line.row.configuration),
    Column("kills", "", lambda line: str(line.row.kills)),
    Column("silence", "ms", _number("silence_median_ms")),
    Column("longest", "ms", _number("silence_max_ms")),
    Column("restored", "s", _number("restored_median_s")),
    Column("survived", "connections", lambda line: f"{line.row.survived} of {line.row.opened}"),
    Column("faults", "", lambda line: faults(line.row)),
)


def table(lines: Sequence[Line], workloads: Sequence[Workload]) -> str:
    """Blocks with an empty line between them."""
    about = {each.name: each.about for each in workloads}
    blocks = []
    for (name, connections), group in groupby(lines, lambda line: (line.row.workload, line.row.connections)):
        plural = "" if connections == 1 else "s"
        said = f": {about[name]}" if name in about else ""
        blocks.append("\n".join([f"{name}{said}; {connections} connection{plural}", *block(list(group))]))
    return "\n\n".join(blocks)


def block(lines: Sequence[Line]) -> list[str]:
    """One load."""
    measured = [line for line in lines if line.rounds]
    columns = KILL_COLUMNS if any(line.row.kills for line in lines) else LOAD_COLUMNS
    cells = [[column.cell(line) for column in columns] for line in measured]
    used = [number for number in range(len(columns)) if number == 0 or any(row[number] for row in cells)]
    heads = [[columns[number].head for number in used], [columns[number].unit for number in used]]
    shown = aligned([*heads, *([row[number] for number in used] for row in cells)]) if measured else []
    return [*shown, *notes(lines)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def notes(lines: Sequence[Line]) -> Iterator[str]:
    """Why checkpoints were made, and what went wrong."""
    for line in lines:
        row = line.row
        if row.causes:
            causes = ", ".join(f"{count} {reason}" for reason, count in row.causes.items())
            yield f"  {row.configuration}: checkpoints: {causes}"
        if row.failovers:
            yield f"  {row.configuration}: {row.failovers} failover(s) that nobody caused: not a steady pair"
        if row.unrestored:
            yield f"  {row.configuration}: {row.unrestored} time(s) not protected again"
        if row.failure:
            rounds = f" ({line.rounds} round(s) went well)" if line.rounds else ""
            yield f"  {row.configuration}: FAILED{rounds}: {row.failure}"
