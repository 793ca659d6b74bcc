"""Two nodes' ends of a link in one loop, over real sockets and real TLS."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec import structs

from colo.errors import PeerLost
from colo.messages import Channel, CheckpointRequest, Hello
from colo.transport import certs, handshake
from colo.transport.address import Address
from colo.transport.certs import Credentials
from colo.transport.dial import dial
from colo.transport.link import Connection, Link
from colo.transport.listener import Listener
from vmm.config import PcConfig
from vmm.state import pack

LIMIT_S = 60
"""For a whole test, on a busy host."""
PATIENT_MS = 10_000
"""Silence that is never reached unless it is meant."""

T = TypeVar("T")


def run(test: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(LIMIT_S):
            return await test

    return asyncio.run(limited())


def hello(token: bytes = b"", **changes: Any) -> Hello:
    given: dict[str, Any] = {
        "channel": Channel.PROTOCOL,
        "pair": "redis",
        "generation": 0,
        "layout": "layout",
        "engine": "engine",
        "config": pack(PcConfig()),
        "interval_ms": 50,
    }
    return structs.replace(handshake.hello(**{**given, **changes}), token=token)


async def until(condition: Callable[[], object]) -> None:
    """Returns when ``condition`` holds; the limit is that of :func:`run`."""
    while not condition():
        await asyncio.sleep(0.001)


def authority(directory: Path, *hosts: str) -> Path:
    """With a certificate for each host."""
    certs.make_authority(directory)
    for host in hosts:
        certs.make_certificate(directory, host)
    return directory


@dataclass
class World:
    """Where two nodes can meet: an address to listen at, and the certificates of both."""

    address: Address
    credentials: Credentials | None

    @asynccontextmanager
    async def listener(self, **options: Any) -> AsyncIterator[Listener]:
        options = {"mine": hello(), "silence_ms": PATIENT_MS, **options}
        listener = Listener(self.address, credentials=self.credentials, **options)
        await listener.start()
        try:
            yield listener
        finally:
            await listener.close()

    async def dial(self, listener: Listener, mine: Hello | None = None, **options: Any) -> Connection:
        options = {"silence_ms": PATIENT_MS, **options}
        return await dial(listener.address, mine or hello(), self.credentials, **options)

    @asynccontextmanager
    async def pair(self, **options: Any) -> AsyncIterator[tuple[Connection, Connection]]:
        """The dialling node's connection, then the listening node's."""
        async with self.listener(**options) as listener:
            near, far = await asyncio.gather(self.dial(listener, **options), listener.accept())
            try:
                yield near, far
            finally:
                await shut(near, far)


async def shut(*connections: Connection) -> None:
    for connection in connections:
        connection.close()
        await connection.link.wait_closed()


async def raw(listener: Listener, preamble: bytes = b"") -> socket.socket:
    """A client that speaks no protocol of ours, in the clear."""
    where, loop = listener.address, asyncio.get_running_loop()
    client = socket.socket(socket.AF_INET if where.is_tcp else socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    if where.is_tcp:
        await loop.sock_connect(client, ("127.0.0.1", where.port))
    else:
        await until(lambda: client.connect_ex(where.path) != errno.EAGAIN)  # a full backlog
    await loop.sock_sendall(client, preamble)
    return client


async def closed(client: socket.socket) -> bool:
    """Waits for the other end to close; what it says before does not matter."""
    loop = asyncio.get_running_loop()
    try:
        while await loop.sock_recv(client, 65536):
            continue
    except ConnectionResetError:
        return True
    return True


async def lost(link: Link) -> str:
    """Why, once everything that came before was received."""

    async def all_of_it() -> None:
        while True:
            await link.receive()

    with pytest.raises(PeerLost) as caught:
        await all_of_it()
    return str(caught.value)


async def still_accepts(world: World, listener: Listener) -> None:
    near, far = await asyncio.gather(world.dial(listener), listener.accept())
    await near.link.send(CheckpointRequest(1))
    assert await far.link.receive() == CheckpointRequest(1)
    await shut(near, far)
