"""Exploration of a world: what is reached is fed back, what fails is made small, and all of it repeats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo.campaign import exploring, planned
from colo.campaign.exploring import Exploration, Standing
from colo.campaign.planned import Planned
from colo.campaign.trial import Report
from colo.faults import broad, plan
from colo.faults.coverage import NO_FAULT, Combination, Coverage
from colo.faults.errors import PlanError
from colo.faults.model import LinkFault, Outcome
from tests.cli.command import colo

TRIALS = 5
CUT_OFF = """\
name = "a client that nobody hears"
guest = "udpecho"
seed = 5
count = 100

[limits]
virtual_ns = 150_000_000

[world]
policy = ["none", "periodic"]
operations = 3
pause_ns = 1_000_000

[[fault]]
kind = "link"
target = "client0"
effect = "partition"
persistence = "permanent"
when = { at = "time", ns = "0..1000" }

[[fault]]
kind = "node"
target = ""
effect = "slow"
factor = 2.0
for_ns = 1_000_000
when = { at = "time", ns = "0..1000" }
"""


def explored(made: Planned, policy: str, trials: int = TRIALS) -> tuple[Exploration, Standing]:
    with Exploration(made, policy) as exploration:
        exploration.explore(lambda standing: standing.trials < trials, lambda standing: None)
        return exploration, exploration.standing


def broad_plan(policy: str) -> Planned:
    return planned.planned(plan.plan(**broad.plan("udpecho", policy, 3)), "")


@pytest.mark.parametrize("policy", ["lockstep"])
def test_one_seed_is_one_exploration_and_it_reaches_what_faults_do(policy: str) -> None:
    first, standing = explored(broad_plan(policy), policy)
    again, _ = explored(broad_plan(policy), policy)
    assert first.digest == again.digest
    assert (standing.trials, standing.failures) == (TRIALS, [])
    between = Combination("primary after VmstateLoaded", "Log", NO_FAULT)
    assert first.coverage.count(between) >= 1, "the trial without faults"
    assert any(each.startswith("node:") for each in first.coverage.faults)
    assert standing.kept >= 1
    assert 0 < first.coverage.share() < 1


def test_a_failure_is_shrunk_and_can_be_replayed(tmp_path: Path) -> None:
    file = tmp_path / "cut.toml"
    file.write_text(CUT_OFF)
    out = tmp_path / "found"
    found = colo("explore", str(file), "--policy", "periodic", "--trials", "3", "--out", str(out), "--json")
    assert found.status == 1, found.err
    facts = json.loads(found.out.splitlines()[-1])
    assert facts["trials"] == 3
    assert [(each["outcome"], each["count"]) for each in facts["failures"]] == [
        ("hang", facts["outcomes"]["hang"])
    ]
    smallest = planned.trial(out / "failure-1.toml")
    assert [type(fault) for fault in smallest.faults] == [LinkFault], "slow it may be"
    replayed = colo("replay", str(out / "failure-1.toml"), "--campaign", str(out))
    assert b"hang" in replayed.out, replayed.err
    assert Coverage.unpack((out / "coverage.json").read_bytes()).chart() == (
        out / "combinations.txt"
    ).read_text(encoding="utf-8")


def test_a_machine_alone_has_no_protocol(tmp_path: Path) -> None:
    made = planned.planned(plan.loads(CUT_OFF), CUT_OFF)
    with pytest.raises(PlanError, match=r"world\.policy.*periodic"):
        Exploration(made, "none")
    with pytest.raises(PlanError, match="periodic"):
        Exploration(made, "colo")


def test_numbers_do_not_make_two_failures() -> None:
    one, two = (Report(outcome=Outcome.CRASH, why=f"KeyError: 0x{n:x} at {n}") for n in (11, 222))
    assert exploring._kind(one) == exploring._kind(two)


def test_a_chart_has_a_letter_for_each_fault() -> None:
    seen = Coverage()
    seen.add([Combination("idle", "Log"), Combination("idle", "Mark", "link:drop wire")] * 11)
    assert seen.chart() == (
        "a  none\nb  link:drop wire\n\n      ab  message\nidle  *.  Log\nidle  .*  Mark\n"
    )


def test_a_word_that_is_neither_a_plan_nor_a_guest() -> None:
    done = colo("explore", "nobody.toml")
    assert done.status == 2
    assert "no guest 'nobody.toml'; the guests are" in done.err
