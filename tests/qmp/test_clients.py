"""Our two clients, against the server and against what is no server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import ControlError
from colo.qmp.client import EVENTS_MAX, UNREACHABLE, AsyncClient, Client, Conversation, outcome
from colo.qmp.schema import CheckpointInfo, ColoMode, StatusInfo
from tests.qmp.running import LIMIT_S, started
from tests.qmp.small_node import served, story

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'


@contextmanager
def other_end(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that does with its one connection what ``behave`` says."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            behave(connection)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(LIMIT_S)
            assert not thread.is_alive()


def silent(connection: socket.socket) -> None:
    while connection.recv(1000):
        pass


def greeting_only(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    silent(connection)


def says(data: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        silent(connection)

    return behave


def unreachable(path: Path, timeout_s: float = LIMIT_S) -> str:
    with pytest.raises(ControlError) as caught:
        Client(path, timeout_s)
    assert caught.value.kind == UNREACHABLE
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_commands_events_and_errors(place: Path) -> None:
    with started(place / "q", ColoMode.PRIMARY) as process, Client(place / "q") as client:
        assert client.pid == process.pid
        assert client.query(StatusInfo, "query-status").running
        client.execute("stop")
        client.execute("cont")
        assert [event.event for event in client.take_events()] == ["STOP", "RESUME"]
        assert client.take_events() == []
        client.execute("migrate_set_parameters".replace("_", "-"), x_checkpoint_delay=9, x_verify=True)
        found = client.execute("query-migrate-parameters")
        assert (found["x-checkpoint-delay"], found["x-verify"]) == (9, True)
        assert client.query(CheckpointInfo, "x-colo-checkpoint").epoch == 8
        for command, kind in (("no-such", "CommandNotFound"), ("migrate", "GenericError")):
            with pytest.raises(ControlError) as caught:
                client.execute(command)
            assert caught.value.kind == kind
        client.execute("stop")
        client.execute("x-colo-lost-heartbeat")
        exit_ = client.wait_event("COLO_EXIT", timeout_s=LIMIT_S)
        assert exit_.data == {"mode": "primary", "reason": "request"}
        with pytest.raises(ControlError, match="in time"):
            client.wait_event("RESUME", timeout_s=0.01)
        client.execute("quit")
        with pytest.raises(ControlError, match="closed the connection"):
            client.wait_event("STOP", timeout_s=LIMIT_S)


def test_what_is_no_node_is_unreachable(place: Path) -> None:
    assert "no node there" in unreachable(place / "none")
    assert "no node there" in unreachable(place / ("x" * 200))
    with other_end(place / "a", silent):
        assert "in time" in unreachable(place / "a", 0.01)
    with other_end(place / "b", greeting_only):
        assert "in time" in unreachable(place / "b", 0.1)
    for n, data in enumerate((b"SSH-2.0-x\r\n", b"{}\n", b"[" * 100, b"", GREETING, b"\xff")):
        with other_end(place / str(n), says(data)):
            unreachable(place / str(n))


def test_a_server_that_is_full_says_so(place: Path) -> None:
    full = b'{"error": {"class": "GenericError", "desc": "full"}}\n'
    with other_end(place / "q", says(full)), pytest.raises(ControlError, match="full"):
        Client(place / "q")


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one() -> None:
    talk = Conversation("x")
    talk.feed(GREETING)
    first, _ = talk.request("a", {})
    talk.forget(first)
    second, _ = talk.request("b", {})
    talk.feed(b'{"return": 1, "id": %d}{"return": 2, "id": %d}' % (first, second))
    assert list(talk.replies) == [second]
    assert outcome(talk.replies[second]) == 2


def test_events_that_nobody_takes_are_bounded() -> None:
    talk = Conversation("x")
    talk.feed(GREETING)
    for n in range(EVENTS_MAX + 10):
        talk.feed(b'{"event": "X", "timestamp": {"seconds": 0, "microseconds": 0}, "data": {"n": %d}}' % n)
    assert len(talk.events) == EVENTS_MAX
    assert talk.events[0].data == {"n": 10}


@given(st.lists(st.binary(max_size=50)), st.booleans())
def test_a_client_takes_any_bytes_or_says_that_they_are_none_of_qmp(data: list[bytes], greeted: bool) -> None:
    talk = Conversation("x")
    with contextlib.suppress(ControlError):  # and no other exception
        for each in [GREETING, *data] if greeted else data:
            talk.feed(each)


@story
async def test_several_commands_of_one_client_are_answered_each(place: Path) -> None:
    async with served(place / "q", ColoMode.PRIMARY) as (node, _):
        client = await AsyncClient.connect(place / "q")
        names = ["query-name", "query-status", "no-such", "query-name"] * 5
        found = await asyncio.gather(*(client.execute(name) for name in names), return_exceptions=True)
        assert [type(each) for each in found] == [dict, dict, ControlError, dict] * 5
        assert (await client.query(StatusInfo, "query-status")).running
        client.timeout_s = 0.05
        node.gate.clear()
        with pytest.raises(ControlError, match="in time") as caught:
            await client.execute("x-colo-checkpoint")
        assert caught.value.kind == UNREACHABLE
        node.gate.set()
        client.timeout_s = LIMIT_S
        assert await client.execute("query-name") == {"name": "small"}
        await client.close()


@story
async def test_events_are_kept_from_the_start_and_end_with_the_connection(place: Path) -> None:
    async with served(place / "q") as (_, server):
        client = await AsyncClient.connect(place / "q")
        await client.execute("stop")
        await client.execute("cont")
        events = client.events()
        assert [(await anext(events)).event for _ in "ab"] == ["STOP", "RESUME"]
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        server.emit("LAST", {"n": 1})
        assert (await waiting).data == {"n": 1}
        await server.close()
        assert [event async for event in events] == []
        with pytest.raises(ControlError) as caught:
            await client.execute("query-name")
        assert caught.value.kind == UNREACHABLE
        await client.close()


@story
async def test_a_node_that_dies_fails_what_was_asked_of_it(place: Path) -> None:
    with started(place / "q", ColoMode.PRIMARY) as process:
        client = await AsyncClient.connect(place / "q")
        await client.execute("query-name")
        process.kill()
        process.wait()
        with pytest.raises(ControlError) as caught:
            await client.execute("query-name")
        assert caught.value.kind == UNREACHABLE
        assert [event async for event in client.events()] == []
        await client.close()


@story
async def test_an_asynchronous_client_without_a_node(place: Path) -> None:
    with pytest.raises(ControlError, match="no node there"):
        await AsyncClient.connect(place / "none")
    with other_end(place / "a", greeting_only), pytest.raises(ControlError, match="in time"):
        await AsyncClient.connect(place / "a", 0.05)
    with other_end(place / "b", says(b"what?\n")), pytest.raises(ControlError, match="JSON"):
        await AsyncClient.connect(place / "b")
