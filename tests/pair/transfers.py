"""Bulk transfers with the kv guest, both ways, every byte checked."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.pair.nodes import LIMIT_S, until

LETTERS = bytes(range(ord("a"), ord("z") + 1))
PATTERN_BYTES = 65536
"""kvd's pattern begins anew after so many bytes, in the middle of the alphabet."""
PATTERN = (LETTERS * (PATTERN_BYTES // len(LETTERS) + 1))[:PATTERN_BYTES]
CHUNK = 16384


class Transfer(threading.Thread):
    """One after another on one connection, until told to end."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        super().__init__(name=type(self).__name__)
        self.passed = 0
        """Bytes, of all."""
        self.whole = 0
        """Transfers that were right to the end."""
        self.failure: str | None = None
        self._ended = threading.Event()
        self._sock, self._size = sock, size

    def run(self) -> None:
        try:
            with self._sock.makefile("rb") as lines:
                self._lines = lines
                while not self._ended.is_set() and self.failure is None:
                    self.failure = self.once()
                    self.whole += self.failure is None
        except OSError as exc:
            self.failure = f"after {self.passed} bytes: {exc}"

    def once(self) -> str | None:
        """Why it was wrong, or None."""
        raise NotImplementedError

    # For the test's thread

    def moved(self, more: int) -> None:
        goal = self.passed + more
        until(lambda: self.failure or self.passed >= goal, lambda: f"{self.name} stays at {self.passed}")
        assert self.failure is None, self.failure

    def finish(self) -> None:
        """The one that is under way is the last."""
        self._ended.set()
        self.join(LIMIT_S)
        assert not self.is_alive(), f"{self.name} stays at {self.passed} bytes"
        assert self.failure is None, self.failure

    def close(self) -> None:
        self._ended.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.join(LIMIT_S)


class Download(Transfer):
    """BULK."""

    def once(self) -> str | None:
        self._sock.sendall(b"BULK %d\n" % self._size)
        left = self._size
        while left:
            at = (self._size - left) % PATTERN_BYTES
            wanted = PATTERN[at : at + min(left, CHUNK)]
            got = self._lines.read(len(wanted))
            if got != wanted:
                return f"after {self.passed} bytes came others: {got[:40]!r}"
            left -= len(got)
            self.passed += len(got)
        last = self._lines.read(1)
        return None if last == b"\n" else f"it ends with {last!r}"


class Upload(Transfer):
    """TAKE: the guest compares, and tells how many reads were wrong."""

    def once(self) -> str | None:
        self._sock.sendall(b"TAKE %d\n" % self._size)
        left = self._size
        while left:
            at = (self._size - left) % PATTERN_BYTES
            part = PATTERN[at : at + min(left, CHUNK)]
            self._sock.sendall(part)
            left -= len(part)
            self.passed += len(part)
        answer = self._lines.readline()
        return None if answer == b"TOOK %d 0\n" % self._size else f"the guest says {answer!r}"
