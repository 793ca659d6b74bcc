"""Worker processes: trials are shared out, and a lost worker loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import msgspec
import pytest

from colo.campaign import golden, workers
from colo.campaign.golden import GoldenRun
from colo.campaign.subject import Subject
from colo.campaign.wire import Done, Job, Numbered
from colo.campaign.workers import LocalWorkers
from colo.errors import ColoError
from colo.faults.model import Outcome
from tests.campaign.subjects import COUNTER, REWRITTEN, UNUSED, alone, flip


@pytest.fixture(scope="module")
def short_run() -> GoldenRun:
    with Subject(msgspec.structs.replace(COUNTER, span_ns=40_000_000, marks=4)) as subject:
        return golden.record(subject)


def some(count: int) -> list[Numbered]:
    faults = [flip(1_000_000 + number * 500_000, (REWRITTEN, UNUSED)[number % 2]) for number in range(count)]
    return [Numbered(number, alone(fault)) for number, fault in enumerate(faults)]


def outcomes(found: Sequence[Done]) -> list[tuple[int, Outcome | None, bool]]:
    return sorted((each.number, each.report.outcome, each.report.rejoined) for each in found)


def test_every_trial_is_done_once_whoever_does_it(short_run: GoldenRun) -> None:
    job, trials = Job(golden=short_run, wall_limit_s=60), some(24)
    alone_, together = (list(LocalWorkers(count).run(job, trials)) for count in (1, 2))
    assert [number for number, _, _ in outcomes(together)] == list(range(24))
    assert outcomes(alone_) == outcomes(together)
    assert len({each.worker for each in together}) == 2


def test_a_killed_worker_loses_nothing(short_run: GoldenRun) -> None:
    said: list[str] = []
    pool = LocalWorkers(2, said.append)
    found: list[Done] = []
    for each in pool.run(Job(golden=short_run, wall_limit_s=60), some(24)):
        found.append(each)
        if len(found) == 5:
            os.kill(int(each.worker.partition(":")[2]), signal.SIGKILL)
    assert outcomes(found) == [(number, Outcome.MASKED, number % 2 == 0) for number in range(24)]
    assert pool.lost == 1
    assert "goes to another one" in said[0]


def test_what_ends_every_worker_is_reported(short_run: GoldenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that reads its job and ends, whatever it is asked."""
    monkeypatch.setattr(workers, "COMMAND", ("head", "-c", "100"))
    found = list(LocalWorkers(1).run(Job(golden=short_run, wall_limit_s=60), some(1)))
    assert found[0].report.outcome is None
    assert found[0].report.failure == "3 workers were lost at this trial"


def test_a_job_that_cannot_be_done_says_why(short_run: GoldenRun) -> None:
    other = msgspec.structs.replace(short_run, start=bytes(16))
    with pytest.raises(ColoError, match="make the golden run again"):
        list(LocalWorkers(1).run(Job(golden=other, wall_limit_s=60), some(2)))


def test_a_trial_beyond_the_hosts_patience_has_no_outcome(short_run: GoldenRun) -> None:
    (found,) = LocalWorkers(1).run(Job(golden=short_run, wall_limit_s=1e-6), some(1))
    assert found.report.outcome is None
    assert "of the host's time" in found.report.failure
