"""``colo init``: what it writes is whole, nothing is overwritten, and it runs as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vmm.guest
from colo.cli import init, main
from colo.faults import plan
from vmm.errors import GuestBuildError

RUN_LIMIT_S = 600
"""To build and boot a guest with Python in it, and to run it in five machines."""


def test_it_says_what_it_wrote_and_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "a" / "b"
    assert main(["init", str(directory)]) == 0
    wrote, following = capsys.readouterr().out.splitlines()
    names = wrote.partition(": ")[2].split(", ")
    assert names == sorted(
        str(each.relative_to(directory)) for each in directory.rglob("*") if each.is_file()
    )
    assert following == f"next: cd {directory} && pytest"
    assert {"client.py", "guest/guest.toml", "plan.toml", "test_service.py"} < {*names}
    assert all(name in (directory / "README.md").read_text() for name in names if name[0].islower())


def test_its_recipe_and_its_plan_make_sense(tmp_path: Path) -> None:
    init.write(tmp_path)
    info = vmm.guest.open(str(tmp_path / "guest")).info
    assert (info.name, info.ports) == ("tally", (7000,))
    assert len(plan.load(tmp_path / "plan.toml").templates) == 2


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "client.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "exists and is not an empty directory" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["client.py"]
    assert main(["init", str(tmp_path / "client.py")]) == 2
    assert (tmp_path / "client.py").read_text() == "mine"


def test_a_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "below")]) == 2
    assert "expected a directory that may be written" in capsys.readouterr().err


@pytest.mark.long
def test_it_runs_as_it_is(tmp_path: Path) -> None:
    """As its user does: in a process of its own, with nothing of this project's settings."""
    init.write(tmp_path)
    try:
        vmm.guest.open(str(tmp_path / "guest")).build()
    except GuestBuildError as exc:
        pytest.skip(str(exc))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert not (tmp_path / "artifacts").exists(), "nothing failed"
