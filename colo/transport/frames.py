"""Frames over a blocking socket: the greeting of the heartbeat's connection and the companion's.

asyncio does not have these two: threads use them, and greet on them too.  A greeting blocks, so it runs
in a thread of its own (:func:`in_thread`) and has one deadline for all of it.  Afterwards whoever uses
the connection takes the :class:`FrameSocket` over, with the counts of its frames and with what came
behind the greeting, and never waits on it again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from colo.errors import PeerLost, ProtocolViolation
from colo.messages import Channel, Hello, Message, Welcome
from colo.transport.handshake import welcomed
from colo.transport.wire import GREETING_MAX, Decoder, Encoder

CLOSED = "the peer closed the connection"
AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a socket that never waits raises when it would have to."""


def why(exc: OSError) -> str:
    """A socket's failure in one line."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"TLS: the peer's certificate does not do: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {(exc.reason or str(exc)).replace('_', ' ').lower()}"
    if isinstance(exc, ConnectionResetError | BrokenPipeError):
        return "the peer reset the connection"
    if isinstance(exc, TimeoutError):
        return "the peer did not answer in time"
    return exc.strerror or str(exc) or type(exc).__name__


class FrameSocket:
    """Frames over a blocking socket; PeerLost when it fails, FrameError for bytes that are no frame.

    A deadline is a time of :func:`time.monotonic` and holds for the whole call, however slowly the
    bytes come.
    """

    __slots__ = ("decoder", "encoder", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.encoder = Encoder()
        self.decoder = Decoder(GREETING_MAX)

    @classmethod
    def open(
        cls, sock: socket.socket, context: ssl.SSLContext | None, deadline: float, host: str | None = None
    ) -> FrameSocket:
        """With TLS around it, if there is a context; ``host`` is whom the dialling side expects."""
        if context is None:
            return cls(sock)
        try:
            _limit(sock, deadline)
            return cls(context.wrap_socket(sock, server_side=host is None, server_hostname=host))
        except OSError as exc:
            sock.close()
            raise PeerLost(why(exc)) from None

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def send(self, message: Message, deadline: float) -> None:
        try:
            _limit(self.sock, deadline)
            self.sock.sendall(self.encoder.frame(message))
        except OSError as exc:
            raise PeerLost(why(exc)) from None

    def receive(self, deadline: float) -> Message:
        while (message := self.decoder.next()) is None:
            try:
                _limit(self.sock, deadline)
                count = self.sock.recv_into(self.decoder.space())
            except OSError as exc:
                raise PeerLost(why(exc)) from None
            if count == 0:
                raise PeerLost(CLOSED)
            self.decoder.filled(count)
        return message

    def greeted(self, frame_max: int) -> None:
        """Never wait again, and take and send nothing longer."""
        self.sock.setblocking(False)
        self.encoder.limit = self.decoder.limit = frame_max

    def close(self) -> None:
        with suppress(OSError):  # not connected any more: the aim is reached
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def _limit(sock: socket.socket, deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    sock.settimeout(remaining)


def introduce(frames: FrameSocket, hello: Hello, deadline: float) -> Welcome:
    """The dialling side's half of the greeting; ``hello`` shows the channel and the token."""
    frames.send(hello, deadline)
    return welcomed(frames.receive(deadline))


def examine(frames: FrameSocket, channel: Channel, deadline: float) -> Hello:
    """The listening side's half, up to its answer; ``channel`` is what the preamble said."""
    hello = frames.receive(deadline)
    if not isinstance(hello, Hello) or hello.channel is not channel:
        found = f"one for {hello.channel.value}" if isinstance(hello, Hello) else type(hello).__name__
        raise ProtocolViolation(f"expected a Hello for {channel.value}, the peer sent {found}")
    return hello


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
