"""Who survived a kill, and how long it was silent, from the records of a load."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from colo.experiment import failover
from colo.experiment.failover import AFTER_S
from colo.experiment.loadgen import RECORD, Records

KILLED_S, END_S = 10.0, 16.0


def answered(*times_s: float, connection: int = 0, verdict: int = 0) -> list[tuple[int, int, int, int]]:
    return [(round(at_s * 1e9), 1000, connection, verdict) for at_s in times_s]


def records(*lines: list[tuple[int, int, int, int]]) -> Records:
    return np.array(sorted(chain.from_iterable(lines)), RECORD)


def test_a_silence_is_the_longest_gap_around_the_kill() -> None:
    times = [0.0, 1.0, 1.5, 4.0, 5.0, 9.0]
    assert failover.silence(times, 2.0, 3.0) == 2500.0
    assert failover.silence(times, 4.5, 4.9) == 1000.0
    assert failover.silence(times, 9.5, 10.0) == 0.0


def test_survivors_are_answered_at_the_end() -> None:
    found = records(
        answered(9.9, 10.2, END_S - 0.1, connection=0),
        answered(9.9, 10.3, END_S - AFTER_S - 0.1, connection=1),  # stuck after a while
        answered(9.9, connection=2),  # killed with its node
    )
    assert failover.survivors(found, 4, KILLED_S, END_S) == [pytest.approx(5700.0)]


def test_the_gap_of_the_kill_is_the_one_that_counts() -> None:
    found = records(answered(5.0, 9.99, 10.05, 10.09, 14.0, END_S))
    assert failover.survivors(found, 1, KILLED_S, END_S) == [pytest.approx(3910.0)]
    found = records(answered(5.0, 9.99, 10.05, 10.09, 11.5, 14.0, END_S))
    assert failover.survivors(found, 1, KILLED_S, END_S) == [pytest.approx(1410.0)]


def test_a_wrong_answer_is_no_survival() -> None:
    found = records(answered(9.9, 10.1, END_S), answered(10.2, verdict=2))
    assert failover.survivors(found, 1, KILLED_S, END_S) == []


def test_what_was_usual_before() -> None:
    found = records(
        answered(1.0, 1.010, 1.020, 1.050, 11.0, connection=0),
        answered(1.0, 1.030, connection=1),
    )
    assert failover.usual(found, 2, 0.5, KILLED_S) == pytest.approx(20.0)
    assert failover.usual(found, 2, 2.0, KILLED_S) is None
