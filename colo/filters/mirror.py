"""``filter-mirror``: a copy of every frame to a stream socket, for whoever wants to compare or watch.

The framing is that of QEMU's ``net/filter-mirror.c``: be32 length, then with ``vnet_hdr_support`` the
be32 length of the virtio-net header, then the frame.  Without ``vnet_hdr_support`` the header is left
out, because a reader could not know that it is there (QEMU sends it all the same).

The guest never waits for a reader.  What the socket does not take waits here up to a limit, beyond it
copies are dropped and counted; while nobody is connected they are dropped, too.  Half a frame is never
followed by another one: a connection that breaks off begins anew with a whole frame.

Frames travel in the clear, so TCP is for this host's loopback only.  What the reader sends is ignored.
A mirror nearer to the card than the buffer that replication uses shows output that is not committed.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections import deque
from pathlib import Path

from colo.filters.chain import Filter, FilterSpec, Frame, Queue
from vmm.backends.net import OUTPUT_MAX, VNET_HEADER, is_served, unix_address
from vmm.clock import NEVER_NS
from vmm.errors import BackendError

RETRY_NS = 1_000_000
"""Virtual time after which a reader that was slow is tried again with no frame passing."""
CONNECT_WAIT_S = 1.0
"""Longest wait for a reader that is to be connected to, when the filter is added."""

_Address = str | tuple[str, int]


class Mirror(Filter):
    """Copies for one reader."""

    __slots__ = ("_listener", "_lock", "_queue", "_queued", "_reader", "_skip", "address", "copied")
    ticks = True

    def __init__(self, spec: FilterSpec, offloads: bool) -> None:
        super().__init__(spec)
        self.copied = 0
        self._skip = VNET_HEADER if offloads and not spec.vnet_hdr else 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._lock = threading.Lock()  # released frames come from another thread
        self._listener: socket.socket | None = None
        self._reader: socket.socket | None = None
        family, self.address = _parsed(spec.outdev)
        if spec.server:
            self._listener = _listen(family, self.address, spec.outdev)
            if family == socket.AF_INET:
                self.address = self._listener.getsockname()
        else:
            self._reader = _connect(family, self.address, spec.outdev)

    def keeps(self, frame: Frame, queue: Queue) -> bool:
        with self._lock:
            if self._reader is None and not self._accept():
                self.dropped += 1
            else:
                self._offer(frame[self._skip :])
        return False

    def tick(self, now_ns: int) -> int:
        if not self._queue:
            return NEVER_NS
        with self._lock:
            self._flush()
        return now_ns + RETRY_NS if self._queue else NEVER_NS

    def close(self) -> None:
        with self._lock:
            self._lose_reader()
            if self._listener is not None:
                self._listener.close()
                self._listener = None
                if isinstance(self.address, str):
                    Path(self.address).unlink(missing_ok=True)

    def _offer(self, frame: Frame) -> None:
        words = [len(frame)]
        if self.spec.vnet_hdr:
            words.append(0 if self._skip else min(VNET_HEADER, len(frame)))
        record = b"".join(word.to_bytes(4, "big") for word in words) + bytes(frame)
        if self._queued + len(record) > OUTPUT_MAX:
            self.dropped += 1
            return
        self._queue.append(record)
        self._queued += len(record)
        self._flush()

    def _flush(self) -> None:
        reader = self._reader
        try:
            while self._queue and reader is not None:
                first = self._queue[0]
                sent = reader.send(first, socket.MSG_NOSIGNAL)
                self._queued -= sent
                if sent < len(first):
                    self._queue[0] = first[sent:]
                    return
                self._queue.popleft()
                self.copied += 1
        except BlockingIOError:
            return
        except OSError:
            self._lose_reader()

    def _accept(self) -> bool:
        if self._listener is None:
            return False
        try:
            self._reader, _ = self._listener.accept()
        except OSError:  # nobody, or one who left before it was let in
            return False
        self._reader.setblocking(False)
        return True

    def _lose_reader(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._queued = 0
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _parsed(outdev: str) -> tuple[socket.AddressFamily, _Address]:
    """``unix:PATH`` or ``tcp:127.0.0.1:PORT``."""
    scheme, _, where = outdev.partition(":")
    if scheme == "unix" and where:
        return socket.AF_UNIX, unix_address(where, f"outdev={outdev}")
    found = re.fullmatch(r"(127(?:\.\d{1,3}){3}|localhost):(\d{1,5})", where) if scheme == "tcp" else None
    if found is not None and int(found[2]) <= 0xFFFF:
        return socket.AF_INET, ("127.0.0.1" if found[1] == "localhost" else found[1], int(found[2]))
    raise BackendError(
        f"outdev={outdev}: not an address for copies: expected unix:PATH or tcp:127.0.0.1:PORT, because"
        " frames travel in the clear"
    )


def _listen(family: socket.AddressFamily, address: _Address, outdev: str) -> socket.socket:
    if isinstance(address, str) and Path(address).is_socket() and not is_served(address):
        Path(address).unlink(missing_ok=True)  # left by somebody who died
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has another mode
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise BackendError(
            f"outdev={outdev}: cannot listen there ({exc.strerror}): expected a free address; use another"
        ) from None
    return listener


def _connect(family: socket.AddressFamily, address: _Address, outdev: str) -> socket.socket:
    reader = socket.socket(family, socket.SOCK_STREAM)
    reader.settimeout(CONNECT_WAIT_S)
    try:
        reader.connect(address)
    except OSError as exc:
        reader.close()
        raise BackendError(
            f"outdev={outdev}: nobody listens there ({exc.strerror or exc}): start the reader first, or add"
            " server=on to wait for one"
        ) from None
    reader.setblocking(False)
    return reader
