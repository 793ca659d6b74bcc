"""The records of an experiment, and how the rounds of one become a line of the table.

A :class:`Row` is one load in one round, flat, so that a row is a line of a CSV file.  A line of the table
has the same fields, over all rounds: latencies and silences are of all samples together; rates, shares and
everything else are medians of the rounds, faults and checkpoints sums, maxima maxima.

A share is taken within a round, of the unprotected guest's rate with the same load: what changes from round
to round, such as other people's load, is then on both sides of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from colo.experiment.failover import Kill
from colo.experiment.measurement import Measured
from colo.experiment.outcome import Faults, Latency
from colo.experiment.schedule import Configuration
from colo.experiment.workloads import Workload

Samples = npt.NDArray[np.uint64]
Key = tuple[str, int, str]


class Row(msgspec.Struct, kw_only=True):
    """One load, or the kills during one.  Empty where there is nothing to say."""

    round: int | None = None
    """None: all of them together."""
    place: int | None = None
    """Of the configuration in its round."""
    configuration: str
    policy: str | None
    interval_ms: int | None
    workload: str
    connections: int
    seconds: float | None = None
    answers: int | None = None
    answers_per_s: float | None = None
    mb_per_s: float | None = None
    share: float | None = None
    """Of the unprotected guest's rate."""
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    p99_9_ms: float | None = None
    max_ms: float | None = None
    checkpoints: int | None = None
    checkpoints_per_s: float | None = None
    causes: dict[str, int] = {}
    """Of the checkpoints."""
    pause_median_ms: float | None = None
    pause_max_ms: float | None = None
    state_bytes: int | None = None
    """Pages and device state that checkpoints sent."""
    state_kib_per_s: float | None = None
    link_bytes: int | None = None
    """Everything that went to the secondary, where the node counts that."""
    link_kib_per_s: float | None = None
    held_median_ms: float | None = None
    """How long the oldest frame of a checkpoint had waited."""
    held_max_ms: float | None = None
    waited_mean_ms: float | None = None
    """Of output that waited for a comparison."""
    wrong: int = 0
    lost: int = 0
    repeated: int = 0
    errors: int = 0
    resets: int = 0
    stuck: int = 0
    failovers: int = 0
    """Without a kill."""
    kills: int = 0
    silence_median_ms: float | None = None
    silence_max_ms: float | None = None
    survived: int | None = None
    """Connections, of all that were open at all kills."""
    opened: int | None = None
    restored_median_s: float | None = None
    unrestored: int = 0
    """Kills after which the pair did not become one again."""
    counters: dict[str, float] = {}
    """Everything that the node counted."""
    failure: str | None = None
    """Why there is nothing else in this row."""

    @property
    def faults(self) -> Faults:
        return Faults(self.wrong, self.lost, self.repeated, self.errors, self.resets, self.stuck)

    @property
    def subject(self) -> Key:
        """What rounds have in common."""
        return self.workload, self.connections, self.configuration


class Line(msgspec.Struct, kw_only=True):
    """A line of the table: a row over all rounds."""

    row: Row
    rounds: int
    share_low: float | None = None
    share_high: float | None = None


def blank(configuration: Configuration, workload: str, connections: int, **more: Any) -> Row:
    return Row(
        configuration=configuration.label,
        policy=configuration.policy,
        interval_ms=configuration.interval_ms,
        workload=workload,
        connections=connections,
        **more,
    )


def loaded(configuration: Configuration, workload: Workload, connections: int, found: Measured) -> Row:
    """The row of a load."""
    outcome = found.outcome
    rate = outcome.per_second
    row = blank(
        configuration,
        workload.name,
        connections,
        seconds=round(outcome.seconds, 3),
        answers=outcome.answers,
        answers_per_s=round(rate, 2),
        mb_per_s=round(rate * workload.payload_bytes / 1e6, 3) if workload.payload_bytes else None,
        failovers=found.failovers,
        counters={name: round(value, 3) for name, value in found.counters.items()},
        **msgspec.structs.asdict(outcome.latency),
        **msgspec.structs.asdict(outcome.faults),
    )
    return row if configuration.policy is None else with_checkpoints(row, found)


def with_checkpoints(row: Row, found: Measured) -> Row:
    """The same, with what protection cost."""
    made, counters = found.checkpoints, found.counters
    pauses = [float(each["pause_ms"]) for each in made]
    held = [float(each["held_age_ms"]) for each in made if each.get("held_age_ms")]
    row.checkpoints = len(made)
    row.checkpoints_per_s = round(len(made) / found.seconds, 2)
    row.causes = dict(Counter(str(each["reason"]) for each in made).most_common())
    row.pause_median_ms, row.pause_max_ms = _median(pauses), _longest(pauses)
    row.held_median_ms, row.held_max_ms = _median(held), _longest(held)
    row.state_bytes = round(counters.get("bytes", 0.0))
    row.state_kib_per_s = round(row.state_bytes / 1024 / found.seconds, 2)
    if "link-bytes" in counters:
        row.link_bytes = round(counters["link-bytes"])
        row.link_kib_per_s = round(row.link_bytes / 1024 / found.seconds, 2)
    if counters.get("waited"):
        row.waited_mean_ms = round(counters["waited-ms"] / counters["waited"], 3)
    return row


def killed(
    configuration: Configuration, workload: Workload, connections: int, kills: Sequence[Kill]
) -> Row | None:
    """The row of some kills; None if there was none."""
    if not kills:
        return None
    silences = [each for kill in kills for each in kill.silences_ms]
    restored = [each.restored_s for each in kills if each.restored_s is not None]
    faults = Counter[str]()
    for each in kills:
        faults.update(msgspec.structs.asdict(each.faults))
    name = f"{workload.name}, {kills[0].victim} killed"
    row = blank(configuration, name, connections, **faults)
    row.kills = len(kills)
    row.silence_median_ms, row.silence_max_ms = _median(silences), _longest(silences)
    row.survived = sum(each.survived for each in kills)
    row.opened = sum(each.connections for each in kills)
    row.restored_median_s = _median(restored)
    row.unrestored = len(kills) - len(restored)
    return row


def with_shares(rows: Iterable[Row]) -> list[Row]:
    """The same rows, each with its share of what the unprotected guest did in the same round."""
    rows = list(rows)
    bare = {
        (each.round, each.workload, each.connections): each.answers_per_s
        for each in rows
        if each.policy is None
    }
    for each in rows:
        whole = bare.get((each.round, each.workload, each.connections))
        if whole and each.answers_per_s is not None:
            each.share = round(each.answers_per_s / whole, 4)
    return rows


def lines(
    rows: Sequence[Row], samples: Mapping[Key, list[Samples]], kills: Mapping[Key, list[Kill]]
) -> list[Line]:
    """The table, in the order of the first rows.  ``samples`` are latencies; keys are :attr:`Row.subject`."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.subject, []).append(row)
    return [together(group, samples.get(key, ()), kills.get(key, ())) for key, group in groups.items()]


def together(rows: Sequence[Row], samples: Sequence[Samples], kills: Sequence[Kill]) -> Line:
    """Rounds of one subject as one line."""
    first = rows[0]
    good = [row for row in rows if row.failure is None] or list(rows)
    row = Row(
        configuration=first.configuration,
        policy=first.policy,
        interval_ms=first.interval_ms,
        workload=first.workload,
        connections=first.connections,
        failure=next((each.failure for each in rows if each.failure), None),
    )
    for name, join in _JOINED.items():
        setattr(row, name, _joined(join, [getattr(each, name) for each in good]))
    if samples:
        for name, value in msgspec.structs.asdict(Latency.of(np.concatenate(samples))).items():
            setattr(row, name, value)
    silences = [each for kill in kills for each in kill.silences_ms]
    if silences:
        row.silence_median_ms = _median(silences)
    for each in good:
        row.causes = dict((Counter(row.causes) + Counter(each.causes)).most_common())
        for name, value in each.counters.items():
            row.counters[name] = round(row.counters.get(name, 0.0) + value, 3)
    shares = [each.share for each in good if each.share is not None]
    return Line(
        row=row,
        rounds=len(good) if good[0].failure is None else 0,
        share_low=min(shares, default=None),
        share_high=max(shares, default=None),
    )


def _median(values: Sequence[float]) -> float | None:
    return round(median(values), 3) if values else None


def _longest(values: Sequence[float]) -> float | None:
    return round(max(values), 3) if values else None


def _middle(values: Sequence[float]) -> float:
    return round(median(values), 4)


def _joined(join: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return join(known) if known else None


_SUMS = (
    "seconds", "answers", "checkpoints", "link_bytes", "wrong", "lost", "repeated", "errors", "resets",
    "stuck", "state_bytes", "failovers", "kills", "survived", "opened", "unrestored",
)  # fmt: skip
_MIDDLES = (
    "answers_per_s", "mb_per_s", "share", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "checkpoints_per_s",
    "pause_median_ms", "state_kib_per_s", "link_kib_per_s", "held_median_ms", "waited_mean_ms",
    "silence_median_ms", "restored_median_s",
)  # fmt: skip
_MAXIMA = ("max_ms", "pause_max_ms", "held_max_ms", "silence_max_ms")
_JOINED: dict[str, Callable[[Sequence[float]], float]] = {
    **dict.fromkeys(_SUMS, sum),
    **dict.fromkeys(_MIDDLES, _middle),
    **dict.fromkeys(_MAXIMA, max),
}
