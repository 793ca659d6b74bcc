"""``colo sim``: what it prints, and that it proves what it says."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import colo

PLAN = """
name = "kills"
guest = "udpecho"
seed = 5
count = 20

[world]
policy = "periodic"
operations = 10

[[fault]]
kind = "node"
target = "pair"
when = { at = "time", ns = "0..30_000_000" }
effect = "kill"
"""


def test_a_guest_without_a_plan(tmp_path: Path) -> None:
    log = tmp_path / "events.txt"
    words = ("sim", "udpecho", "--seconds", "0.3", "--kill", "0.1", "--check-determinism", "--log", log)
    done = colo(*words, "--json")
    assert done.status == 0, done.err
    found = done.facts
    assert found["checked"]
    lines = log.read_text().splitlines()
    assert len(lines) == found["events"]
    assert any("killed" in line for line in lines)
    other = colo(*words[:6], "--seed", "1", "--json").facts
    assert other["digest"] != found["digest"]


def test_a_trial_of_a_plan(tmp_path: Path) -> None:
    plan = tmp_path / "kills.toml"
    plan.write_text(PLAN)
    without, trial = (colo("sim", plan, *more, "--json").facts for more in ((), ("--trial", "3")))
    assert without["outcome"] == "masked"
    assert trial["outcome"] == "failed-over"
    assert trial["digest"] != without["digest"]


def test_what_is_not_there_is_said() -> None:
    done = colo("sim", "nosuch")
    assert done.status == 1
    assert "no guest 'nosuch'" in done.err
