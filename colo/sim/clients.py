"""Clients that ask a guest's service and write down what they were told: actors for :meth:`World.client`.

Each records a history (:mod:`colo.checkers.history`): an operation is invoked when its request is handed
over, returned when its answer is whole, and open for ever when the connection broke in between, because
nobody can know then whether it took effect.  A client whose connection broke goes on under another name.

    history = History()
    world.client(redis_counter(history, operations=100))
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from colo.checkers.history import History
from colo.sim.host import Host
from colo.sim.tcp_client import TcpConnection

GUEST = "10.77.0.2"
CONNECT_S = 5.0
ANSWER_S = 60.0
AGAIN_S = 0.2
"""Before a connection is tried again."""
FOREVER = 1 << 60
CRLF = b"\r\n"
Actor = Callable[[Host], Coroutine[Any, Any, int]]


OF_GUEST = {"redis": "redis-counter", "nginx": "http-get", "kv": "http-get", "udpecho": "udp-echo"}
"""Who asks a guest's own service."""


def for_guest(guest: str, history: History) -> Actor | None:
    """The client of a guest's own service, or None: it has none that is known here."""
    match OF_GUEST.get(guest):
        case "redis-counter":
            return redis_counter(history, pause_s=0.005)
        case "http-get":
            return http_get(lambda status, body: None)
        case "udp-echo":
            return udp_echo(lambda number: None)
    return None


def redis_counter(
    history: History,
    *,
    key: str = "counter",
    operations: int = FOREVER,
    pause_s: float = 0.0,
    reconnects: bool = True,
    address: str = GUEST,
    port: int = 6379,
) -> Actor:
    """INCR after INCR on one connection; the result is how many were answered."""

    async def actor(host: Host) -> int:
        done, lives = 0, 0
        while done < operations:
            lives += 1
            name = f"{host.name}.{lives}"
            try:
                async with asyncio.timeout(CONNECT_S):
                    stream = await host.connect(address, port)
                while done < operations:
                    await _increment(host, history, name, stream, key)
                    done += 1
                    await asyncio.sleep(pause_s)
                stream.close()
            except (OSError, TimeoutError) as exc:
                host.tell("connection-lost", f"{type(exc).__name__}: {exc}")
                if not reconnects:
                    return done
                await asyncio.sleep(AGAIN_S)
        return done

    return actor


async def _increment(host: Host, history: History, name: str, stream: TcpConnection, key: str) -> None:
    command = f"INCR {key}\r\n".encode()
    operation = history.invoke(name, "incr", at_ns=host.now_ns, key=key)
    async with asyncio.timeout(ANSWER_S):
        await stream.send(command)
        answer = await stream.read_until(CRLF)
    if not answer.startswith(b":"):
        raise ConnectionError(f"expected an integer, the server said {answer!r}")
    text = answer[1:].strip().decode("latin-1")
    value = int(text) if text.isascii() and text.isdecimal() else text
    history.returned(operation, value, at_ns=host.now_ns)  # a wrong answer is for a checker to find
    host.tell("answer", str(value))


def http_get(
    told: Callable[[int, bytes], None],
    *,
    path: str = "/",
    requests: int = FOREVER,
    pause_s: float = 0.01,
    address: str = GUEST,
    port: int = 80,
) -> Actor:
    """GET after GET, each on a connection of its own; ``told`` is given status (0: none) and body."""

    async def actor(host: Host) -> int:
        done = 0
        while done < requests:
            try:
                async with asyncio.timeout(CONNECT_S + ANSWER_S):
                    status, body = await _get(host, address, port, path)
            except (OSError, TimeoutError) as exc:
                host.tell("connection-lost", f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(AGAIN_S)
                continue
            done += 1
            told(status, body)
            host.tell("answer", f"{status} {len(body)}")
            await asyncio.sleep(pause_s)
        return done

    return actor


async def _get(host: Host, address: str, port: int, path: str) -> tuple[int, bytes]:
    stream = await host.connect(address, port)
    request = f"GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    await stream.send(request.encode())
    head = await stream.read_until(CRLF + CRLF)
    body = bytearray()
    while data := await stream.receive():
        body += data
    stream.close()
    words = head.split()
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return status, bytes(body)


def udp_echo(
    told: Callable[[int], None],
    *,
    operations: int = FOREVER,
    pause_s: float = 0.01,
    patience_s: float = 0.3,
    address: str = GUEST,
    port: int = 7,
) -> Actor:
    """Numbered datagrams to an echo service (RFC 862), each again until it comes back."""

    async def actor(host: Host) -> int:
        socket = host.udp()
        for number in range(1, operations + 1):
            payload = f"{host.name} {number}".encode()
            while True:
                socket.send(address, port, payload)
                try:
                    async with asyncio.timeout(patience_s):
                        while (await socket.receive())[2] != payload:
                            continue
                    break
                except TimeoutError:
                    host.tell("no-echo", str(number))
            told(number)
            host.tell("echo", str(number))
            await asyncio.sleep(pause_s)
        return operations

    return actor
