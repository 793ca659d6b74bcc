"""A client of the service: it counts, and writes down what it asked and what it was told.

It is an ordinary coroutine.  Time (``asyncio.sleep``, ``asyncio.timeout``) and the network are the world's.
"""

import asyncio
from collections.abc import Awaitable, Callable

from colo.checkers import History
from colo.sim.host import Host

ADDRESS, PORT = "10.77.0.2", 7000
PATIENCE_S = 2.0


def counting(history: History, name: str = "visits") -> Callable[[Host], Awaitable[None]]:
    """What to give to ``world.client``."""

    async def actor(host: Host) -> None:
        connections = 0
        while True:
            # When a connection breaks nobody knows whether what was asked took effect: a new one is a new
            # client, which does not know it either.
            connections += 1
            client = f"{host.name}.{connections}"
            try:
                await _count(host, history, client, name)
            except (OSError, TimeoutError) as exc:
                host.tell("connection-lost", repr(exc))
                await asyncio.sleep(0.1)

    return actor


async def _count(host: Host, history: History, client: str, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        stream = await host.connect(ADDRESS, PORT)
    while True:
        asked = history.invoke(client, "incr", key=name, at_ns=host.now_ns)
        async with asyncio.timeout(PATIENCE_S):
            await stream.send(f"incr {name}\n".encode())
            answer = await stream.read_until(b"\n")
        history.returned(asked, int(answer), at_ns=host.now_ns)
        await asyncio.sleep(0.005)
