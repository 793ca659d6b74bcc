"""``colo status|checkpoint|failover|kill|stop`` against small nodes in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colo.cli import Parser
from colo.cli import control as cli_control
from colo.cli import pair as cli_pair
from colo.errors import ControlError
from colo.pair import runtime
from colo.pair.runtime import Node, Pair, Process
from colo.qmp.client import Client
from colo.qmp.schema import ColoExitReason, ColoMode, ColoStatus, MigrateInfo, RunState, StatusInfo
from tests.qmp.running import LIMIT_S, started


@dataclass(frozen=True)
class Running:
    """A pair of two small nodes, with a supervisor that ends when it is told to."""

    pair: Pair
    a: subprocess.Popen[bytes]
    b: subprocess.Popen[bytes]
    supervisor: subprocess.Popen[bytes]

    @property
    def folder(self) -> Path:
        return runtime.directory() / self.pair.name


@pytest.fixture
def running(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("COLO_RUNTIME", str(place))
    (place / "redis").mkdir(mode=0o700)
    paths = [place / "redis" / f"{name}.qmp" for name in "ab"]
    with (
        started(paths[0], ColoMode.PRIMARY) as a,
        started(paths[1], ColoMode.SECONDARY) as b,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as supervisor,
    ):
        nodes = [
            Node(name, Process.of(node.pid), str(path), role)
            for name, node, path, role in zip("ab", (a, b), paths, ("primary", "secondary"), strict=True)
        ]
        pair = Pair("redis", "redis", Process.of(supervisor.pid), nodes)
        runtime.write(pair)
        yield Running(pair, a, b, supervisor)
        supervisor.kill()


def colo(*words: str | Path) -> int:
    parser = Parser(prog="colo")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    cli_control.add_parsers(commands)
    return cli_pair.main(parser.parse_args([*map(str, words)]))


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert colo(*words) == 0
    return capsys.readouterr().out


def facts(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, *words, "--json"))
    return found


def refused(*words: str | Path) -> str:
    with pytest.raises(ControlError) as caught:
        colo(*words)
    return str(caught.value)


def test_status_is_a_table_of_both_nodes(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "status").splitlines()
    assert lines[0] == f"pair redis: guest redis, supervisor {running.supervisor.pid}"
    assert " ".join(lines[1].split()) == "node role state epoch pause pages bytes held peer"
    assert " ".join(lines[2].split()) == "a primary running 7 1.25 ms 42 4.1 KiB 0 -"
    assert lines[3].split()[:3] == ["b", "secondary", "running"]
    assert "a: dirty pages by scan (asked for)" in lines
    assert not any(line.endswith(" ") for line in lines)


def test_status_as_json_has_the_nodes_own_words(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "status", "redis")
    assert found["protected"] is True
    assert (found["pair"], found["supervisor"]["alive"]) == ("redis", True)
    assert [node["role"] for node in found["nodes"]] == ["primary", "secondary"]
    assert [node["pid"] for node in found["nodes"]] == [running.a.pid, running.b.pid]
    with Client(running.folder / "a.qmp") as client:
        assert found["nodes"][0]["colo"] == client.execute("query-colo-status")


def test_status_of_one_node_by_its_socket(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "status", running.folder / "b.qmp")
    assert (found["pair"], found["nodes"][0]["pid"]) == (None, running.b.pid)
    assert said(capsys, "status", running.folder / "b.qmp").splitlines()[1].startswith("b")


def test_status_tells_of_nodes_that_are_dead_or_do_not_answer(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_pair, "ASK_S", 0.2)
    running.a.kill()
    running.a.wait()
    running.b.send_signal(signal.SIGSTOP)
    running.supervisor.kill()
    running.supervisor.wait()
    assert colo("status") == 1
    text = capsys.readouterr().out
    assert "which is dead" in text.splitlines()[0]
    assert "a: process" in text
    assert text.splitlines()[3].split()[:4] == ["b", "secondary", "no", "answer"]
    assert "b: " in text
    assert "in time" in text
    running.b.send_signal(signal.SIGCONT)
    found = facts(capsys, "status")
    assert [node["alive"] for node in found["nodes"]] == [False, True]
    assert found["protected"] is False


def test_checkpoint_asks_the_primary(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "checkpoint").startswith("a: epoch 8 is committed")
    assert facts(capsys, "checkpoint") == {"node": "a", "epoch": 9, "pause-ms": 1.5, "pages": 3, "bytes": 300}


@pytest.mark.parametrize(("words", "name"), [((), "b"), (("--side", "primary"), "a")])
def test_failover_tells_one_side_and_waits_for_what_comes_of_it(
    running: Running, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], name: str
) -> None:
    found = facts(capsys, "failover", *words)
    mode = "secondary" if name == "b" else "primary"
    assert found == {"node": name, "mode": mode, "reason": "request"}
    assert f"{name} is alone" in refused("failover", *words)
    text = said(capsys, "status")
    assert " alone " in text
    assert "failover completed" in text


def test_failover_of_one_node_by_its_socket(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, "failover", running.folder / "a.qmp")["mode"] == "primary"
    assert "feature disabled: colo" in refused("failover", running.folder / "a.qmp")


def test_kill_kills_the_side_that_was_said(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "kill", "primary")
    assert found == {"node": "a", "role": "primary", "pid": running.a.pid, "signal": "SIGKILL"}
    assert running.a.wait(LIMIT_S) == -signal.SIGKILL
    assert running.b.poll() is None
    assert "no node is primary: a is dead, b is secondary" in refused("kill", "primary")
    assert "killed b" in said(capsys, "kill", "secondary", "redis")
    assert running.b.wait(LIMIT_S) == -signal.SIGKILL


def test_kill_believes_the_nodes_and_not_the_record(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = [
        msgspec.structs.replace(node, role=role)
        for node, role in zip(running.pair.nodes, ("secondary", "primary"), strict=True)
    ]
    runtime.write(msgspec.structs.replace(running.pair, nodes=swapped))
    assert facts(capsys, "kill", "secondary")["pid"] == running.b.pid


def test_kill_reaches_a_node_that_does_not_answer(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_pair, "ASK_S", 0.2)
    running.a.send_signal(signal.SIGSTOP)
    assert facts(capsys, "kill", "primary")["pid"] == running.a.pid
    assert running.a.wait(LIMIT_S) == -signal.SIGKILL


def test_kill_spares_a_node_that_runs_alone(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "failover")
    said(capsys, "kill", "primary")
    assert "b is alone" in refused("kill", "secondary")
    assert running.b.poll() is None


def test_kill_of_one_node_by_its_socket(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert "b is secondary" in refused("kill", "primary", running.folder / "b.qmp")
    assert facts(capsys, "kill", "secondary", running.folder / "b.qmp")["pid"] == running.b.pid


def test_stop_tells_the_supervisor_and_clears_up(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(capsys, "stop")
    assert running.supervisor.wait(LIMIT_S) == -signal.SIGTERM
    # This supervisor ends without ending its nodes, so they were told.
    assert found == {"stopped": "redis", "supervisor": True, "nodes": ["b", "a"]}
    assert [node.wait(LIMIT_S) for node in (running.a, running.b)] == [0, 0]
    assert not running.folder.exists()
    assert "no pair is running" in refused("stop")


def test_stop_without_a_supervisor_tells_the_nodes(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    running.supervisor.kill()
    running.supervisor.wait()
    running.b.kill()
    running.b.wait()
    assert facts(capsys, "stop", "redis") == {"stopped": "redis", "supervisor": False, "nodes": ["a"]}
    assert running.a.wait(LIMIT_S) == 0
    assert runtime.pairs() == []


def test_stop_of_one_node_by_its_socket(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "stop", running.folder / "b.qmp") == "stopped b\n"
    assert running.b.wait(LIMIT_S) == 0
    assert running.a.poll() is None
    assert "no node there" in refused("stop", running.folder / "b.qmp")


@pytest.mark.parametrize(
    ("state", "role"),
    [("running", "alone"), ("paused", "alone"), ("inmigrate", "incoming"), ("postmigrate", "halted")],
)
def test_a_node_outside_colo_is_called_what_it_is(state: str, role: str) -> None:
    facts_ = cli_pair.Facts(
        StatusInfo(running=state == "running", status=RunState(state)),
        ColoStatus(mode=ColoMode.NONE, last_mode=ColoMode.PRIMARY, reason=ColoExitReason.REQUEST),
        MigrateInfo(),
    )
    assert cli_pair.View("a", Path("a"), None, "primary", facts_, "").role == role


def test_no_such_pair_and_no_such_node(running: Running) -> None:
    assert "redis (supervisor" in refused("status", "linux")
    assert "no node is primary" in refused("checkpoint", "./none.qmp")


@pytest.mark.parametrize(
    "words", [("kill",), ("kill", "both"), ("failover", "--side", "left"), ("status", "a", "b")]
)
def test_what_cannot_be_asked(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        colo(*words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", cli_control.COMMANDS)
def test_every_help_says_which_pair_and_how_it_ends(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, contextlib.suppress(BrokenPipeError):
        colo(command, "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "which pair:" in text
    assert "exit status:" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_help_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import argparse, sys\nfrom colo.cli import control as cli_control\n"
        "cli_control.add_parsers(argparse.ArgumentParser().add_subparsers())\n"
        "heavy = {'numpy', 'numba', 'unicorn', 'msgspec', 'json', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT_S, env=environment)
