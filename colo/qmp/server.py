"""The QMP server: a Unix socket on which a node is asked, told, and watched.

Source: the QEMU Machine Protocol specification (interop/qmp-spec).  ::

    client                                        server
       │  ◀───────────────────────  {"QMP": {...}}   │   the greeting
       │  {"execute": "qmp_capabilities"} ────────▶  │   until this, nothing else is executed,
       │  ◀─────────────────────────  {"return": {}} │   and no event is sent
       │  {"execute": NAME, "arguments", "id"} ───▶  │
       │  ◀────────  {"return": ... , "id"}, or      │
       │  ◀── {"error": {"class", "desc"}, "id"}     │
       │  ◀── {"event": NAME, "data", "timestamp"}   │   at any time, to every client

A client's commands are executed one after the other, those of two clients side by side.  That is where
we depart from QEMU, which has one queue for all and out-of-band execution beside it: here
``x-colo-lost-heartbeat`` never waits for somebody else's ``stop``.  So there is no ``oob`` capability.

A client is not trusted to read or to make sense: what waits to be sent to it is bounded, and one that
does not read is disconnected.  A command that was begun is finished, whether or not its client stays.
Access is by the socket's mode: who may open it may do everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from colo.errors import ColoError, ControlError, FrameError
from colo.qmp.commands import NEGOTIATION, NOT_FOUND, Registry, version
from colo.qmp.schema import Event, Negotiate, Timestamp
from colo.qmp.text import Framer, convert, decode, encode, quote
from vmm.errors import VmmError

CLIENTS_MAX = 32
"""A pair needs three (supervisor, operator, a program that watches); each costs at most 3 MiB."""
OUTPUT_MAX = 2 << 20
"""Bytes that may wait for one client: two of the longest answers, or thousands of events."""
OUTPUT_WAIT_S = 10.0
"""How long an answer may wait for its client to read."""
END_WAIT_S = 1.0
"""How long a connection that ends waits for a command under way, and then for its client to read."""
CHUNK = 16 << 10
"""Bytes looked at in one go: well under a millisecond of the loop's time."""
SOCKET_MODE = 0o600
PATH_MAX = 107
"""Bytes of a Unix socket's path (sun_path without its terminator)."""


class Server:
    """Serves one registry of commands on one socket.  All of it runs on one loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._greeting = encode({"QMP": {"version": version(), "capabilities": []}})
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._closing = False
        self._path: Path | None = None
        self._inode = 0
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, path: Path) -> None:
        """Listen at ``path``.  ControlError if that cannot be, or somebody else does."""
        assert self._server is None
        listening = _listen(path)
        self._path, self._inode = path, path.stat().st_ino
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_unix_server(self._arrived, sock=listening, limit=CHUNK)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def emit(self, name: str, data: msgspec.Struct | Mapping[str, Any] | None = None) -> None:
        """Send an event to every client that has negotiated.  On the loop's thread; never waits."""
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        event = Event(name, Timestamp(seconds, microseconds), msgspec.to_builtins(data or {}))
        line = encode(event)
        for client in self._clients.values():
            if client.negotiated:
                client.send(line)

    def emit_threadsafe(self, name: str, data: msgspec.Struct | Mapping[str, Any] | None = None) -> None:
        """:meth:`emit`, from any thread.  Events of one thread keep their order."""
        assert self._loop is not None, "the server has not been started"
        # A loop that is closed has no client any more to whom the event could matter.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.emit, name, data)

    async def close(self) -> None:
        """Let commands end and clients read what was said, for a moment; then end.  Not out of a command."""
        if self._server is None or self._closing:
            return
        self._closing = True
        self._server.close()
        assert self._path is not None
        with contextlib.suppress(FileNotFoundError):  # somebody tidied up before us
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        for task, client in self._clients.items():
            if not client.busy:
                task.cancel()
        tasks = list(self._clients)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=2 * END_WAIT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        if len(self._clients) >= CLIENTS_MAX or self._closing:
            client.send(_error(ControlError("this node takes no further QMP client")))
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(client, reader))
        self._clients[task] = client
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._clients.pop(task).abort()
        if not task.cancelled() and (exc := task.exception()) is not None:
            # A mistake of ours in a command: the client is gone, and whoever owns the loop must know.
            task.get_loop().call_exception_handler({"message": "a QMP command failed", "exception": exc})

    async def _serve(self, client: _Client, reader: asyncio.StreamReader) -> None:
        try:
            client.send(self._greeting)
            await self._converse(client, reader)
        except FrameError as exc:
            client.send(_error(ControlError(f"{exc}: closing the connection")))
        except (ConnectionError, TimeoutError):
            client.abort()
        finally:
            await client.end()

    async def _converse(self, client: _Client, reader: asyncio.StreamReader) -> None:
        framer = Framer()
        while data := await reader.read(CHUNK):
            for text in framer.feed(data):
                client.busy = True
                client.send(await self._answer(client, text))
                client.busy = False
                if self._closing:
                    return
                await client.drained()

    async def _answer(self, client: _Client, text: bytes) -> bytes:
        """The line that answers ``text``."""
        tag: dict[str, Any] = {}
        try:
            request = decode(text)
            if "id" in request:
                tag["id"] = request.pop("id")
            name, arguments = _checked(request)
            return encode({"return": await self._execute(client, name, arguments), **tag})
        except ControlError as exc:
            return _error(exc, **tag)
        except (ColoError, VmmError, OSError) as exc:
            return _error(ControlError(str(exc) or type(exc).__name__), **tag)

    async def _execute(self, client: _Client, name: str, arguments: dict[str, Any]) -> object:
        if name == NEGOTIATION:
            return client.negotiate(convert(arguments, Negotiate))
        if not client.negotiated:
            raise ControlError(
                f"{quote(name)} comes after capabilities negotiation ({NEGOTIATION})", NOT_FOUND
            )
        return await self._registry[name].execute(arguments)


class _Client:
    """One connection: what was agreed on, and what waits to be sent."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.negotiated = False
        self.busy = False
        """A command of it is under way."""

    def negotiate(self, wanted: Negotiate) -> dict[str, Any]:
        if self.negotiated:
            raise ControlError("capabilities negotiation is already complete", NOT_FOUND)
        if wanted.enable:
            raise ControlError(f"capability {quote(wanted.enable[0])} is not available")
        self.negotiated = True
        return {}

    def send(self, line: bytes) -> None:
        """Never waits; a client for which too much waits is cut off."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        transport.write(line)
        if transport.get_write_buffer_size() > OUTPUT_MAX:
            self.abort()

    async def drained(self) -> None:
        """Wait until the client has read what it asked for, so that it cannot ask without reading."""
        async with asyncio.timeout(OUTPUT_WAIT_S):
            await self._writer.drain()
        # Answers that need no waiting must not keep others from their turn.
        await asyncio.sleep(0)

    async def end(self) -> None:
        """Close when everything has been sent, or soon."""
        self._writer.close()
        try:
            # Gone or not reading: either way there is nobody to tell.
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(END_WAIT_S):
                    await self._writer.wait_closed()
        finally:
            self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()


def _checked(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The command's name and arguments, of a request without its id."""
    if "execute" not in request:
        raise ControlError("QMP input lacks member 'execute'")
    for member in request:
        if member not in ("execute", "arguments"):
            raise ControlError(f"QMP input member {quote(member)} is unexpected")
    name, arguments = request["execute"], request.get("arguments", {})
    if not isinstance(name, str):
        raise ControlError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise ControlError("QMP input member 'arguments' must be an object")
    return name, arguments


def _error(exc: ControlError, **tag: Any) -> bytes:
    return encode({"error": {"class": exc.kind, "desc": str(exc)}, **tag})


def _listen(path: Path) -> socket.socket:
    """A socket that only its owner may open, bound but not yet listening.  ControlError if it cannot be."""
    if len(bytes(path)) > PATH_MAX:
        raise ControlError(f"QMP socket {path}: a socket's path has at most {PATH_MAX} bytes")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        listening.bind(str(path))
        path.chmod(SOCKET_MODE)  # before it listens: nobody can have come in yet
        listening.setblocking(False)
    except OSError as exc:
        listening.close()
        raise ControlError(f"QMP socket {path}: {exc.strerror}") from exc
    except ControlError:
        listening.close()
        raise
    return listening


def _clear(path: Path) -> None:
    """Remove a socket at which nobody listens; anything else stays where it is."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(f"QMP socket {path}: there is a file of another kind")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError as exc:  # its backlog is full: somebody is there
            raise ControlError(f"QMP socket {path}: another node serves it") from exc
    raise ControlError(f"QMP socket {path}: another node serves it")
