"""Companions of the simulated world: the connection on which two guests' threads talk.

Both kinds behave towards a node as :class:`colo.transport.companion.Companion` does; they differ in what
becomes of a word, which is what the rules of early release are about.

``unix``: what the kernel took lies in the other end's queue, which is bounded, and stays there whatever
happens to its sender.  After a shut of either end nothing more is taken.

``tcp``: what the kernel took is on this host and flies at the world's pace.  It is lost when its sender's
host is, may be lost when its sender dies, and never lands when the link is cut or the other end is shut.
Nothing tells the sender which, so only an answer counts.

A word of which the kernel took a part is one that it did not take: whoever reads it finds the end of the
connection in the middle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from colo.errors import PeerLost, ProtocolViolation
from colo.messages import COMPANION_WORDS, Message
from tests.protocol.network import RESET, Pipe

QUEUE = 6
"""Words that a kernel keeps for a reader."""
BACKLOG_BYTES = 200 << 10
"""What a word in a backlog is taken for: of a few words none more may be added."""
GONE = "closed by the peer"


class ToyCompanion:
    """One end.  ``descriptor`` is its number."""

    held_on_send = True

    def __init__(self, descriptor: int, on_lost: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        """``stopped``: the process stands still in the middle of something, and its kernel does nothing."""
        self._descriptor = descriptor
        self._on_lost: Callable[[str], None] | None = on_lost
        self._stopped = stopped
        self._backlog: deque[Message] = deque()
        self._closed: str | None = None
        self.lost: str | None = None
        self.is_shut = False
        """Nothing passes any more: by this end's will, or because its process is gone."""

    def fileno(self) -> int:
        return self._descriptor

    @property
    def backlog(self) -> int:
        return len(self._backlog) * BACKLOG_BYTES

    @property
    def readable(self) -> bool:
        """As poll(2) has it."""
        raise NotImplementedError

    @property
    def peer_left(self) -> bool:
        """Did the other end shut its side, as far as is known here?"""
        raise NotImplementedError

    def _give(self) -> bool:
        """Have the kernel take the oldest word."""
        raise NotImplementedError

    def _next(self) -> Message | None:
        raise NotImplementedError

    @property
    def _at_end(self) -> bool:
        """Nothing more will come."""
        raise NotImplementedError

    # As a node sees it

    def send(self, message: Message) -> bool:
        return self.send_all([message])

    def send_all(self, messages: Sequence[Message]) -> bool:
        if self.lost is not None:
            raise PeerLost(self.lost)
        self._backlog.extend(messages)
        return self.flush()

    def flush(self) -> bool:
        if self.lost is not None:
            raise PeerLost(self.lost)
        if self._stopped():
            return False
        while self._backlog:
            if not self._give():
                return False
            self._backlog.popleft()
        return True

    def receive(self) -> Message | None:
        if self._closed is not None:
            raise PeerLost(self._closed)
        if self._stopped():
            return None
        message = self._next()
        if message is None and self._at_end:
            raise self._lose(GONE)
        if message is not None and type(message) not in COMPANION_WORDS:
            raise ProtocolViolation(f"{type(message).__name__} is no word of the companion's")
        return message

    def shut(self, reason: str = "shut here") -> None:
        self._on_lost = None
        self.lost = self.lost or reason
        self.is_shut = True

    def close(self, reason: str = "closed here") -> None:
        self._closed = reason
        self.shut(reason)

    def _lose(self, reason: str) -> PeerLost:
        if self.lost is None:
            self.lost = reason
            self._backlog.clear()
        tell, self._on_lost = self._on_lost, None
        if tell is not None:
            tell(reason)
        return PeerLost(self.lost)

    # What the world does

    def die(self, silently: bool) -> None:
        """Its process is gone; ``silently``, and its host with it."""
        self._on_lost = None
        self.is_shut = True

    def snap(self) -> None:
        """The connection breaks, and nothing else does."""
        raise NotImplementedError


class UnixCompanion(ToyCompanion):
    def __init__(self, descriptor: int, on_lost: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        super().__init__(descriptor, on_lost, stopped)
        self.queue: deque[Message] = deque()
        self.other = self

    @property
    def readable(self) -> bool:
        return bool(self.queue) or self._at_end

    @property
    def peer_left(self) -> bool:
        return self.other.is_shut

    @property
    def _at_end(self) -> bool:
        return self.is_shut or self.other.is_shut

    def _give(self) -> bool:
        if self._at_end:
            raise self._lose(GONE)
        if len(self.other.queue) >= QUEUE:
            return False
        self.other.queue.append(self._backlog[0])
        return True

    def _next(self) -> Message | None:
        return self.queue.popleft() if self.queue else None

    def snap(self) -> None:
        self.is_shut = True


class TcpCompanion(ToyCompanion):
    held_on_send = False

    def __init__(
        self,
        descriptor: int,
        on_lost: Callable[[str], None],
        stopped: Callable[[], bool],
        pipes: tuple[Pipe, Pipe],
        rng: Random,
    ) -> None:
        super().__init__(descriptor, on_lost, stopped)
        self.out, self.into = pipes
        self._rng = rng

    @property
    def readable(self) -> bool:
        return bool(self.into.landed) or self._at_end

    @property
    def peer_left(self) -> bool:
        return self.into.eof

    @property
    def _at_end(self) -> bool:
        return self.is_shut or self.into.eof

    def _give(self) -> bool:
        if self.is_shut:
            raise self._lose(GONE)
        if len(self.out.flying) >= QUEUE:
            return False
        self.out.flying.append(self._backlog[0])
        return True

    def _next(self) -> Message | None:
        return self.into.landed.popleft() if self.into.landed else None

    def shut(self, reason: str = "shut here") -> None:
        if not self.is_shut:
            self.out.flying.append(None)
            self.into.deaf = True
        super().shut(reason)

    def die(self, silently: bool) -> None:
        if not self.is_shut:
            flying = self.out.flying
            if flying and (silently or self._rng.random() < RESET):
                for _ in range(self._rng.randint(1, len(flying))):
                    flying.pop()
            if not silently:
                flying.append(None)
            self.into.deaf = True
        super().die(silently)

    def snap(self) -> None:
        for pipe in (self.out, self.into):
            pipe.flying.clear()
            pipe.flying.append(None)


def companions(
    kind: str,
    descriptor: int,
    on_lost: tuple[Callable[[str], None], Callable[[str], None]],
    stopped: tuple[Callable[[], bool], Callable[[], bool]],
    rng: Random,
) -> tuple[ToyCompanion, ToyCompanion, list[Pipe]]:
    """Two ends of a new connection, and what of it the world has to move along."""
    if kind == "unix":
        left, right = (UnixCompanion(descriptor + end, on_lost[end], stopped[end]) for end in (0, 1))
        left.other, right.other = right, left
        return left, right, []
    pipes = Pipe(), Pipe()
    first = TcpCompanion(descriptor, on_lost[0], stopped[0], pipes, rng)
    second = TcpCompanion(descriptor + 1, on_lost[1], stopped[1], pipes[::-1], rng)
    return first, second, list(pipes)
