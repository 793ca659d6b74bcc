"""A campaign on a real Dask cluster of two workers on this host, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from colo.campaign import golden
from colo.campaign.cluster import DaskWorkers
from colo.campaign.golden import GoldenRun
from colo.campaign.subject import Subject
from colo.campaign.wire import Done, Job, Numbered
from colo.errors import ColoError
from colo.faults.model import Outcome
from tests.campaign.subjects import COUNTER, REWRITTEN, UNUSED, alone, flip

pytestmark = pytest.mark.long

SCHEDULER = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
WORKER = ("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard")


class Cluster:
    """A scheduler and its workers, as processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "scheduler.json"
        self.processes: list[subprocess.Popen[str]] = []
        self._start(*SCHEDULER, "--scheduler-file", str(self._file), until="Scheduler at:")
        for _ in range(2):
            self._start(*WORKER, "--scheduler-file", str(self._file), until="Registered to:")

    @property
    def address(self) -> str:
        return str(msgspec.json.decode(self._file.read_bytes())["address"])

    def _start(self, module: str, *words: str, until: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self._directory,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stderr is not None
        assert any(until in line for line in process.stderr), f"{module} ended early"

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.communicate()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def short_run() -> GoldenRun:
    with Subject(msgspec.structs.replace(COUNTER, span_ns=40_000_000, marks=4)) as subject:
        return golden.record(subject)


def test_a_cluster_that_loses_a_worker_loses_no_trial(cluster: Cluster, short_run: GoldenRun) -> None:
    trials = [
        Numbered(number, alone(flip(1_000_000 + number * 400_000, (REWRITTEN, UNUSED)[number % 2])))
        for number in range(48)
    ]
    found: list[Done] = []
    said: list[str] = []
    for each in DaskWorkers(cluster.address, said.append).run(Job(golden=short_run, wall_limit_s=60), trials):
        if not found:
            cluster.processes[-1].send_signal(signal.SIGKILL)
        found.append(each)
    assert said == [f"2 threads of 2 workers at {cluster.address}"]
    assert sorted(each.number for each in found) == list(range(48))
    assert all(each.report.outcome is Outcome.MASKED for each in found)
    assert all(each.report.rejoined == (each.number % 2 == 0) for each in found)


def test_a_job_that_no_worker_can_do_says_why(cluster: Cluster, short_run: GoldenRun) -> None:
    other = Job(golden=msgspec.structs.replace(short_run, start=bytes(16)), wall_limit_s=60)
    trial = Numbered(0, alone(flip(1_000_000, UNUSED)))
    with pytest.raises(ColoError, match="make the golden run again"):
        list(DaskWorkers(cluster.address).run(other, [trial]))


def test_a_scheduler_that_is_not_there_is_named(
    short_run: GoldenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("colo.campaign.cluster.CONNECT_S", 1)
    job = Job(golden=short_run, wall_limit_s=60)
    with pytest.raises(ColoError, match=r"scheduler tcp://127\.0\.0\.1:9.*expected the address"):
        list(DaskWorkers("tcp://127.0.0.1:9").run(job, []))
