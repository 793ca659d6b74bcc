"""What Hypothesis finds with the strategies is the smallest there is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import find, given, settings
from hypothesis import strategies as st

from colo.faults import plan as plans
from colo.faults import strategies
from colo.faults.golden import Golden, Guest
from colo.faults.model import KINDS, TRIGGERS, AtStep, AtTime, ClockJump, NodeFault, RegisterFault, Trial
from colo.faults.triggers import Quiet

GOLDEN = Golden(
    end_ns=1_000_000,
    guests={"primary": Guest(instructions=5000), "secondary": Guest(instructions=5000)},
    links=("client", "pair"),
    steps={"primary": {"Hello": 1, "VmstateSend": 20}},
)
SEARCH = settings(max_examples=2000, deadline=None, database=None, derandomize=True)


def kills_primary(trial: Trial) -> bool:
    return any(
        isinstance(fault, NodeFault) and fault.effect == "kill" and fault.target == "primary"
        for fault in trial.faults
    )


def test_a_failing_trial_shrinks_to_the_one_fault() -> None:
    trials = strategies.trials(strategies.faults(GOLDEN, ["node"]), faults_max=2)
    found = find(trials, kills_primary, settings=SEARCH)
    assert found == Trial(seed=0, faults=(NodeFault(effect="kill", target="primary", when=AtTime(ns=0)),))


def test_a_failing_schedule_shrinks_to_the_smallest_waits() -> None:
    """Fails when one fault comes 300 ns or more after another."""

    def fails(trial: Trial) -> bool:
        times = [fault.when.ns for fault in trial.faults if isinstance(fault.when, AtTime)]
        return any(later - ns >= 300 for ns, later in pairwise(times))

    schedules = strategies.schedules(GOLDEN, ["clock-jump"], Quiet(start_ns=1000, between_ns=100), 2)
    found = find(schedules, fails, settings=SEARCH)
    assert found.faults == tuple(ClockJump(when=AtTime(ns=ns), by_ns=1) for ns in (1000, 1300))


@given(strategies.schedules(GOLDEN, quiet=Quiet(start_ns=10, end_ns=20, between_ns=30)))
def test_schedules_keep_apart_and_out_of_the_quiet_periods(trial: Trial) -> None:
    times = [fault.when.ns for fault in trial.faults if isinstance(fault.when, AtTime)]
    assert len(times) == len(trial.faults)
    assert all(10 <= ns <= GOLDEN.end_ns - 20 for ns in times)
    assert all(later - ns >= 30 for ns, later in pairwise(times))


@given(st.data())
def test_every_kind_and_trigger_comes_up(data: st.DataObject) -> None:
    """Each by name, so that a kind that can never be made is found."""
    name = data.draw(st.sampled_from(sorted(KINDS)))
    fault = data.draw(strategies.faults(kinds=[name]))
    assert type(fault) is KINDS[name]
    assert type(fault.when) in TRIGGERS.values()


def test_steps_of_the_golden_run_are_found() -> None:
    def late(fault: Any) -> bool:
        return isinstance(fault, RegisterFault) and isinstance(fault.when, AtStep) and fault.when.count > 10

    found = find(strategies.faults(GOLDEN, ["register"]), late, settings=SEARCH)
    assert found.when == AtStep(step="VmstateSend", count=11, node="primary")


@given(strategies.plans(strategies.faults(GOLDEN)))
def test_plans_can_be_written_and_read(plan: plans.Plan) -> None:
    again = plans.plan(**plan.document.data)
    assert (again.head, again.templates, again.per_trial) == (plan.head, plan.templates, plan.per_trial)
