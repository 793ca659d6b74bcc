"""The same requests to QEMU itself and to our server: answers of the same kind, class and id.

The wording of an error is free, but for arguments that do not fit it is the same.  Our clients talk to
QEMU too.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.errors import ControlError
from colo.qmp.client import AsyncClient, Client
from colo.qmp.schema import ColoStatus, MigrateInfo, RunState, StatusInfo
from tests.qmp.small_node import served, story

LIMIT_S = 60

REQUESTS = [
    b'{"execute": "query-status"}',
    b'{"execute": "no-such-command", "id": 1}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": ["none-such"]}}',
    b'{"execute": "qmp_capabilities", "id": [1, {"a": null}]}',
    b'{"execute": "qmp_capabilities", "id": null}',
    b"{}",
    b'{"id": "x"}',
    b'{"execute": 3}',
    b'{"execute": "query-name", "arguments": []}',
    b'{"execute": "query-name", "arguments": null}',
    b'{"execute": "query-name", "arguments": {}, "more": 1, "id": 4}',
    b'{"execute": "no-such-command"}',
    b"[]",
    b"3",
    b"hello",
    b'{"a": \xff',
    b'{"execute": "query-na',
    b'{"execute": "query-name"}',
    b'{"execute": "migrate-set-capabilities", "arguments": {"capabilities": []}}',
    b'{"execute": "query-migrate"}',
    b'{"execute": "migrate_cancel"}',
    b'{"execute": "x-colo-lost-heartbeat"}',
    b'{"execute":\n "query-name",\n "id":\n 5}',
    b'{"execute": "system_reset"}',
]
SAME_WORDS = [
    b'{"execute": "query-status", "arguments": {"a": 1}}',
    b'{"execute": "migrate"}',
    b'{"execute": "migrate-set-capabilities"}',
    b'{"execute": "migrate-set-capabilities", "arguments": {"capabilities": 3}}',
    b'{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [3]}}',
    b'{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "x-colo"}]}}',
    b'{"execute": "migrate-set-parameters", "arguments": {"none-such": 1}}',
    b'{"execute": "migrate", "arguments": {"uri": 3}}',
    b'{"execute": "query-name", "arguments": []}',
    b'{"execute": 3}',
    b"{}",
    b"[]",
]


@pytest.fixture
def qemu(place: Path, tool: Callable[[str], str]) -> Iterator[Path]:
    """QEMU's socket; a machine of nothing, which is all that this needs."""
    path = place / "qemu"
    command = [tool("qemu-system-x86_64"), "-machine", "none", "-nodefaults", "-display", "none", "-S"]
    command += ["-qmp", f"unix:{path},server=on,wait=off", "-daemonize", "-pidfile", str(place / "pid")]
    subprocess.run(command, check=True, timeout=LIMIT_S)  # returns when the socket is there
    try:
        yield path
    finally:
        with Client(path) as client:
            client.execute("quit")


async def answers(path: Path, requests: list[bytes]) -> list[dict[str, Any]]:
    """What follows each request, events left out."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    await reader.readline()
    found = []
    for request in requests:
        writer.write(request + b"\n")
        answer = json.loads(await reader.readline())
        while "event" in answer:
            answer = json.loads(await reader.readline())
        found.append(answer)
    writer.close()
    await writer.wait_closed()
    return found


def kind(answer: dict[str, Any]) -> tuple[str, ...]:
    return (
        "return" if "return" in answer else answer["error"]["class"],
        json.dumps(answer["id"]) if "id" in answer else "no id",
    )


@story
async def test_requests_are_answered_as_qemu_answers_them(qemu: Path, place: Path) -> None:
    async with served(place / "q"):
        theirs, ours = await answers(qemu, REQUESTS), await answers(place / "q", REQUESTS)
    for request, their, our in zip(REQUESTS, theirs, ours, strict=True):
        assert kind(our) == kind(their), (request, our, their)


@story
async def test_arguments_that_do_not_fit_are_refused_in_the_same_words(qemu: Path, place: Path) -> None:
    requests = [b'{"execute": "qmp_capabilities"}', *SAME_WORDS]
    async with served(place / "q"):
        assert await answers(place / "q", requests) == await answers(qemu, requests)


def test_our_clients_speak_with_qemu(qemu: Path) -> None:
    with Client(qemu) as client:
        assert client.query(StatusInfo, "query-status").status is RunState.PRELAUNCH
        assert client.query(MigrateInfo, "query-migrate") == MigrateInfo()
        assert client.query(ColoStatus, "query-colo-status").x_node is None
        client.execute("cont")
        assert client.wait_event("RESUME", timeout_s=LIMIT_S).data == {}
        with pytest.raises(ControlError) as caught:
            client.execute("no-such-command")
        assert caught.value.kind == "CommandNotFound"

    @story
    async def watched() -> None:
        client = await AsyncClient.connect(qemu)
        events = client.events()
        await client.execute("system_reset")
        while (event := await anext(events)).event != "RESET":
            pass
        assert event.data["guest"] is False
        await client.close()

    watched()
