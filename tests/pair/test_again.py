"""Protected again after every failover: kill alternately, and the service never restarts.

Here the nodes are those of :class:`colo.pair.pair.Pair`, the supervisor behind ``colo up``: processes of
their own, as users have them.  The guest is Redis on a real network, its client an ordinary TCP connection.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from colo.network.host import Publish
from colo.pair.node import PairNode
from colo.pair.pair import Pair, PairOptions, PairState
from colo.policy import POLICIES
from tests.network.support import needs_root
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, Node, protect, until

PATIENT = ("--silence", "3000")
PAIR_LIMIT_S = 60.0
KEY = b"counted"


def test_ten_generations_of_one_machine(bench: Bench) -> None:
    """By hand: the primary and the secondary are killed in turn, and each time a new node follows."""
    serving, following, _ = bench.pair()
    spoken = b""
    for generation in range(10):
        if generation % 2 == 0:
            spoken, serving = take_over(spoken, serving, following), following
        else:
            following.kill()
            assert serving.event("COLO_EXIT") == {"mode": "primary", "reason": "error"}
        following = bench.incoming(f"n{generation}").ready()
        protect(serving, following.link)
        assert serving.facts["generation"] == generation + 1
    whole = spoken + serving.said
    assert whole == text(last(whole) + 1)[: len(whole)]


def take_over(spoken: bytes, serving: Node, following: Node) -> bytes:
    """Kills ``serving``; what had been said before ``following`` goes on from there."""
    serving.kill()
    heard = spoken + serving.said
    assert following.event("COLO_EXIT") == {"mode": "secondary", "reason": "error"}
    until(lambda: last(following.said) > last(heard) + 1)
    return heard[: len(heard) - repeated(heard, following.said)]


class RedisClient(threading.Thread):
    """INCR after INCR on one connection: each reply must be the one before and one more."""

    def __init__(self, port: int) -> None:
        super().__init__(name="client")
        self.replies = 0
        self.longest_s = 0.0
        self.failure: str | None = None
        self.ended = threading.Event()
        self._socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        try:
            self._count()
        except OSError as exc:
            self.failure = f"the connection broke after {self.replies} replies: {exc}"
        finally:
            self._socket.close()

    def _count(self) -> None:
        lines = self._socket.makefile("rb")
        while not self.ended.is_set():
            asked_s = time.monotonic()
            self._socket.sendall(b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(KEY), KEY))
            reply = lines.readline()
            self.longest_s = max(self.longest_s, time.monotonic() - asked_s)
            if reply != b":%d\r\n" % (self.replies + 1):
                self.failure = f"after {self.replies} replies came {reply!r}"
                return
            self.replies += 1

    def stop(self) -> None:
        self.ended.set()
        self.join(LIMIT_S)
        assert not self.is_alive(), "the client waits for a reply"


@contextmanager
def client_of(port: int) -> Iterator[RedisClient]:
    client = RedisClient(port)
    client.start()
    try:
        yield client
    finally:
        client.ended.set()


async def later(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not happened():
            await asyncio.sleep(0.005)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


Part = Callable[[PairNode], Awaitable[object]]


async def by_death(node: PairNode) -> None:
    node.kill()


async def by_word(node: PairNode) -> None:
    """``colo failover``: the node is told that its peer is lost, and both are alive."""
    await node.execute("x-colo-lost-heartbeat")


async def part_in_turn(pair: Pair, client: RedisClient, times: int, part: Part) -> None:
    for number in range(times):
        before, failovers = client.replies, pair.state.failovers
        await later(lambda before=before: client.replies > before + 20 or client.failure)  # type: ignore[misc]
        victim = pair.state.primary if number % 2 == 0 else pair.state.secondary
        assert victim is not None
        await part(victim)

        def protected_again(state: PairState, failovers: int = failovers) -> bool:
            return state.protected and state.failovers > failovers

        await pair.until(protected_again, PAIR_LIMIT_S)
        assert client.failure is None
    before = client.replies
    await later(lambda: client.replies > before + 20 or client.failure)


async def serve(place: Path, times: int, part: Part, policy: str) -> None:
    port = free_port()
    said: list[str] = []

    def say(event: str, facts: dict[str, Any]) -> None:
        said.append(f"{event} {facts}")

    publish = [Publish.parse(f"127.0.0.1:{port}:6379")]
    words = (*PATIENT, "--policy", policy)
    options = PairOptions("redis", f"t{port}", publish, node_words=words, trace=place)
    pair = Pair(options, say)
    try:
        await pair.start()
        with client_of(port) as client:
            await part_in_turn(pair, client, times, part)
            await asyncio.to_thread(client.stop)
        assert client.failure is None
        assert await asyncio.to_thread(read_counter, port) == client.replies
        assert pair.state.failovers == times
        logs = "".join(log.read_text() for log in pair.home.glob("*.log"))
        assert "Traceback" not in logs, logs
    finally:
        print("\n".join(line for line in said if not line.startswith("synchronising")))
        for log in pair.home.glob("*.log"):
            print(f"---- {log.name}\n{log.read_text()}")
        with suppress(FileNotFoundError):
            await pair.stop()


def read_counter(port: int) -> int:
    """On a connection of its own: what the service has now."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"GET %s\r\n" % KEY)
        lines.readline()
        return int(lines.readline())


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="up-") as place:
        monkeypatch.setenv("COLO_RUNTIME", place)
        yield Path(place)


@needs_root
@pytest.mark.parametrize(
    ("times", "part", "policy"),
    [
        (4, by_word, "periodic"),
        (2, by_death, "colo"),
        *(pytest.param(10, by_death, policy, marks=pytest.mark.long) for policy in POLICIES),
        *(
            pytest.param(4, by_word, policy, marks=pytest.mark.long)
            for policy in POLICIES
            if policy != "periodic"
        ),
    ],
)
def test_no_acknowledged_write_is_lost(
    guest: Any, runtime: Path, times: int, part: Part, policy: str
) -> None:
    guest("redis")
    with tempfile.TemporaryDirectory(prefix="trace-") as traces:
        asyncio.run(serve(Path(traces), times, part, policy))


async def kill_both() -> str | None:
    pair = Pair(PairOptions("counter", "both", network="hub", node_words=PATIENT))
    try:
        await pair.start()
        for node in (pair.state.primary, pair.state.secondary):
            assert node is not None
            node.kill()
        async with asyncio.timeout(PAIR_LIMIT_S):
            await pair.ended.wait()
        return pair.failure
    finally:
        await pair.stop()


def test_a_pair_whose_nodes_both_died_has_failed(runtime: Path) -> None:
    """Nobody is left to wait for."""
    assert "no other one is alive" in (asyncio.run(kill_both()) or "")
