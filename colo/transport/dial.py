"""The dialling node's half of making a connection, and what both halves share.

::

    dialling node                                    listening node (colo.transport.listener)
       │  preamble P, [TLS], Hello(protocol) ─────────▶  │  compared: colo.transport.handshake
       │  ◀──────────────────────────── Welcome(token)   │
       │  preamble H, [TLS], Hello(heartbeat, token) ─▶  │  another socket, the same node
       │  ◀──────────────────────────── Welcome(token)   │
       │  preamble C, [TLS], Hello(companion, token) ─▶  │  a third
       │  ◀──────────────────────────── Welcome(token)   │
       │  the protocol on the first, Beats on the second,│
       │  the guest threads' words on the third          │

One attempt, with one time limit for all of it; whether there is another is for the caller to say.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace

from msgspec import structs

from colo.errors import PeerLost
from colo.messages import Channel, Hello
from colo.transport import address as addresses
from colo.transport import frames, handshake, heartbeat
from colo.transport.address import Address
from colo.transport.certs import Credentials
from colo.transport.frames import FrameSocket
from colo.transport.link import Connection, Link
from vmm.errors import ConfigError

DIAL_S = 10.0
BESIDE = (Channel.HEARTBEAT, Channel.COMPANION)
"""The connections that a node makes after the protocol's, in this order."""


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
                mine = structs.replace(hello, token=welcome.token)
                beside = await _dial_beside(address, link, mine, context, deadline)
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
    return Connection(link, beside, welcome, hello.interval_ms, silence_ms)


async def _dial_beside(
    address: Address, link: Link, hello: Hello, context: ssl.SSLContext | None, deadline: float
) -> dict[Channel, FrameSocket]:
    """To the very node that welcomed us: a name may have several addresses."""
    where = address
    if address.is_tcp:
        host, port = link.peer_name
        where = replace(address, host=host, port=port)
    made: dict[Channel, FrameSocket] = {}
    try:
        for channel in BESIDE:
            mine = structs.replace(hello, channel=channel)
            made[channel] = await _greet(where, address.host, mine, context, deadline)
    except BaseException:
        for each in made.values():
            each.close()
        raise
    return made


async def _greet(
    where: Address, host: str, hello: Hello, context: ssl.SSLContext | None, deadline: float
) -> FrameSocket:
    sock = await addresses.connect(where, hello.channel)

    def greet() -> FrameSocket:
        opened = FrameSocket.open(sock, context, deadline, host)
        with opened.closed_on_error():
            frames.introduce(opened, hello, deadline)
        return opened

    return await frames.in_thread(sock, greet)
