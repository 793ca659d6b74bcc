"""The Peer over sockets, and the pair of connections that two nodes hold.

::

    dialling node                                    listening node (colo.transport.listener)
       │  preamble P, [TLS], Hello(protocol) ─────────▶  │  compared: colo.transport.handshake
       │  ◀──────────────────────────── Welcome(token)   │
       │  preamble H, [TLS], Hello(heartbeat, token) ─▶  │  another socket, the same node
       │  ◀──────────────────────────── Welcome(token)   │
       │  the protocol on the first, Beats on the second │

:class:`Link` carries the protocol over asyncio: bytes arrive in the decoder's own buffer, a frame is
written whole, and whoever sends waits while more than a batch of pages has not left.  A
:class:`Connection` is a link with its heartbeat (:mod:`colo.transport.heartbeat`).  Loss of either
closes both, so that nothing blocks on a dead peer; everybody who waits gets PeerLost with the first reason.

Nothing is retried or sent again here: a connection that broke is over, and failover decides.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import cast

from msgspec import structs

from colo.errors import ColoError, FrameError, PeerLost
from colo.messages import BATCH_MAX, Channel, Dissolve, Hello, Message, Welcome
from colo.transport import address as addresses
from colo.transport import handshake, heartbeat
from colo.transport.address import Address
from colo.transport.certs import Credentials
from colo.transport.heartbeat import CLOSED, SILENCE_INTERVALS_MIN, FrameSocket, Heartbeat, why
from colo.transport.wire import FRAME_MAX, GREETING_MAX, Decoder, Encoder
from vmm.errors import ConfigError

UNSENT_MAX = BATCH_MAX
"""Bytes that wait in this process: with more, senders wait."""
YIELD_BYTES = 64 << 10
"""After a frame this long a sender lets others run, even if the kernel took it at once."""
FINISH_S = 2.0
"""For the last word to arrive, in good order."""
DIAL_S = 10.0
LAST_WORDS_S = 0.003
"""After the heartbeat's end: a killed peer's last messages are in this host's buffers already."""


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
    """A link and its heartbeat, which live and die together."""

    def __init__(
        self, link: Link, frames: FrameSocket, theirs: Hello | Welcome, interval_ms: int, silence_ms: int
    ) -> None:
        self.link, self.theirs = link, theirs
        self.lost: str | None = None
        """Why the peer was lost, from whichever of the two noticed first."""
        self._lock = threading.Lock()
        self._closed = False
        self._watcher: Callable[[str], None] | None = None
        # A peer whose beats are slower by its own choice is not dead.
        patience_ms = max(silence_ms, SILENCE_INTERVALS_MIN * theirs.interval_ms)
        self.heartbeat = Heartbeat(frames, self._heartbeat_lost, interval_ms, patience_ms)
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
        """Both, at once, from the loop's thread."""
        with self._lock:
            self._closed = True
        self.link.close(reason)
        self.heartbeat.close()

    async def finish(self) -> None:
        """Both, after the last word, which beats accompany: the peer hears it before it misses them."""
        with self._lock:
            self._closed = True
        await self.link.finish()
        self.heartbeat.close()

    def _report(self, reason: str) -> None:
        with self._lock:
            if self._closed or self.lost is not None:
                return
            self.lost = reason
            watcher = self._watcher
        if watcher is not None:
            watcher(reason)

    def _heartbeat_lost(self, reason: str) -> None:
        """A peer that was killed closes both at once, and what it sent before is still to be read."""
        self._report(reason)
        self.link.close_threadsafe(reason, LAST_WORDS_S)

    def _link_lost(self, reason: str) -> None:
        self._report(reason)
        self.heartbeat.close()


def tls_context(address: Address, credentials: Credentials | None, dialling: bool) -> ssl.SSLContext | None:
    """None for a Unix socket; ConfigError for TCP without certificates."""
    if not address.is_tcp:
        return None
    if credentials is None:
        raise ConfigError(
            f"{address}: over TCP both nodes need certificates, because a guest's memory passes there; make"
            " them with colo certs, or use unix:PATH on one host"
        )
    return credentials.client if dialling else credentials.server


async def dial(
    address: Address,
    hello: Hello,
    credentials: Credentials | None = None,
    timeout_s: float = DIAL_S,
    silence_ms: int = heartbeat.SILENCE_MS,
) -> Connection:
    """Connect to a listening node, greet it, and start the heartbeat.  One attempt.

    Refused with the other node's reason; PeerLost if it cannot be reached or does not answer in time.
    """
    context = tls_context(address, credentials, dialling=True)
    heartbeat.check_timing(hello.interval_ms, silence_ms)
    deadline = time.monotonic() + timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            sock = await addresses.connect(address, Channel.PROTOCOL)
            link = await Link.over(sock, context, address.host)
            try:
                mine = structs.replace(hello, channel=Channel.PROTOCOL, token=b"")
                welcome = await handshake.introduce(link, mine)
                mine = structs.replace(hello, channel=Channel.HEARTBEAT, token=welcome.token)
                frames = await _dial_heartbeat(address, link, mine, context, deadline)
            except BaseException:
                link.close()
                raise
    except TimeoutError:
        raise PeerLost(f"{address}: no answer within {timeout_s:g} s") from None
    except PeerLost as exc:
        # asyncio's TLS hangs up on a certificate it does not accept without saying so to the other end.
        hint = (
            "; perhaps it does not accept this node's certificate, which it then reports" if context else ""
        )
        raise PeerLost(f"{address}: {exc}{hint}") from None
    return Connection(link, frames, welcome, hello.interval_ms, silence_ms)


async def _dial_heartbeat(
    address: Address, link: Link, hello: Hello, context: ssl.SSLContext | None, deadline: float
) -> FrameSocket:
    """To the very node that welcomed us: a name may have several addresses."""
    where = address
    if address.is_tcp:
        host, port = link.peer_name
        where = replace(address, host=host, port=port)
    sock = await addresses.connect(where, Channel.HEARTBEAT)

    def greet() -> FrameSocket:
        frames = FrameSocket.open(sock, context, deadline, address.host)
        with frames.closed_on_error():
            heartbeat.introduce(frames, hello, deadline)
        return frames

    return await in_thread(sock, greet)


async def in_thread(sock: socket.socket, work: Callable[[], FrameSocket]) -> FrameSocket:
    """Blocking work on ``sock`` in a thread of its own; cancelling shuts the socket, which ends the work.

    Not asyncio's common threads: others may hold those up.
    """
    handle = sock.dup()  # TLS takes the socket over, and this stays
    executor = ThreadPoolExecutor(1, "greeting")
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        with suppress(OSError):  # not connected any more: the aim is reached
            handle.shutdown(socket.SHUT_RDWR)
        await asyncio.wait([future])
        if future.exception() is None:
            future.result().close()
        raise
    finally:
        handle.close()
        executor.shutdown(wait=False)
