"""Where a node listens for its peer: ``unix:PATH`` or ``tcp:HOST:PORT``, and sockets to there.

Three connections go to one address: the protocol's, the heartbeat's and the companion's.  The first
eight bytes of each say which, in the clear and before TLS, because different code takes each over:
asyncio the protocol, a thread of its own the heartbeat, the guest's thread the companion.  They decide
nothing else; the Hello inside says it again.

A Unix socket has mode 0600 from the instant it exists.  TCP goes with mutual TLS only, which
:mod:`colo.transport.link` sees to.  Names are resolved by the host's resolver; of several addresses the first
that answers is taken.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from colo.errors import NetworkError, PeerLost
from colo.messages import Channel
from vmm.errors import ConfigError

PREAMBLES = {
    Channel.PROTOCOL: b"COLO/P\r\n",
    Channel.HEARTBEAT: b"COLO/H\r\n",
    Channel.COMPANION: b"COLO/C\r\n",
}
PREAMBLE_SIZE = 8

UNIX_PATH_MAX = 107
"""Bytes: ``sun_path`` of unix(7) without its final zero."""
UNIX_BUFFER = 4 << 20
"""Of an AF_UNIX socket: a batch of pages in one go, or some thousand words of the companion.  TCP's
buffers size themselves, and better."""
BACKLOG = 64
BACKLOG_WAIT_S = 0.01
"""Until a place in a full backlog is tried for again."""
LOW_DELAY = 0x10
"""IPTOS_LOWDELAY: a queueing host or switch lets pages wait for heartbeats, and for what clients wait for."""

TCP_FORM = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([^\[\]:\s]+)):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """One of the two kinds; ``path`` says which."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """ConfigError says what is wrong with ``text``."""
        kind, _, rest = text.partition(":")
        if kind == "unix":
            if not 0 < len(os.fsencode(rest)) <= UNIX_PATH_MAX or "\0" in rest:
                raise ConfigError(
                    f"address {text!r}: the path of a Unix socket has 1 to {UNIX_PATH_MAX} bytes;"
                    " choose another directory"
                )
            return cls(path=rest)
        found = TCP_FORM.fullmatch(rest)
        if kind != "tcp" or found is None or int(found[3]) > 0xFFFF:
            raise ConfigError(
                f"address {text!r}: expected unix:PATH or tcp:HOST:PORT (an IPv6 address in brackets)"
            )
        return cls(host=found[1] or found[2], port=int(found[3]))

    @property
    def is_tcp(self) -> bool:
        return not self.path

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


async def connect(address: Address, channel: Channel) -> socket.socket:
    """A connected non-blocking socket on which the preamble was sent; PeerLost with the reason."""
    loop = asyncio.get_running_loop()
    try:
        if not address.is_tcp:
            return await _connect(socket.AF_UNIX, address.path, channel)
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        for index, (family, _, _, _, where) in enumerate(found, 1):
            try:
                return await _connect(family, where, channel)
            except OSError:
                if index == len(found):
                    raise
    except OSError as exc:
        raise PeerLost(f"cannot connect: {exc.strerror or exc}; does a node listen there?") from None
    raise PeerLost("cannot connect: the name has no address")


async def _connect(family: int, where: object, channel: Channel) -> socket.socket:
    loop = asyncio.get_running_loop()
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        tune(made, channel)
        if family == socket.AF_UNIX:
            await _connect_unix(made, where)
        else:
            await loop.sock_connect(made, where)  # type: ignore[arg-type]
        await loop.sock_sendall(made, PREAMBLES[channel])
    except BaseException:
        made.close()
        raise
    return made


async def _connect_unix(made: socket.socket, where: object) -> None:
    """connect(2) is never under way here: it succeeds at once, or the listener's backlog is full."""
    while True:
        try:
            made.connect(where)  # type: ignore[arg-type]
            return
        except BlockingIOError:
            await asyncio.sleep(BACKLOG_WAIT_S)


async def read_preamble(made: socket.socket) -> Channel | None:
    """What the one who connected wants; None if that is no node of ours."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < PREAMBLE_SIZE:
        more = await loop.sock_recv(made, PREAMBLE_SIZE - len(data))
        if not more:
            return None
        data += more
    return next((channel for channel, preamble in PREAMBLES.items() if preamble == data), None)


def tune(made: socket.socket, channel: Channel) -> None:
    """Small frames go at once, large ones in one go, pages after everything else."""
    if made.family == socket.AF_UNIX:
        if channel is not Channel.HEARTBEAT:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)  # the kernel caps it
        return
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if channel is not Channel.PROTOCOL:
        level, name = socket.IPPROTO_IP, socket.IP_TOS
        if made.family == socket.AF_INET6:
            level, name = socket.IPPROTO_IPV6, socket.IPV6_TCLASS
        with suppress(OSError):  # a courtesy, which a host may forbid
            made.setsockopt(level, name, LOW_DELAY)


def listen(address: Address) -> tuple[socket.socket, Address]:
    """A non-blocking listener, and its address: with TCP port 0, the port that the kernel chose."""
    try:
        if not address.is_tcp:
            _remove_stale(address)
            return _listen_unix(address.path), address
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        made = socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
    except OSError as exc:
        raise NetworkError(
            f"cannot listen at {address}: {exc.strerror or exc}; stop whoever uses it, or choose another"
        ) from None
    made.setblocking(False)
    return made, replace(address, port=made.getsockname()[1])


def _listen_unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(made.fileno(), 0o600)  # before bind: the file never has another mode
        made.bind(path)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _remove_stale(address: Address) -> None:
    """Make way where an earlier node died without cleaning up."""
    path = Path(address.path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing there; if there is another obstacle, bind names it
    if not stat.S_ISSOCK(mode):
        raise NetworkError(f"cannot listen at {address}: a file that is no socket is there; choose another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(address.path)
    if code != errno.ECONNREFUSED:
        raise NetworkError(
            f"cannot listen at {address}: another process does; stop it, or choose another path"
        )
    path.unlink(missing_ok=True)
