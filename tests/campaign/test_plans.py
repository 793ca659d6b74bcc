"""The plans to begin with: each is what the command reads, and one is run as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from colo import plans
from colo.campaign import planned


@pytest.mark.parametrize("name", sorted(plans.examples()))
def test_an_example_is_a_plan_that_a_campaign_takes(name: str, tmp_path: Path) -> None:
    purpose = plans.examples()[name]
    assert purpose.endswith(".")
    file = tmp_path / "plan.toml"
    file.write_text(plans.text(name))
    assert planned.load(file).name


def test_an_example_is_printed_and_runs(tmp_path: Path) -> None:
    def colo(*words: str) -> str:
        command = [sys.executable, "-m", "colo.cli", "campaign", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    text = colo("--example", "counter")
    (tmp_path / "mine.toml").write_text(text.replace("count = 500", "count = 3"))
    assert "3 trials in mine.campaign/results" in colo("mine.toml", "--workers", "1")
    assert all(name in colo("--example") for name in plans.examples())
