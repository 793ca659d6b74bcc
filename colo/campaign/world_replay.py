"""A trial of a world again: its log beside the log of the same world without the trial's faults.

The golden run of a world has the plan's seed; here the world without faults has the trial's once faults are
armed, so the two logs are the same, line by line, until the first fault.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from colo.campaign import world
from colo.campaign.scene import Scene
from colo.campaign.scenery import WorldRun
from colo.campaign.trial import Report
from colo.faults.model import Trial
from colo.sim.events import Line

CONTEXT = 5
"""Lines before the first difference that are shown."""


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """A world that was run once more."""

    report: Report
    lines: list[Line]
    """All of its log."""


def again(run: WorldRun, policy: str, trial: Trial) -> Again:
    """The whole trial."""
    lines: list[Line] = []

    def watch(scene: Scene) -> None:
        scene.world.log.sinks.append(lines.append)

    return Again(report=world.perform(run, policy, trial, watch), lines=lines)


def without_faults(run: WorldRun, policy: str, trial: Trial) -> Again:
    """The same world, in which nothing goes wrong."""
    return again(run, policy, msgspec.structs.replace(trial, faults=()))


def first_difference(trial: Sequence[Line], golden: Sequence[Line]) -> int | None:
    """Number of the first line in which they differ; None: they are the same."""
    pairs = enumerate(zip_longest(trial, golden))
    return next((number for number, (one, other) in pairs if one != other), None)


def story(trial: Sequence[Line], golden: Sequence[Line]) -> list[str]:
    """For people: the lines around the first difference."""
    at = first_difference(trial, golden)
    if at is None:
        return ["log       the same as without faults"]
    lines = [f"log       line {at} is the first that differs from the same world without faults"]
    lines += [f"            {line}" for line in trial[max(0, at - CONTEXT) : at]]
    lines.append(f"  trial     {trial[at] if at < len(trial) else 'ends here'}")
    lines.append(f"  golden    {golden[at] if at < len(golden) else 'ends here'}")
    return lines


def write_timeline(path: Path, lines: Sequence[Line]) -> None:
    """Trace-event JSON, as :mod:`colo.campaign.timeline` writes it: a row for each of the world's parts."""
    rows = {name: number for number, name in enumerate(dict.fromkeys(line.who for line in lines), start=1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}
        for name, number in rows.items()
    ]
    events += [
        {
            "ph": "i",
            "s": "t",
            "pid": 1,
            "tid": rows[line.who],
            "ts": line.at_ns / 1000,
            "name": line.what,
            "args": {"detail": line.detail},
        }
        for line in lines
    ]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}), encoding="utf-8")
