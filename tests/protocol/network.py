"""Connections of the simulated world: two pipes each, which only the world moves along.

A pipe is a FIFO in two parts: what is *flying* was taken from its sender, what has *landed* can be
received.  The world lands messages one at a time, at steps of its choosing; it may stop doing so for
good (a cut, in one direction or both).  Closing sends an end-of-file behind what flies, of which some
may be lost (a reset).

An end behaves as :mod:`colo.transport.link` does: what landed before the peer closed can still be
received; after a close on this side nothing can; nothing can be sent once either side is known to be
closed. Between handing a message over and hearing that it was taken lies an await, sometimes until all
has left: a sender may be told that the peer is lost although its message arrived, and was acted on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from random import Random

from colo.errors import PeerLost
from colo.messages import Message

ROOM = 4
"""Messages that fly in one direction before senders wait."""
SLOW = 0.25
"""Of the messages: those whose sender waits until they have left."""
RESET = 0.3
"""Of the closes: those that take with them what flies."""


class Until:
    """An await: the world goes on here once ``ready`` says so, at a step of its choosing, or never."""

    __slots__ = ("ready", "what")

    def __init__(self, what: str, ready: Callable[[], bool]) -> None:
        self.what, self.ready = what, ready

    def __await__(self) -> Generator[Until, None, None]:
        yield self


def always() -> bool:
    return True


class Pipe:
    """One direction of a connection."""

    __slots__ = ("cut", "deaf", "eof", "flying", "landed")

    def __init__(self) -> None:
        self.flying: deque[Message | None] = deque()
        """None is the end of the file."""
        self.landed: deque[Message] = deque()
        self.eof = False
        """The end of the file has landed."""
        self.cut = False
        self.deaf = False
        """Nobody is there any more: what lands is lost."""

    def land(self) -> Message | None:
        """The oldest thing that flies arrives."""
        message = self.flying.popleft()
        if message is None:
            self.eof = True
        elif not self.deaf:
            self.landed.append(message)
        return message


class End:
    """One node's end of a connection; a :class:`colo.peer.Peer`."""

    def __init__(self, out: Pipe, into: Pipe, rng: Random) -> None:
        self.out, self.into = out, into
        self.closed = False
        self._rng = rng

    @property
    def has_room(self) -> bool:
        return len(self.out.flying) < ROOM

    @property
    def is_silent(self) -> bool:
        """Nothing more will ever be heard here."""
        return self.into.cut or self.into.eof

    async def send(self, message: Message) -> None:
        await Until("send", self._can_send)
        self._check()
        self.out.flying.append(message)
        await Until("sent", self._has_left if self._rng.random() < SLOW else always)
        self._check()

    async def turn(self) -> None:
        """Nothing to send."""

    async def receive(self) -> Message:
        await Until("receive", self._can_receive)
        if self.closed:
            raise PeerLost("closed here")
        if not self.into.landed:
            raise PeerLost("closed by the peer")
        return self.into.landed.popleft()

    def close(self, reason: str = "closed here") -> None:
        if self.closed:
            return
        self.closed = True
        if self.out.flying and self._rng.random() < RESET:
            for _ in range(self._rng.randint(1, len(self.out.flying))):
                self.out.flying.pop()
        self.out.flying.append(None)

    def _can_send(self) -> bool:
        return self.closed or self.into.eof or len(self.out.flying) < ROOM

    def _has_left(self) -> bool:
        return self.closed or self.into.eof or not self.out.flying

    def _can_receive(self) -> bool:
        return bool(self.into.landed) or self.closed or self.into.eof

    def _check(self) -> None:
        if self.closed or self.into.eof:
            raise PeerLost("closed here" if self.closed else "closed by the peer")


def connection(rng: Random) -> tuple[End, End]:
    """Two ends of a new connection."""
    forth, back = Pipe(), Pipe()
    return End(forth, back, rng), End(back, forth, rng)
