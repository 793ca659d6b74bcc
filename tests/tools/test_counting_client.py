"""tools/counting_client.py: what it makes of replies, of servers that do wrong, and of none."""

from __future__ import annotations

import json
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import demo_pair
from tools.counting_client import Counter, Tally

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 60


@pytest.mark.parametrize(
    ("reply", "wrong", "lost"),
    [(b":6", 0, 0), (b":5", 1, 1), (b":3", 1, 3), (b":7", 1, 0), (b"-ERR no", 1, 0), (b"", 1, 0)],
)
def test_a_reply_must_be_the_next_number(reply: bytes, wrong: int, lost: int) -> None:
    counter, tally = Counter(0, b"key"), Tally("x", 0.0)
    counter.value, counter._due = 5, True
    counter.judge(reply, tally)
    assert (tally.replies, tally.wrong, tally.lost) == (1, wrong, lost)


@pytest.mark.parametrize(
    ("reply", "due", "wrong", "lost"),
    [
        (b":5", True, 0, 0),
        (b":6", True, 0, 0),
        (b":7", True, 1, 0),
        (b":6", False, 1, 0),
        (b":4", False, 1, 1),
    ],
)
def test_after_a_broken_connection_only_what_was_under_way_is_open(
    reply: bytes, due: bool, wrong: int, lost: int
) -> None:
    counter, tally = Counter(0, b"key"), Tally("x", 0.0)
    counter.value, counter._due = 5, due
    counter.broke(tally)
    counter.judge(reply, tally)
    assert (tally.resets, tally.wrong, tally.lost) == (1, wrong, lost)


class Ledger:
    """A server that knows INCR and INCRBY, and does wrong when it is told to, once."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.values: dict[bytes, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        clients: dict[int, socket.socket] = {}
        while True:
            ready, _, _ = select.select([self._listener, *clients.values()], [], [])
            for sock in ready:
                if sock is self._listener:
                    client, _ = self._listener.accept()
                    if self.fault == "stop":
                        for each in (client, *clients.values()):
                            each.close()
                        return
                    clients[client.fileno()] = client
                elif not self._answer(sock):
                    del clients[sock.fileno()]
                    sock.close()

    def _answer(self, client: socket.socket) -> bool:
        try:
            words = client.recv(4096).split(b"\r\n")
        except ConnectionResetError:  # a client that left in the middle of a reply
            return False
        if len(words) < 5:
            return False
        key, fault, self.fault = words[4], self.fault, None
        value = self.values.get(key, 0) + (words[2] == b"INCR") - 2 * (fault == "lose")
        self.values[key] = value
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        client.sendall(b":%d\r\n" % (value + (fault == "lie")))
        return True

    def close(self) -> None:
        self.fault = "stop"
        with socket.create_connection(("127.0.0.1", self.port)):
            self._thread.join()
        self._listener.close()


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    made.close()


class Counting:
    """A process of tools/counting_client.py, spoken to by hand."""

    def __init__(self, port: int, connections: int = 2) -> None:
        command = [sys.executable, "-m", "tools.counting_client", str(port), str(connections)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.tell, self.said = self.process.stdin, self.process.stdout

    def until(self, happened: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for line in self.said:
            facts: dict[str, Any] = json.loads(line)
            if happened(facts):
                return facts
        raise AssertionError("the client ended before")

    def phase(self, name: str) -> dict[str, Any]:
        self.tell.write(f"{name}\n")
        self.tell.flush()
        return self.until(lambda facts: facts["event"] == "phase")

    def finish(self) -> dict[str, Any]:
        self.tell.close()
        facts = self.until(lambda facts: facts["event"] == "end")
        self.said.close()
        assert self.process.wait(WITHIN_S) == 0
        return facts


def answered(facts: dict[str, Any]) -> bool:
    return facts["event"] == "live" and facts["replies"] > 0


def test_a_server_that_counts_right_is_right(ledger: Ledger) -> None:
    client = Counting(ledger.port, 3)
    client.until(answered)
    first = client.phase("next")
    assert (first["phase"], first["wrong"], first["resets"]) == ("start", 0, 0)
    assert first["longest_ms"] > 0
    client.until(answered)
    end = client.finish()
    assert (end["keys"], end["wrong"], end["lost"], end["resets"], end["samples"]) == (3, 0, 0, 0, [])
    assert len(ledger.values) == 3


@pytest.mark.parametrize(
    ("fault", "wrong", "lost", "resets"), [("lose", 1, 2, 0), ("lie", 2, 1, 0), ("reset", 0, 0, 1)]
)
def test_each_fault_is_counted_for_what_it_is(
    ledger: Ledger, fault: str, wrong: int, lost: int, resets: int
) -> None:
    client = Counting(ledger.port, 1)
    client.until(answered)
    client.phase("faulty")
    ledger.fault = fault
    client.until(
        lambda facts: facts["event"] == "live" and (facts["wrong"] >= wrong and facts["resets"] >= resets)
    )
    found = client.phase("over")
    client.until(answered)
    end = client.finish()
    assert (found["wrong"], found["lost"], found["resets"]) == (wrong, lost, resets)
    assert bool(end["samples"]) == bool(wrong)
    assert (end["wrong"], end["lost"], end["resets"]) == (0, 0, 0)


def test_it_counts_on_a_real_redis(tmp_path: Path) -> None:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed: apt install redis-server")
    port = demo_pair.free_port(26379)
    command = [server, "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as redis:
        try:
            client = Counting(port, 4)
            client.until(answered)
            end = client.finish()
        finally:
            redis.terminate()
    assert (end["keys"], end["wrong"], end["lost"]) == (4, 0, 0)


def test_a_client_of_nobody_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = Counting(port, 1)
    client.until(lambda facts: facts["event"] == "live" and facts["resets"] > 0)
    assert client.finish()["resets"] > 0


def test_a_client_ends_with_whoever_listened_to_it(ledger: Ledger) -> None:
    client = Counting(ledger.port, 1)
    client.until(answered)
    client.said.close()
    assert client.process.wait(WITHIN_S) == 1
    client.tell.close()
