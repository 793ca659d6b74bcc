"""What a network back end is, and the words that choose one on the command line.

A back end carries Ethernet frames (IEEE 802.3, without preamble and FCS) between a network device
and the host.  It holds nothing that the guest can notice and never blocks the machine.

The run loop is single-threaded.  It polls ``fileno()`` for reading while the guest runs and sleeps
on it when the guest idles; when it is readable the loop calls ``receive()`` until that gives None.
Rules that keep the loop that short:

* ``fileno()`` is one number for the life of the back end.  Back ends whose sockets come and go
  (a peer that reconnects) or that wait for room to write put them behind an epoll descriptor of
  their own, which is itself pollable: "readable" then means "call ``receive()``, which does what
  is due".  -1 says that there is never input and nothing to poll.
* ``receive()`` reads no further than the frame that it returns, so what was not fetched yet stays
  in the kernel, readable.  While a guest has no buffers the loop stops polling the descriptor, and
  the sender is held back.
* ``transmit()`` sends at once, or keeps a copy up to a named limit, or drops and counts.

Frames are not padded to the Ethernet minimum of 60 bytes: that is the business of a wire, and
there is none.  Not modelled: link speed, collisions, pause frames, multicast filters.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol, runtime_checkable

from vmm.errors import BackendError, ConfigError

FRAME_MIN = 14
"""An Ethernet header: destination, source, type.  Anything shorter is not a frame."""
FRAME_MAX = 65550
"""The largest segment that an offloading guest hands over: 64 KiB behind an Ethernet header."""
VNET_HEADER = 12
"""Bytes of ``struct virtio_net_hdr_v1`` (virtio 1.2, section 5.1.6)."""
OUTPUT_MAX = 1 << 20
"""Bytes kept for one peer that does not read: 16 of the largest frames, about 700 ordinary ones."""
UNIX_PATH_MAX = 107
"""Bytes of a Unix socket address, ``sun_path`` without its final zero (unix(7))."""

UNPLUGGED = ("none", "none,offloads")
SPECS = "tap=NAME, stream=PATH[,server], stream=127.0.0.1:PORT[,server], hub=DIRECTORY or none[,offloads]"


class NetBackend(Protocol):
    """The host side of one network device."""

    @property
    def offloads(self) -> bool:
        """True: every frame, both ways, has a 12-byte ``virtio_net_hdr_v1`` in front."""

    @property
    def dropped(self) -> int:
        """Frames that were lost here, either way."""

    @property
    def pending_output(self) -> bool:
        """Some frames wait for the host; ``flush()`` or the next ``receive()`` tries again."""

    def fileno(self) -> int: ...

    def receive(self) -> bytes | None: ...

    def transmit(self, frame: bytes | memoryview) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class FrameDescriptor(Protocol):
    """A back end that is a descriptor and nothing more: each read(2) and writev(2) moves one frame, at once.

    With the header in front.  Whoever reads it himself has to ask what a frame of any size is.
    """

    @property
    def descriptor(self) -> int:
        """-1 when it has been closed."""

    def admitted(self, frame: bytes) -> bytes | None:
        """What was read, or None: it is no frame, and counted as lost."""


class Nowhere:
    """A cable plugged into nothing: ``none`` on the command line.

    ``none,offloads`` is for a card that will be plugged into a TAP later, in a snapshot resumed there.
    """

    __slots__ = ("dropped", "offloads")
    pending_output = False

    def __init__(self, offloads: bool = False) -> None:
        self.dropped = 0
        self.offloads = offloads

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        return None

    def transmit(self, frame: bytes | memoryview) -> None:
        self.dropped += 1

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def parse(spec: str) -> NetBackend:
    """The back end that ``spec`` asks for, opened."""
    # The back ends import the limits above, so they are imported only where they are made.
    from vmm.backends.hub import HubPort
    from vmm.backends.stream import Stream
    from vmm.backends.tap import Tap

    kind, equals, where = spec.partition("=")
    if kind in UNPLUGGED and not equals:
        return Nowhere(offloads=kind != "none")
    if kind == "tap" and where:
        return Tap(where)
    if kind == "hub" and where:
        return HubPort(where)
    address = where.removesuffix(",server")
    if kind == "stream" and address:
        return Stream(address, server=address != where)
    raise ConfigError(f"network {spec!r}: expected {SPECS}")


def is_frame(length: int) -> bool:
    """May a frame have this many bytes?"""
    return FRAME_MIN <= length <= FRAME_MAX


def unix_address(path: str, what: str) -> str:
    """``path``, if the kernel takes it as the address of a Unix socket."""
    size = len(os.fsencode(path))
    if size > UNIX_PATH_MAX or "\0" in path:
        raise BackendError(
            f"{what}: the socket path has {size} bytes: expected no zero byte and at most"
            f" {UNIX_PATH_MAX} bytes; use a shorter path, such as one in /run or /tmp"
        )
    return path


def is_served(path: str) -> bool:
    """Does a living process hold the Unix socket ``path``?

    A datagram connect leaves no trace at the other end: it succeeds, or fails with EPROTOTYPE for a
    stream socket, when somebody is there, and fails with ECONNREFUSED when the file is left over
    from a process that died.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        found = probe.connect_ex(path)
    return found not in (errno.ECONNREFUSED, errno.ENOENT)
