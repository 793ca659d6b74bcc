"""A hub in user space: every machine that names one directory is on one Ethernet segment.

A port is a Unix datagram socket ``port-00`` to ``port-31`` in the directory, and sending a frame is
sending it to every other socket there.  There is no server, so nothing has to be started first,
nobody relays for others, and the death of any machine takes away its own port alone.  Unix
datagrams keep frame boundaries and order and are not lost while the receiver lives.

The first free number is taken under a lock (flock) on the directory.  A socket file left by a
machine that was killed refuses connections; senders pass it over, and the next machine to open a
port removes it.  The directory, made with mode 0700 if it is not there, is left in place: whoever
may write to it may join, and nobody else.

The kernel queues few datagrams at a receiver (net.unix.max_dgram_qlen, 10 by default), fewer than a
TCP window, so each sender also keeps up to OUTPUT_MAX bytes per neighbour and waits for room on a
connected socket, one per neighbour.  A neighbour that does not read beyond that loses frames, and
only that neighbour.

Not modelled: a switch's learning of addresses (a hub repeats everything; the guest's interface
ignores what is not for it), hops between hosts.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path

from vmm.backends.net import FRAME_MAX, OUTPUT_MAX, is_frame, is_served, unix_address
from vmm.errors import BackendError

PORTS_MAX = 32
"""Machines on one hub: each frame is copied to all others, so a sender's cost grows with them."""

_PORT_NAME = re.compile(r"port-\d\d")


class Neighbour:
    """Another port, and what waits for it."""

    __slots__ = ("queue", "queued", "socket", "watched")

    def __init__(self, path: Path) -> None:
        """ConnectionRefusedError or FileNotFoundError when nobody is there."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.watched = False  # in the epoll set, because something waits
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def offer(self, frame: bytes) -> bool:
        """Send or keep ``frame``; False when there is no room.  OSError when the port is gone."""
        if self.queued + len(frame) > OUTPUT_MAX:
            return False
        self.queue.append(frame)
        self.queued += len(frame)
        self.flush()
        return True

    def flush(self) -> None:
        with suppress(BlockingIOError):
            while self.queue:
                self.socket.send(self.queue[0])
                self.queued -= len(self.queue.popleft())


class HubPort:
    """One port of the hub in ``directory``."""

    __slots__ = ("_directory", "_name", "_neighbours", "_poll", "_socket", "dropped")
    offloads = False

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self.dropped = 0
        self._neighbours: dict[str, Neighbour] = {}
        self._name, self._socket = _open_port(self._directory)
        self._poll = select.epoll()
        self._poll.register(self._socket, select.EPOLLIN)

    @property
    def name(self) -> str:
        """The name of this port's socket in the directory."""
        return self._name

    @property
    def pending_output(self) -> bool:
        return any(neighbour.queue for neighbour in self._neighbours.values())

    def fileno(self) -> int:
        return -1 if self._poll.closed else self._poll.fileno()

    def receive(self) -> bytes | None:
        self.flush()
        try:
            frame = self._socket.recv(FRAME_MAX + 1)
        except OSError:  # nothing there
            return None
        if not is_frame(len(frame)):
            self.dropped += 1
            return None  # the next one, if any, is still readable
        return frame

    def transmit(self, frame: bytes | memoryview) -> None:
        if not is_frame(len(frame)):
            self.dropped += 1
            return
        data = bytes(frame)
        names = self._others()
        for gone in self._neighbours.keys() - names:
            self._forget(gone)
        for name in names:
            self._send(name, data)

    def flush(self) -> None:
        """Send what waits, as far as the neighbours take it."""
        for name, neighbour in list(self._neighbours.items()):
            if neighbour.queue:
                try:
                    neighbour.flush()
                except OSError:
                    self._forget(name)
                else:
                    self._watch(neighbour)

    def close(self) -> None:
        if self._poll.closed:
            return
        for name in list(self._neighbours):
            self._forget(name)
        self._socket.close()
        self._poll.close()
        (self._directory / self._name).unlink(missing_ok=True)

    def _others(self) -> list[str]:
        """The names of all other ports, in order."""
        try:
            found = os.listdir(self._directory)  # noqa: PTH208 - once per frame, a tenth of the time
        except OSError as exc:
            raise BackendError(
                f"hub={self._directory}: the directory cannot be read any more ({exc.strerror}): expected it"
                " to live as long as its machines; start the machines again"
            ) from None
        return sorted(name for name in found if _PORT_NAME.fullmatch(name) and name != self._name)[:PORTS_MAX]

    def _send(self, name: str, frame: bytes, again: bool = True) -> None:
        """Send to one port; twice, when the machine we knew by that name was replaced by another."""
        try:
            if name not in self._neighbours:
                self._neighbours[name] = Neighbour(self._directory / name)
            neighbour = self._neighbours[name]
            if not neighbour.offer(frame):
                self.dropped += 1
            self._watch(neighbour)
        except OSError:
            if name not in self._neighbours:
                return  # nobody there, only the file of a dead machine: not a loss
            self._forget(name)
            self.dropped -= 1  # the frame at hand was counted among those forgotten
            if again:
                self._send(name, frame, again=False)

    def _watch(self, neighbour: Neighbour) -> None:
        """Wake when the neighbour has room, exactly while something waits for it."""
        if bool(neighbour.queue) == neighbour.watched:
            return
        neighbour.watched = not neighbour.watched
        if neighbour.watched:
            self._poll.register(neighbour.socket, select.EPOLLOUT)
        else:
            self._poll.unregister(neighbour.socket)

    def _forget(self, name: str) -> None:
        neighbour = self._neighbours.pop(name)
        self.dropped += len(neighbour.queue)
        neighbour.socket.close()  # which also takes it out of the epoll set


def _open_port(directory: Path) -> tuple[str, socket.socket]:
    """Take the first free number and clear away what dead machines left."""
    what = f"hub={directory}"
    unix_address(str(directory / "port-00"), what)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise BackendError(
            f"{what}: not a directory that can be opened or made ({exc.strerror}): expected one that may be"
            " written to; name another"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        free = _first_free(directory)
        if free is None:
            raise BackendError(
                f"{what}: all {PORTS_MAX} ports are taken: expected a free one; stop a machine or put this"
                " one on another hub"
            )
        return free, _bind(directory / free, what)
    finally:
        os.close(lock)


def _first_free(directory: Path) -> str | None:
    free = None
    for number in range(PORTS_MAX):
        name = f"port-{number:02}"
        path = directory / name
        if not is_served(str(path)):
            path.unlink(missing_ok=True)
            free = free or name
    return free


def _bind(path: Path, what: str) -> socket.socket:
    port = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    port.setblocking(False)
    try:
        os.fchmod(port.fileno(), 0o600)  # before bind: the file never has another mode
        port.bind(str(path))
    except OSError as exc:
        port.close()
        raise BackendError(
            f"{what}: a port cannot be made there ({exc.strerror}): expected a directory that may be written"
            " to; name another"
        ) from None
    return port
