"""A Redis master for the guest to follow: a connection that the guest opened, on which both ends count.

Follows https://redis.io/docs/latest/operate/oss_and_stack/management/replication and the source of a replica
(``replication.c``): PING, REPLCONF, PSYNC; a whole copy, here an empty one; then commands without end, which
the replica acknowledges by their number of bytes when it is asked (``REPLCONF GETACK``), and once a second.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import BinaryIO

from tests.pair.nodes import LIMIT_S, until

EMPTY = b"REDIS0009\xff" + bytes(8)
"""A dump with nothing in it: its version, its end, and no checksum."""
KEY = b"followed"


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def words_of(lines: BinaryIO) -> list[bytes]:
    """The next command that the other end says; nothing when it says no more."""
    count = int(lines.readline().strip()[1:] or 0)
    return [lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(count)]


ROUND = command(b"INCR", KEY) + (ASK := command(b"REPLCONF", b"GETACK", b"*"))


class Master(threading.Thread):
    """Waits for a replica at ``listener``, and has it count."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(name="master")
        self.listener = listener
        self.rounds = 0
        """Of which the replica has told that it did what was said."""
        self.failure: str | None = None
        self._ended = threading.Event()
        self._sock: socket.socket | None = None

    def run(self) -> None:
        try:
            self._sock, _ = self.listener.accept()
            with self._sock, self._sock.makefile("rb") as lines:
                self._greet(lines)
                while not self._ended.is_set() and self.failure is None:
                    self._count(lines)
        except (OSError, ValueError) as exc:
            self.failure = None if self._ended.is_set() else f"after {self.rounds} rounds: {exc!r}"

    def _say(self, data: bytes) -> None:
        assert self._sock is not None
        self._sock.sendall(data)

    def _greet(self, lines: BinaryIO) -> None:
        while (words := words_of(lines)) and words[0] != b"PSYNC":
            self._say(b"+PONG\r\n" if words[0] == b"PING" else b"+OK\r\n")
        self._say(b"+FULLRESYNC %s 0\r\n$%d\r\n%s" % (b"1" * 40, len(EMPTY), EMPTY))

    def _count(self, lines: BinaryIO) -> None:
        """One round.  What it acknowledges by itself it has said before, or says between two commands."""
        self._say(ROUND)
        start = self.rounds * len(ROUND)
        incremented = start + len(ROUND) - len(ASK)
        while True:
            words = words_of(lines)
            if words[:2] != [b"REPLCONF", b"ACK"] or not start <= int(words[2]) <= incremented:
                self.failure = f"after {self.rounds} rounds, at {start} bytes, came {words}"
                return
            if int(words[2]) == incremented:
                self.rounds += 1
                return

    # For the test's thread

    def go_on(self, more: int = 5) -> None:
        goal = self.rounds + more
        until(lambda: self.failure or self.rounds >= goal, lambda: f"it stays at {self.rounds} rounds")
        assert self.failure is None, self.failure

    def finish(self) -> None:
        """The round that is under way is the last one."""
        self._ended.set()
        self.join(LIMIT_S)
        assert self.failure is None, self.failure

    def close(self) -> None:
        self._ended.set()
        for sock in (self._sock, self.listener):
            if sock is not None:
                with suppress(OSError):  # it is not connected, or not any more
                    sock.shutdown(socket.SHUT_RDWR)
        self.join(LIMIT_S)
        self.listener.close()
        assert not self.is_alive()
