"""The guests' connection in the world, with the semantics of :mod:`colo.transport.companion` to the word.

*unix*: what the kernel took lies in the receiver's queue; it becomes readable after the wire's delay, and
stays whatever happens to its sender.  A survivor that shuts its end finds all of it there, at once, and
nothing more is taken from the other side: the fence.

*tcp*: what the kernel took flies, and is lost with its sender's host, with a cut, and with an end that shuts
before it lands.  Only an answer proves that it was held.

Words pass the real encoder and decoder, so what arrives is what a peer could have sent.

Not modelled: a word of which the kernel takes a part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from colo.errors import PeerLost, ProtocolViolation
from colo.messages import COMPANION_WORDS, Message
from colo.sim.process import Process
from colo.sim.wire import Lane
from colo.transport.companion import BACKLOG_MAX
from colo.transport.frames import CLOSED
from colo.transport.wire import COMPANION_MAX, Decoder, Encoder

CAPACITY = 208 << 10
"""Bytes that the kernel keeps for a reader (Linux's net.core.wmem_default)."""


class SimCompanion:
    """One end, in ``process``.  ``arrived`` is called whenever there may be something to receive."""

    peer: SimCompanion

    def __init__(
        self,
        descriptor: int,
        process: Process,
        out: Lane,
        *,
        unix: bool,
        arrived: Callable[[], None],
        spoke: Callable[[Message], None],
    ) -> None:
        self.held_on_send = unix
        self.bytes_sent = 0
        self.lost: str | None = None
        self.on_lost: Callable[[str], None] | None = None
        self._descriptor = descriptor
        self._process = process
        self._out = out
        self._arrived, self._spoke = arrived, spoke
        self._encoder, self._decoder = Encoder(COMPANION_MAX), Decoder(COMPANION_MAX)
        self._backlog: deque[bytes] = deque()
        self._queue: deque[bytes] = deque()
        """For this end, of which the first ``_landed`` are readable."""
        self._landed = 0
        self._underway = 0
        """Bytes that the kernel took from this end and the other has not read."""
        self._shut = False
        self._eof = False
        self._closed: str | None = None

    # As colo.transport.companion.Companion

    def fileno(self) -> int:
        return self._descriptor

    @property
    def peer_left(self) -> bool:
        return self.peer._shut if self.held_on_send else self._eof

    @property
    def backlog(self) -> int:
        return sum(map(len, self._backlog))

    def send(self, message: Message) -> bool:
        return self.send_all([message])

    def send_all(self, messages: Sequence[Message]) -> bool:
        if self.lost is not None:
            raise PeerLost(self.lost)
        for message in messages:
            self._backlog.append(bytes(self._encoder.frame(message)))
            self._spoke(message)
        taken = self.flush()
        if self.backlog > BACKLOG_MAX:
            raise self._lose(f"the peer does not read: {self.backlog} bytes wait")
        return taken

    def flush(self) -> bool:
        if self.lost is not None:
            raise PeerLost(self.lost)
        if not self._process.alive:
            return False
        while self._backlog:
            if self.peer_left or self._shut:
                raise self._lose(CLOSED)
            if self._underway + len(self._backlog[0]) > CAPACITY and self._underway:
                return False
            self._give(self._backlog.popleft())
        return True

    def _give(self, frame: bytes) -> None:
        self.bytes_sent += len(frame)
        self._underway += len(frame)
        if self.held_on_send:
            self.peer._queue.append(frame)
            self._out.send(frame, self.peer._becomes_readable)
        else:
            self._out.send(frame, self.peer._land)

    def receive(self) -> Message | None:
        if self._closed is not None:
            raise PeerLost(self._closed)
        try:
            while (message := self._decoder.next()) is None:
                if not self._landed:
                    if self._shut or self._eof:
                        raise self._lose(CLOSED)
                    return None
                self._landed -= 1
                frame = self._queue.popleft()
                self.peer._underway -= len(frame)
                self._decoder.feed(frame)
            if type(message) not in COMPANION_WORDS:
                raise ProtocolViolation(f"{type(message).__name__} is no word of the companion's")
        except ProtocolViolation as exc:
            self._lose(str(exc))
            self.close(str(exc))
            raise
        return message

    def shut(self, reason: str = "shut here") -> None:
        self.on_lost = None
        self.lost = self.lost or reason
        if self._shut or not self._process.alive:
            return
        self._end(silently=False)
        if self.held_on_send:
            self._landed = len(self._queue)

    def close(self, reason: str = "closed here") -> None:
        self._closed = reason
        self.shut(reason)

    def _lose(self, reason: str) -> PeerLost:
        if self.lost is None:
            self.lost = reason
            self._backlog.clear()
        tell, self.on_lost = self.on_lost, None
        if tell is not None:
            tell(reason)
        return PeerLost(self.lost)

    # For the world

    @property
    def readable(self) -> bool:
        """As poll(2) has it."""
        return self._closed is None and (self._landed > 0 or self._shut or self._eof)

    def _becomes_readable(self, frame: bytes) -> None:
        """unix: one that is in the queue already, unless a fence or a reader came before."""
        if self._queue and not self._shut:
            # The first that is not readable yet is the one that was sent first: it may be damaged.
            if self._landed < len(self._queue):
                self._queue[self._landed] = frame
                self._landed += 1
            self._arrived()

    def _land(self, frame: bytes) -> None:
        """tcp."""
        if not self._shut:
            self._queue.append(frame)
            self._landed += 1
            self._arrived()

    def _end(self, silently: bool) -> None:
        self._shut = True
        if not silently:
            self._out.send(b"", self.peer._hear_end)

    def _hear_end(self, _: bytes) -> None:
        self._eof = True
        self._arrived()

    def die(self, silently: bool) -> None:
        """Its process is gone; ``silently``, and its host with it."""
        self.on_lost = None
        if not self._shut:
            self._end(silently)

    def snap(self) -> None:
        """The connection breaks, and nothing else does."""
        self._hear_end(b"")
