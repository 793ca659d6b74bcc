"""Percentiles: of all samples, and values that were measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.experiment.outcome import Faults, Latency

SAMPLES = st.lists(st.integers(0, 10**12), min_size=1, max_size=300)


def least_not_exceeded(samples: list[int], percent: float) -> int:
    """The definition, word for word: the smallest sample that at least so many per cent do not exceed."""
    ordered = sorted(samples)
    return next(
        value
        for count, value in enumerate(ordered, 1)
        if count >= len(ordered) * percent / 100 or math.isclose(count, len(ordered) * percent / 100)
    )


@given(SAMPLES)
def test_percentiles_are_those_of_the_definition(samples: list[int]) -> None:
    found = Latency.of(np.array(samples, np.uint64))
    cuts = (found.p50_ms, found.p90_ms, found.p99_ms, found.p99_9_ms, found.max_ms)
    wanted = [least_not_exceeded(samples, percent) for percent in (50, 90, 99, 99.9, 100)]
    assert cuts == tuple(pytest.approx(value / 1e6, abs=1e-4) for value in wanted)


def test_they_are_neighbours_of_what_numpy_interpolates() -> None:
    samples = np.random.default_rng(1).lognormal(13.0, 1.0, 12_345).astype(np.uint64)
    found = Latency.of(samples)
    ordered = np.sort(samples) / 1e6
    cuts = {50: found.p50_ms, 90: found.p90_ms, 99: found.p99_ms, 99.9: found.p99_9_ms, 100: found.max_ms}
    for percent, value in cuts.items():
        above = int(np.searchsorted(ordered, np.percentile(ordered, percent)))
        assert value is not None
        assert ordered[max(0, above - 1)] - 1e-4 <= value <= ordered[above] + 1e-4


def test_of_no_samples_there_are_none() -> None:
    assert Latency.of(np.empty(0, np.uint64)) == Latency()


def test_faults_of_every_kind_count() -> None:
    assert Faults().total == 0
    assert Faults(1, 2, 3, 4, 5, 6).total == 21
