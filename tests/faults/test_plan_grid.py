"""``count = "all"``: every combination of the choices of a plan, each once and each by itself."""

from __future__ import annotations

from typing import Any

import pytest

from colo.faults import plan as plans
from colo.faults.errors import PlanError
from colo.faults.expand import count, trial, trials
from colo.faults.model import AtStep, AtTime, DataFault
from tests.faults.golden_runs import GOLDEN, PRIMARY

AT_1 = {"at": "time", "ns": 1}
KILLS: dict[str, Any] = {
    "kind": "node",
    "target": ["a", "b"],
    "effect": "kill",
    "when": [{"at": "time", "ns": "5..7"}, {"at": "step", "step": "Hello", "count": [1, "3..4"]}],
}


def test_every_combination_is_a_trial_once() -> None:
    plan = plans.plan(seed=3, count="all", fault=[KILLS, {**KILLS, "target": "c", "when": AT_1}])
    assert count(plan, GOLDEN) == 12
    found = [each.faults for each in trials(plan, GOLDEN)]
    assert len(set(found)) == 12
    assert [(kill.target, kill.when) for kill, _ in found[:7]] == [
        *(("a", AtTime(ns=ns)) for ns in (5, 6, 7)),
        *(("a", AtStep(step="Hello", count=times)) for times in (1, 3, 4)),
        ("b", AtTime(ns=5)),
    ]
    assert trial(plan, GOLDEN, 6).faults == found[6]
    assert len({each.seed for each in trials(plan, GOLDEN)}) == 12


def test_every_combination_of_wildcards() -> None:
    flips = {"kind": "register", "target": "primary", "register": "*", "mask": "*",
             "when": {"at": "address", "address": "*", "hits": 1}}  # fmt: skip
    plan = plans.plan(count="all", fault=[flips])
    assert count(plan, GOLDEN) == len(PRIMARY.registers) * 64 * 2
    bytes_of = {"kind": "data", "target": "primary", "address": "*", "space": "physical", "width": 1,
                "operation": "overwrite", "mask": 0b101, "value": "*", "when": AT_1}  # fmt: skip
    made = [each.faults[0] for each in trials(plans.plan(count="all", fault=[bytes_of]), GOLDEN)]
    assert {(fault.address, fault.value) for fault in made if isinstance(fault, DataFault)} == {
        (0x9000 + byte, value) for byte in range(4) for value in (0, 1, 4, 5)
    }
    every = {"kind": "clock-jump", "by_ns": 1, "when": {"at": "time", "ns": "*"}}
    plan = plans.plan(count="all", quiet={"start_ns": 10, "end_ns": 999_900}, fault=[every])
    assert [each.faults[0].when for each in trials(plan, GOLDEN)] == [AtTime(ns=ns) for ns in range(10, 101)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"by_ns": {"distribution": "normal", "mean": 5, "spread": 1}},
            "fault[0].by_ns: found a choice without an end, expected a list or a range of whole numbers",
        ),
        ({"by_ns": "1..4_000_000"}, "count: found 4004000000 combinations, expected at most 10000000; "),
        (
            {"kind": "data", "width": [1, 2], "mask": "*", "address": 5},
            "fault[0].mask: found '*' beside a choice of width, expected one width; or give the values",
        ),
    ],
)
def test_combinations_that_have_no_end_are_refused(change: dict[str, Any], message: str) -> None:
    jump = {"kind": "clock-jump", "by_ns": 1, "when": {"at": "time", "ns": "0..1_000"}} | change
    if jump["kind"] == "data":
        del jump["by_ns"]
    with pytest.raises(PlanError) as caught:
        count(plans.plan(count="all", fault=[jump]), GOLDEN)
    assert str(caught.value).startswith(f"plan: {message}")


def test_all_combinations_or_some_that_are_drawn() -> None:
    with pytest.raises(PlanError, match='expected a count that is a number, not "all"'):
        plans.plan(count="all", faults_per_trial=2, fault=[KILLS])
