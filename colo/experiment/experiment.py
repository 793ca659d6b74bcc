"""All of an experiment in order: rounds, configurations, loads, kills; and what was found so far.

In a round each configuration is started afresh, warm from the same snapshot, and given the same loads in the
same order, which is another order in each round.  A load that fails is a row that says why; the others go
on with a fresh subject, because what is left of the old one proves nothing.

Whoever ends an experiment early (by cancelling it) finds in :class:`Found` what was measured until then,
and nothing of ours running.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo.errors import ColoError
from colo.experiment import results
from colo.experiment.failover import Kill, kill
from colo.experiment.measurement import Measured, measure
from colo.experiment.results import Key, Row, Samples
from colo.experiment.schedule import Configuration, orders
from colo.experiment.subject import Protected, Subject, subject
from colo.experiment.unbroken import Unbroken
from colo.experiment.workloads import Workload
from vmm.errors import VmmError

START_S, AROUND_LOAD_S, KILL_S = 3.0, 1.0, 4.0
"""What a start, the beginning and end of a load, and a kill take on an idle host: the first estimate."""

Tell = Callable[[str, float], None]
"""Told of each step, and how many seconds are left."""
Job = Callable[[Subject], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    guest: str
    workloads: Sequence[Workload]
    configurations: Sequence[Configuration]
    snapshot: Path
    connections: Sequence[int] = ()
    """Empty: the workload's own."""
    rounds: int = 3
    seconds: float = 3.0
    warm_s: float = 0.5
    seed: int = 0
    kills: int = 0
    """Of each protected configuration, in all rounds together."""
    killing: Workload | None = None
    victim: str = "primary"
    words: tuple[str, ...] = ()
    """More words for the nodes of a pair."""

    @property
    def loads(self) -> list[tuple[Workload, int]]:
        return [(each, count) for each in self.workloads for count in self.connections or (each.connections,)]

    @property
    def killing_connections(self) -> Sequence[int]:
        return () if self.killing is None else self.connections or (self.killing.connections,)

    def kills_in(self, number: int) -> int:
        """In one round; they are spread evenly."""
        return self.kills // self.rounds + (number < self.kills % self.rounds)

    def loads_in(self, number: int) -> list[tuple[Workload, int]]:
        """Of one round, in its order."""
        turn = number % len(self.loads)
        return [*self.loads[turn:], *self.loads[:turn]]


@dataclass
class Found:
    """What was measured so far."""

    _rows: list[Row] = field(default_factory=list)
    samples: dict[Key, list[Samples]] = field(default_factory=dict)
    kills: dict[Key, list[Kill]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """Each with its share, as far as the unprotected guest of its round has been measured."""
        return results.with_shares(self._rows)

    def add(self, row: Row, measured: Measured) -> None:
        self._rows.append(row)
        if len(measured.outcome.samples_ns):
            self.samples.setdefault(row.subject, []).append(measured.outcome.samples_ns)

    def add_kills(self, row: Row, kills: list[Kill]) -> None:
        self._rows.append(row)
        self.kills.setdefault(row.subject, []).extend(kills)

    def add_failure(self, row: Row, reason: str) -> None:
        row.failure = reason
        self._rows.append(row)

    def lines(self, plan: Plan) -> list[results.Line]:
        """The table: loads in the plan's order, and in each the configurations in theirs."""
        place = {each.label: number for number, each in enumerate(plan.configurations)}
        names = [(workload.name, count) for workload, count in plan.loads]

        def at(line: results.Line) -> tuple[bool, int, int, int]:
            row = line.row
            name = (row.workload, row.connections)
            first = names.index(name) if name in names else len(names)
            return row.kills > 0, first, row.connections, place[row.configuration]

        return sorted(results.lines(self.rows, self.samples, self.kills), key=at)


class Experiment:
    """One plan, carried out once."""

    def __init__(self, plan: Plan, tell: Tell = lambda text, left_s: None) -> None:
        self.plan = plan
        self.found = Found()
        self._tell = tell
        self._began_s = time.monotonic()
        self._whole_s = self._estimate()
        self._passed_s = 0.0
        """Of the estimate."""
        self._where = ""

    async def run(self) -> Found:
        plan = self.plan
        self._began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="colo-compare-") as scratch:
            for number, order in enumerate(orders(plan.configurations, plan.rounds, plan.seed)):
                for place, configuration in enumerate(order):
                    self._where = f"round {number + 1} of {plan.rounds}, {configuration.label}"
                    await _Turn(self, number, place, configuration, Path(scratch)).run()
        return self.found

    def step(self, what: str, costs_s: float) -> None:
        """Say what comes now, and how long the rest takes, judged by how long it took so far."""
        elapsed_s = time.monotonic() - self._began_s
        pace = elapsed_s / self._passed_s if self._passed_s > 0 else 1.0
        self._tell(f"{self._where}: {what}", max(0.0, self._whole_s - self._passed_s) * pace)
        self._passed_s += costs_s

    def _estimate(self) -> float:
        plan = self.plan
        guarded = sum(each.policy is not None for each in plan.configurations)
        turn_s = START_S + len(plan.loads) * self.load_s
        kills = plan.kills * guarded * len(plan.killing_connections)
        return plan.rounds * len(plan.configurations) * turn_s + kills * KILL_S

    @property
    def load_s(self) -> float:
        return self.plan.warm_s + self.plan.seconds + AROUND_LOAD_S


class _Spent(Exception):
    """The subject is good for nothing more, which is no failure of the job; is there more of it to do?"""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.more = more


class _Turn:
    """One configuration in one round."""

    def __init__(
        self, experiment: Experiment, number: int, place: int, configuration: Configuration, scratch: Path
    ) -> None:
        self._experiment = experiment
        self._plan, self._found = experiment.plan, experiment.found
        self._number, self._place, self._configuration = number, place, configuration
        self._scratch = scratch

    async def run(self) -> None:
        jobs: list[Job] = []
        rows: list[Row] = []
        for workload, connections in self._plan.loads_in(self._number):
            jobs.append(self._loading(workload, connections))
            rows.append(self._blank(workload.name, connections))
        if self._configuration.policy is not None and (count := self._plan.kills_in(self._number)):
            killing = self._plan.killing
            assert killing is not None
            for connections in self._plan.killing_connections:
                jobs.append(self._killing(killing, connections, count))
                rows.append(self._blank(f"{killing.name}, {self._plan.victim} killed", connections))
        await self._work(jobs, rows)

    async def _work(self, jobs: list[Job], rows: list[Row]) -> None:
        """Each job on the subject, a fresh one after each that failed; without a subject all have failed."""
        done = 0
        while done < len(jobs):
            running: Subject | None = None
            try:
                self._experiment.step("starting", START_S if done == 0 else 0.0)
                async with self._subject() as running:
                    while done < len(jobs):
                        await jobs[done](running)
                        done += 1
            except _Spent as spent:
                done += not spent.more
            except (ColoError, VmmError, OSError) as exc:
                failed = rows[done : done + 1] if running is not None else rows[done:]
                for row in failed:
                    self._found.add_failure(row, str(exc))
                done += len(failed)

    def _subject(self) -> Unbroken:
        traces = Path(tempfile.mkdtemp(prefix="traces-", dir=self._scratch))
        plan = self._plan
        return Unbroken(subject(plan.guest, self._configuration, plan.snapshot, plan.words, traces))

    def _loading(self, workload: Workload, connections: int) -> Job:
        async def load(running: Subject) -> None:
            plan, found = self._plan, self._found
            self._experiment.step(f"{workload.name}, {counted(connections)}", self._experiment.load_s)
            measured = await measure(running, workload, connections, plan.warm_s, plan.seconds, self._scratch)
            row = results.loaded(self._configuration, workload, connections, measured)
            found.add(self._placed(row), measured)

        return load

    def _killing(self, workload: Workload, connections: int, count: int) -> Job:
        made: list[Kill] = []

        async def killing(running: Subject) -> None:
            assert isinstance(running, Protected)
            first, victim = len(made), self._plan.victim
            try:
                while (each := len(made)) < count:
                    chance = random.Random(f"{self._plan.seed} {self._number} {connections} {each}")
                    self._experiment.step(f"kill {each + 1} of {count}, {counted(connections)}", KILL_S)
                    made.append(await kill(running, workload, connections, victim, chance, self._scratch))
                    if made[-1].error is not None:
                        raise _Spent(more=len(made) < count)
            finally:
                row = results.killed(self._configuration, workload, connections, made[first:])
                if row is not None:
                    self._found.add_kills(self._placed(row), made[first:])

        return killing

    def _blank(self, workload: str, connections: int) -> Row:
        return self._placed(results.blank(self._configuration, workload, connections))

    def _placed(self, row: Row) -> Row:
        row.round, row.place = self._number + 1, self._place + 1
        return row


def counted(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"
