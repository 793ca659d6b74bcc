"""A campaign in its directory: the golden run, the trials that are still to do, the results.

========================  =========================================================================
``plan.toml``             the plan, as it was when the campaign began
``golden.run``            the golden run (:mod:`colo.campaign.golden`)
``trials.jsonl``          a line for each finished trial (:mod:`colo.campaign.results`)
``results.parquet``       all of them by number, at the end
========================  =========================================================================

A campaign whose directory has these goes on where it was: what is there is not done again.  A plan that has
changed is another campaign and needs another directory.

Trials are done policy by policy and in the order of their injection points; their numbers, and what they are,
come from the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from colo.campaign import kinds, results, table
from colo.campaign.fork_server import WALL_LIMIT_S
from colo.campaign.kinds import Run
from colo.campaign.planned import Planned
from colo.campaign.results import Results, Row
from colo.campaign.wire import Done, Job, Numbered
from colo.errors import ColoError

PLAN, GOLDEN, TRIALS = "plan.toml", "golden.run", "trials.jsonl"

Say = Callable[[str], None]


class Workers(Protocol):
    """Who does the trials: :mod:`colo.campaign.workers`, :mod:`colo.campaign.cluster`."""

    def run(self, job: Job, trials: Sequence[Numbered]) -> Iterator[Done]: ...


class Standing(msgspec.Struct, frozen=True):
    """How far a campaign is."""

    done: int
    total: int
    row: Row
    per_minute: float
    """Since this command began."""
    left_s: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign came to."""

    rows: list[Row]
    digest: str
    golden_digest: str
    exported: Path
    seconds: float
    """Of this command's trials."""
    done_now: int


class Campaign:
    """One plan in one directory.  Use it in a ``with`` statement."""

    def __init__(self, planned: Planned, directory: Path, say: Say = lambda text: None) -> None:
        self.planned = planned
        self.directory = directory
        self._say = say
        _prepare(directory, planned)
        self.golden = self._golden_run()
        self.trials = planned.trials(self.golden)
        self.results = Results(directory / TRIALS)

    def _golden_run(self) -> Run:
        path = self.directory / GOLDEN
        if path.exists():
            return kinds.load(path)
        self._say(f"golden run of {self.planned.scenario.guest}")
        made = kinds.record(self.planned.scenario, self.planned.seed, self._say)
        kinds.save(made, path)
        return made

    def left(self) -> list[Numbered]:
        """The trials that have no row yet: policy by policy, each in the order of their injection points."""
        order = sorted(
            enumerate(self.trials), key=lambda each: (kinds.leaves_ns(each[1], self.golden), each[0])
        )
        asked = [Numbered(*each, policy) for policy in self.policies for each in order]
        return [each for each in asked if each.key not in self.results.rows]

    def run(
        self,
        workers: Workers,
        *,
        watch: Callable[[Standing], None] = lambda standing: None,
        wall_limit_s: float = WALL_LIMIT_S,
    ) -> Found:
        """Do what is left.  An interruption leaves everything that is done."""
        left = self.left()
        asked = {each.key: each for each in left}
        began, done_now = time.monotonic(), 0
        for done in workers.run(Job(golden=self.golden, wall_limit_s=wall_limit_s), left) if left else ():
            row = results.row(asked[done.key], done)
            self.results.add(row)
            done_now += 1
            watch(self._standing(row, done_now, len(left), time.monotonic() - began))
        return self._found(time.monotonic() - began, done_now)

    def _standing(self, row: Row, done: int, asked: int, seconds: float) -> Standing:
        rate = done / max(seconds, 1e-9)
        return Standing(len(self.results.rows), self.total, row, 60 * rate, (asked - done) / rate)

    def _found(self, seconds: float, done_now: int) -> Found:
        rows = self.results.in_order()
        facts = {"plan": self.planned.text, "golden": self.golden.digest, "digest": results.digest(rows)}
        return Found(
            rows=rows,
            digest=facts["digest"],
            golden_digest=facts["golden"],
            exported=results.export(rows, self.directory, facts),
            seconds=seconds,
            done_now=done_now,
        )

    @property
    def policies(self) -> tuple[str, ...]:
        """Of the worlds in which every trial is run; of a machine alone, just ""."""
        return kinds.policies(self.golden)

    @property
    def total(self) -> int:
        """Rows in the end."""
        return len(self.trials) * len(self.policies)

    def table(self) -> list[str]:
        return table.report(self.results.in_order(), self.policies)

    def close(self) -> None:
        self.results.close()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prepare(directory: Path, planned: Planned) -> None:
    """The directory, with this plan in it."""
    path = directory / PLAN
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.read_text(encoding="utf-8") != planned.text:
                raise ColoError(
                    f"{directory} has the results of another plan ({path}): expected the one that is asked"
                    " for; choose another directory with --out, or remove that one"
                )
        else:
            path.write_text(planned.text, encoding="utf-8")
    except OSError as exc:
        raise ColoError(f"campaign {directory}: {exc.strerror}") from None
