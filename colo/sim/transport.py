"""The protocol's connection over a simulated wire: an asyncio transport under the real ``Link``.

:class:`colo.transport.link.Link` does not know the difference: it is given its bytes in its own buffers, is
told to pause when more than its limit has not left, and hears of the end as a socket's owner does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from colo.sim.process import Process
from colo.sim.wire import Lane
from colo.transport.link import Link


class SimTransport(asyncio.Transport):
    """One end, in ``process``.  ``peer`` is set when both are made."""

    peer: SimTransport

    def __init__(self, process: Process, link: Link, out: Lane) -> None:
        super().__init__()
        self.process = process
        self._link = link
        self._out = out
        self._limit = 64 << 10
        self._unsent = 0
        self._closing = self._ended = self._deaf = False
        self._inbox = bytearray()
        self._eof = False

    # For the link

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._limit = high or 0

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: Any) -> None:
        if self._closing or not self.process.alive or not data:
            return
        size = len(data)
        self._unsent += size
        self._out.send(bytes(data), self.peer.arrive, lambda: self._left(size))
        if self._unsent > self._limit:
            self._link.pause_writing()

    def _left(self, size: int) -> None:
        was_full = self._unsent > self._limit
        self._unsent -= size
        if was_full and self._unsent <= self._limit:
            self.process.act(self._link.resume_writing)

    def pause_reading(self) -> None:
        self._deaf = True

    def resume_reading(self) -> None:
        self._deaf = False
        self.process.act(self._read)

    def abort(self) -> None:
        self._end(None)

    def close(self) -> None:
        self._end(None)

    # For the world

    def arrive(self, data: bytes) -> None:
        """At this host; b"": the other end has closed."""
        self.process.act(lambda: self._take(data))

    def _take(self, data: bytes) -> None:
        self._inbox += data
        self._eof = self._eof or not data
        self._read()

    def _read(self) -> None:
        while self._inbox and not self._deaf and not self._closing:
            space = self._link.get_buffer(-1)
            count = min(len(space), len(self._inbox))
            space[:count] = self._inbox[:count]
            del self._inbox[:count]
            space.release()
            self._link.buffer_updated(count)
        if self._eof and not self._inbox and not self._closing:
            self._link.eof_received()
            self._end(None)

    def reset(self) -> None:
        """The connection broke."""
        self.process.act(lambda: self._end(ConnectionResetError()))

    def die(self, silently: bool) -> None:
        """Its process is gone; the kernel closes it, unless the host is gone, too."""
        self._closing = True
        if not silently:
            self._tell_peer()

    def _end(self, failure: Exception | None) -> None:
        if self._ended:
            return
        self._closing = self._ended = True
        if self.process.alive:
            self.process.loop.call_soon(self._link.connection_lost, failure)
            self._tell_peer()

    def _tell_peer(self) -> None:
        told: Callable[[bytes], None] = self.peer.arrive
        self._out.send(b"", told)


def joined(near: Process, far: Process, lanes: tuple[Lane, Lane], links: Sequence[Link]) -> None:
    """Connect two links, the first in ``near``'s process."""
    first, second = (
        SimTransport(process, link, out) for process, link, out in zip((near, far), links, lanes, strict=True)
    )
    first.peer, second.peer = second, first
    for link, end in zip(links, (first, second), strict=True):
        link.connection_made(end)
