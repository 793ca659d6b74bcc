"""Shrinking finds the known minimum, in the same way each time, and stops where it is told to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.faults.errors import FaultError
from colo.faults.model import (
    AtInstruction,
    AtTime,
    Delay,
    Fault,
    Intermittent,
    LinkFault,
    NodeFault,
    RegisterFault,
    Trial,
)
from colo.faults.shrink import Progress, ddmin, shrink


def flip(register: str, mask: int = 0xFFFF, count: int = 81_234) -> RegisterFault:
    return RegisterFault(register=register, mask=mask, when=AtInstruction(count=count))


def pause(ns: int, for_ns: int = 5_000_000) -> NodeFault:
    return NodeFault(effect="pause", for_ns=for_ns, when=AtTime(ns=ns), target="primary")


NOISE: tuple[Fault, ...] = tuple(flip(f"r{number}") for number in range(8, 16))


def has(trial: Trial, found: Callable[[Fault], bool]) -> bool:
    return any(found(fault) for fault in trial.faults)


def test_two_faults_of_many_and_their_least_parameters() -> None:
    """Fails when bit 3 of rax flips at 1000 or later and the primary pauses for 70 us or more."""

    def fails(trial: Trial) -> bool:
        flipped = has(
            trial,
            lambda fault: (
                isinstance(fault, RegisterFault)
                and fault.register == "rax"
                and bool(fault.mask & 8)
                and isinstance(fault.when, AtInstruction)
                and fault.when.count >= 1000
            ),
        )
        paused = has(
            trial, lambda f: isinstance(f, NodeFault) and (f.for_ns >= 70_000 or f.persistence == "permanent")
        )
        return flipped and paused

    start = Trial(seed=9, faults=(*NOISE[:3], flip("rax"), *NOISE[3:6], pause(777_777), *NOISE[6:]))
    found = shrink(start, fails)
    assert found.minimal
    assert found.trial == Trial(seed=9, faults=(flip("rax", mask=8, count=1000), pause(0, 70_000)))
    assert shrink(start, fails) == found


def test_of_two_bits_the_one_that_matters_is_kept() -> None:
    found = shrink(
        Trial(seed=1, faults=(flip("rax", mask=0b110),)),
        lambda trial: has(trial, lambda fault: isinstance(fault, RegisterFault) and bool(fault.mask & 2)),
    )
    assert found.trial.faults == (flip("rax", mask=0b010, count=0),)


def test_lasting_becomes_once_and_a_distribution_becomes_a_number() -> None:
    late = LinkFault(
        effect="delay",
        delay=Delay(ns=90_000, spread_ns=5_000, distribution="normal"),
        probability=0.25,
        when=AtTime(ns=123),
        persistence=Intermittent(period_ns=1_000_000, times=50),
    )

    def fails(trial: Trial) -> bool:
        return has(trial, lambda f: isinstance(f, LinkFault) and f.delay is not None and f.delay.ns > 40_000)

    least = LinkFault(effect="delay", delay=Delay(ns=40_001), when=AtTime(ns=0))
    assert shrink(Trial(seed=1, faults=(late,)), fails).trial.faults == (least,)


def test_a_failure_without_any_fault_is_said_to_be_one() -> None:
    found = shrink(Trial(seed=1, faults=(*NOISE, pause(5))), lambda _: True)
    assert found.trial == Trial(seed=1)
    assert found.runs == 2


def test_a_trial_that_does_not_fail_is_refused() -> None:
    with pytest.raises(FaultError, match="a trial that does not fail"):
        shrink(Trial(seed=1, faults=NOISE), lambda _: False)


def test_runs_are_limited_and_each_trial_is_run_once() -> None:
    asked: list[Trial] = []
    reports: list[Progress] = []

    def fails(trial: Trial) -> bool:
        asked.append(trial)
        return {"r8", "r15"} <= {fault.register for fault in trial.faults if isinstance(fault, RegisterFault)}

    whole = shrink(Trial(seed=1, faults=NOISE), fails, progress=reports.append)
    assert len(whole.trial.faults) == 2
    assert len(asked) == len(set(asked)) == whole.runs == len(reports)
    assert reports[-1].smallest == whole.trial

    asked.clear()
    part = shrink(Trial(seed=1, faults=NOISE), fails, runs_max=6)
    assert (part.runs, part.minimal, len(asked)) == (6, False, 6)
    assert fails(part.trial)


@given(st.integers(1, 40), st.data())
def test_ddmin_is_1_minimal(count: int, data: st.DataObject) -> None:
    """For any failure that needs one of some sets of items."""
    items = range(count)
    causes = data.draw(
        st.lists(st.frozensets(st.sampled_from(items), min_size=1, max_size=4), min_size=1, max_size=3)
    )

    def fails(some: tuple[int, ...]) -> bool:
        return any(cause <= set(some) for cause in causes)

    if not fails(tuple(items)):
        return
    kept = ddmin(items, fails)
    assert fails(kept)
    assert sorted(kept) == list(kept)
    assert not any(fails(kept[:index] + kept[index + 1 :]) for index in range(len(kept)))


def test_ddmin_asks_few_questions_about_one_cause() -> None:
    """The paper: logarithmic in the number of items when one of them is the cause."""
    asked = 0

    def fails(some: tuple[int, ...]) -> bool:
        nonlocal asked
        asked += 1
        return 700 in some

    assert ddmin(range(1024), fails) == (700,)
    assert asked <= 2 * 10 + 1
