"""A comparison of policies from its options: what must be there, the experiment, and what is written of it.

Everything that can be refused is refused before the first guest starts: names, files, libraries, a compiler.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo.experiment import conditions, export, foreign, loadgen, optional, plot, table
from colo.experiment.experiment import Experiment, Found, Plan, Tell
from colo.experiment.schedule import INTERVALS_MS, configurations
from colo.experiment.workloads import CONNECTIONS_MAX, Workload, choose, counting
from colo.network.host import Network
from colo.pair import warm
from colo.policy import POLICIES
from vmm.errors import ConfigError

ROUNDS_MAX, KILLS_MAX = 1000, 10_000


@dataclass(frozen=True)
class Options:
    """What somebody wants compared."""

    guest: str
    workloads: Sequence[str] = ()
    policies: Sequence[str] = ()
    """Empty: all that there are."""
    intervals_ms: Sequence[int] = INTERVALS_MS
    connections: Sequence[int] = ()
    seconds: float = 3.0
    warm_s: float = 0.5
    rounds: int = 3
    seed: int = 0
    kills: int = 0
    victim: str = "primary"
    silence_ms: int | None = None
    csv: Path | None = None
    parquet: Path | None = None
    plot: Path | None = None


@dataclass
class Comparison:
    """One comparison: :meth:`prepare`, :meth:`run`, and then what there is to show."""

    options: Options
    plan: Plan | None = None
    left_out: list[str] = field(default_factory=list)
    """Workloads that cannot be had here, and why."""
    conditions: dict[str, str] = field(default_factory=dict)
    found: Found = field(default_factory=Found)
    interrupted: bool = False

    def prepare(self, say: Callable[[str], None]) -> None:
        """Check everything, and make what is made once: client, guest, snapshot of its boot."""
        options = self.options
        self._check_outputs()
        policies = options.policies or list(POLICIES)
        unknown = [each for each in policies if each not in POLICIES]
        if unknown:
            raise ConfigError(f"policy {unknown[0]!r}: there are {', '.join(POLICIES)}")
        self._check_counts()
        wanted = choose(options.guest, options.workloads)
        workloads = [each for each in wanted if self._is_there(each)]
        if not workloads:
            raise ConfigError(f"nothing to measure: {'; '.join(self.left_out)}")
        killing = counting(options.guest) if options.kills else None
        if killing is not None or any(each.client == "loadgen" for each in workloads):
            loadgen.program()
        self.plan = Plan(
            guest=options.guest,
            workloads=workloads,
            configurations=configurations(policies, options.intervals_ms),
            snapshot=warm.snapshot(options.guest, net=Network.unplugged, say=say),
            connections=options.connections,
            rounds=options.rounds,
            seconds=options.seconds,
            warm_s=options.warm_s,
            seed=options.seed,
            kills=options.kills,
            killing=killing,
            victim=options.victim,
            words=() if options.silence_ms is None else ("--silence", str(options.silence_ms)),
        )
        self.conditions = {**conditions.describe(options.guest, workloads), "method": method(self.plan)}

    def _check_counts(self) -> None:
        options = self.options
        limits = [("rounds", options.rounds, 1, ROUNDS_MAX), ("kills", options.kills, 0, KILLS_MAX)]
        limits += [("connections", each, 1, CONNECTIONS_MAX) for each in options.connections]
        for name, value, least, most in limits:
            if not least <= value <= most:
                raise ConfigError(f"{name} {value}: from {least} to {most}")

    def _check_outputs(self) -> None:
        options = self.options
        if options.parquet is not None:
            optional.load("pyarrow.parquet", "--parquet")
        if options.plot is not None:
            optional.load("matplotlib.figure", "--plot")
            if options.plot.suffix not in plot.SUFFIXES:
                raise ConfigError(f"plot {options.plot}: the name ends in one of {', '.join(plot.SUFFIXES)}")
        for path in filter(None, (options.csv, options.parquet, options.plot)):
            if not path.absolute().parent.is_dir():
                raise ConfigError(f"{path}: there is no directory {path.absolute().parent}")

    def _is_there(self, workload: Workload) -> bool:
        reason = foreign.missing(workload)
        if reason is not None:
            self.left_out.append(f"workload {workload.name} is left out: {reason}")
        return reason is None

    def run(self, tell: Tell) -> None:
        """Measure.  SIGINT and SIGTERM end it in order; what was measured until then is kept."""
        assert self.plan is not None
        experiment = Experiment(self.plan, tell)
        self.found = experiment.found
        self.interrupted = asyncio.run(interruptible(experiment))
        self.conditions["load at the end"] = conditions.load_average()
        if self.interrupted:
            self.conditions["interrupted"] = "before its time: there may be fewer rounds than were asked for"

    # What there is to show

    def text(self) -> str:
        """The table, and how it came about."""
        assert self.plan is not None
        names = [*self.plan.workloads, *([self.plan.killing] if self.plan.killing else [])]
        shown = table.table(self.found.lines(self.plan), names)
        width = max(map(len, self.conditions))
        how = [f"{name:<{width}}  {value}" for name, value in self.conditions.items()]
        return "\n\n".join(each for each in (shown, "\n".join([*how, *self.left_out])) if each)

    def document(self) -> dict[str, Any]:
        assert self.plan is not None
        return {
            **export.document(self.found, self.plan, self.conditions),
            "left_out": self.left_out,
            "interrupted": self.interrupted,
        }

    def save(self) -> list[Path]:
        """Write what was asked for; which files those are."""
        options, plan = self.options, self.plan
        assert plan is not None
        lines = self.found.lines(plan)
        if options.csv is not None:
            export.write_csv(options.csv, self.found.rows)
        if options.parquet is not None:
            export.write_parquet(options.parquet, self.found.rows, self.conditions)
        if options.plot is not None:
            title = f"guest {plan.guest}, {plan.rounds} rounds of {plan.seconds:g} s"
            plot.write(options.plot, lines, f"{title}\n{self.conditions['cpu']}")
        return [each for each in (options.csv, options.parquet, options.plot) if each is not None]

    @property
    def flawless(self) -> bool:
        """Every load came to its end, every answer was right, every connection survived."""
        return all(
            row.failure is None and not row.faults.total and row.survived == row.opened
            for row in self.found.rows
        )


async def interruptible(experiment: Experiment) -> bool:
    """Carry it out; True if a signal ended it before its time."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(experiment.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    if task.cancelled():
        return True
    task.result()
    return False


def method(plan: Plan) -> str:
    """How it was measured, in a few sentences."""
    rounds = "1 round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    said = (
        f"{rounds} in balanced order (seed {plan.seed}), loads of {plan.seconds:g} s after {plan.warm_s:g} s;"
        " clients in the pair's network: bridge, TAP, guest, no forwarder; rates and shares are medians of"
        " rounds, latencies those of all answers"
    )
    if not plan.kills:
        return said
    return f"{said}; {plan.kills} kill(s) of the {plan.victim} at random moments for each line"
