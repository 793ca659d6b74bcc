"""The results as a picture: shares of unprotected, latencies, and silences if nodes were killed.

Latencies are on a logarithmic axis, each as a line from the median to the 99th percentile with a mark at
either end and a dot at the longest: a policy that is fast in the middle and bad at the end shows as a long
line.  Colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colo.experiment import optional
from colo.experiment.results import Line

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
PURPOSE = "a plot"
PANEL_INCHES = 3.2
INCHES_A_GROUP, WIDTH_MIN = 1.5, 7.0
SPREAD = 0.8
"""Of the place between two groups, what a group takes."""
LABELS_MIN = 3
"""A bar is no wider than that of so many."""

Colours = dict[str, str]


def write(path: Path, lines: Sequence[Line], title: str) -> None:
    """Draw ``lines`` into ``path``, whose suffix says how.  ConfigError without the library."""
    figures = optional.load("matplotlib.figure", PURPOSE)
    loads = [line for line in lines if line.rounds and not line.row.kills]
    kills = [line for line in lines if line.row.kills]
    panels = [draw for draw, wanted in ((_shares, loads), (_latencies, loads), (_silences, kills)) if wanted]
    groups = max(len(_groups(loads)), len(_groups(kills)), 1)
    size = (max(WIDTH_MIN, 2 + INCHES_A_GROUP * groups), PANEL_INCHES * max(1, len(panels)) + 0.8)
    figure = figures.Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(max(1, len(panels)), 1, squeeze=False)[:, 0]
    colours = colours_of(lines)
    for axis, draw in zip(axes, panels, strict=False):
        draw(axis, kills if draw is _silences else loads, colours)
    if panels:
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)


def colours_of(lines: Sequence[Line]) -> dict[str, str]:
    """One for each configuration, the same in every panel."""
    labels = dict.fromkeys(line.row.configuration for line in lines)
    return {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}


def _groups(lines: Sequence[Line]) -> list[str]:
    """Loads, by what stands under them."""
    return list(dict.fromkeys(_name(line) for line in lines))


def _name(line: Line) -> str:
    row = line.row
    name = row.workload.partition(",")[0]
    return name if row.connections == 1 else f"{name}\n{row.connections} connections"


def _places(lines: Sequence[Line]) -> list[tuple[str, list[tuple[float, Line]], float]]:
    """Each configuration: its name, where its lines stand, and how wide one is."""
    groups = _groups(lines)
    labels = list(dict.fromkeys(line.row.configuration for line in lines))
    width = SPREAD / max(len(labels), LABELS_MIN)
    found = []
    for number, label in enumerate(labels):
        shift = (number - (len(labels) - 1) / 2) * width
        mine = [
            (groups.index(_name(line)) + shift, line) for line in lines if line.row.configuration == label
        ]
        found.append((label, mine, width))
    return found


def _frame(axis: Any, lines: Sequence[Line], what: str) -> None:
    groups = _groups(lines)
    axis.set_xticks(range(len(groups)), groups, fontsize="small")
    axis.set_ylabel(what)
    axis.grid(axis="y", linewidth=0.4, alpha=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _shares(axis: Any, lines: Sequence[Line], colours: Colours) -> None:
    for label, mine, width in _places(lines):
        known = [(at, line) for at, line in mine if line.row.share is not None]
        heights = [100 * (line.row.share or 0.0) for _, line in known]
        low = [
            height - 100 * (line.share_low or 0.0) for height, (_, line) in zip(heights, known, strict=True)
        ]
        high = [
            100 * (line.share_high or 0.0) - height for height, (_, line) in zip(heights, known, strict=True)
        ]
        bars = axis.bar([at for at, _ in known], heights, width * 0.92, color=colours[label], label=label)
        axis.bar_label(bars, fmt="%.0f", fontsize="x-small", padding=1)
        axis.errorbar(
            [at for at, _ in known], heights, yerr=[low, high], fmt="none", ecolor="grey", elinewidth=1
        )
    _frame(axis, lines, "% of unprotected")


def _latencies(axis: Any, lines: Sequence[Line], colours: Colours) -> None:
    for label, mine, _ in _places(lines):
        for at, line in mine:
            row = line.row
            if row.p50_ms is None or row.p99_ms is None:
                continue
            axis.plot(
                [at, at], [row.p50_ms, row.p99_ms], color=colours[label], marker="_", linewidth=2, label=label
            )
            axis.plot([at], [row.max_ms], color=colours[label], marker=".", markersize=4)
    axis.set_yscale("log")
    _frame(axis, lines, "latency, ms: p50 to p99, max")


def _silences(axis: Any, lines: Sequence[Line], colours: Colours) -> None:
    for label, mine, width in _places(lines):
        heights = [line.row.silence_median_ms or 0.0 for _, line in mine]
        above = [
            (line.row.silence_max_ms or 0.0) - height for height, (_, line) in zip(heights, mine, strict=True)
        ]
        where = [at for at, _ in mine]
        axis.bar(where, heights, width * 0.92, color=colours[label], label=label)
        axis.errorbar(
            where, heights, yerr=[[0.0] * len(above), above], fmt="none", ecolor="grey", elinewidth=1
        )
    _frame(axis, lines, "silence after kill -9, ms: median, max")
