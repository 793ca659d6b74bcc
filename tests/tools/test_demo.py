"""tools/demo: what it writes, the client that counts, and whole stories with their phases cut short."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colo.errors import NetworkError
from colo.network import ports as network_ports
from colo.network.host import Network
from tools import demo_lines, demo_pair, demo_tell, demo_trace
from tools.demo_witness import ConsoleReader, CountingClients

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 240
"""A guest is built and booted first, on a busy host."""
PATIENT = ("--heartbeat", "100", "--silence", "5000")
"""What a test kills is noticed at once, by its sockets; a busy host must not do it by silence."""


def demo(*words: str, runtime: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.demo", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=surroundings(runtime, **environment),
        check=False,
        timeout=WITHIN_S,
    )


def surroundings(runtime: Path, **more: str) -> dict[str, str]:
    return os.environ | {"COLO_RUNTIME": str(runtime), "COLO_DEMO_FROM": str(runtime.parent)} | more


def processes_about(word: str) -> list[str]:
    """The command lines of all processes that name ``word``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        if word in line:
            found.append(line)
    return found


@pytest.fixture
def namespaces() -> None:
    try:
        with Network("colo-demo-probe"):
            return
    except NetworkError as exc:
        pytest.skip(str(exc))


# What it writes


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (demo_lines.size(812), "812 B"),
        (demo_lines.size(98_304), "96 KiB"),
        (demo_lines.size(33_764_147), "32.2 MiB"),
        (demo_lines.milliseconds(0.94), "0.9 ms"),
        (demo_lines.milliseconds(71.3), "71 ms"),
        (demo_lines.milliseconds(1407.2), "1,407 ms"),
        (demo_lines.counted(1, "connection"), "1 connection"),
        (demo_lines.counted(0, "reset"), "0 resets"),
        (demo_lines.counted(18_233, "reply"), "18,233 replies"),
        (demo_lines.counted(8, "key"), "8 keys"),
    ],
)
def test_numbers_are_written_as_people_read_them(said: str, written: str) -> None:
    assert said == written


def test_a_time_stands_apart_from_a_line_of_any_length() -> None:
    for length in (3, demo_lines.WIDTH - 6, demo_lines.WIDTH + 20):
        assert demo_lines.timed("x" * length, 0.62).endswith("  0.6 s")
    assert len(demo_lines.timed("short", 0.62)) == demo_lines.WIDTH


def test_a_guest_cannot_move_the_cursor() -> None:
    assert demo_lines.printable("a\x1b[2Jb\rc\x07") == "abc"


SAYING = """
from tools.demo_lines import Steps
steps = Steps(2)
steps.live("epoch 1"); steps.live("epoch 2"); steps.note("epochs 1 to 2")
steps.step("network", "a hub", 0.25)
"""


def test_in_a_pipe_there_are_no_live_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAYING], capture_output=True, text=True, cwd=ROOT, check=True
    )
    network = " 3 network    a hub"
    assert done.stdout.splitlines() == ["   epochs 1 to 2", f"{network:<{demo_lines.WIDTH - 7}}  0.2 s"]


def test_in_a_terminal_a_live_line_is_replaced() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", SAYING], stdout=theirs, cwd=ROOT, check=True)
    os.close(theirs)
    written = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r\x1b[K   epoch 1\r\x1b[K   epoch 2\r\x1b[K   epochs 1 to 2\r\n" in written


def test_an_encoding_without_arrows_ends_nothing() -> None:
    code = "from tools.demo_lines import Steps; Steps(0).note('214 pages → 96 KiB')"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert done.stdout == "   214 pages ? 96 KiB\n"


def test_commands_are_as_they_can_be_typed_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLO_DEMO_FROM", str(ROOT))
    assert demo_tell.shown(ROOT / "tools/demo") == "tools/demo"
    monkeypatch.setenv("COLO_DEMO_FROM", str(tmp_path))
    assert demo_tell.shown(ROOT / "tools/demo") == str(ROOT / "tools/demo")
    assert "--publish 6379 " in demo_tell.following("namespace", 6379)
    assert "--publish 6391:6379 " in demo_tell.following("namespace", 6391)
    assert "--publish" not in demo_tell.following("hub", None)


def test_the_next_port_is_taken_when_one_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        if port > network_ports.PORT_MAX - demo_pair.PORTS_TRIED:
            pytest.skip("the kernel gave one of the last ports")
        assert port < demo_pair.free_port(port) < port + demo_pair.PORTS_TRIED


# Traces


def trace(directory: Path, *events: dict[str, Any]) -> demo_trace.Traces:
    lines = [json.dumps({"node": "n1", **event}) + "\n" for event in events]
    (directory / "n1.jsonl").write_text("".join(lines) + '{"event": "epo')  # the last line is under way
    return demo_trace.Traces(directory)


def epoch(number: int, pause_ms: float, at_s: float) -> dict[str, Any]:
    sizes = {"pages_sent": 10 * number, "bytes_sent": 1024 * number, "held_packets": number}
    return {"event": "epoch", "epoch": number, "pause_ms": pause_ms, "monotonic_s": at_s, **sizes}


def test_checkpoints_are_told_as_medians(tmp_path: Path) -> None:
    traces = trace(tmp_path, epoch(0, 99.0, 1.0), epoch(1, 3.0, 5.0), epoch(2, 1.0, 6.0), epoch(3, 2.0, 7.0))
    said = demo_trace.checkpoints(traces.epochs("n1", since_s=4.0))
    assert said == "3 epochs: pause 2.0 ms, 20 pages → 2 KiB, 2 frames held (medians); longest pause 3.0 ms"
    assert demo_trace.checkpoints(traces.epochs("n1", since_s=8.0)) == "no checkpoint"
    assert demo_trace.checkpoints(traces.epochs("n9", since_s=0.0)) == "no checkpoint"


def test_a_failover_is_told_from_the_kill_on(tmp_path: Path) -> None:
    traces = trace(
        tmp_path,
        {"event": "failover", "status": "require", "monotonic_s": 9.0},
        {"event": "failover", "status": "require", "monotonic_s": 10.06},
        {"event": "failover", "status": "active", "monotonic_s": 10.061},
        {"event": "took-over", "epoch": 126, "inputs_repeated": 2, "monotonic_s": 10.071},
        {"event": "pairing-ended", "ending": "alone", "reason": "no heartbeat", "monotonic_s": 10.08},
    )
    facts = traces.failover("n1", 10.0)
    assert (facts["noticed_ms"], facts["serving_ms"], facts["epoch"]) == (60.0, 71.0, 126)
    said = demo_trace.survived("secondary", {**facts, "won": True, "generation": 2})
    assert said == [
        "secondary: noticed after 60 ms (no heartbeat), won generation 2 at the arbiter,",
        "           announced the guest's address; serving 71 ms after the kill",
    ]


def test_a_trace_that_grew_is_cut(tmp_path: Path) -> None:
    traces = trace(tmp_path, epoch(1, 1.0, 1.0))
    traces.trim()
    assert traces.epochs("n1", 0.0)["count"] == 1
    with (tmp_path / "n1.jsonl").open("a") as file:
        file.write("x" * demo_trace.TRIM_BYTES)
    traces.trim()
    assert (tmp_path / "n1.jsonl").stat().st_size == 0


# Witnesses


def test_a_clients_sentence_says_what_is_wrong() -> None:
    facts = {"resets": 0, "longest_ms": 74.2, "replies": 18_233, "wrong": 0, "seconds": 10.0}
    client = CountingClients(6379, 1)
    said = "client: 1 connection, 0 resets, longest wait 74 ms, 18,233 replies (1,823/s), every one right"
    assert client.sentence(facts) == said
    assert client.sentence({**facts, "wrong": 2}).endswith("2 WRONG")


@pytest.mark.parametrize(
    ("consoles", "missing", "repeated"),
    [
        ([b"second 1 rounds 5\r\nsecond 2 rou", b"nds 10\r\nsecond 3 rounds 15\r\n"], [], 0),
        ([b"second 1 rounds 5\r\nsecond 2 rounds 10\r\n", b"second 2 rounds 10\r\nsecond 3 "], [], 1),
        ([b"second 1 rounds 5\r\n", b"second 3 rounds 15\r\n"], [2], 0),
    ],
)
def test_a_console_may_repeat_itself_and_skip_nothing(
    tmp_path: Path, consoles: list[bytes], missing: list[int], repeated: int
) -> None:
    for number, text in enumerate(consoles, 8):  # n10 comes after n9
        (tmp_path / f"n{number}.console").write_bytes(text)
    facts = asyncio.run(ConsoleReader(tmp_path).finish())
    assert (facts["missing"], facts["repeated"]) == (missing, repeated)
    assert bool(facts["complaints"]) == bool(missing)


# Whole stories


def test_one_machine_in_a_session(tmp_path: Path) -> None:
    done = demo("--guest", "hello", runtime=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| hello, world" in done.stdout
    assert "ended: debug-exit" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_guest_that_is_none(tmp_path: Path) -> None:
    done = demo("--guest", "nobody", runtime=tmp_path)
    assert done.returncode == 1
    assert "no guest 'nobody'; the guests are linux" in done.stderr


@pytest.mark.parametrize("words", [("--seconds", "0"), ("--connections", "many"), ("--network", "none")])
def test_words_that_make_no_sense(tmp_path: Path, words: tuple[str, str]) -> None:
    done = demo(*words, runtime=tmp_path)
    assert done.returncode == 2
    assert words[1] in done.stderr


def test_a_pair_of_that_name_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    home.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    ours = {
        "pid": os.getpid(),
        "started": int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]),
    }
    (home / "pair.json").write_text(json.dumps({"name": "demo", "guest": "redis", "supervisor": ours}))
    done = demo("--network", "hub", runtime=tmp_path)
    assert done.returncode == 1
    assert "colo stop demo" in done.stderr
    assert (home / "pair.json").exists()


def test_without_a_guest_it_says_what_works_instead(tmp_path: Path) -> None:
    empty = str(tmp_path / "cache")
    done = demo(runtime=tmp_path, COLO_CACHE=empty, PATH=str(tmp_path))
    assert done.returncode == 1
    assert "tools/demo --network hub" in done.stderr
    assert "tools/demo --guest counter" in done.stderr


@pytest.mark.long
def test_the_whole_story_on_redis(tmp_path: Path, guest: Callable[[str], object], namespaces: None) -> None:
    guest("redis")
    words = ("--seconds", "2", "--connections", "3", "--json", "found.json")
    done = demo(*words, *PATIENT, runtime=tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    facts = json.loads((tmp_path / "found.json").read_text())
    assert facts["complaints"] == []
    assert [(kill["role"], kill["survivor"]["won"]) for kill in facts["kills"]] == [
        ("primary", True),
        ("secondary", True),
    ]
    assert "serving_ms" in facts["kills"][0]["survivor"]
    assert all(kill["seen"]["replies"] > 0 for kill in facts["kills"])
    seen = facts["seen"]
    assert (seen["connections"], seen["keys"], seen["wrong"], seen["lost"], seen["resets"]) == (3, 3, 0, 0, 0)
    assert facts["counted"]["epochs"]["count"] > 0
    assert len(facts["synchronised"]) == 3
    for said in (
        "kill -9",
        "won generation",
        "protected again",
        "lockstep: ",
        "colo: ",
        "every one right",
        "nothing is lost",
        "next: ",
    ):
        assert said in done.stdout
    nothing_is_left(tmp_path)


@pytest.mark.long
def test_the_whole_story_without_any_privilege(tmp_path: Path) -> None:
    done = demo(
        "--network", "hub", "--seconds", "2", "--json", "found.json", *PATIENT, runtime=tmp_path / "run"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "found.json").read_text())
    assert [kill["role"] for kill in facts["kills"]] == ["primary", "secondary"]
    assert facts["seen"]["missing"] == []
    nothing_is_left(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("line", ["network", "primary", "kill -9"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, line: str) -> None:
    """At ``network`` a node is being started, at ``primary`` it is synchronised, at ``kill`` it is dead."""
    command = [sys.executable, "-m", "tools.demo", "--network", "hub", "--seconds", "1", *PATIENT]
    pipe = subprocess.PIPE
    environment = surroundings(tmp_path / "run")
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment) as started:
        assert started.stdout is not None
        for said in started.stdout:
            if line in said:
                started.send_signal(signal.SIGINT)
                break
        _, errors = started.communicate(timeout=WITHIN_S)
    assert started.returncode == 130, errors
    assert "nothing is left running" in errors
    nothing_is_left(tmp_path)


def nothing_is_left(home: Path) -> None:
    assert processes_about(str(home)) == []
    assert list((home / "run").iterdir()) == []
