"""``colo compare-policies`` as a person has it: what is refused, what is taught, and real comparisons."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest

from colo.experiment import optional
from colo.experiment.comparing import Comparison, Options
from colo.experiment.experiment import Plan
from colo.experiment.schedule import Configuration
from colo.experiment.workloads import WORKLOADS, choose
from colo.policy import POLICIES
from tests.cli.command import COLO, ROOT, inside
from tests.network.support import needs_root
from vmm.guest import BuiltGuest

WORDS = ("compare-policies", "kv", "--policies", "periodic", "--intervals", "20")
QUICK = ("--rounds", "1", "--seconds", "0.5", "--warm-up", "0.2", "--silence", "3000")
"""A silence that no busy host reaches."""

LIMIT_S = 300.0
"""For loads of several seconds, each after its own start, on a busy host."""


@pytest.mark.parametrize(
    ("words", "because"),
    [
        ((), "GUEST"),
        (("counter",), "there is no workload for it; there are some for kv, redis, nginx"),
        (("kv", "--workload", "fast"), "workload 'fast': guest kv has echo, inc"),
        (("kv", "--policies", "best"), "policy 'best'"),
        (("kv", "--connections", "0"), "'0'"),
        (("kv", "--connections", "1000"), "connections 1000: from 1 to 256"),
        (("kv", "--rounds", "100000"), "rounds 100000"),
        (("kv", "--seconds", "0"), "not a number of seconds"),
        (("kv", "--seconds", "nan"), "not a number of seconds"),
        (("kv", "--csv", "/nowhere/x.csv"), "there is no directory /nowhere"),
    ],
)
def test_refused(capfd: pytest.CaptureFixture[str], words: tuple[str, ...], because: str) -> None:
    done = inside(capfd, "compare-policies", *words)
    assert done.status == 2
    assert done.out == b""
    assert because in done.err


def test_a_plot_has_a_suffix_that_says_how(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason=f"no matplotlib: {optional.EXTRA}")
    done = inside(capfd, "compare-policies", "kv", "--plot", "x.bmp")
    assert done.status == 2
    assert ".png, .svg, .pdf" in done.err


@pytest.mark.parametrize("option", ["--plot", "--parquet"])
def test_what_needs_a_library_says_so_first(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it was not installed
    done = inside(capfd, "compare-policies", "kv", option, "x.svg")
    assert done.status == 2
    assert "pip install 'colo-vmm[experiment]'" in done.err


def test_without_its_client_a_workload_is_left_out_with_the_reason(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    done = inside(capfd, "compare-policies", "redis", "--workload", "get", "set-16")
    assert done.status == 2
    assert "nothing to measure: workload get is left out" in done.err
    assert "apt install redis-tools" in done.err


def test_the_help_teaches(capfd: pytest.CaptureFixture[str]) -> None:
    done = inside(capfd, "compare-policies", "--help")
    assert done.status == 0
    said = done.out.decode()
    for each in ("unprotected", *POLICIES, *(workload.name for workload in WORKLOADS)):
        assert f"\n  {each} " in said
    assert max(map(len, said.splitlines())) <= 130


@pytest.fixture
def place() -> Iterator[Path]:
    """A runtime directory, in which nothing is left, and whose name is short: it is for sockets."""
    with tempfile.TemporaryDirectory(prefix="cmp-") as name:
        yield Path(name)
        assert not list(Path(name).iterdir())
        assert not using(name)


def using(place: str) -> list[int]:
    """Processes that were started for this runtime directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            if f"COLO_RUNTIME={place}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


@contextmanager
def started(place: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    with subprocess.Popen(
        [*COLO, *WORDS, *QUICK, *words],
        cwd=ROOT,
        env=os.environ | {"COLO_RUNTIME": str(place)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.long
@needs_root
def test_a_comparison(place: Path, tmp_path: Path, guest: Callable[[str], BuiltGuest]) -> None:
    guest("kv")
    table = tmp_path / "rows.csv"
    loads = ("echo", "bulk-in", "time")
    with started(place, "--workload", *loads, "--json", "--csv", str(table)) as process:
        said, words = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, words
    assert f"written: {table}" in words
    document = json.loads(said)
    assert [(each["row"]["workload"], each["row"]["configuration"]) for each in document["table"]] == [
        (load, configuration) for load in loads for configuration in ("unprotected", "periodic 20 ms")
    ]
    for bare, kept in zip(document["table"][::2], document["table"][1::2], strict=True):
        assert bare["row"]["share"] == 1.0
        assert bare["row"]["checkpoints"] is None
        assert 0 < kept["row"]["share"]
        assert sum(kept["row"]["causes"].values()) == kept["row"]["checkpoints"] > 0
        assert kept["row"]["pause_median_ms"] > 0
        assert kept["row"]["state_bytes"] > 0
        assert kept["row"]["p50_ms"] <= kept["row"]["p99_ms"] <= kept["row"]["max_ms"]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(loads) * 2
    assert all(int(each["answers"]) > 0 and each["wrong"] == each["lost"] == "0" for each in rows)


@pytest.mark.long
@needs_root
def test_connections_that_a_killed_node_had(place: Path, guest: Callable[[str], BuiltGuest]) -> None:
    guest("kv")
    with started(place, "--workload", "inc", "--connections", "4", "--kills", "1", "--json") as process:
        said, words = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, words
    document = json.loads(said)
    (kill,) = document["kills"]
    assert (kill["configuration"], kill["victim"], kill["error"]) == ("periodic 20 ms", "primary", None)
    assert kill["survived"] == len(kill["silences_ms"]) == 4
    assert kill["restored_s"] > 0
    row = document["table"][-1]["row"]
    assert (row["workload"], row["kills"], row["survived"]) == ("inc, primary killed", 1, 4)
    assert row["silence_max_ms"] == max(kill["silences_ms"])


@pytest.mark.long
@needs_root
@pytest.mark.parametrize("moment", ["starting", "echo"])
def test_ctrl_c_ends_it_in_order(place: Path, guest: Callable[[str], BuiltGuest], moment: str) -> None:
    """In its second configuration: the first one's figures are there."""
    guest("kv")
    with started(place, "--workload", "echo", "--seconds", "1") as process:
        assert process.stderr is not None
        steps = (line for line in iter(process.stderr.readline, "") if f": {moment}" in line)
        told = list(islice(steps, 2))
        process.send_signal(signal.SIGINT)
        said, words = process.communicate(timeout=LIMIT_S)
    assert len(told) == 2
    assert process.returncode == 130, words
    assert "interrupted" in words
    assert "echo: 64 bytes" in said
    assert "interrupted" in said


def test_a_guest_that_cannot_start_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    """Each load says why, and a comparison that failed is not flawless."""
    bare = [Configuration("unprotected")]
    plan = Plan("kv", choose("kv", ["echo", "inc"]), bare, tmp_path / "none", rounds=1)
    comparison = Comparison(Options("kv"), plan)
    comparison.run(lambda text, left_s: None)
    rows = comparison.found.rows
    assert [(each.round, each.workload) for each in rows] == [(1, "echo"), (1, "inc")]
    assert all(each.failure for each in rows)
    assert not comparison.flawless
