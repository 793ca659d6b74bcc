"""The listening node's half of making a connection: lets peers in, and nobody else.

Whatever connects is given :data:`GREETING_S` for everything up to its last connection, and there are
:data:`CLIENTS_MAX` of them at most; one that is silent, slow, garbled or without a certificate is
dropped and counted, and the listener goes on.  A peer that does not fit is told why.

A heartbeat's connection and a companion's show the token of their protocol connection's Welcome, which is
random and good for each of them once: without TLS they still cannot be attached to somebody else's pair
by mistake.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections import deque
from pathlib import Path

from colo.errors import ColoError, PeerLost, ProtocolViolation, Refused
from colo.messages import Channel, Hello, Refusal, Welcome
from colo.transport import address as addresses
from colo.transport import frames, handshake, heartbeat
from colo.transport.address import Address
from colo.transport.certs import Credentials
from colo.transport.dial import BESIDE, tls_context
from colo.transport.frames import FrameSocket, why
from colo.transport.link import Connection, Link

GREETING_S = 5.0
"""From connecting to the last of the three: a few round trips and signatures."""
CLIENTS_MAX = 32
"""Who are being greeted at one time.  More are dropped: each costs a buffer, and some a thread."""
OUTCOMES_MAX = 8
"""Refusals that nobody asked for yet; older ones are forgotten."""
TOKEN_SIZE = 16
ACCEPT_PAUSE_S = 0.1
"""When the process has no descriptor left, until others end."""

Expected = dict[Channel, "asyncio.Future[FrameSocket]"]
"""The connections that a peer has yet to make, each good for once."""


class Listener:
    """Listens after :meth:`start`; ConfigError if it never could.

    ``mine`` is compared with each Hello and may be replaced at any time, as may ``busy``: why no peer
    is taken now, if so.
    """

    def __init__(
        self,
        address: Address,
        mine: Hello,
        credentials: Credentials | None = None,
        silence_ms: int = heartbeat.SILENCE_MS,
        greeting_s: float = GREETING_S,
    ) -> None:
        heartbeat.check_timing(mine.interval_ms, silence_ms)
        self.mine, self.silence_ms, self.greeting_s = mine, silence_ms, greeting_s
        self.busy: str | None = None
        self.turned_away = 0
        """Clients that were no peers of ours at all."""
        self.last_turned_away = ""
        self._context = tls_context(address, credentials, dialling=False)
        self.address = address
        self._socket: socket.socket | None = None
        self._tokens: dict[bytes, Expected] = {}
        self._outcomes: deque[Connection | Refused] = deque()
        self._arrival = asyncio.Event()
        self._closed = False
        self._greetings: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """NetworkError if nothing can be had at the address.  TCP port 0 becomes the one that was chosen."""
        self._socket, self.address = addresses.listen(self.address)
        asyncio.get_running_loop().add_reader(self._socket, self._let_in, self._socket)

    async def accept(self) -> Connection:
        """The next peer that fits.  Refused when one came that did not: call again for another."""
        while True:
            while not self._outcomes:
                if self._closed:
                    raise PeerLost(f"{self.address}: this node does not listen any more")
                self._arrival.clear()
                await self._arrival.wait()
            outcome = self._outcomes.popleft()
            if isinstance(outcome, Refused):
                raise outcome
            if outcome.lost is None:
                return outcome
            outcome.close()
            self._turn_away(f"a peer that left again: {outcome.lost}")

    async def close(self) -> None:
        """Stop listening; connections that accept() gave live on."""
        self._closed = True
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            if not self.address.is_tcp:
                Path(self.address.path).unlink(missing_ok=True)
        for task in self._greetings:
            task.cancel()
        if self._greetings:
            await asyncio.wait(self._greetings)
        while self._outcomes:
            outcome = self._outcomes.popleft()
            if isinstance(outcome, Connection):
                outcome.close()
                await outcome.link.wait_closed()
        self._arrival.set()

    # Clients, one task each.

    def _let_in(self, listening: socket.socket) -> None:
        """A client is there."""
        loop = asyncio.get_running_loop()
        try:
            client, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it is gone again
        except OSError as exc:
            self._turn_away(why(exc))
            loop.remove_reader(listening)
            loop.call_later(ACCEPT_PAUSE_S, self._listen_again, listening)
            return
        client.setblocking(False)
        if len(self._greetings) >= CLIENTS_MAX:
            client.close()
            self._turn_away(f"{CLIENTS_MAX} clients are being greeted already")
            return
        task = asyncio.create_task(self._greet(client))
        self._greetings.add(task)
        task.add_done_callback(lambda task: self._greeted(task, client))

    def _listen_again(self, listening: socket.socket) -> None:
        if self._socket is listening:
            asyncio.get_running_loop().add_reader(listening, self._let_in, listening)

    def _greeted(self, task: asyncio.Task[None], client: socket.socket) -> None:
        self._greetings.discard(task)
        if task.cancelled():  # perhaps before its first step
            client.close()

    async def _greet(self, client: socket.socket) -> None:
        deadline = time.monotonic() + self.greeting_s
        try:
            async with asyncio.timeout(self.greeting_s):
                match await self._preamble(client):
                    case Channel.PROTOCOL:
                        await self._greet_protocol(client)
                    case channel:
                        await self._greet_beside(client, channel, deadline)
        except TimeoutError:
            self._turn_away(f"a client did not end its greeting within {self.greeting_s:g} s")
        except ColoError as exc:
            self._turn_away(str(exc))

    async def _preamble(self, client: socket.socket) -> Channel:
        try:
            channel = await addresses.read_preamble(client)
            if channel is None:
                raise ProtocolViolation("a client that is no node of ours")
            addresses.tune(client, channel)
        except OSError as exc:
            client.close()
            raise PeerLost(why(exc)) from None
        except BaseException:
            client.close()
            raise
        return channel

    async def _greet_protocol(self, client: socket.socket) -> None:
        link = await Link.over(client, self._context)
        token = secrets.token_bytes(TOKEN_SIZE)
        loop = asyncio.get_running_loop()
        waiting: Expected = {channel: loop.create_future() for channel in BESIDE}
        try:
            theirs = await handshake.examine(link, self.mine, self._busy())
            self._tokens[token] = dict(waiting)
            await link.send(Welcome(self.mine.interval_ms, token))
            link.on_lost = lambda reason: _fail(waiting, reason)
            beside = {channel: await future for channel, future in waiting.items()}
        except Refused as exc:
            self._offer(exc)
            await link.finish()
            return
        except BaseException:
            link.close()
            _abandon(waiting)
            raise
        finally:
            self._tokens.pop(token, None)
        self._offer(Connection(link, beside, theirs, self.mine.interval_ms, self.silence_ms))

    async def _greet_beside(self, client: socket.socket, channel: Channel, deadline: float) -> None:
        if not self._tokens:  # nobody may cost a thread whom nobody announced
            client.close()
            raise ProtocolViolation(f"a {channel.value} without a protocol connection")
        waiting: asyncio.Future[FrameSocket] | None = None

        def examine() -> FrameSocket:
            nonlocal waiting
            opened = FrameSocket.open(client, self._context, deadline)
            with opened.closed_on_error():
                token = frames.examine(opened, channel, deadline).token
                waiting = self._tokens.get(token, {}).pop(channel, None)
                if waiting is None:
                    opened.send(Refusal(f"this {channel.value} belongs to no connection here"), deadline)
                    raise ProtocolViolation(f"a {channel.value} whose token belongs to no connection")
                opened.send(Welcome(self.mine.interval_ms, token), deadline)
            return opened

        opened = await frames.in_thread(client, examine)
        if waiting is None or waiting.done():
            opened.close()
        else:
            waiting.set_result(opened)

    def _busy(self) -> str | None:
        if any(isinstance(outcome, Connection) and outcome.lost is None for outcome in self._outcomes):
            return "another node was let in just before"
        return self.busy

    def _offer(self, outcome: Connection | Refused) -> None:
        refusals = sum(isinstance(each, Refused) for each in self._outcomes)
        if isinstance(outcome, Refused) and refusals >= OUTCOMES_MAX:
            self._turn_away(str(outcome))
            return
        self._outcomes.append(outcome)
        self._arrival.set()

    def _turn_away(self, reason: str) -> None:
        self.turned_away += 1
        self.last_turned_away = reason


def _fail(waiting: Expected, reason: str) -> None:
    for future in waiting.values():
        if not future.done():
            future.set_exception(PeerLost(reason))


def _abandon(waiting: Expected) -> None:
    """Some may have come just when the greeting was cancelled."""
    for future in waiting.values():
        if not future.cancel() and not future.cancelled() and future.exception() is None:
            future.result().close()
