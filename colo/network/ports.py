"""Published ports: which port of the host leads to which port of the guest, and their sockets.

The listening socket is made here, in the host's network namespace, and inherited by the holder, which
lives in the pair's.  A socket belongs to the namespace that it was made in, so the holder accepts
clients of the host with it and connects to the guest with sockets of its own (network_namespaces(7)).

Ports listen on 127.0.0.1 unless an address is given: whoever may connect speaks to the guest, without
password and encryption of ours.

Not modelled: UDP, Unix sockets, port ranges.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from colo.errors import NetworkError

LOOPBACK = "127.0.0.1"
PORT_MAX = 0xFFFF
BACKLOG = 128
"""Clients that may wait until the holder comes round to them, milliseconds at most."""
_LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp, proc(5)."""


@dataclass(frozen=True, slots=True)
class Publish:
    """One published port.  ``host_port`` 0: any free one; ``Network.published`` says which."""

    host_port: int
    guest_port: int
    host: str = LOOPBACK

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.host_port}"

    @classmethod
    def parse(cls, text: str) -> Publish:
        """``PORT``, ``HOST-PORT:GUEST-PORT`` or ``ADDRESS:HOST-PORT:GUEST-PORT``."""
        *host, port, guest = text.rsplit(":", 2) if ":" in text else (text, text)
        try:
            made = cls(int(port), int(guest), *(name.strip("[]") for name in host))
        except ValueError:
            raise _malformed(text) from None
        if not (0 <= made.host_port <= PORT_MAX and 0 < made.guest_port <= PORT_MAX and made.host):
            raise _malformed(text)
        return made


def published(wanted: Sequence[Publish | tuple[int, int]]) -> list[Publish]:
    """Pairs of numbers made Publish."""
    return [item if isinstance(item, Publish) else Publish(*item) for item in wanted]


def listen(ports: Sequence[Publish]) -> list[tuple[Publish, socket.socket]]:
    """A listening socket for each, or none at all."""
    opened: list[tuple[Publish, socket.socket]] = []
    try:
        for port in ports:
            listener = _listen(port)
            opened.append((replace(port, host_port=listener.getsockname()[1]), listener))
    except BaseException:
        for _, listener in opened:
            listener.close()
        raise
    return opened


def _listen(port: Publish) -> socket.socket:
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((port.host, port.host_port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise NetworkError(f"publishing {port}: {_why_refused(exc, port)}") from None
    return listener


def _why_refused(exc: OSError, port: Publish) -> str:
    another = f"--publish {port.host_port + 10000 if port.host_port < 50000 else 0}:{port.guest_port}"
    match exc.errno:
        case errno.EADDRINUSE:
            user = _user_of(port.host_port)
            return f"in use by {user}: expected a free port; stop it, or choose another: {another}"
        case errno.EACCES | errno.EPERM:
            return f"not permitted: ports below 1024 are root's; choose another: {another}"
        case errno.EADDRNOTAVAIL:
            return "not an address of this host: expected one, or none for 127.0.0.1 (ip address lists them)"
    return f"cannot be listened on ({exc.strerror or exc}): expected ADDRESS:HOST-PORT:GUEST-PORT"


def _malformed(text: str) -> NetworkError:
    return NetworkError(
        f"publishing {text!r}: not a published port: expected PORT, HOST-PORT:GUEST-PORT or"
        " ADDRESS:HOST-PORT:GUEST-PORT, for example --publish 6379"
    )


def _user_of(port: int) -> str:
    """The process that listens on a TCP port, in words."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    # Processes of other users, or that end while we look, are passed over.
    for process in sorted(Path("/proc").glob("[0-9]*")):
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(link) in wanted:  # noqa: PTH115 - a text, no path
                        return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return f"another program (as root: ss -ltnp sport = {port})"


def _listening_inodes(port: int) -> list[str]:
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # no IPv6
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(fields[9])
    return found
