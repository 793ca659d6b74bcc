"""Clients of a listening node who are no peers: it tells, drops and outlives them."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress

import pytest

from colo.errors import ColoError, PeerLost, Refused
from colo.messages import Channel, CheckpointRequest, Said, Welcome
from colo.transport import address as addresses
from colo.transport import frames, handshake
from colo.transport.dial import BESIDE
from colo.transport.frames import FrameSocket
from colo.transport.link import Connection, Link
from colo.transport.listener import CLIENTS_MAX, Listener
from colo.transport.wire import Encoder
from tests.link.support import (
    LIMIT_S,
    PATIENT_MS,
    World,
    closed,
    hello,
    lost,
    raw,
    run,
    shut,
    still_accepts,
    until,
)


async def half_way(world: World, listener: Listener) -> tuple[Link, bytes]:
    """A peer that was welcomed, and its token; it made no other connection yet."""
    sock = await addresses.connect(listener.address, Channel.PROTOCOL)
    link = await Link.over(sock, world.credentials.client if world.credentials else None, "localhost")
    return link, (await handshake.introduce(link, hello())).token


async def connect_beside(
    world: World, listener: Listener, channel: Channel, token: bytes, says: Channel | None = None
) -> FrameSocket:
    """As a dialling node makes its other connections."""
    sock = await addresses.connect(listener.address, channel)
    deadline = time.monotonic() + LIMIT_S

    def greet() -> FrameSocket:
        context = world.credentials.client if world.credentials else None
        opened = FrameSocket.open(sock, context, deadline, "localhost")
        with opened.closed_on_error():
            frames.introduce(opened, hello(channel=says or channel, token=token), deadline)
        return opened

    return await frames.in_thread(sock, greet)


async def closed_frames(opened: FrameSocket) -> bool:
    """Waits for the other end to close it."""

    def read() -> bool:
        with opened.sock, suppress(ConnectionResetError):
            return not opened.sock.recv(65536)
        return True

    return await asyncio.to_thread(read)


def test_a_listener_survives_bad_clients(world: World) -> None:
    frame = bytes(Encoder().frame(hello()))
    protocol, beats, companion = (addresses.PREAMBLES[channel] for channel in Channel)
    bad = [
        b"GET / HTTP/1.1\r\n\r\n",
        protocol + b"\0" * 100,
        protocol + b"COLO" + b"\xff" * 100,
        protocol + frame[:-1] + b"\0",
        protocol + frame + frame,
        protocol + bytes(Encoder().frame(CheckpointRequest(1))),
        protocol + bytes(Encoder().frame(hello(channel=Channel.HEARTBEAT))),
        beats + frame,
        beats + b"\0" * 100,
        companion + frame,
        companion + bytes(Encoder().frame(hello(channel=Channel.HEARTBEAT))),
    ]

    async def test() -> None:
        async with world.listener(greeting_s=0.5) as listener:
            for number, data in enumerate(bad, 1):
                client = await raw(listener, data)
                assert await closed(client)
                client.close()
                await until(lambda number=number: listener.turned_away == number)
                assert listener.last_turned_away
            await still_accepts(world, listener)

    run(test())


def test_a_listener_survives_clients_that_leave_at_any_byte(world: World) -> None:
    data = addresses.PREAMBLES[Channel.PROTOCOL] + bytes(Encoder().frame(hello()))

    async def test() -> None:
        async with world.listener() as listener:
            for size in range(len(data)):
                (await raw(listener, data[:size])).close()
            await until(lambda: listener.turned_away == len(data))
            await still_accepts(world, listener)

    run(test())


def test_silent_and_slow_clients_are_dropped_in_time(world: World) -> None:
    """And do not keep a peer out meanwhile."""

    async def drip(client: socket.socket, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        with suppress(BrokenPipeError, ConnectionResetError):  # what the test waits for
            for at in range(len(data)):
                await loop.sock_sendall(client, data[at : at + 1])
                await asyncio.sleep(0.05)
            raise AssertionError("it was heard to the end")

    async def test() -> None:
        preamble = addresses.PREAMBLES[Channel.PROTOCOL]
        async with world.listener(greeting_s=1.0) as listener:
            starts = (b"", preamble[:3], preamble, preamble + b"COLO")
            silent = [await raw(listener, start) for start in starts]
            slow = await raw(listener)
            dripping = asyncio.create_task(drip(slow, preamble + bytes(Encoder().frame(hello()))))
            await still_accepts(world, listener)
            for client in silent:
                assert await closed(client)
                client.close()
            await dripping
            slow.close()
            assert listener.turned_away == len(starts) + 1
            assert "within 1 s" in listener.last_turned_away

    run(test())


def test_more_clients_than_are_greeted_at_once_are_dropped(world: World) -> None:
    async def test() -> None:
        async with world.listener() as listener:
            clients = [await raw(listener) for _ in range(CLIENTS_MAX)]
            await until(lambda: len(listener._greetings) == CLIENTS_MAX)
            late = await raw(listener)
            assert await closed(late)
            for client in (*clients, late):
                client.close()
            await until(lambda: not listener._greetings)
            await still_accepts(world, listener)

    run(test())


@pytest.mark.parametrize("made", [(), (Channel.HEARTBEAT,), (Channel.COMPANION,)], ids=str)
def test_a_peer_that_does_not_make_every_connection_is_dropped(
    world: World, made: tuple[Channel, ...]
) -> None:
    async def test() -> None:
        async with world.listener(greeting_s=0.5) as listener:
            link, token = await half_way(world, listener)
            beside = [await connect_beside(world, listener, channel, token) for channel in made]
            assert await lost(link)
            await link.wait_closed()
            for each in beside:
                assert await closed_frames(each)
            await until(lambda: "within 0.5 s" in listener.last_turned_away)
            assert not listener._tokens
            await still_accepts(world, listener)

    run(test())


def test_the_connections_may_come_in_any_order(world: World) -> None:
    async def test() -> None:
        async with world.listener() as listener:
            link, token = await half_way(world, listener)
            beside = {
                channel: await connect_beside(world, listener, channel, token) for channel in reversed(BESIDE)
            }
            far = await listener.accept()
            near = Connection(link, beside, Welcome(50, token), 50, PATIENT_MS)
            assert near.companion.send(Said(1, []))
            await until(lambda: far.companion.receive() == Said(1, []))
            await until(lambda: far.heartbeat.beats and near.heartbeat.beats)
            await shut(near, far)

    run(test())


@pytest.mark.parametrize("channel", BESIDE, ids=str)
def test_a_token_is_good_for_each_connection_once(world: World, channel: Channel) -> None:
    async def test() -> None:
        async with world.listener(greeting_s=1.0) as listener:
            link, token = await half_way(world, listener)
            first = await connect_beside(world, listener, channel, token)
            with pytest.raises(Refused, match=f"this {channel.value} belongs to no connection here"):
                await connect_beside(world, listener, channel, token)
            expected = f"a {channel.value} whose token belongs to no connection"
            await until(lambda: listener.last_turned_away == expected)
            link.close()
            assert await closed_frames(first)
            await still_accepts(world, listener)

    run(test())


@pytest.mark.parametrize("channel", BESIDE, ids=str)
def test_a_connection_with_another_token_is_refused(world: World, channel: Channel) -> None:
    async def test() -> None:
        async with world.listener(greeting_s=1.0) as listener:
            link, _ = await half_way(world, listener)
            with pytest.raises(Refused, match=f"this {channel.value} belongs to no connection here"):
                await connect_beside(world, listener, channel, bytes(16))
            assert await lost(link)
            await link.wait_closed()
            await still_accepts(world, listener)

    run(test())


@pytest.mark.parametrize("channel", BESIDE, ids=str)
def test_a_connection_that_says_it_is_another_is_dropped(world: World, channel: Channel) -> None:
    """The Hello must say what the preamble said."""

    async def test() -> None:
        async with world.listener() as listener:
            link, token = await half_way(world, listener)
            (other,) = set(BESIDE) - {channel}
            with pytest.raises(PeerLost):
                await connect_beside(world, listener, channel, token, says=other)
            expected = f"expected a Hello for {channel.value}, the peer sent one for {other.value}"
            await until(lambda: listener.last_turned_away == expected)
            link.close()
            await still_accepts(world, listener)

    run(test())


def test_a_second_peer_is_told_that_the_node_is_busy(world: World) -> None:
    async def test() -> None:
        async with world.listener() as listener:
            near, far = await asyncio.gather(world.dial(listener), listener.accept())
            listener.busy = "it follows another primary"
            with pytest.raises(ColoError, match="the other node refused: it follows another primary"):
                await world.dial(listener)
            with pytest.raises(ColoError, match="it follows another primary"):
                await listener.accept()
            await near.link.send(CheckpointRequest(3))
            assert await far.link.receive() == CheckpointRequest(3)
            await shut(near, far)

    run(test())


def test_a_peer_that_left_before_it_was_accepted_is_passed_over(world: World) -> None:
    async def test() -> None:
        async with world.listener() as listener:
            gone = await world.dial(listener)
            await until(lambda: listener._outcomes)
            await shut(gone)
            await until(lambda: getattr(listener._outcomes[0], "lost", None))
            await still_accepts(world, listener)

    run(test())


def test_closing_a_listener_ends_who_waits_and_leaves_connections(world: World) -> None:
    async def test() -> None:
        async with world.listener() as listener:
            near, far = await asyncio.gather(world.dial(listener), listener.accept())
            unclaimed = await world.dial(listener)
            half = await raw(listener, addresses.PREAMBLES[Channel.PROTOCOL])
            await until(lambda: listener._greetings)
            await listener.close()
            with pytest.raises(PeerLost, match="does not listen any more"):
                await listener.accept()
            assert await closed(half)
            half.close()
            assert await lost(unclaimed.link)
            await near.link.send(CheckpointRequest(1))
            assert await far.link.receive() == CheckpointRequest(1)
            await shut(near, far, unclaimed)
            with pytest.raises(PeerLost, match="cannot connect"):
                await world.dial(listener)

    run(test())
