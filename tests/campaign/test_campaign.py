"""``colo campaign`` and ``colo replay``, as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colo.campaign import replay, results

TRIALS = 100
"""Enough for every outcome that the tests look at."""
PLAN = """\
name = "bit flips in a counter"
guest = "counter"
seed = 7
count = {count}
faults_per_trial = 1

[workload]
append = "mib=1 ms=1"
span_ns = 1_005_000_000

[limits]
virtual_ns = 1_025_000_000

[quiet]
start_ns = 970_000_000

[observe]
marks = 67

[[fault]]
kind = "register"
when = {{ at = "time", ns = "*" }}
register = "*"
mask = "*"

[[fault]]
kind = "data"
space = "physical"
when = {{ at = "time", ns = "*" }}
address = ["0x100240..0x1002da", "0x100530..0x10054e", "*"]
width = 4
mask = "*"
"""


def colo(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "colo.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def planned(directory: Path, count: int = 12) -> Path:
    path = directory / "flips.toml"
    path.write_text(PLAN.format(count=count))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign that was done."""
    directory = tmp_path_factory.mktemp("campaign")
    planned(directory, TRIALS)
    told = colo("campaign", "flips.toml", "--json", cwd=directory)
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout.splitlines()[-1])
    assert facts["trials"] == sum(facts["outcomes"].values()) == TRIALS
    assert facts["failed"] == 0
    (directory / "facts.json").write_text(json.dumps(facts))
    return directory


def test_a_campaign_finds_harmless_and_harmful_flips(done: Path) -> None:
    facts = json.loads((done / "facts.json").read_text())
    assert all(facts["outcomes"][name] > 0 for name in ("masked", "sdc", "crash"))


@pytest.mark.long
def test_a_second_run_is_identical(done: Path, tmp_path: Path) -> None:
    """On one worker, in another directory."""
    (tmp_path / "flips.toml").write_text((done / "flips.toml").read_text())
    told = colo("campaign", "flips.toml", "--json", "--workers", "1", "--out", "again", cwd=tmp_path)
    facts, first = json.loads(told.stdout), json.loads((done / "facts.json").read_text())
    assert facts["digest"] == first["digest"]
    assert facts["golden"] == first["golden"]


def test_a_campaign_that_is_done_is_not_done_again(done: Path) -> None:
    told = colo("campaign", "flips.toml", "--json", cwd=done)
    facts, first = json.loads(told.stdout), json.loads((done / "facts.json").read_text())
    assert (facts["done_now"], facts["digest"]) == (0, first["digest"])


def test_another_plan_needs_another_directory(done: Path, tmp_path: Path) -> None:
    planned(tmp_path, 3)
    told = colo("campaign", "flips.toml", "--out", str(done / "flips.campaign"), cwd=tmp_path)
    assert told.returncode == 1
    assert "the results of another plan" in told.stderr


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_campaign_that_was_stopped_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    planned(tmp_path, 30)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # What a shell starts in the background ignores interrupts, and so does all that it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "colo.cli", "campaign", "flips.toml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "of 30 trials" in line:
            break
    process.send_signal(how)
    rest = process.communicate()[1]
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from here" in rest
    before = results.read(tmp_path / "flips.campaign/trials.jsonl")
    told = colo("campaign", "flips.toml", "--json", cwd=tmp_path)
    facts = json.loads(told.stdout)
    assert 0 < len(before) == 30 - facts["done_now"] < 30
    assert facts["trials"] == 30


def test_an_error_in_a_plan_points_to_its_line(tmp_path: Path) -> None:
    path = planned(tmp_path)
    path.write_text(path.read_text().replace("marks = 67", "marks = 0"))
    told = colo("campaign", "flips.toml", cwd=tmp_path)
    assert told.returncode == 2
    assert "flips.toml:18: observe.marks: found 0, expected a whole number from 1 to 4096" in told.stderr


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('kind = "register"', 'kind = "node"\neffect = "kill"', 21),
        (
            'when = { at = "time", ns = "*" }\nregister',
            'when = { at = "step", step = "Hello" }\nregister',
            22,
        ),
    ],
)
def test_what_needs_a_world_is_said_before_anything_runs(
    tmp_path: Path, old: str, new: str, line: int
) -> None:
    path = planned(tmp_path)
    text = path.read_text().replace(old, new, 1)
    path.write_text(text.replace('register = "*"\nmask = "*"\n', "", 1) if "node" in new else text)
    told = colo("campaign", "flips.toml", cwd=tmp_path)
    assert told.returncode == 2
    assert f"flips.toml:{line}: fault[0]" in told.stderr
    assert "give the plan a [world]" in told.stderr


def worst(done: Path, outcome: str) -> int:
    rows = results.read(done / "flips.campaign/trials.jsonl")
    return min(row.trial for row in rows.values() if row.outcome == outcome)


@pytest.mark.parametrize("outcome", ["masked", "sdc", "crash"])
def test_a_replay_comes_to_the_same(done: Path, outcome: str) -> None:
    number = worst(done, outcome)
    told = colo("replay", f"flips.campaign#{number}", cwd=done)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"flips.campaign#{number}: {outcome} (")
    assert told.stdout.endswith("as in the campaign\n")


def test_a_replay_finds_the_first_difference(done: Path, tmp_path: Path) -> None:
    number = worst(done, "crash")
    timeline = tmp_path / "trial.json"
    words = ("--diff", "golden", "--record", str(timeline), "--pcap", str(tmp_path / "trial.pcap"), "--json")
    told = colo("replay", f"flips.campaign#{number}", *words, cwd=done)
    facts = json.loads(told.stdout)
    assert facts["departures"] == []
    assert facts["happened"][0]["ns"] <= facts["first_ns"] <= facts["ended_ns"]
    assert facts["first_differences"]
    events = json.loads(timeline.read_text())["traceEvents"]
    assert {"M", "i"} == {each["ph"] for each in events}
    assert any(each["name"] == "leaves the golden run's path" for each in events)
    assert (tmp_path / "trial.pcap").read_bytes()[:4] == b"\x4d\x3c\xb2\xa1"


def test_a_replay_stops_and_steps(done: Path) -> None:
    number = worst(done, "crash")
    told = colo("replay", f"flips.campaign#{number}", "--until", "970000000", "--step", "3", cwd=done)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("  rip 0x") >= 3
    assert "rsp" in told.stdout


def test_a_trial_in_a_file_is_done_beside_a_campaigns_golden_run(done: Path, tmp_path: Path) -> None:
    from colo.faults import text

    wanted = replay.find(f"{done / 'flips.campaign'}#{worst(done, 'sdc')}", None)
    (tmp_path / "trial.toml").write_text(text.to_toml(wanted.trial))
    told = colo("replay", str(tmp_path / "trial.toml"), "--campaign", "flips.campaign", cwd=done)
    assert told.stdout.startswith(f"{tmp_path / 'trial.toml'}: sdc (")


def test_a_trial_that_is_not_there_is_named(done: Path) -> None:
    told = colo("replay", "flips.campaign#4711", cwd=done)
    assert told.returncode == 1
    assert "no trial 4711" in told.stderr
    assert f"0 to {TRIALS - 1}" in told.stderr
