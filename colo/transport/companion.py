"""The connection on which the guest threads of two nodes talk while the guest runs, beside the protocol's.

It never waits: what the kernel does not take now stays here, in order, and goes with a later
:meth:`Companion.send` or :meth:`Companion.flush`.  It belongs to one thread.  Two calls may come from
another at any time, :meth:`Companion.shut` and :meth:`Companion.close`.

**What is held.**  On a Unix socket (unix(7)) a word that the kernel took is in the receiver's queue
already, for there is no other, and it stays readable when its sender is killed.  There ``send() -> True``
is enough to count on it that the word is not lost with this process (:attr:`held_on_send`).  On TCP it
is in this host's queue, and only an answer of the peer's proves more.

**The fence.**  A survivor must know every word on whose strength a primary that perhaps still lives has let
output go.  :meth:`Companion.shut` ends both directions at the kernel: on a Unix socket the sending and the
shutting of one queue exclude each other there, so once it has returned no send of the peer's succeeds
any more, and everything that did is still to be received here.  On TCP the peer may go on sending until
it hears of it, but this node says nothing more, so nothing of that is ever acknowledged.

The descriptor is closed with the object, not by :meth:`Companion.close`: a number that the guest's thread
still polls must not become another connection's.

Not detected: a peer that is gone without its kernel saying so, and a loss while nobody uses this
connection.  The heartbeat (:mod:`colo.transport.heartbeat`) is for that.
"""

from __future__ import annotations

import select
import socket
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

from colo.errors import FrameError, PeerLost, ProtocolViolation
from colo.messages import COMPANION_WORDS, Message
from colo.transport.frames import AGAIN, CLOSED, FrameSocket, why
from colo.transport.wire import COMPANION_MAX

BACKLOG_MAX = 8 << 20
"""Bytes that wait in this process.  A peer that reads so little does not follow any more; whoever sends
holds its guest back long before."""


class Companion:
    """One end.  ``on_lost(reason)`` is called once, by the thread that finds the connection broken.

    What this node ended itself is no loss.
    """

    __slots__ = (
        "__weakref__",
        "_backlog",
        "_closed",
        "_decoder",
        "_encoder",
        "_ended",
        "_hangup",
        "_on_lost",
        "_sock",
        "bytes_sent",
        "held_on_send",
        "lost",
    )

    def __init__(self, frames: FrameSocket, on_lost: Callable[[str], None]) -> None:
        self._sock = frames.sock
        weakref.finalize(self, self._sock.close)
        self._encoder, self._decoder = frames.encoder, frames.decoder
        frames.greeted(COMPANION_MAX)
        self._on_lost: Callable[[str], None] | None = on_lost
        self._backlog = bytearray()
        self.bytes_sent = 0
        self._hangup = select.poll()
        self._hangup.register(self._sock.fileno(), select.POLLRDHUP)
        self._ended: str | None = None
        """Why nothing more comes from the kernel."""
        self._closed: str | None = None
        self.lost: str | None = None
        """Why nothing more can be sent."""
        self.held_on_send = self._sock.family == socket.AF_UNIX
        """Does what the kernel took survive this process?"""

    def fileno(self) -> int:
        """To be polled for input: then :meth:`receive` until it gives None, for more may be here already."""
        return self._sock.fileno()

    @property
    def peer_left(self) -> bool:
        """Did the peer end its side?  It acts alone, or is dead; what it said before may still be to receive.

        For a node that was stopped: what it finds here when it runs on was meant for the world of then.
        """
        return bool(self._hangup.poll(0))

    # Sending

    @property
    def backlog(self) -> int:
        """Bytes that the kernel has not taken."""
        return len(self._backlog)

    def send(self, message: Message) -> bool:
        """Has the kernel taken everything that was said until now?  PeerLost when it never will.

        FrameError when the message is too long; nothing was said then.
        """
        if self.lost is not None:
            raise PeerLost(self.lost)
        return self._send(self._encoder.frame(message))

    def send_all(self, messages: Sequence[Message]) -> bool:
        """The same for several, in one system call."""
        if self.lost is not None:
            raise PeerLost(self.lost)
        encoder = self._encoder
        sequence = encoder.sequence
        try:
            frames = [encoder.frame(message) for message in messages]
        except FrameError:
            encoder.sequence = sequence  # none of them was said
            raise
        return self._send(bytearray().join(frames)) if frames else self.flush()

    def flush(self) -> bool:
        """As :meth:`send`, of nothing."""
        if self.lost is not None:
            raise PeerLost(self.lost)
        backlog = self._backlog
        while backlog:
            # After SSLWantWriteError, TLS wants the same bytes again; what was added behind does not matter.
            taken = self._give(backlog)
            if taken == 0:
                return False
            del backlog[:taken]
        return True

    def _send(self, frames: bytearray) -> bool:
        if self._backlog:
            self._backlog += frames
            if self.flush():
                return True
        else:
            taken = self._give(frames)
            if taken == len(frames):
                return True
            del frames[:taken]
            self._backlog = frames
        if len(self._backlog) > BACKLOG_MAX:
            raise self._lose(f"the peer does not read: {len(self._backlog)} bytes wait")
        return False

    def _give(self, data: bytearray) -> int:
        """How many bytes the kernel took."""
        try:
            taken = self._sock.send(data)
        except AGAIN:
            return 0
        except OSError as exc:
            raise self._lose(why(exc)) from None
        self.bytes_sent += taken
        return taken

    # Receiving

    def receive(self) -> Message | None:
        """The next word, or None: there is none now.

        PeerLost when nothing more comes, after everything that did; FrameError for damage.  Also when
        nothing more can be sent, what the peer said before is here.
        """
        if self._closed is not None:
            raise PeerLost(self._closed)
        decoder = self._decoder
        try:
            while (message := decoder.next()) is None:
                if self._ended is not None:
                    torn = " in the middle of a frame" if decoder.waiting else ""
                    raise PeerLost(self._ended + torn)
                if not self._fill():
                    return None
            if type(message) not in COMPANION_WORDS:
                raise ProtocolViolation(f"{type(message).__name__} is no word of the companion's")
        except ProtocolViolation as exc:
            self._lose(str(exc))
            self.close(str(exc))
            raise
        return message

    def _fill(self) -> bool:
        """Read once; False when there is nothing to read now."""
        try:
            count = self._sock.recv_into(self._decoder.space())
        except AGAIN:
            return False
        except OSError as exc:
            self._end(why(exc))
            return True
        if count == 0:
            self._end(CLOSED)
        self._decoder.filled(count)
        return True

    def _end(self, reason: str) -> None:
        self._lose(reason)
        self._ended = self.lost

    def _lose(self, reason: str) -> PeerLost:
        """Nothing more can be sent; tell, unless this node ended it itself."""
        if self.lost is None:
            self.lost = reason
            self._backlog.clear()
        tell, self._on_lost = self._on_lost, None
        if tell is not None:
            tell(reason)
        return PeerLost(self.lost)

    # Ends, from any thread

    def shut(self, reason: str = "shut here") -> None:
        """The fence: what has come until now can be received, and then PeerLost; nothing can be sent."""
        self._on_lost = None
        if self.lost is None:
            self.lost = reason
        with suppress(OSError):  # not connected any more: the aim is reached
            # Not SSLSocket's own, which would throw away what it needs for receiving.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self, reason: str = "closed here") -> None:
        """The same, and what has come until now is dropped."""
        self._closed = reason
        self.shut(reason)
