"""Clients that count: each connection is asked again and again for the next number, and gets no other.

A reply that is lost, repeated, or of another state than the one before shows at the next reply, and a
connection that nobody continues shows as one that gets no more of them.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.pair.nodes import LIMIT_S, until

LOOK_S = 0.05


@dataclass(frozen=True)
class Question:
    """What is asked, and the answer to the ``n``-th time, from 1 on."""

    asked: bytes
    answer: Callable[[int], bytes]


def redis(key: str) -> Question:
    """INCR, as Redis speaks."""
    return Question(b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(key), key.encode()), lambda n: b":%d\r\n" % n)


def kv(slot: int) -> Question:
    return Question(b"INC %d\n" % slot, lambda n: b"VAL %d %d\n" % (slot, n))


@dataclass
class Counted:
    """One connection."""

    sock: socket.socket
    question: Question
    replies: int = 0
    waiting: bytearray = field(default_factory=bytearray)
    enough: bool = False
    """Nothing is asked after the next reply."""
    asks: bool = False
    """A reply is due."""

    def ask(self) -> None:
        self.asks = not self.enough
        if self.asks:
            self.sock.sendall(self.question.asked)

    def hear(self) -> str | None:
        """What came; why it is wrong, or None.  The next question follows a whole answer at once."""
        expected = self.question.answer(self.replies + 1)
        try:
            data = self.sock.recv(len(expected))
        except OSError as exc:
            return f"after {self.replies} replies: {exc}"
        if not data:
            return f"after {self.replies} replies it was closed"
        self.waiting += data
        if not expected.startswith(self.waiting):
            return f"after {self.replies} replies came {bytes(self.waiting)!r}"
        if len(self.waiting) == len(expected):
            self.waiting.clear()
            self.replies += 1
            self.ask()
        return None


class Crowd(threading.Thread):
    """All connections, in one thread."""

    def __init__(self) -> None:
        super().__init__(name="crowd")
        self.members: list[Counted] = []
        self.failures: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()

    def add(self, sock: socket.socket, question: Question) -> Counted:
        """From any thread: it begins to count."""
        member = Counted(sock, question)
        self.members.append(member)
        member.ask()
        self._selector.register(sock, selectors.EVENT_READ, member)
        return member

    def run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(LOOK_S):
                failure = key.data.hear()
                if failure is not None:
                    self.failures.append(f"connection {self.members.index(key.data)}: {failure}")
                    self._selector.unregister(key.fileobj)

    # For the test's thread

    def go_on(self, more: int = 10, members: Sequence[Counted] | None = None) -> None:
        """Until each connection has so many more replies; all that came were right."""
        goals = [(member, member.replies + more) for member in members or tuple(self.members)]
        until(
            lambda: self.failures or all(member.replies >= goal for member, goal in goals),
            lambda: f"no further replies on {[m.replies for m, goal in goals if m.replies < goal]}",
        )
        assert not self.failures, self.failures

    def finish(self) -> None:
        """Until everything that was asked is answered, and nothing is asked any more."""
        for member in self.members:
            member.enough = True
        until(lambda: self.failures or not any(member.asks for member in self.members))
        assert not self.failures, self.failures

    @property
    def replies(self) -> int:
        return sum(member.replies for member in self.members)

    def count_to(self, goal: int) -> None:
        """Until all of them together have so many replies."""
        until(lambda: self.failures or self.replies >= goal)
        assert not self.failures, self.failures

    def close(self) -> None:
        """Connections end by a reset, so that nothing of them troubles the next guest."""
        self._ended.set()
        self.join(LIMIT_S)
        assert not self.is_alive()
        self._selector.close()
        for member in self.members:
            forget(member.sock)


def forget(sock: socket.socket) -> None:
    """SO_LINGER of zero: closing sends a reset (socket(7)), and the kernel retransmits nothing."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
    sock.close()
