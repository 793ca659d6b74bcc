"""The Peer over sockets, and the connections that two nodes hold; :mod:`colo.transport.dial` makes them.

:class:`Link` carries the protocol over asyncio: bytes arrive in the decoder's own buffer, a frame is
written whole, and whoever sends waits while more than a batch of pages has not left.  A
:class:`Connection` is a link with its heartbeat (:mod:`colo.transport.heartbeat`) and its companion
(:mod:`colo.transport.companion`).  Loss of any closes link and heartbeat, so that nothing blocks on a dead
peer; everybody who waits gets PeerLost with the first reason.  The companion stays until
:meth:`Connection.close`, because a survivor still reads what came on it, and nobody ever waits on it.

Nothing is retried or sent again here: a connection that broke is over, and failover decides.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast

from colo.errors import ColoError, FrameError, PeerLost
from colo.messages import BATCH_MAX, Channel, Dissolve, Hello, Message, Welcome
from colo.transport.companion import Companion
from colo.transport.frames import CLOSED, FrameSocket, why
from colo.transport.heartbeat import SILENCE_INTERVALS_MIN, Heartbeat
from colo.transport.wire import FRAME_MAX, GREETING_MAX, Decoder, Encoder

UNSENT_MAX = BATCH_MAX
"""Bytes that wait in this process: with more, senders wait."""
YIELD_BYTES = 64 << 10
"""After a frame this long a sender lets others run, even if the kernel took it at once."""
FINISH_S = 2.0
"""For the last word to arrive, in good order."""
LAST_WORDS_S = 0.003
"""After another connection's end: a killed peer's last messages are in this host's buffers already."""


class Link(asyncio.BufferedProtocol):
    """One protocol connection.  Everything is called from the loop's thread, but close_threadsafe."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._encoder, self._decoder = Encoder(), Decoder(GREETING_MAX)
        self._transport: asyncio.Transport | None = None
        self._reading_paused = False
        self._arrival, self._room, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._shut = False
        self.lost: str | None = None
        """Why nothing more can be sent."""
        self.on_lost: Callable[[str], None] | None = None
        """Called once, in the loop's thread, when ``lost`` is set."""
        self.bytes_sent = self.bytes_received = 0

    @classmethod
    async def over(cls, sock: socket.socket, context: ssl.SSLContext | None, host: str | None = None) -> Link:
        """Take over a connected socket, with TLS if there is a context; PeerLost if that fails.

        ``host`` is whom the dialling side expects, and None on the listening side.
        """
        link = cls()
        try:
            if host is None:
                await link._loop.connect_accepted_socket(lambda: link, sock, ssl=context)
            else:
                name = host if context else None
                await link._loop.create_connection(lambda: link, sock=sock, ssl=context, server_hostname=name)
        except OSError as exc:
            link.close(why(exc))
            raise PeerLost(why(exc)) from None
        except BaseException:
            link.close()
            raise
        return link

    @property
    def peer_name(self) -> tuple[str, int]:
        """Of a TCP connection: the address and port at the other end."""
        assert self._transport is not None
        host, port, *_ = self._transport.get_extra_info("peername")
        return host, port

    def greeted(self) -> None:
        """The peer is one of ours: long frames may come."""
        self._decoder.limit = FRAME_MAX

    async def send(self, message: Message) -> None:
        """Hand over one frame, whole; several tasks may do so.  Waits while too much has not left."""
        if self.lost is not None:
            raise PeerLost(self.lost)
        assert self._transport is not None
        frame = self._encoder.frame(message)
        self._transport.write(frame)
        self.bytes_sent += len(frame)
        if len(frame) >= YIELD_BYTES:
            await asyncio.sleep(0)
        await self._room.wait()
        if self.lost is not None:
            raise PeerLost(self.lost)

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> Message:
        """The next message; what arrived before the peer closed still comes.

        FrameError closes the link: where the next frame begins is not known.
        """
        while True:
            if self._shut:
                raise PeerLost(self.lost or "closed here")
            try:
                message = self._decoder.next()
            except FrameError as exc:
                self.close(str(exc))
                raise
            self._resume()
            if message is not None:
                return message
            if self.lost is not None:
                raise PeerLost(self._torn(self.lost))
            self._arrival.clear()
            await self._arrival.wait()

    def close(self, reason: str = "closed here") -> None:
        """At once: what has not left is dropped, and every waiting send and receive raises PeerLost."""
        self._shut = True
        self._lose(reason)
        if self._transport is not None:
            self._transport.abort()

    def close_threadsafe(self, reason: str = "closed here", after_s: float = 0.0) -> None:
        """The same from any thread; what comes within ``after_s`` is still received."""

        def begin() -> None:
            self._loop.call_later(after_s, self.close, reason)

        with suppress(RuntimeError):  # the loop is closed, and its transports with it
            self._loop.call_soon_threadsafe(begin if after_s else partial(self.close, reason))

    async def finish(self, timeout_s: float = FINISH_S) -> None:
        """Close after the last word: wait for the peer to close, or to take its leave too, but not for long.

        Closing at once could take the word back: TCP resets a connection that has unread bytes.
        """
        with suppress(TimeoutError, ColoError):
            async with asyncio.timeout(timeout_s):
                while not isinstance(await self.receive(), Dissolve):
                    continue  # what else the peer says now does not matter any more
        self.close()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Until the socket is closed, after :meth:`close`."""
        if self._transport is not None:
            await self._ended.wait()

    def _lose(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self._arrival.set()
        self._room.set()
        if self.on_lost is not None:
            self.on_lost(reason)

    def _torn(self, reason: str) -> str:
        return f"{reason} in the middle of a frame" if self._decoder.waiting else reason

    def _resume(self) -> None:
        if self._reading_paused and not self._decoder.full and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(UNSENT_MAX)
        if self._shut:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.space()

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.filled(nbytes)
        self.bytes_received += nbytes
        self._arrival.set()
        if self._decoder.full and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """Nothing that this node could still say would be heard."""
        self._lose(CLOSED)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(why(exc) if isinstance(exc, OSError) else CLOSED if exc is None else str(exc))
        self._ended.set()

    def pause_writing(self) -> None:
        if self.lost is None:
            self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()


class Connection:
    """A link, its heartbeat and its companion, which live and die together.

    The heartbeat's thread begins at once; ``companion`` is for one thread of the caller's.
    """

    def __init__(
        self,
        link: Link,
        beside: dict[Channel, FrameSocket],
        theirs: Hello | Welcome,
        interval_ms: int,
        silence_ms: int,
    ) -> None:
        # A peer whose beats are slower by its own choice is not dead.
        patience_ms = max(silence_ms, SILENCE_INTERVALS_MIN * theirs.interval_ms)
        self._join(
            link,
            theirs,
            Companion(beside[Channel.COMPANION], self._beside_lost),
            lambda: Heartbeat(beside[Channel.HEARTBEAT], self._beside_lost, interval_ms, patience_ms),
        )

    def _join(
        self, link: Link, theirs: Hello | Welcome, companion: Companion, heartbeat: Callable[[], Heartbeat]
    ) -> None:
        """From here on the three live and die together; the heartbeat begins when all else is ready."""
        self.link, self.theirs = link, theirs
        self.lost: str | None = None
        """Why the peer was lost, from whichever of the three noticed first."""
        self._lock = threading.Lock()
        self._closed = False
        self._watcher: Callable[[str], None] | None = None
        self.companion = companion
        self.heartbeat = heartbeat()
        link.greeted()
        link.on_lost = self._link_lost
        if link.lost is not None:
            self._link_lost(link.lost)

    def watch(self, callback: Callable[[str], None]) -> None:
        """Have ``callback(reason)`` called once when the peer is lost, by the thread that notices.

        At once, if it is lost already; never after :meth:`close`.  It must not wait for the loop's thread.
        """
        with self._lock:
            self._watcher = callback
            reason = None if self._closed else self.lost
        if reason is not None:
            callback(reason)

    def close(self, reason: str = "closed here") -> None:
        """All, at once, from the loop's thread."""
        with self._lock:
            self._closed = True
        self.link.close(reason)
        self.companion.close(reason)
        self.heartbeat.close()

    async def finish(self) -> None:
        """All, after the last word, which beats accompany: the peer hears it before it misses them."""
        with self._lock:
            self._closed = True
        await self.link.finish()
        self.companion.close()
        self.heartbeat.close()

    def _report(self, reason: str) -> None:
        with self._lock:
            if self._closed or self.lost is not None:
                return
            self.lost = reason
            watcher = self._watcher
        if watcher is not None:
            watcher(reason)

    def _beside_lost(self, reason: str) -> None:
        """A peer that was killed closes all at once, and what it sent before is still to be read."""
        self._report(reason)
        self.link.close_threadsafe(reason, LAST_WORDS_S)

    def _link_lost(self, reason: str) -> None:
        self._report(reason)
        self.heartbeat.close()
