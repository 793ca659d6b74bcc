"""Campaigns in a world: kills of either node of a real pair, found, judged and done again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from colo.campaign import kinds, planned, replay, world, world_replay
from colo.campaign.campaign import Campaign
from colo.campaign.workers import LocalWorkers
from colo.campaign.world import Scenery, WorldRun, WorldServer
from colo.errors import ColoError
from colo.faults.errors import PlanError
from colo.faults.model import AtTime, LinkFault, NodeFault, Outcome, Trial

PLAN = """\
name = "one kill"
guest = "udpecho"
seed = 3
count = 6

[world]
policy = "{policy}"
operations = 12

[[fault]]
kind = "node"
effect = "kill"
target = "*"
when = {{ at = "time", ns = "0..30_000_000" }}
"""
SCENERY = Scenery(guest="udpecho", operations=12, limit_ns=2_000_000_000)


def kill(name: str, ns: int = 10_000_000) -> NodeFault:
    return NodeFault(when=AtTime(ns=ns), target=name, effect="kill")


PLANTED: dict[str, tuple[Scenery, Trial, Outcome, str]] = {
    "nothing": (SCENERY, Trial(seed=4), Outcome.MASKED, "every answer"),
    "primary": (SCENERY, Trial(seed=4, faults=(kill("pair-0"),)), Outcome.FAILED_OVER, "pair-1 serves"),
    "secondary": (SCENERY, Trial(seed=4, faults=(kill("pair-1"),)), Outcome.FAILED_OVER, "alone"),
    "both": (
        SCENERY,
        Trial(seed=4, faults=(kill("pair-0"), kill("pair-1"))),
        Outcome.CRASH,
        "nobody serves",
    ),
    "unprotected": (
        msgspec.structs.replace(SCENERY, policy="none"),
        Trial(seed=4, faults=(kill("machine"),)),
        Outcome.CRASH,
        "nobody serves",
    ),
    "cut off": (
        SCENERY,
        Trial(
            seed=4,
            faults=(
                LinkFault(
                    when=AtTime(ns=10_000_000),
                    target="client0",
                    effect="partition",
                    persistence="permanent",
                ),
            ),
        ),
        Outcome.HANG,
        "a client still waits",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found(name: str) -> None:
    scenery, trial, outcome, why = PLANTED[name]
    report = world.perform(scenery, trial)
    assert report.outcome is outcome, report.why
    assert why in report.why
    assert len(report.happened) == len(trial.faults)


def test_a_wrong_answer_is_silent_corruption() -> None:
    scene = world.Scene(SCENERY, 1)
    with scene:
        scene.set_up()
        scene.heard[0].append(4711)
        assert scene.verdict().outcome is Outcome.SDC


def test_a_forked_world_is_the_world() -> None:
    run = world.record(SCENERY, 9)
    server = WorldServer(run)
    trial = Trial(seed=5, faults=(kill("pair-0"),))
    forked = server.run(trial)
    assert forked.failure == ""
    assert msgspec.structs.replace(forked, wall_ms=0.0) == world.perform(SCENERY, trial)
    assert forked.digest != server.run(msgspec.structs.replace(trial, seed=6)).digest


def test_a_world_that_is_not_the_campaigns_is_refused() -> None:
    run = world.record(SCENERY, 9)
    with pytest.raises(ColoError, match="make the golden run again"):
        WorldServer(msgspec.structs.replace(run, log="00"))


@pytest.mark.parametrize("policy", ["periodic", "colo"])
def test_a_campaign_of_kills_loses_no_answer(tmp_path: Path, policy: str) -> None:
    digests = set()
    for number, count in enumerate((1, 2)):
        plan = tmp_path / "kill.toml"
        plan.write_text(PLAN.format(policy=policy))
        directory = tmp_path / f"run{number}"
        with Campaign(planned.load(plan), directory) as campaign:
            found = campaign.run(LocalWorkers(count))
        digests.add(found.digest)
        assert {row.outcome for row in found.rows} <= {"failed-over", "masked"}
        assert any(row.outcome == "failed-over" for row in found.rows)
    assert len(digests) == 1
    wanted = replay.find(f"{directory}#2", None)
    assert isinstance(wanted.golden, WorldRun)
    again = world_replay.again(wanted.golden.scenario, wanted.trial)
    assert wanted.departures(again.report) == []


def test_a_log_leaves_that_without_faults_at_the_fault(tmp_path: Path) -> None:
    trial = Trial(seed=5, faults=(kill("pair-0"),))
    one = world_replay.again(SCENERY, trial)
    other = world_replay.without_faults(SCENERY, trial)
    at = world_replay.first_difference(one.lines, other.lines)
    assert at is not None
    assert (one.lines[at].what, one.lines[at].who) == ("fault", "pair-0")
    assert world_replay.first_difference(one.lines, one.lines) is None
    world_replay.write_timeline(tmp_path / "t.json", one.lines)
    events = msgspec.json.decode((tmp_path / "t.json").read_bytes())["traceEvents"]
    assert sum(each["ph"] == "i" for each in events) == len(one.lines)


def test_steps_are_known_to_wildcards() -> None:
    run = kinds.record(SCENERY, 9, lambda text: None)
    facts = run.facts()
    assert set(facts.guests) == {"pair-0", "pair-1"}
    assert facts.steps["pair-0"]
    assert "client0" in facts.links


def test_a_workload_is_not_for_a_world(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(policy="colo") + "\n[workload]\nspan_ns = 1\n")
    with pytest.raises(PlanError, match=r"workload.*its clients say"):
        planned.load(path)
