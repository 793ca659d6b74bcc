"""The server, driven by the library that QEMU's own tests use (qemu.qmp), and by a bare socket.

The shapes are those of the QEMU Machine Protocol specification (interop/qmp-spec).
"""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener

from colo.errors import ControlError
from colo.qmp.commands import registry
from colo.qmp.schema import ColoMode
from colo.qmp.server import CLIENTS_MAX, Server
from tests.qmp.small_node import SmallNode, served, story
from tests.qmp.talking import ask, bare, connected, refusal, said


@story
async def test_the_library_of_qemu_negotiates_and_executes(place: Path) -> None:
    async with served(place / "q"), connected(place / "q") as client:
        assert client.greeting is not None
        assert client.greeting.QMP.capabilities == []
        assert set(client.greeting.QMP.version) == {"qemu", "package"}
        assert client.greeting.QMP.version == await client.execute("query-version")
        assert await client.execute("query-name") == {"name": "small"}
        assert await client.execute("query-status") == {"running": True, "status": "running"}


@story
async def test_nothing_is_executed_before_negotiation(place: Path) -> None:
    async with served(place / "q") as (node, _), bare(place / "q") as (reader, writer):
        assert set(await said(reader)) == {"QMP"}
        for name in ("stop", "query-status", "no-such-command"):
            answer = await ask(reader, writer, {"execute": name})
            assert answer["error"]["class"] == "CommandNotFound"
            assert "qmp_capabilities" in answer["error"]["desc"]
        assert node.status().running
        refused = {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
        assert "'oob'" in (await ask(reader, writer, refused))["error"]["desc"]
        assert await ask(reader, writer, {"execute": "qmp_capabilities"}) == {"return": {}}
        again = await ask(reader, writer, {"execute": "qmp_capabilities"})
        assert again["error"]["class"] == "CommandNotFound"
        assert await ask(reader, writer, {"execute": "stop"}) != {}
        assert not node.status().running


@pytest.mark.parametrize("tag", [0, -1, 1.5, "x", None, True, [1, {"a": "\n"}], {"b": {}}, 1 << 100])
@story
async def test_the_id_comes_back_as_it_was_with_answers_and_with_errors(place: Path, tag: Any) -> None:
    async with served(place / "q"), bare(place / "q") as (reader, writer):
        await said(reader)
        for request in (
            {"execute": "nothing"},
            {"execute": "qmp_capabilities"},
            {"execute": "migrate"},
            {"execute": 3},
            {},
        ):
            answer = await ask(reader, writer, {**request, "id": tag})
            assert answer["id"] == tag
            assert type(answer["id"]) is type(tag)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ("{}", "lacks member 'execute'"),
        ('{"execute": 3}', "'execute' must be a string"),
        ('{"execute": "stop", "arguments": []}', "'arguments' must be an object"),
        ('{"execute": "stop", "arguments": null}', "'arguments' must be an object"),
        ('{"execute": "stop", "control": 1}', "'control' is unexpected"),
        ('{"exec-oob": "stop"}', "lacks member 'execute'"),
        ('{"execute": "stop", "arguments": {"now": 1}}', "Parameter 'now' is unexpected"),
        ('{"execute": "sto', "JSON parse error"),
        ("stop", "JSON parse error"),
        ("[]", "must be a JSON object"),
    ],
)
@story
async def test_a_request_that_is_none_is_told_why_and_the_next_one_served(
    place: Path, request_: str, text: str
) -> None:
    async with served(place / "q") as (node, _), bare(place / "q") as (reader, writer):
        await said(reader)
        await ask(reader, writer, {"execute": "qmp_capabilities"})
        answer = await ask(reader, writer, request_)
        assert answer["error"]["class"] == "GenericError"
        assert text in answer["error"]["desc"]
        assert node.status().running
        assert (await ask(reader, writer, {"execute": "query-status"}))["return"]["running"] is True


@story
async def test_requests_need_no_line_breaks_and_may_have_many(place: Path) -> None:
    pretty = json.dumps({"execute": "qmp_capabilities", "arguments": {"enable": []}}, indent=4)
    two = '{"execute":"query-name","id":1}{"execute":"query-name","id":2}'
    async with served(place / "q"), bare(place / "q") as (reader, writer):
        await said(reader)
        writer.write((pretty + two).encode())
        assert await said(reader) == {"return": {}}
        assert [(await said(reader))["id"] for _ in "ab"] == [1, 2]


@story
async def test_an_unknown_command_is_a_class_of_its_own(place: Path) -> None:
    async with served(place / "q"), connected(place / "q") as client:
        kind, text = await refusal(client, "device_add")
        assert kind == "CommandNotFound"
        assert "'device_add'" in text


@story
async def test_events_reach_every_client_that_has_negotiated_in_their_order(place: Path) -> None:
    async with (
        served(place / "q"),
        connected(place / "q") as one,
        connected(place / "q") as two,
        bare(place / "q") as (reader, writer),
    ):
        await said(reader)
        listeners = EventListener(), EventListener()
        with one.listen(listeners[0]), two.listen(listeners[1]):
            for command in ("stop", "stop", "cont", "system_reset"):
                await one.execute(command)
            for listener in listeners:
                events = [await listener.get() for _ in range(3)]
                assert [event["event"] for event in events] == ["STOP", "RESUME", "RESET"]
                assert "data" not in events[0]
                assert events[2]["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
                for event in events:
                    stamp = event["timestamp"]
                    assert set(stamp) == {"seconds", "microseconds"}
                    assert 0 <= stamp["microseconds"] < 1_000_000
                    assert 0 <= time.time() - stamp["seconds"] < 600
        # Had an event been sent to the third, it would stand before this answer.
        assert await ask(reader, writer, {"execute": "qmp_capabilities"}) == {"return": {}}


@story
async def test_an_event_may_come_from_another_thread(place: Path) -> None:
    async with served(place / "q") as (_, server), connected(place / "q") as client:
        with client.listener("STOP") as listener:
            await asyncio.to_thread(lambda: [server.emit_threadsafe("STOP", {"n": n}) for n in range(50)])
            assert [(await listener.get())["data"]["n"] for _ in range(50)] == list(range(50))


def test_an_event_of_a_thread_that_outlives_the_loop_is_nobodys(place: Path) -> None:
    servers: list[Server] = []

    async def main() -> None:
        async with served(place / "q") as (_, server):
            servers.append(server)

    asyncio.run(main())
    servers[0].emit_threadsafe("STOP")


@story
async def test_a_command_that_waits_holds_up_its_own_client_only(place: Path) -> None:
    async with (
        served(place / "q", ColoMode.PRIMARY) as (node, _),
        connected(place / "q") as other,
        bare(place / "q") as (reader, writer),
    ):
        await said(reader)
        await ask(reader, writer, {"execute": "qmp_capabilities"})
        node.gate.clear()
        writer.write(b'{"execute": "x-colo-checkpoint", "id": 1}{"execute": "query-name", "id": 2}')
        for _ in range(20):
            assert await other.execute("query-name") == {"name": "small"}
        assert node.epoch == 7
        node.gate.set()
        assert [(await said(reader))["id"] for _ in "ab"] == [1, 2]


@story
async def test_a_command_is_finished_though_its_client_has_gone(place: Path) -> None:
    async with served(place / "q", ColoMode.PRIMARY) as (node, _), connected(place / "q") as other:
        node.gate.clear()
        async with bare(place / "q") as (reader, writer):
            await said(reader)
            await ask(reader, writer, {"execute": "qmp_capabilities"})
            writer.write(b'{"execute": "stop"}{"execute": "x-colo-checkpoint"}')
            assert (await said(reader))["event"] == "STOP"
            await said(reader)
        node.gate.set()
        while (await other.execute("query-colo-status"))["x-node"]["epoch"] != 8:
            pass


@story
async def test_quit_is_answered_and_its_event_sent_before_the_end(place: Path) -> None:
    async with served(place / "q") as (node, server), bare(place / "q") as (reader, writer):
        await said(reader)
        await ask(reader, writer, {"execute": "qmp_capabilities"})
        writer.write(b'{"execute": "quit", "id": 5}')
        await node.ended.wait()
        await server.close()
        rest = [json.loads(line) async for line in reader]
        assert [each.get("event") for each in rest] == ["SHUTDOWN", None]
        assert rest[1] == {"return": {}, "id": 5}
        assert not (place / "q").exists()


@story
async def test_only_the_owner_may_open_the_socket(place: Path) -> None:
    async with served(place / "q"):
        assert stat.S_IMODE((place / "q").stat().st_mode) == 0o600


@story
async def test_a_socket_left_by_a_dead_node_is_replaced_and_a_living_one_is_not(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "q"))
    async with served(place / "q"):
        with pytest.raises(ControlError, match="another node"):
            await Server(registry(SmallNode())).start(place / "q")
        async with connected(place / "q") as client:
            assert await client.execute("query-name") == {"name": "small"}
    (place / "q").write_text("mine")
    with pytest.raises(ControlError, match="another kind"):
        await Server(registry(SmallNode())).start(place / "q")
    assert (place / "q").read_text() == "mine"


@pytest.mark.parametrize("path", ["x" * 200, "none/q"])
@story
async def test_where_no_socket_can_be_is_told(place: Path, path: str) -> None:
    with pytest.raises(ControlError, match="QMP socket"):
        await Server(registry(SmallNode())).start(place / path)


@story
async def test_no_more_clients_than_a_node_has_room_for(place: Path) -> None:
    async with served(place / "q"):
        held = [await asyncio.open_unix_connection(str(place / "q")) for _ in range(CLIENTS_MAX)]
        for reader, _ in held:
            assert "QMP" in await said(reader)
        async with bare(place / "q") as (reader, _):
            assert "no further" in (await said(reader))["error"]["desc"]
            assert await reader.read() == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        while True:  # until the server has seen that they went
            async with bare(place / "q") as (reader, _):
                if "QMP" in await said(reader):
                    break


def test_a_mistake_of_ours_ends_the_connection_and_reaches_whoever_runs_the_loop(place: Path) -> None:
    told: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with (
            served(place / "q"),
            connected(place / "q") as other,
            bare(place / "q") as (reader, writer),
        ):
            await said(reader)
            await ask(reader, writer, {"execute": "qmp_capabilities"})
            writer.write(b'{"execute": "migrate", "arguments": {"uri": "tcp:mistake:1"}}')
            assert await reader.read() == b""
            assert await other.execute("query-name") == {"name": "small"}

    asyncio.run(main())
    assert [type(context["exception"]) for context in told] == [AssertionError]
