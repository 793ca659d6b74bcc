"""The results for programs: JSON with everything, CSV and Parquet with a line for each load in each round.

CSV and Parquet have the fields of :class:`colo.experiment.results.Row`; ``causes`` and ``counters`` are JSON
objects in a text.  An empty cell of CSV, a null of Parquet: there is nothing to say.  Parquet carries the
conditions in its schema's metadata, under ``conditions``.
"""

from __future__ import annotations

import csv
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from colo.experiment import optional
from colo.experiment.experiment import Found, Plan
from colo.experiment.results import Row

FORMAT = 1
"""Of the JSON document."""
Flat = dict[str, str | int | float | None]


def columns() -> dict[str, type]:
    """Their names and types: str, int or float."""
    hints = typing.get_type_hints(Row)
    return {each.name: _plain(hints[each.name]) for each in msgspec.structs.fields(Row)}


def _plain(hint: Any) -> type:
    """``int`` of ``int | None``; a text for what is not plain."""
    known = [each for each in (hint, *typing.get_args(hint)) if each in (int, float, str)]
    return known[0] if known and typing.get_origin(hint) is not dict else str


def flat(row: Row) -> Flat:
    """A row as plain values."""
    found = msgspec.structs.asdict(row)
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in found.items()}


def document(found: Found, plan: Plan, conditions: Mapping[str, str]) -> dict[str, Any]:
    """Everything that was measured, and how."""
    return {
        "format": FORMAT,
        "guest": plan.guest,
        "conditions": dict(conditions),
        "method": {
            "configurations": [each.label for each in plan.configurations],
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "warm_up_s": plan.warm_s,
            "seed": plan.seed,
            "kills": plan.kills,
            "victim": plan.victim,
        },
        "table": msgspec.to_builtins(found.lines(plan)),
        "rows": msgspec.to_builtins(found.rows),
        "kills": [
            {"workload": key[0], "configuration": key[2], **msgspec.to_builtins(kill)}
            for key, kills in found.kills.items()
            for kill in kills
        ],
    }


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns()))
        writer.writeheader()
        writer.writerows(map(flat, rows))


def write_parquet(path: Path, rows: Sequence[Row], conditions: Mapping[str, str]) -> None:
    """ConfigError without the library."""
    arrow = optional.load("pyarrow", "a Parquet file")
    parquet = optional.load("pyarrow.parquet", "a Parquet file")
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    schema = arrow.schema(
        [(name, kinds[kind]) for name, kind in columns().items()],
        metadata={"conditions": json.dumps(dict(conditions))},
    )
    parquet.write_table(arrow.Table.from_pylist([flat(row) for row in rows], schema), path)
