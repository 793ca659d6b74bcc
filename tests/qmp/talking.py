"""Talking to a server: by the library that QEMU's own tests use (qemu.qmp), and by a bare socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[QMPClient]:
    client = QMPClient("test")
    await client.connect(str(path))
    try:
        yield client
    finally:
        await client.disconnect()


@asynccontextmanager
async def bare(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def said(reader: asyncio.StreamReader) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await reader.readline())
    return found


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str | bytes | dict[str, Any]
) -> dict[str, Any]:
    raw = json.dumps(text) if isinstance(text, dict) else text
    writer.write((raw if isinstance(raw, bytes) else raw.encode()) + b"\n")
    return await said(reader)


async def refusal(client: QMPClient, command: str, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ExecuteError) as caught:
        await client.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})
    return caught.value.error.error.class_, caught.value.error.error.desc
