"""QMP from the other side: a blocking client for the command line, and one for a program that watches.

Source: the QEMU Machine Protocol specification (interop/qmp-spec).  Both clients negotiate when they
connect, keep the events that come in between, and turn an error into a ControlError with QMP's class as
its ``kind``; a node that is not there, goes away or does not answer in time has the kind UNREACHABLE.
They talk to any QMP server, QEMU's own too.

Arguments are given as keywords, with underscores for QAPI's dashes: ``size=80``, ``x_verify=True``.

Not done: connecting again.  A node whose connection ended is another node, or none, and whoever asks
must decide what that means.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from colo.errors import ControlError, FrameError
from colo.qmp.schema import Event
from colo.qmp.text import Framer, decode, encode

UNREACHABLE = "Unreachable"
TIMEOUT_S = 10.0
"""A command that acts waits for the guest to stop between two instructions: milliseconds, on a bad day
seconds."""
REPLY_MAX = 8 << 20
EVENTS_MAX = 4096
"""Events that wait to be looked at; beyond it the oldest go."""
CHUNK = 64 << 10
UCRED = "iII"
"""struct ucred of unix(7): pid, uid, gid."""

T = TypeVar("T")


class Conversation:
    """What is said on one connection, apart from how its bytes travel."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._framer = Framer(REPLY_MAX)
        self._next_id = 1
        self._greeted = False
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.replies: dict[int, dict[str, Any]] = {}
        self._waited_for: set[int] = set()

    @property
    def greeted(self) -> bool:
        return self._greeted

    def request(self, command: str, arguments: dict[str, Any]) -> tuple[int, bytes]:
        number, self._next_id = self._next_id, self._next_id + 1
        self._waited_for.add(number)
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        message: dict[str, Any] = {"execute": command, "id": number}
        if given:
            message["arguments"] = given
        return number, encode(message)

    def forget(self, number: int) -> None:
        """Nobody waits for this reply any more."""
        self._waited_for.discard(number)
        self.replies.pop(number, None)

    def feed(self, data: bytes) -> None:
        """Take what came.  ControlError if it is no QMP."""
        try:
            messages = [decode(text) for text in self._framer.feed(data)]
        except (FrameError, ControlError) as exc:
            raise self._stranger(exc) from exc
        for message in messages:
            self._take(message)

    def _stranger(self, why: object) -> ControlError:
        return ControlError(f"{self._who} does not speak QMP: {why}", UNREACHABLE)

    def _take(self, message: dict[str, Any]) -> None:
        if not self._greeted:
            if "QMP" not in message:
                outcome(message)  # a server that is full says so in place of its greeting
                raise self._stranger("no greeting")
            self._greeted = True
        elif "event" in message:
            try:
                self.events.append(msgspec.convert(message, Event))
            except msgspec.ValidationError as exc:
                raise self._stranger(exc) from exc
        elif isinstance(number := message.get("id"), int) and number in self._waited_for:
            self.replies[number] = message


def outcome(reply: dict[str, Any]) -> Any:
    """What a command returned, or the ControlError that it ended with."""
    if (error := reply.get("error")) is None:
        return reply.get("return")
    said = error if isinstance(error, dict) else {}
    raise ControlError(str(said.get("desc", error)), str(said.get("class", "GenericError")))


class Client:
    """Blocking; for one thread.  Use it in a ``with`` statement."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self.timeout_s = timeout_s
        """For each command."""
        self._talk = Conversation(str(path))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + timeout_s
        try:
            with self._worldly():
                self._socket.settimeout(timeout_s)
                self._socket.connect(str(path))
            self._until(lambda: self._talk.greeted, deadline)
            self.execute("qmp_capabilities")
        except ControlError:
            self.close()
            raise

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """What the command returned.  ControlError if it failed."""
        number, line = self._talk.request(command, arguments)
        deadline = time.monotonic() + self.timeout_s
        try:
            with self._worldly():
                self._socket.settimeout(self.timeout_s)
                self._socket.sendall(line)
            self._until(lambda: number in self._talk.replies, deadline)
            return outcome(self._talk.replies[number])
        finally:
            self._talk.forget(number)

    def query(self, kind: type[T], command: str, /, **arguments: Any) -> T:
        """:meth:`execute`, with the answer as ``kind`` declares it."""
        return msgspec.convert(self.execute(command, **arguments), kind)

    def take_events(self) -> list[Event]:
        """Those that have come since the last call; does not look for new ones."""
        found = list(self._talk.events)
        self._talk.events.clear()
        return found

    def wait_event(self, *names: str, timeout_s: float) -> Event:
        """The next event of one of these names; others before it are gone.  ControlError if none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._until(lambda: bool(self._talk.events), deadline)
            event = self._talk.events.popleft()
            if event.event in names:
                return event

    @property
    def pid(self) -> int:
        """Of the process that listens there."""
        size = struct.calcsize(UCRED)
        found: int = struct.unpack(UCRED, self._socket.getsockopt(SOL_SOCKET, SO_PEERCRED, size))[0]
        return found

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _until(self, happened: Callable[[], bool], deadline: float) -> None:
        while not happened():
            with self._worldly():
                # A timeout of 0 would mean: do not wait at all, and another error.
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                data = self._socket.recv(CHUNK)
            if not data:
                raise ControlError(f"{self.path}: the node closed the connection", UNREACHABLE)
            self._talk.feed(data)

    @contextlib.contextmanager
    def _worldly(self) -> Iterator[None]:
        """What the world does to a socket, as a ControlError."""
        try:
            yield
        except TimeoutError as exc:
            raise ControlError(f"{self.path}: the node does not answer in time", UNREACHABLE) from exc
        except OSError as exc:
            raise ControlError(f"{self.path}: no node there ({exc.strerror or exc})", UNREACHABLE) from exc


class AsyncClient:
    """For a program that watches several nodes.  Made by :meth:`connect`; several commands may be under
    way."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.timeout_s = TIMEOUT_S
        self._talk = Conversation(str(path))
        self._reader, self._writer = reader, writer
        self._changed = asyncio.Condition()
        self._ended: ControlError | None = None
        self._task = asyncio.get_running_loop().create_task(self._receive())

    @classmethod
    async def connect(cls, path: Path, timeout_s: float = TIMEOUT_S) -> AsyncClient:
        """A client that has negotiated.  ControlError if that cannot be had in time."""
        try:
            async with asyncio.timeout(timeout_s):
                client = cls(path, *await asyncio.open_unix_connection(str(path), limit=CHUNK))
        except OSError as exc:  # TimeoutError too
            raise ControlError(f"{path}: no node there ({exc.strerror or exc})", UNREACHABLE) from exc
        client.timeout_s = timeout_s
        try:
            await client._until(lambda: client._talk.greeted)
            await client.execute("qmp_capabilities")
        except BaseException:
            await client.close()
            raise
        return client

    async def execute(self, command: str, /, **arguments: Any) -> Any:
        """What the command returned.  ControlError if it failed."""
        number, line = self._talk.request(command, arguments)
        try:
            if not self._writer.is_closing():
                self._writer.write(line)
            await self._until(lambda: number in self._talk.replies)
            return outcome(self._talk.replies[number])
        finally:
            self._talk.forget(number)

    async def query(self, kind: type[T], command: str, /, **arguments: Any) -> T:
        """:meth:`execute`, with the answer as ``kind`` declares it."""
        return msgspec.convert(await self.execute(command, **arguments), kind)

    async def events(self) -> AsyncIterator[Event]:
        """Every event since the connection was made, until it ends.  For one consumer."""
        events = self._talk.events
        while True:
            while events:
                yield events.popleft()
            if self._ended is not None:
                return
            async with self._changed:
                await self._changed.wait_for(lambda: events or self._ended)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # it is closed, whoever did it
            await self._writer.wait_closed()

    async def _until(self, happened: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(self.timeout_s), self._changed:
                await self._changed.wait_for(lambda: happened() or self._ended)
        except TimeoutError as exc:
            raise ControlError(f"{self.path}: the node does not answer in time", UNREACHABLE) from exc
        if not happened():
            assert self._ended is not None
            raise ControlError(str(self._ended), UNREACHABLE)

    async def _receive(self) -> None:
        ended = ControlError(f"{self.path}: the connection is closed", UNREACHABLE)
        try:
            while data := await self._reader.read(CHUNK):
                self._talk.feed(data)
                async with self._changed:
                    self._changed.notify_all()
            ended = ControlError(f"{self.path}: the node closed the connection", UNREACHABLE)
        except OSError as exc:
            ended = ControlError(f"{self.path}: the connection was lost ({exc})", UNREACHABLE)
        except ControlError as exc:
            ended = exc
        finally:
            self._ended = ended
            async with self._changed:
                self._changed.notify_all()
