"""Clients that make no sense, or do not read: refused or disconnected, and the server serves the others."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.qmp import server as qmp
from colo.qmp.client import AsyncClient
from colo.qmp.commands import registry
from colo.qmp.text import TEXT_MAX
from tests.qmp.small_node import SmallNode, served, story, until

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NEGOTIATE = b'{"execute": "qmp_capabilities"}\n'
GOOD = (
    b'{"execute": "migrate-set-parameters", '
    b'"arguments": {"x-verify": true, "x-policy": "a\\u00e9"}, "id": [1]}'
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [command.name for command in registry(SmallNode()).commands if command.name != "quit"]
)
members = st.sampled_from(["uri", "capabilities", "size", "x-verify", "x-checkpoint-delay", "enable", "x"])
requests = st.fixed_dictionaries(
    {"execute": names | json_values},
    optional={
        "arguments": st.dictionaries(members, json_values, max_size=3) | json_values,
        "id": json_values,
    },
)


async def exchange(path: Path, data: bytes) -> list[dict[str, Any]]:
    """All that the server says to one who says ``data`` and no more; each line is a message."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=4 << 20)
    try:
        writer.write(data)
        writer.write_eof()
        return [json.loads(line) for line in (await reader.read()).splitlines()]
    finally:
        writer.close()
        await writer.wait_closed()


async def lives(path: Path) -> None:
    client = await AsyncClient.connect(path)
    assert await client.execute("query-name") == {"name": "small"}
    await client.close()


@given(st.binary(max_size=400), st.booleans())
@relaxed
def test_noise(place: Path, noise: bytes, negotiated: bool) -> None:
    @story
    async def go() -> None:
        async with served(place / "q"):
            said = await exchange(place / "q", (NEGOTIATE if negotiated else b"") + noise)
            assert "QMP" in said[0]
            assert all({"error", "return"} & set(each) for each in said[1:])
            await lives(place / "q")

    go()


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
@relaxed
def test_a_good_request_with_a_byte_changed_or_cut_short(
    place: Path, where: int, byte: int, end: int
) -> None:
    bad = bytearray(GOOD)
    bad[where] = byte

    @story
    async def go() -> None:
        async with served(place / "q"):
            for data in (bytes(bad), GOOD[:end]):
                await exchange(place / "q", NEGOTIATE + data + b"\n")
            assert (await exchange(place / "q", NEGOTIATE + GOOD))[-1] == {"return": {}, "id": [1]}

    go()


@given(st.lists(requests, min_size=1, max_size=5))
@relaxed
def test_requests_that_are_json_are_each_answered_once_in_order(
    place: Path, asked: list[dict[str, Any]]
) -> None:
    data = b"".join(json.dumps({**each, "id": n}).encode() for n, each in enumerate(asked))

    @story
    async def go() -> None:
        async with served(place / "q"):
            said = [each for each in await exchange(place / "q", NEGOTIATE + data) if "event" not in each]
            assert [each["id"] for each in said[2:]] == list(range(len(asked)))
            for each in said[2:]:
                assert ("return" in each) != ("error" in each)
                if "error" in each:
                    assert set(each["error"]) == {"class", "desc"}
            await lives(place / "q")

    go()


@story
async def test_a_message_too_long_or_too_deep_ends_the_connection_with_the_reason(place: Path) -> None:
    async with served(place / "q"):
        for data, reason in (
            (b'{"execute": "' + b"x" * TEXT_MAX + b'"}', "bytes"),
            (b'{"execute": "' + b"x" * TEXT_MAX, "bytes"),
            (b"[" * 1000, "brackets"),
            (b'{"a":' * 1000, "brackets"),
        ):
            said = await exchange(place / "q", data)
            assert reason in said[-1]["error"]["desc"]
            assert "closing" in said[-1]["error"]["desc"]
        await lives(place / "q")


@story
async def test_a_million_small_requests_leave_others_their_turn(place: Path) -> None:
    """Somebody who sends as fast as the socket takes it does not keep the loop for himself."""
    async with served(place / "q"):
        reader, writer = await asyncio.open_unix_connection(str(place / "q"))

        async def read() -> None:
            while await reader.read(1 << 16):
                pass

        async def flood() -> None:
            while True:
                writer.write(b"{}" * 1000)
                await writer.drain()

        tasks = [asyncio.create_task(read()), asyncio.create_task(flood())]
        for _ in range(20):
            await lives(place / "q")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.transport.abort()  # it would wait for the server to take what is still to be sent


@story
async def test_a_client_that_does_not_read_events_is_cut_off_and_others_are_not(place: Path) -> None:
    async with served(place / "q") as (_, server):
        reader, writer = await asyncio.open_unix_connection(str(place / "q"), limit=1 << 10)
        writer.write(NEGOTIATE)
        await reader.readline()
        await reader.readline()
        other = await AsyncClient.connect(place / "q")
        events = other.events()
        held = {"text": "x" * 1000}
        for n in range(2 * qmp.OUTPUT_MAX // 1000):
            server.emit("X", {**held, "n": n})
            assert (await anext(events)).data["n"] == n
        await until(lambda: server.clients == 1)
        rest = await reader.read()
        assert len(rest) <= qmp.OUTPUT_MAX + (1 << 20)  # what the kernel held for it is on top
        writer.close()
        await other.close()


@story
async def test_a_client_that_asks_and_does_not_read_is_not_asked_for_and_then_cut_off(
    place: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(qmp, "OUTPUT_WAIT_S", 0.2)
    monkeypatch.setattr(qmp, "END_WAIT_S", 0.2)
    async with served(place / "q") as (_, server):
        _, writer = await asyncio.open_unix_connection(str(place / "q"), limit=1 << 10)
        ask = b'{"execute": "x-query-console", "arguments": {"size": 65536}}'
        writer.write(NEGOTIATE + ask * 200)
        await lives(place / "q")
        await until(lambda: server.clients == 0)
        await lives(place / "q")
        writer.transport.abort()


@story
async def test_connections_that_come_and_go_leave_nothing_behind(place: Path) -> None:
    dice = random.Random(3)
    async with served(place / "q") as (_, server):
        for _ in range(300):
            _, writer = await asyncio.open_unix_connection(str(place / "q"))
            writer.write(GOOD[: dice.randrange(len(GOOD))])
            writer.transport.abort()
        await until(lambda: server.clients == 0)
        await lives(place / "q")
