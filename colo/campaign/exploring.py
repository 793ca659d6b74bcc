"""Exploration of a world: trials chosen by what earlier ones reached, failures made small.

:mod:`colo.faults.explore` proposes a trial, a child of the world's fork server runs it and tells which
combinations of state, message and fault it went through (:mod:`colo.sim.situations`), and what was new
decides what is proposed next.  A trial that fails (``crash``, ``hang``, ``sdc``, or no outcome at all) is
shrunk (:mod:`colo.faults.shrink`), once for each outcome and reason.

Double failures (:mod:`colo.campaign.double`) are counted, and not shrunk.

All of it is a function of the plan, its seed and the number of trials; the digest says so.  One process: what
a trial reached is needed before the next one is proposed.
"""

from __future__ import annotations

import hashlib
import re
import signal
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from colo.campaign.fork_server import WALL_LIMIT_S
from colo.campaign.scene import DOUBLE_FAILURE
from colo.campaign.scenery import UNPROTECTED, Scenery, WorldRun
from colo.campaign.trial import Report
from colo.campaign.world import WorldServer, record
from colo.faults import shrink, text
from colo.faults.coverage import Coverage
from colo.faults.explore import Explorer
from colo.faults.model import Outcome, Trial
from colo.sim.situations import Situations

if TYPE_CHECKING:
    from colo.campaign.planned import Planned
    from colo.campaign.subject import Say

FAILURES = (Outcome.CRASH, Outcome.HANG, Outcome.SDC)
SHRINK_RUNS_MAX = 100
DIGEST_SIZE = 16


class ExploringServer(WorldServer):
    """Its children tell where they have been."""

    def perform(self, trial: Trial) -> Report:
        assert self._scene is not None
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a terminal's is for the server, which ends this process
        found = Situations(self._scene.world, trial)
        report = super().perform(trial)
        return msgspec.structs.replace(report, reached=found.found)


class Failure(msgspec.Struct, kw_only=True):
    """Trials that failed alike."""

    outcome: str
    """Empty: there was none."""
    why: str
    first: Trial
    smallest: Trial
    minimal: bool
    """Without any of its faults the smallest does not fail."""
    count: int = 1


class Standing(msgspec.Struct, kw_only=True):
    """How far it has come."""

    trials: int = 0
    runs: int = 0
    """Trials and what shrinking needed."""
    kept: int = 0
    """Trials that reached something first."""
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    double_failures: int = 0
    failures: list[Failure] = msgspec.field(default_factory=list)


class Exploration:
    """One policy of a plan with a ``[world]``.  Use it in a ``with`` statement."""

    def __init__(
        self,
        planned: Planned,
        policy: str,
        *,
        wall_limit_s: float = WALL_LIMIT_S,
        say: Say = lambda text: None,
    ) -> None:
        scenery = planned.scenario
        if not isinstance(scenery, Scenery):
            raise planned.plan.error((), "no [world]", "a plan of a world", "colo campaign runs the others")
        if policy == UNPROTECTED or policy not in scenery.policies:
            pairs = [each for each in scenery.policies if each != UNPROTECTED]
            expected = ", ".join(pairs) or "a policy of pairs: a machine alone has no protocol"
            raise planned.plan.error(("world", "policy"), policy, expected)
        self.run: WorldRun = record(scenery.under(policy), planned.seed, say)
        self.standing = Standing()
        self._policy, self._seed = policy, planned.seed
        self._explorer = Explorer(planned.plan, self.run.facts())
        self._server = ExploringServer(self.run, wall_limit_s=wall_limit_s, say=say)
        self._known: dict[tuple[str, str], Failure] = {}

    @property
    def coverage(self) -> Coverage:
        return self._explorer.coverage

    def explore(self, goes_on: Callable[[Standing], bool], shown: Callable[[Standing], None]) -> None:
        """Trial after trial, the one without faults first."""
        self.coverage.add(
            self._run(Trial(seed=self._seed)).reached
        )  # it has no fault to be changed: not kept
        while goes_on(self.standing):
            trial = self._explorer.propose()
            report = self._run(trial)
            self._explorer.tell(trial, report.reached)
            self._note(trial, report)
            shown(self.standing)

    def _run(self, trial: Trial) -> Report:
        self.standing.runs += 1
        return self._server.run(trial, self._policy)

    def _note(self, trial: Trial, report: Report) -> None:
        standing = self.standing
        standing.trials += 1
        standing.kept = len(self._explorer.kept)
        standing.outcomes["" if report.outcome is None else report.outcome.value] += 1
        if report.outcome is not None and report.outcome not in FAILURES:
            return
        if report.why == DOUBLE_FAILURE:
            standing.double_failures += 1
            return
        kind = _kind(report)
        if kind in self._known:
            self._known[kind].count += 1
            return
        small = shrink.shrink(trial, lambda each: _kind(self._run(each)) == kind, SHRINK_RUNS_MAX)
        self._known[kind] = Failure(
            outcome=kind[0],
            why=report.why or report.failure,
            first=trial,
            smallest=small.trial,
            minimal=small.minimal,
        )
        standing.failures.append(self._known[kind])

    @property
    def digest(self) -> str:
        """Of all that was reached and that failed: the same for every exploration like this one."""
        hasher = hashlib.blake2b(self.coverage.pack(), digest_size=DIGEST_SIZE)
        for trial in (*self._explorer.kept, *(each.smallest for each in self.standing.failures)):
            hasher.update(text.to_json(trial).encode() + b"\n")
        return hasher.hexdigest()

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Exploration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _kind(report: Report) -> tuple[str, str]:
    """Failures of one kind are one: numbers in the reason do not tell them apart."""
    outcome = "" if report.outcome is None else report.outcome.value
    return outcome, re.sub(r"0x[0-9a-f]+|[0-9]+", "#", report.why or report.failure)
