"""tools/same_digest.py: real runs that must agree, and planted differences that it must see."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools import same_digest
from tools import same_digest_places as places

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 600
"""Against a hang: it takes seconds, and minutes where the host has much else to do."""
QUICK = ("udpecho-lockstep",)
PLANT = """
import random


class Leaky(random.Random):
    '''Draws by the hash seed of this process, as the order of a set would.'''

    def __init__(self, seed=None):
        super().__init__(f"{seed}{hash('x')}")


random.Random = Leaky
"""
"""A module that Python imports at its start (site, "sitecustomize"): worlds draw delays, machines nothing."""


def same_digest_tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools/same_digest.py", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        timeout=WITHIN_S,
    )


def only(names: tuple[str, ...]) -> list[str]:
    return [word for name in names for word in ("--only", name)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """This Python, and this Python with something in it that is not deterministic; quiet and busy each."""
    home = tmp_path_factory.mktemp("plant")
    (home / "sitecustomize.py").write_text(PLANT)
    leaky = shlex.join(["env", f"PYTHONPATH={home}:{ROOT}", sys.executable])
    there = ("--python", shlex.quote(sys.executable), "--python", leaky, "--busy", "1")
    kept = home / "kept.json"
    return same_digest_tool(*there, *only(QUICK), "--json", kept), kept


def marks(table: str) -> dict[str, list[str]]:
    """What stands behind the digest, by scenario."""
    rows = (line.split() for line in table.splitlines())
    return {row[0]: row[2:] for row in rows if row and row[0] in same_digest.SCENARIOS}


def test_processes_agree_and_a_planted_difference_is_seen(
    planted: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, kept = planted
    assert done.returncode == 1, done.stderr
    assert marks(done.stdout) == {"udpecho-lockstep": ["=", "=", "X", "X"]}
    runs = json.loads(kept.read_text())["runs"]
    assert [run["facts"]["hash_seed"] for run in runs] == ["0", "0", "4711", "4711"]
    leaked = {run["results"]["udpecho-lockstep"]["same"]["digest"] for run in runs if run["place"] == "#2"}
    assert len(leaked) == 2, "the plant itself does not depend on the hash seed"
    assert "udpecho-lockstep: events: #1 quiet has" in done.stdout or "digest: #1 quiet has" in done.stdout


@pytest.fixture
def compared(
    planted: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> Callable[[Callable[[dict[str, Any]], object]], tuple[int, Path]]:
    """Compare the clean runs with a copy that was changed."""
    kept = json.loads(planted[1].read_text())
    kept["runs"] = [run for run in kept["runs"] if run["place"] == "#1"]
    (tmp_path / "a.json").write_text(json.dumps(kept))

    def compare(change: Callable[[dict[str, Any]], object]) -> tuple[int, Path]:
        changed = json.loads(json.dumps(kept))
        change(changed)
        (tmp_path / "b.json").write_text(json.dumps(changed))
        words = ("--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
        return same_digest.main(words), tmp_path

    return compare


Compare = Callable[[Callable[[dict[str, Any]], object]], tuple[int, Path]]


def test_two_files_that_agree(compared: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(lambda kept: None)[0] == 0
    assert marks(capsys.readouterr().out) == dict.fromkeys(QUICK, ["="] * 4)


def test_one_digit_of_one_value_is_a_difference(
    compared: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(kept: dict[str, Any]) -> None:
        same = kept["runs"][1]["results"]["udpecho-lockstep"]["same"]
        same["digest"] = same["digest"][:-1] + ("1" if same["digest"][-1] == "0" else "0")

    assert compared(change)[0] == 1
    out = capsys.readouterr().out
    assert marks(out)["udpecho-lockstep"] == ["=", "=", "=", "X"]
    assert "udpecho-lockstep: digest: a:#1 quiet has" in out


def test_what_failed_or_was_not_run_is_told(compared: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    def change(kept: dict[str, Any]) -> None:
        kept["runs"][0]["results"]["udpecho-lockstep"] = {"error": "no such guest"}
        del kept["runs"][1]["results"]["udpecho-lockstep"]

    assert compared(change)[0] == 1
    out = capsys.readouterr().out
    assert marks(out)["udpecho-lockstep"] == ["=", "=", "!", "-"]
    assert "udpecho-lockstep: b:#1 quiet: no such guest" in out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda kept: kept["runs"][0]["facts"].update(build="0+other"), "different programs"),
        (lambda kept: kept.update(seed=1), "different seeds"),
        (lambda kept: kept.pop("runs"), "expected what tools/same_digest.py --json wrote"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    compared: Compare,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    told: str,
) -> None:
    assert compared(change)[0] == 2
    assert told in capsys.readouterr().err


def test_a_python_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert same_digest.main(["--python", "/nowhere/python3", "--busy", "0", *only(QUICK)]) == 1
    assert "#1 quiet: exit status 127" in capsys.readouterr().out
    work = ("--work", str(tmp_path))
    assert same_digest.main(["--make", "3.99", "--python", sys.executable, "--busy", "0", *work]) == 2
    assert "no Python 3.99" in capsys.readouterr().err


def test_settings_go_to_the_interpreter_and_not_to_what_leads_there() -> None:
    place = places.Place("far", ("ssh", "host", "venv/bin/python"), {"COLO_CACHE": "/c"})
    expected = ["ssh", "host", "env", "COLO_CACHE=/c", "TZ=UTC", "venv/bin/python", "-", "counter"]
    assert place.command({"TZ": "UTC"}, "-", "counter") == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_what_runs_in_a_tree_sees_the_checkout_read_only_and_leaves_no_mount(tmp_path: Path) -> None:
    """The tree borrows this host's programs, so that none has to be downloaded."""
    tree = tmp_path / "tree"
    for folder in ("dev", "proc"):
        (tree / folder).mkdir(parents=True)
    borrowed = [path for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]
    script = f"cd {places.IN_TREE[0]} && test -e pyproject.toml && test -e /proc/self && ! touch left 2>&1"
    command = [*places.entering(tree, borrowed), "/bin/sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"this host gives no mount namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Read-only file system" in done.stdout
    assert str(tree) not in Path("/proc/self/mountinfo").read_text()
    assert list((tree / "usr").iterdir()) == []


def other_python() -> str | None:
    """An environment with another minor version that tools/same_digest.py made, if it works."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for name in places.made(places.cache_directory() / "same-digest"):
        path = places.cache_directory() / "same-digest" / name / "venv/bin/python"
        works = [path, "-c", "import cryptography, lz4, msgspec, numba, unicorn, zstandard"]
        if f"{name}.".startswith(f"{own}.") or not path.exists():
            continue
        if subprocess.run(works, capture_output=True, check=False).returncode == 0:
            return str(path)
    return None


@pytest.mark.long
def test_another_python_gives_the_same_digests() -> None:
    other = other_python()
    if other is None:
        pytest.skip("no environment with another Python: tools/same_digest.py --make 3.13 makes one")
    pythons = ("--python", shlex.quote(sys.executable), "--python", shlex.quote(other))
    done = same_digest_tool(*pythons, "--busy", "0", *only(QUICK))
    assert done.returncode == 0, done.stdout + done.stderr
    assert marks(done.stdout) == dict.fromkeys(QUICK, ["="] * 2)
