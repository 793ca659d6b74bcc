"""Campaigns in a world: kills of either node of a real pair, found, judged and done again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from colo.campaign import kinds, planned, replay, results, table, world, world_replay
from colo.campaign.campaign import Campaign
from colo.campaign.noticed import Noticed
from colo.campaign.scene import Scene
from colo.campaign.scenery import Scenery, WorldRun
from colo.campaign.wire import Job
from colo.campaign.workers import LocalWorkers
from colo.campaign.world import WorldServer
from colo.errors import ColoError
from colo.faults.errors import PlanError
from colo.faults.model import AtTime, DataFault, LinkFault, NodeFault, Outcome, Trial
from colo.sim.events import Line
from vmm.guest import BuiltGuest

Ready = Callable[[str], BuiltGuest]
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


COUNTED = DataFault(when=AtTime(ns=20_000_000), address=0x7000, space="physical", mask=1 << 40, width=8)
"""RAM of the echo guest that nothing uses, and that a comparison of states looks at."""


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
        "after a double failure",
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


@pytest.fixture(scope="module")
def runs() -> dict[str, WorldRun]:
    """Golden runs of the echo guest, by policy."""
    return {policy: world.record(SCENERY.under(policy), 9) for policy in ("none", "lockstep", "colo")}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found(name: str, runs: dict[str, WorldRun]) -> None:
    scenery, trial, outcome, why = PLANTED[name]
    report = world.perform(runs[scenery.policies[0]], scenery.policies[0], trial)
    assert report.outcome is outcome, report.why
    assert why in report.why
    assert len(report.happened) == len(trial.faults)


def test_a_wrong_answer_is_silent_corruption() -> None:
    with Scene(SCENERY, 1) as scene:
        scene.set_up()
        scene.heard[0].append(4711)
        assert scene.verdict().outcome is Outcome.SDC


def test_a_wrong_answer_is_not_silent_when_the_pair_noticed_a_difference() -> None:
    with Scene(SCENERY, 1) as scene:
        scene.set_up()
        scene.noticed.begin()
        scene.noticed.hear(Line(5, "pair-0", "epoch", "7 payload: 3 pages, 0 held"))
        scene.heard[0].append(4711)
        found = scene.verdict()
        assert (found.outcome, scene.verdict(("payload",)).outcome) == (Outcome.DETECTED, Outcome.SDC)
        assert "4711" in found.difference


def test_late_answers_of_the_other_machine_are_no_difference() -> None:
    noticed = Noticed()
    noticed.hear(Line(1, "pair-1", "departed", "epoch=0 ns=1 what=before anything began"))
    noticed.begin()
    noticed.hear(Line(5, "pair-0", "epoch", "7 late payload: 3 pages, 0 held"))
    assert noticed.beside(()) == ""


def test_lockstep_notices_what_the_others_do_not() -> None:
    """The comparison has gone through all of this guest's RAM after four tenths of a second."""
    scenery = msgspec.structs.replace(SCENERY, policy=("none", "lockstep", "colo"), operations=100)
    run = world.record(scenery, 9)
    found = {
        policy: world.perform(run, policy, Trial(seed=3, faults=(COUNTED,))) for policy in scenery.policies
    }
    assert {policy: report.outcome for policy, report in found.items()} == {
        "none": Outcome.MASKED,
        "lockstep": Outcome.DETECTED,
        "colo": Outcome.MASKED,
    }
    assert "pair-1 differs" in found["lockstep"].why


@pytest.mark.parametrize("policy", ["none", "lockstep", "colo"])
def test_a_forked_world_is_the_world(policy: str, runs: dict[str, WorldRun]) -> None:
    """Trials before it make no difference, and its seed does."""
    run = runs[policy]
    server = WorldServer(run)
    target = "machine" if policy == "none" else "pair-0"
    trials = [Trial(seed=5, faults=(each,)) for each in (kill(target), COUNTED)]
    forked = [server.run(trial) for trial in (*trials, *trials)]
    server.close()
    plain = [msgspec.structs.replace(report, wall_ms=0.0) for report in forked]
    assert plain == 2 * [world.perform(run, policy, trial) for trial in trials]
    assert plain[1].digest != world.perform(run, policy, Trial(seed=6, faults=(COUNTED,))).digest


def test_a_world_that_is_not_the_campaigns_is_refused(runs: dict[str, WorldRun]) -> None:
    run = runs["colo"]
    server = WorldServer(
        msgspec.structs.replace(run, worlds=(msgspec.structs.replace(run.worlds[0], log="00"),))
    )
    with pytest.raises(ColoError, match="make the golden run again"):
        server.run(Trial(seed=1))
    server.close()


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
    again = world_replay.again(wanted.golden, wanted.policy, wanted.trial)
    assert wanted.departures(again.report) == []


def test_a_log_leaves_that_without_faults_at_the_fault(tmp_path: Path, runs: dict[str, WorldRun]) -> None:
    trial = Trial(seed=5, faults=(kill("pair-0"),))
    one = world_replay.again(runs["colo"], "colo", trial)
    other = world_replay.without_faults(runs["colo"], "colo", trial)
    at = world_replay.first_difference(one.lines, other.lines)
    assert at is not None
    assert (one.lines[at].what, one.lines[at].who) == ("fault", "pair-0")
    assert world_replay.first_difference(one.lines, one.lines) is None
    world_replay.write_timeline(tmp_path / "t.json", one.lines)
    events = msgspec.json.decode((tmp_path / "t.json").read_bytes())["traceEvents"]
    assert sum(each["ph"] == "i" for each in events) == len(one.lines)


def test_steps_are_known_to_wildcards(runs: dict[str, WorldRun]) -> None:
    facts = runs["colo"].facts()
    assert set(facts.guests) == {"pair-0", "pair-1"}
    assert facts.steps["pair-0"]
    assert "client0" in facts.links


def test_a_workload_is_not_for_a_world(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(policy="colo") + "\n[workload]\nspan_ns = 1\n")
    with pytest.raises(PlanError, match=r"workload.*its clients say"):
        planned.load(path)


SIDE_BY_SIDE = """\
name = "with and without"
guest = "udpecho"
seed = 3
count = 3

[world]
policy = ["none", "lockstep"]
operations = 12

[[fault]]
kind = "node"
effect = "kill"
when = { at = "time", ns = "0..30_000_000" }
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign that was done with and without a second machine, in part, and then the rest."""
    directory = tmp_path_factory.mktemp("compared")
    plan = directory / "kill.toml"
    plan.write_text(SIDE_BY_SIDE)
    with Campaign(planned.load(plan), directory / "run") as campaign:
        left = campaign.left()
        assert [each.name for each in left] == [
            *("0/none", "1/none", "2/none", "0/lockstep", "1/lockstep", "2/lockstep")
        ]
        lines = iter(LocalWorkers(1).run(Job(golden=campaign.golden, wall_limit_s=60), left[:2]))
        for done in lines:
            campaign.results.add(results.row(left[done.number], done))
        assert campaign.run(LocalWorkers(1)).done_now == 4
    return directory


def test_every_trial_is_run_with_and_without_protection(compared: Path) -> None:
    rows = results.read(compared / "run/trials.jsonl").values()
    assert len(rows) == 6
    assert {row.outcome for row in rows if row.policy == "none"} == {"crash"}
    assert {row.outcome for row in rows if row.policy == "lockstep"} == {"failed-over"}
    for number in range(3):
        assert len({(row.seed, row.faults) for row in rows if row.trial == number}) == 1
    ordered = sorted(rows, key=lambda row: row.key)
    assert table.transitions(ordered, ("none", "lockstep")) == {"crash": {"lockstep": {"failed-over": 3}}}
    shown = "\n".join(table.report(ordered, ("none", "lockstep")))
    assert re.search(r"^crash +3 100.00% .* +0 +0.00%", shown, re.MULTILINE)
    assert re.search(r"3 crash +lockstep +3 failed-over", shown)


def test_an_address_names_one_trial_of_several_worlds(compared: Path) -> None:
    wanted = replay.find(f"{compared / 'run'}#2/lockstep", None)
    assert isinstance(wanted.golden, WorldRun)
    again = world_replay.again(wanted.golden, wanted.policy, wanted.trial)
    assert wanted.departures(again.report) == []
    assert replay.find(f"{compared / 'run'}#2", None, "lockstep") == msgspec.structs.replace(
        wanted, name=f"{compared / 'run'}#2"
    )
    for name in ("#2", "#2/colo"):
        with pytest.raises(ColoError, match="expected one of the campaign's: #2/none, #2/lockstep"):
            replay.find(f"{compared / 'run'}{name}", None)


def test_wildcards_of_several_worlds_mean_what_all_of_them_have() -> None:
    run = kinds.record(
        msgspec.structs.replace(SCENERY, policy=("colo", "none"), operations=3), 9, lambda text: None
    )
    facts = run.facts()
    assert set(facts.guests) == {""}
    assert facts.links == ("client0",)
    assert not facts.steps
    assert isinstance(run, WorldRun)
    alone, pair = run.of("none"), run.of("colo")
    assert facts.guests[""].physical == alone.guests["machine"].physical
    assert facts.end_ns == min(alone.span_ns, pair.span_ns)
    executed = (alone.guests["machine"].instructions, pair.guests["pair-0"].instructions)
    assert facts.guests[""].instructions == min(executed)


@pytest.mark.parametrize("policies", ["[]", '["none", "none"]', '["none", "elsewhere"]'])
def test_policies_that_make_no_sense_are_refused(tmp_path: Path, policies: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(SIDE_BY_SIDE.replace('["none", "lockstep"]', policies))
    with pytest.raises(PlanError, match=r"plan.toml:\d+: world"):
        planned.load(path)


def test_a_guest_without_a_known_service_needs_a_client(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(SIDE_BY_SIDE.replace("udpecho", "counter"))
    with pytest.raises(PlanError, match="no client, for counter"):
        planned.load(path)


@pytest.mark.long
@pytest.mark.parametrize(("guest_name", "asked"), [("redis", "5"), ("nginx", "200 1024")])
def test_a_guest_is_asked_for_its_own_service(guest_name: str, asked: str, guest: Ready) -> None:
    """Of Linux, with and without protection; a trial is the same from a server and by itself."""
    guest(guest_name)
    scenery = Scenery(guest=guest_name, policy=("none", "lockstep"), operations=5)
    run = world.record(scenery, 3)
    server = WorldServer(run)
    for policy, name in (("none", "machine"), ("lockstep", "pair-0")):
        trial = Trial(seed=8, faults=(msgspec.structs.replace(COUNTED, target=""),))
        forked = [server.run(trial, policy) for _ in range(2)]
        again = world_replay.again(run, policy, trial)
        assert [msgspec.structs.replace(each, wall_ms=0.0) for each in forked] == 2 * [again.report]
        assert name in again.report.happened[0].text
        assert any(line.what == "answer" and asked in line.detail for line in again.lines)
    server.close()
