"""Records of running pairs: found, replaced whole, and not believed when their processes are dead."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from colo.errors import ControlError
from colo.pair import runtime
from colo.pair.runtime import Node, Pair, Process

LIMIT_S = 60


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLO_RUNTIME", str(place / "run"))
    return place / "run"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def dead() -> Process:
    """A process that was."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        process.kill()
    return found


def record(name: str, supervisor: Process, nodes: list[Node] | None = None) -> Pair:
    (runtime.directory() / name).mkdir(mode=0o700, parents=True)
    pair = Pair(name, "guest", supervisor, nodes or [])
    runtime.write(pair)
    return pair


def test_a_pair_is_created_written_found_and_removed(home: Path) -> None:
    pair, folder = runtime.create("redis", "redis")
    assert folder == home / "redis"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "pair.json").stat().st_mode) == 0o600
    assert pair.supervisor == Process.of(os.getpid())
    node = Node("a", Process.of(os.getpid()), str(folder / "a.qmp"), "primary")
    changed = msgspec.structs.replace(pair, nodes=[node])
    runtime.write(changed)
    assert runtime.find() == runtime.find("redis") == changed
    assert node.path == folder / "a.qmp"
    runtime.remove(changed)
    assert runtime.pairs() == []
    assert not folder.exists()


def test_a_name_is_taken_while_its_pair_runs_and_free_when_it_is_dead(home: Path) -> None:
    runtime.create("one", "redis")
    with pytest.raises(ControlError, match="is running"):
        runtime.create("one", "redis")
    record("two", dead())
    (home / "two" / "a.qmp").touch()
    pair, folder = runtime.create("two", "redis")
    assert pair.supervised
    assert [path.name for path in folder.iterdir()] == ["pair.json"]


def test_a_pair_whose_nodes_outlive_the_supervisor_still_runs(child: subprocess.Popen[bytes]) -> None:
    pair = record("one", dead(), [Node("a", Process.of(child.pid), "/a", "primary")])
    assert not pair.supervised
    assert runtime.find() == pair
    with pytest.raises(ControlError, match="a still running"):
        runtime.create("one", "redis")
    child.kill()
    child.wait()
    with pytest.raises(ControlError, match="colo stop one clears it away"):
        runtime.find()
    assert runtime.find("one") == pair


def test_which_pair_is_asked_when_there_are_several() -> None:
    with pytest.raises(ControlError, match="no pair is running: none has a record in"):
        runtime.find()
    runtime.create("one", "redis")
    record("old", dead())
    assert runtime.find().name == "one"
    runtime.create("two", "linux")
    with pytest.raises(ControlError, match=r"which pair\? old .* is dead.*, one .*, two "):
        runtime.find()
    with pytest.raises(ControlError, match="there is no pair 'three': old"):
        runtime.find("three")


def test_another_pair_of_the_same_name_is_not_removed() -> None:
    old = record("one", dead())
    pair, _ = runtime.create("one", "redis")
    runtime.remove(old)
    assert runtime.find() == pair


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 33, "a b", "ä", ".a"])
def test_names_are_file_names_and_short(name: str) -> None:
    with pytest.raises(ControlError, match="is no name"):
        runtime.create(name, "redis")


@pytest.mark.parametrize("text", [b"", b"{", b'{"name": 3}', b"\xff", b"[]"])
def test_a_record_that_is_none_is_named(home: Path, text: bytes) -> None:
    (home / "x").mkdir(parents=True, mode=0o700)
    assert runtime.pairs() == []  # no record yet
    (home / "x" / "pair.json").write_bytes(text)
    with pytest.raises(ControlError, match=r"x/pair\.json is no record of a pair"):
        runtime.pairs()


def test_a_directory_that_others_may_change_is_not_used(place: Path, home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(ControlError, match="COLO_RUNTIME"):
        runtime.create("one", "redis")
    home.rmdir()
    (place / "theirs").mkdir()
    home.symlink_to(place / "theirs")
    with pytest.raises(ControlError, match="COLO_RUNTIME"):
        runtime.create("one", "redis")


def test_where_pairs_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLO_RUNTIME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime.directory() == Path("/run/colo")
    monkeypatch.setattr(os, "geteuid", lambda: 77)
    assert runtime.directory() == place / "colo"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "none"))
    assert runtime.directory().name == "colo-77"


def test_a_reader_sees_one_record_or_the_other_and_never_a_half() -> None:
    pair, _ = runtime.create("one", "redis")
    longer = msgspec.structs.replace(pair, guest="g" * 5000)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            runtime.write(pair)
            runtime.write(longer)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            assert runtime.find("one") in (pair, longer)
    finally:
        ended.set()
        writer.join()


def test_a_process_is_not_taken_for_a_later_one_of_the_same_pid(child: subprocess.Popen[bytes]) -> None:
    mine = Process.of(child.pid)
    earlier = Process(child.pid, mine.started - 1)
    assert mine.alive
    assert not earlier.alive
    assert not earlier.signal(signal.SIGKILL)
    assert earlier.wait_dead(0)
    assert not mine.wait_dead(0)
    assert mine.signal(signal.SIGKILL)
    assert mine.wait_dead(LIMIT_S)
    assert not mine.alive, "a process that waits for its parent only is dead"
    child.wait()
    assert not mine.signal(signal.SIGKILL)
    assert mine.wait_dead(0)
    with pytest.raises(ControlError, match="no process"):
        Process.of(child.pid)
