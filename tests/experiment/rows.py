"""Rows for tests, as an experiment makes them."""

from __future__ import annotations

import numpy as np

from colo.experiment.measurement import Measured
from colo.experiment.outcome import Faults, Latency, Outcome
from colo.experiment.results import Row, loaded
from colo.experiment.schedule import Configuration
from colo.experiment.workloads import Workload, choose

BARE, OFTEN = Configuration("unprotected"), Configuration("periodic 20 ms", "periodic", 20)
ECHO, INC, BULK = choose("kv", ["echo", "inc", "bulk-out"])


def measured(answers: int, latencies_ms: list[float], epochs: int = 0, **counters: float) -> Measured:
    """A load of two seconds; each of its ``epochs`` paused a millisecond longer than the one before."""
    samples = np.array([round(each * 1e6) for each in latencies_ms], np.uint64)
    outcome = Outcome(answers, 2.0, Latency.of(samples), Faults(), samples)
    made = [
        {"event": "epoch", "reason": "period" if number else "held output", "pause_ms": 1.0 + number}
        for number in range(epochs)
    ]
    return Measured(outcome, 2.0, counters, made, 0)


def row(configuration: Configuration, found: Measured, number: int, workload: Workload = ECHO) -> Row:
    made = loaded(configuration, workload, 1, found)
    made.round, made.place = number, 1
    return made
