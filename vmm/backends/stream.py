"""Frames over a byte stream: a cable between two machines, or to QEMU's ``-netdev stream``.

Each frame is preceded by its length, 32 bits, most significant byte first, which is what QEMU's
``stream`` and ``socket`` network back ends speak.  The stream is a Unix socket, or TCP on this host's
loopback; other hosts are refused because this protocol has neither a password nor encryption.

A server has one peer at a time.  Others wait in the kernel's backlog, and the first of them is let
in when the peer has gone.  A client must find its peer when it starts; one that lost it tries again
whenever its guest sends a frame, so an idle machine needs no timer.  A peer that announces a frame
beyond the limit cannot be followed any further: its connection is dropped and the reason counted in
``faults``.  Frames sent while there is no peer are dropped and counted, as by a loose cable.

Not modelled: QEMU's virtio-net header option on the stream, its reconnect timer, TLS.
"""

from __future__ import annotations

import ipaddress
import os
import re
import select
import socket
import stat
from collections import Counter, deque
from pathlib import Path

from vmm.backends.net import FRAME_MAX, FRAME_MIN, OUTPUT_MAX, is_frame, is_served, unix_address
from vmm.errors import BackendError

PREFIX = 4
"""Bytes of the length in front of a frame."""
BACKLOG = 4
"""Peers that may wait for their turn at a server."""
CONNECT_WAIT_S = 5.0
"""Longest wait for the first connection, made before the machine runs."""

_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT

Address = str | tuple[str, int]


class PeerFault(Exception):
    """The peer cannot be followed further; never leaves this file."""


class Inbox:
    """Puts frames together from however few bytes the socket gives at a time."""

    __slots__ = ("_fill", "_room")

    def __init__(self) -> None:
        self._room = memoryview(bytearray(PREFIX + FRAME_MAX))
        self._fill = 0

    def clear(self) -> None:
        self._fill = 0

    def fetch(self, peer: socket.socket) -> bytes:
        """The next frame; BlockingIOError when it is not all there yet."""
        while self._fill < (need := self._need()):
            got = peer.recv_into(self._room[self._fill : need])
            if got == 0:
                raise PeerFault("closed in mid-frame" if self._fill else "closed")
            self._fill += got
        frame = bytes(self._room[PREFIX:need])
        self._fill = 0
        return frame

    def _need(self) -> int:
        if self._fill < PREFIX:
            return PREFIX
        length = int.from_bytes(self._room[:PREFIX], "big")
        if length > FRAME_MAX:
            raise PeerFault("oversize frame")
        return PREFIX + length


class Stream:
    """One end of the cable: ``address`` is a path, or 127.0.0.1:PORT."""

    __slots__ = (
        "_address",
        "_family",
        "_inbox",
        "_listener",
        "_peer",
        "_poll",
        "_queue",
        "_queued",
        "_what",
        "dropped",
        "faults",
    )
    offloads = False

    def __init__(self, address: str, server: bool = False) -> None:
        self._what = f"stream={address}"
        self._family, self._address = _endpoint(address, self._what)
        self.dropped = 0
        self.faults: Counter[str] = Counter()
        self._inbox = Inbox()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._poll = select.epoll()
        if server:
            self._listener = _listen(self._family, self._address, self._what)
            self._poll.register(self._listener, _READ)
        else:
            self._attach(_connect(self._family, self._address, self._what))

    @property
    def connected(self) -> bool:
        return self._peer is not None

    @property
    def pending_output(self) -> bool:
        return bool(self._queue)

    @property
    def address(self) -> Address:
        """Where a server listens: with TCP port 0, the port that the kernel chose."""
        if self._listener is None or self._family == socket.AF_UNIX:
            return self._address
        host, port = self._listener.getsockname()
        return str(host), int(port)

    def fileno(self) -> int:
        return -1 if self._poll.closed else self._poll.fileno()

    def receive(self) -> bytes | None:
        self.flush()
        peer = self._peer or self._accept()
        if peer is None:
            return None
        try:
            frame = self._inbox.fetch(peer)
        except BlockingIOError:
            return None
        except PeerFault as fault:
            self._detach(str(fault))
            return None
        except OSError as exc:
            self._detach(exc.strerror or "failed")
            return None
        if len(frame) < FRAME_MIN:
            self.dropped += 1
            return None  # the rest, if any, is still readable
        return frame

    def transmit(self, frame: bytes | memoryview) -> None:
        peer = self._peer or self._accept() or self._reconnect()
        if peer is None or not is_frame(len(frame)) or self._queued + PREFIX + len(frame) > OUTPUT_MAX:
            self.dropped += 1
            return
        prefix = len(frame).to_bytes(PREFIX, "big")
        if self._queue:
            self._keep(prefix + frame)
            self.flush()
            return
        try:
            sent = peer.sendmsg((prefix, frame))
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self.dropped += 1
            self._detach(exc.strerror or "failed")
            return
        if sent < PREFIX + len(frame):
            self._keep((prefix + frame)[sent:])
            self._poll.modify(peer, _READ | _WRITE)

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        peer = self._peer
        if peer is None or not self._queue:
            return
        try:
            while self._queue:
                first = self._queue[0]
                sent = peer.send(first)
                self._queued -= sent
                if sent < len(first):
                    self._queue[0] = first[sent:]
                else:
                    self._queue.popleft()
        except BlockingIOError:
            return
        except OSError as exc:
            self._detach(exc.strerror or "failed")
            return
        self._poll.modify(peer, _READ)

    def close(self) -> None:
        if self._peer is not None:
            self._detach("closed here")
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if isinstance(self._address, str):
                Path(self._address).unlink(missing_ok=True)
        self._poll.close()

    def _keep(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued += len(data)

    def _accept(self) -> socket.socket | None:
        """The next peer in the backlog of a server."""
        if self._listener is None:
            return None
        try:
            peer, _ = self._listener.accept()
        except OSError:  # nobody, or one who left before it was let in
            return None
        self._poll.unregister(self._listener)
        self._attach(peer)
        return peer

    def _reconnect(self) -> socket.socket | None:
        """Try to find a client's peer again.  A TCP connection may still fail at its first use."""
        if self._listener is not None or self._poll.closed:
            return None
        peer = socket.socket(self._family, socket.SOCK_STREAM)
        peer.setblocking(False)
        try:
            peer.connect(self._address)
        except BlockingIOError:
            if self._family == socket.AF_UNIX:  # its backlog is full
                peer.close()
                return None
        except OSError:
            peer.close()
            return None
        self._attach(peer)
        return peer

    def _attach(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if self._family == socket.AF_INET:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._poll.register(peer, _READ)

    def _detach(self, why: str) -> None:
        """Forget the peer and what was meant for it: half a frame must not reach the next one."""
        assert self._peer is not None
        self._peer.close()  # which also takes it out of the epoll set
        self._peer = None
        self._inbox.clear()
        self.dropped += len(self._queue)
        self._queue.clear()
        self._queued = 0
        self.faults[why] += 1
        if self._listener is not None:
            self._poll.register(self._listener, _READ)


def _endpoint(address: str, what: str) -> tuple[socket.AddressFamily, Address]:
    tcp = re.fullmatch(r"([^/]*):(\d{1,5})", address)
    if tcp is None:
        return socket.AF_UNIX, unix_address(address, what)
    host, port = "127.0.0.1" if tcp[1] == "localhost" else tcp[1], int(tcp[2])
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or port > 0xFFFF:
        raise BackendError(
            f"{what}: not a loopback address and port: expected 127.0.0.1:PORT, because frames travel in"
            " the clear; to reach another host, forward a local port to it (ssh -L)"
        )
    return socket.AF_INET, (host, port)


def _listen(family: socket.AddressFamily, address: Address, what: str) -> socket.socket:
    if isinstance(address, str):
        _remove_stale(address, what)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has another mode
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise BackendError(
            f"{what}: cannot listen there ({exc.strerror}): expected a free address in a directory that may"
            " be written to; stop whoever uses it or choose another"
        ) from None
    return listener


def _remove_stale(path: str, what: str) -> None:
    """Make way for a listener where an earlier one died without cleaning up."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return  # nothing there; if there is another obstacle, bind names it
    if not stat.S_ISSOCK(mode):
        raise BackendError(
            f"{what}: exists and is not a socket: expected a free name or a socket left over from a machine"
            " that ended; choose another path"
        )
    if is_served(path):
        raise BackendError(
            f"{what}: another process listens there: expected a free name; stop it, choose another path,"
            " or leave out ',server' to connect to it"
        )
    Path(path).unlink(missing_ok=True)


def _connect(family: socket.AddressFamily, address: Address, what: str) -> socket.socket:
    peer = socket.socket(family, socket.SOCK_STREAM)
    peer.settimeout(CONNECT_WAIT_S)
    try:
        peer.connect(address)
    except OSError as exc:
        peer.close()
        raise BackendError(
            f"{what}: nobody answers ({exc.strerror or exc}): expected a peer that listens; start the other"
            " side first, or add ',server' to make this the side that waits"
        ) from None
    return peer
