"""Clients of the Redis guest: closed loops over plain sockets, one thread, every reply judged and timed.

``INCR`` says most about a failover: each reply must be the one before it and one more.  A smaller one
means that a write which was acknowledged is gone, another one that the guest did something twice or
otherwise.  Nothing is ever sent again by us; what a failover loses, TCP repeats or nobody does.
RESP, the protocol of Redis, as far as these commands need it: replies of one line.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from tools.benchmarks.emulator import Lost

HOST = "127.0.0.1"
CONNECT_S = 10.0
CHUNK = 1 << 16
STEP_S = 0.05


class Dialogue(Protocol):
    """What one connection asks, and what it makes of the answers."""

    replies: list[float]
    """When each came (CLOCK_MONOTONIC)."""

    def ask(self) -> tuple[bytes, int]:
        """The next request, and how many lines it is answered with."""

    def judge(self, line: bytes, at_s: float) -> None:
        """One line of the answer."""


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


@dataclass
class Incrementing:
    """``INCR`` of one key, again and again."""

    key: bytes
    value: int = 0
    """The last acknowledged one."""
    replies: list[float] = field(default_factory=list)
    """When each came (CLOCK_MONOTONIC)."""
    lost: int = 0
    """Replies that are not above the one before: acknowledged writes that are gone."""
    changed: int = 0
    """Replies that are anything else than one more."""

    def ask(self) -> tuple[bytes, int]:
        return command(b"INCR", self.key), 1

    def judge(self, line: bytes, at_s: float) -> None:
        self.replies.append(at_s)
        if not (line[:1] == b":" and line[1:].isdigit()):
            self.changed += 1
            return
        value = int(line[1:])
        self.lost += max(0, self.value + 1 - value)
        self.changed += value != self.value + 1
        self.value = value

    def compare(self, held: int) -> None:
        """What the key holds when nobody asks any more."""
        self.lost += max(0, self.value - held)
        self.changed += held > self.value


@dataclass
class Storing:
    """``SET`` of values that compress badly, to keys in turn, some at a time."""

    prefix: bytes
    keys: int
    value_bytes: int
    depth: int = 1
    replies: list[float] = field(default_factory=list)
    changed: int = 0
    _next: int = 0

    def ask(self) -> tuple[bytes, int]:
        parts = []
        for _ in range(self.depth):
            key = b"%s%d" % (self.prefix, self._next % self.keys)
            parts.append(command(b"SET", key, os.urandom(self.value_bytes)))
            self._next += 1
        return b"".join(parts), self.depth

    def judge(self, line: bytes, at_s: float) -> None:
        self.replies.append(at_s)
        self.changed += line != b"+OK"


class _Connection:
    """A socket and its dialogue."""

    def __init__(self, port: int, dialogue: Dialogue) -> None:
        self.socket = socket.create_connection((HOST, port), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.dialogue = dialogue
        self.due = 0
        self.alive = True
        self._unsent = self._unread = b""

    def ask(self) -> None:
        self._unsent, self.due = self.dialogue.ask()
        self.send()

    def send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.alive = False

    @property
    def events(self) -> int:
        return select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)

    def receive(self) -> None:
        try:
            data = self.socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        at_s = time.monotonic()
        self.alive = bool(data)
        *lines, self._unread = (self._unread + data).split(b"\r\n")
        for line in lines:
            self.due -= 1
            self.dialogue.judge(line, at_s)


class Clients:
    """One connection for each dialogue, served by one thread.  Use it in a ``with`` statement."""

    def __init__(self, port: int, dialogues: Sequence[Dialogue]) -> None:
        self._connections = [_Connection(port, each) for each in dialogues]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for connection in self._connections:
            connection.socket.close()

    @property
    def alive(self) -> list[bool]:
        """Connection by connection: it is open, as far as we know."""
        return [each.alive for each in self._connections]

    def stop(self) -> None:
        """Ask nothing more, and wait for what is due."""
        self._stopping.set()
        self._thread.join()

    def _serve(self) -> None:
        with select.epoll() as poller:
            found = {each.socket.fileno(): each for each in self._connections}
            for descriptor, connection in found.items():
                connection.ask()
                poller.register(descriptor, connection.events)
            deadline: float | None = None
            while any(each.alive and each.due for each in self._connections):
                for descriptor, events in poller.poll(STEP_S):
                    self._step(poller, found[descriptor], events)
                if self._stopping.is_set():
                    deadline = deadline or time.monotonic() + CONNECT_S
                    if time.monotonic() > deadline:
                        return

    def _step(self, poller: select.epoll, connection: _Connection, events: int) -> None:
        if events & ~select.EPOLLOUT:
            connection.receive()
        if connection.due == 0 and connection.alive and not self._stopping.is_set():
            connection.ask()
        elif events & select.EPOLLOUT:
            connection.send()
        if connection.alive:
            poller.modify(connection.socket, connection.events)
        else:
            poller.unregister(connection.socket)


def value_of(port: int, key: bytes) -> int:
    """What a key holds, over a new connection."""
    with socket.create_connection((HOST, port), CONNECT_S) as asking:
        asking.sendall(command(b"GET", key))
        said = b""
        while said.count(b"\r\n") < 2 and not said.startswith(b"$-1"):
            data = asking.recv(CHUNK)
            if not data:
                raise Lost(f"the guest closed a new connection after {said!r}")
            said += data
    return int(said.split(b"\r\n")[1]) if said.startswith(b"$") and not said.startswith(b"$-1") else 0
