"""The order of an experiment: a Williams design, whichever rounds there is time for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.experiment.schedule import Configuration, configurations, design, orders

COUNTS = st.integers(1, 9)


@given(COUNTS)
def test_each_treatment_stands_at_each_place_equally_often(count: int) -> None:
    rows = design(count)
    seen = Counter((place, each) for row in rows for place, each in enumerate(row))
    assert len(seen) == count * count
    assert set(seen.values()) == {len(rows) // count}


@given(st.integers(2, 9))
def test_each_treatment_follows_each_other_one_equally_often(count: int) -> None:
    seen = Counter(pair for row in design(count) for pair in pairwise(row))
    assert len(seen) == count * (count - 1)
    assert len(set(seen.values())) == 1


@given(COUNTS, st.integers(1, 40), st.integers(0, 1 << 32))
def test_however_many_rounds_no_place_is_favoured(count: int, rounds: int, seed: int) -> None:
    made = orders(range(count), rounds, seed)
    assert len(made) == rounds
    assert all(sorted(order) == list(range(count)) for order in made)
    seen = Counter((place, each) for order in made for place, each in enumerate(order))
    times = [seen[place, each] for place in range(count) for each in range(count)]
    assert max(times) - min(times) <= 1


def test_the_seed_decides_and_nothing_else() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert orders(names, 7, 3) == orders(names, 7, 3)
    assert len({str(orders(names, 7, seed)) for seed in range(20)}) > 10


def test_unprotected_is_always_there_and_periodic_once_for_each_interval() -> None:
    found = configurations(["colo", "periodic", "colo"], [20, 100, 20])
    assert [each.label for each in found] == ["unprotected", "colo", "periodic 20 ms", "periodic 100 ms"]


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        (Configuration("unprotected"), ()),
        (Configuration("x", "lockstep"), ("--policy", "lockstep")),
        (Configuration("x", "periodic", 5), ("--policy", "periodic", "--checkpoint-delay", "5")),
    ],
)
def test_the_words_for_a_node(configuration: Configuration, words: tuple[str, ...]) -> None:
    assert configuration.words == words
