"""tools/bench runs: its cheaper sections, a fraction of the work, no judgement of the times."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.benchmarks import figures, qemu_colo
from tools.benchmarks.failover import silence
from tools.benchmarks.figures import Figure
from tools.benchmarks.measure import OURS, QEMU, Measure, table
from tools.benchmarks.redis_client import Incrementing
from vmm.guest import BuiltGuest

ROOT = Path(__file__).resolve().parents[2]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.benchmarks", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)


def test_costs_beside_qemu(tool: Callable[[str], str], tmp_path: Path) -> None:
    tool("qemu-system-x86_64"), tool("gcc")
    out = tmp_path / "bench.json"
    done = bench("--only", "costs", "--rounds", "1", "--quick", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "QUICK: not a measurement" in done.stdout
    document = json.loads(out.read_text())
    assert document["missing"] == {}
    assert {"cpu", "kernel", "load", "ours", "qemu"} <= set(document["host"])
    assert document["results"]
    for result in document["results"]:
        samples = result["samples"]
        assert len(samples[OURS]) == len(samples[QEMU]) == 1
        # a loop's cost is a difference: --quick repeats the cheapest too seldom to see them
        costly = any(word in result["name"] for word in ("#PF", "MOV CR3"))
        for side in (OURS, QEMU):
            assert samples[side][0] > 0 if costly else samples[side][0] >= 0, result
    assert sum("#PF" in result["name"] or "MOV CR3" in result["name"] for result in document["results"]) >= 2


def test_without_qemu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if Path("/usr/sbin/qemu-system-x86_64").exists() or Path("/sbin/qemu-system-x86_64").exists():
        pytest.skip("QEMU is in a folder that is always searched")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = bench("--only", "costs")
    assert done.returncode == 3
    assert "apt install qemu-system-x86" in done.stderr
    assert done.stdout == ""


def test_an_unknown_section_is_a_usage_error() -> None:
    done = bench("--only", "nothing")
    assert done.returncode == 2
    assert "costs" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may make a network namespace")
def test_the_network_section_asks_for_root(tool: Callable[[str], str]) -> None:
    tool("qemu-system-x86_64"), tool("gcc")
    done = bench("--only", "net", "--rounds", "1", "--quick")
    assert done.returncode == 1
    assert "need root" in done.stdout


def test_a_ratio_above_one_means_ours_is_better() -> None:
    seconds = Measure("x", "boot", "s", goal=1.0, samples={OURS: [2.0, 2.0, 4.0], QEMU: [3.0, 4.0, 4.0]})
    assert seconds.ratios() == [1.5, 2.0, 1.0]
    assert seconds.ratio == 1.5
    assert seconds.met is True
    rate = Measure("x", "echo", "/s", True, 1.0, {OURS: [50.0], QEMU: [100.0]})
    assert rate.ratio == 0.5
    assert rate.met is False
    assert "MISSED" in table([rate])[1]


def test_a_goal_for_ours_alone_is_a_limit() -> None:
    alone = Measure("x", "resume", "s", goal=0.7, samples={OURS: [0.6, 0.9, 0.5], QEMU: []})
    assert alone.ratio is None
    assert alone.met is True


@pytest.mark.long
@pytest.mark.parametrize("section", ["checkpoint", "ram", "failover", "setup"])
def test_a_section_about_protected_guests(
    section: str, guest: Callable[[str], BuiltGuest], tmp_path: Path
) -> None:
    guest("redis")
    out = tmp_path / "bench.json"
    done = bench("--only", section, "--rounds", "1", "--quick", "--json", str(out), "--csv", str(tmp_path))
    if "namespace" in done.stdout and done.returncode == 1:
        pytest.skip(done.stdout[-500:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert qemu_colo.PROVENANCE in done.stdout
    document = json.loads(out.read_text())
    assert document["missing"] == {}
    results = [result for result in document["results"] if result["samples"]]
    assert any(result["qemu_colo"] or section == "ram" for result in results)
    wrong = [result for result in results if result["limit"] == 0 and not result["met"]]
    assert not wrong, "nothing may be lost, stuck or changed, however long it takes"
    assert (section == "failover") == any(result["limit"] == 0 for result in results)
    with (tmp_path / f"{section}.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(document["records"][section]) > 0


def test_a_figure_has_a_limit_of_one_of_its_statistics() -> None:
    pauses = Figure("x", "pause", "ms", peer=4.0, limit=2.0, samples=[1.0] * 9 + [9.0])
    assert pauses.met is True
    assert pauses.value("p90") == 1.0
    assert Figure("x", "pause", "ms", limit=2.0, of="max", samples=pauses.samples).met is False
    assert Figure("x", "pause", "ms", limit=2.0).met is None
    assert "4.00" in figures.table([pauses])[1]


def test_a_silence_is_a_gap_around_the_kill_and_counts_whole() -> None:
    replies = [0.0, 1.0, 1.5, 4.0, 5.0, 9.0]
    assert silence(replies, 2.0, 3.0) == 2500.0
    assert silence(replies, 4.5, 4.9) == 1000.0
    assert silence(replies, 9.5, 10.0) == 0.0


def test_the_counting_client_knows_lost_writes_from_changed_ones() -> None:
    counting = Incrementing(b"key")
    for line in (b":1", b":2", b":2", b":5", b"-ERR no"):
        counting.judge(line, 0.0)
    assert (counting.lost, counting.changed) == (1, 3)
    counting.compare(4)
    assert (counting.lost, counting.changed) == (2, 3)
    counting.compare(6)
    assert (counting.lost, counting.changed) == (2, 4)
