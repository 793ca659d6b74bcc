"""The TCP forwarder behind a published port: a client of the host is carried to the guest.

It ends two TCP connections and copies between them, so a client's connection lives in the kernel's
stack and in this process, which the death of a node touches in no way.  Towards the guest it is an
ordinary client in the pair's namespace: what a failover loses there, TCP sends again.

Follows RFC 9293: an end of stream is passed on as an end of stream (half-close, 3.6), a reset as a
reset (3.5.2, through SO_LINGER with no time), each after what preceded it.  tcp(7), epoll(7).

One thread, one level-triggered epoll set, one buffer for all: what was read is sent at once, and only
what the other side does not take is kept, at most CHUNK bytes a direction.  While something is kept
its source is not read, which holds that sender back by its own TCP window.  Copying through one
buffer that stays in the CPU's cache was measured against splice(2) through pipes: it takes fewer
system calls per message and two descriptors less per direction, and is no slower in bulk.

A client that comes while the guest does not answer is closed, and counted, after CONNECT_WAIT_S at
the latest; one beyond CONNECTIONS_MAX is closed at once, and counted.

Not modelled: urgent data (it becomes ordinary data), the client's address (the guest sees the
gateway's), UDP.
"""

from __future__ import annotations

import errno
import resource
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

CHUNK = 256 << 10
"""Bytes moved at a time.  Fits the second-level cache; smaller ones cost bulk, larger ones memory."""
CONNECTIONS_MAX = 512
"""Clients at a time: two descriptors each, and 256 MiB in the worst case, when nobody reads."""
CONNECT_WAIT_S = 10.0
"""Longer than any failover, shorter than a client's patience."""
ACCEPTS_MAX = 16
"""New clients taken in one go, so that many of them do not hold up those that are there."""
DESCRIPTORS_SPARE = 64
"""Descriptors that are not connections."""
KEEPALIVE_IDLE_S = 60
"""A client or guest that has vanished without a word is asked for after this."""
TCP_THIN_LINEAR_TIMEOUTS = 16
"""linux/tcp.h: a connection with little in flight retransmits six times without backing off."""

IN, OUT = select.EPOLLIN, select.EPOLLOUT
ERROR, HANGUP = select.EPOLLERR, select.EPOLLHUP
_ABORT = struct.pack("ii", 1, 0)

Handler = Callable[[int], None]
Guest = tuple[str, int]


class Poller:
    """An epoll set in which every descriptor has its handler."""

    __slots__ = ("_epoll", "_handlers", "_leaving")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._leaving: list[socket.socket] = []

    def add(self, fd: int, events: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def step(self, wait_s: float) -> None:
        """Wait for events, -1 for ever, and handle them."""
        self._close_leaving()
        handlers = self._handlers
        for fd, events in self._epoll.poll(wait_s):
            handler = handlers.get(fd)
            if handler is not None:  # removed by a handler of this round
                handler(events)

    def dispose(self, leaving: socket.socket) -> None:
        """Close before the next round: in this one its number must not pass to a new socket."""
        self._leaving.append(leaving)

    def close(self) -> None:
        self._close_leaving()
        self._epoll.close()

    def _close_leaving(self) -> None:
        while self._leaving:
            self._leaving.pop().close()


class Side:
    """One socket of a connection, and the direction that is read from it and written to the other."""

    __slots__ = (
        "_connection",
        "_events",
        "_polled",
        "ended",
        "fd",
        "kept",
        "other",
        "receive_into",
        "send",
        "socket",
    )

    def __init__(self, connection: Connection, sock: socket.socket) -> None:
        self._connection = connection
        self._events = 0
        self._polled = False
        self.socket = sock
        self.fd = sock.fileno()
        self.receive_into, self.send = sock.recv_into, sock.send
        self.other = self
        self.kept: memoryview | None = None  # read from here, not yet taken by the other
        self.ended = False  # nothing more comes from here

    def watch(self, events: int) -> None:
        """Ask for exactly these events; errors and hang-ups come unasked."""
        poller = self._connection.forwarder.poller
        if not self._polled:
            poller.add(self.fd, events, self.handle)
            self._polled = True
        elif events != self._events:
            poller.change(self.fd, events)
        self._events = events

    def unwatch(self) -> None:
        if self._polled:
            self._connection.forwarder.poller.remove(self.fd)
            self._polled = False

    def handle(self, events: int) -> None:
        connection = self._connection
        try:
            if events & ERROR:
                connection.fail(self)
                return
            if not connection.established:
                connection.progress(self, events)
                return
            if events & OUT:
                self.other.resume()
            if events & IN:
                self.pump()
            elif events & HANGUP:
                # Both directions of this socket are over and it is not being read, because the other
                # side takes nothing.  epoll would go on saying so; resume() asks for it again.
                self.unwatch()
        except OSError:  # reset, or timed out: whichever side it was, both are over
            connection.fail(self)

    def pump(self) -> None:
        """Copy what is there, once."""
        forwarder = self._connection.forwarder
        if self.ended or self.kept is not None:
            return
        try:
            count = self.receive_into(forwarder.room)
        except BlockingIOError:
            return
        if count == 0:
            self.ended = True
            self._pass_end()
            return
        try:
            sent = self.other.send(forwarder.view[:count])
        except BlockingIOError:
            sent = 0
        forwarder.moved += sent
        if sent < count:
            self.kept = memoryview(bytes(forwarder.view[sent:count]))
            self._adjust()

    def resume(self) -> None:
        """The other side takes data again."""
        if self.kept is not None:
            try:
                sent = self.other.send(self.kept)
            except BlockingIOError:
                return
            self._connection.forwarder.moved += sent
            self.kept = self.kept[sent:] if sent < len(self.kept) else None
        if self.kept is None:
            self._adjust()

    def wanted(self) -> int:
        """The events that matter now."""
        reading = IN if not self.ended and self.kept is None else 0
        return reading | (OUT if self.other.kept is not None else 0)

    def _adjust(self) -> None:
        self.watch(self.wanted())
        self.other.watch(self.other.wanted())

    def _pass_end(self) -> None:
        self.other.socket.shutdown(socket.SHUT_WR)
        if self.other.ended:
            self._connection.close()
        else:
            self._adjust()


class Connection:
    """A client and the guest."""

    __slots__ = ("client", "established", "forwarder", "guest", "waiting")

    def __init__(self, forwarder: Forwarder, client: socket.socket, guest: socket.socket) -> None:
        self.forwarder = forwarder
        self.established = False
        self.waiting = True  # for the guest
        self.client, self.guest = Side(self, client), Side(self, guest)
        self.client.other, self.guest.other = self.guest, self.client

    def progress(self, side: Side, events: int) -> None:
        """Something happened before the guest answered: it did, or the client left."""
        if side is self.guest and events & OUT:
            self.established, self.waiting = True, False
            self.forwarder.counts["established"] += 1
            self.client.watch(IN)
            self.guest.watch(IN)
        elif events & HANGUP:
            self.close()

    def fail(self, side: Side) -> None:
        """One side broke the connection, or never made it: end the other likewise."""
        counts = self.forwarder.counts
        if self.established:
            counts["resets"] += 1
            for each in (self.client, self.guest):
                each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        elif side is self.guest:
            counts["unreachable"] += 1
        self.close()

    def close(self) -> None:
        self.waiting = False
        for side in (self.client, self.guest):
            side.unwatch()
            self.forwarder.poller.dispose(side.socket)
        self.forwarder.connections.discard(self)


class Forwarder:
    """All published ports.  ``listeners`` belong to the host's namespace, this process to the pair's."""

    def __init__(
        self,
        poller: Poller,
        listeners: list[tuple[socket.socket, Guest]],
        limit: int = CONNECTIONS_MAX,
    ) -> None:
        self.poller = poller
        self.view = memoryview(bytearray(CHUNK))
        self.room = self.view  # what recv_into fills
        self.moved = 0
        self.counts: Counter[str] = Counter()
        self.connections: set[Connection] = set()
        self._listeners = listeners
        self._limit = min(limit, _descriptors_allowed() // 2)
        self._deadlines: deque[tuple[float, Connection]] = deque()
        for listener, guest in listeners:
            listener.setblocking(False)
            poller.add(listener.fileno(), IN, partial(self._accept, listener, guest))

    def wait_s(self) -> float:
        """Until the next deadline; -1 when there is none."""
        if not self._deadlines:
            return -1
        return max(0.0, self._deadlines[0][0] - time.monotonic())

    def expire(self) -> None:
        """Give up what waited too long."""
        waiting = self._deadlines
        while waiting and (not waiting[0][1].waiting or waiting[0][0] <= time.monotonic()):
            _, connection = waiting.popleft()
            if connection.waiting:
                connection.fail(connection.guest)

    def stats(self) -> dict[str, int]:
        names = ("accepted", "established", "unreachable", "refused", "resets")
        return {
            **{name: self.counts[name] for name in names},
            "open": len(self.connections),
            "bytes": self.moved,
        }

    def close(self) -> None:
        for connection in list(self.connections):
            connection.close()
        for listener, _ in self._listeners:
            self.poller.remove(listener.fileno())
            listener.close()

    def _accept(self, listener: socket.socket, guest: Guest, _events: int) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                client, _ = listener.accept()
            except OSError:  # nobody there, or gone again before we came (accept(2))
                return
            self.counts["accepted"] += 1
            if len(self.connections) >= self._limit:
                self._refuse(client)
            else:
                self._connect(client, guest)

    def _refuse(self, client: socket.socket) -> None:
        self.counts["refused"] += 1
        client.close()

    def _connect(self, client: socket.socket, address: Guest) -> None:
        try:
            guest = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # the host has no descriptors or memory left
            self._refuse(client)
            return
        for sock in (client, guest):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        guest.setsockopt(socket.IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1)
        connection = Connection(self, client, guest)
        self.connections.add(connection)
        found = guest.connect_ex(address)
        if found not in (0, errno.EINPROGRESS):
            connection.fail(connection.guest)
            return
        connection.client.watch(0)
        connection.guest.watch(OUT)
        self._deadlines.append((time.monotonic() + CONNECT_WAIT_S, connection))


def _descriptors_allowed() -> int:
    """Descriptors for connections, after asking for as many as are wanted."""
    wanted = 2 * CONNECTIONS_MAX + DESCRIPTORS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted - DESCRIPTORS_SPARE if soft == resource.RLIM_INFINITY else soft - DESCRIPTORS_SPARE
