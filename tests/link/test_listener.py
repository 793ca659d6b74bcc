"""Clients of a listening node who are no peers: it tells, drops and outlives them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from colo.errors import ColoError, PeerLost
from colo.messages import (
    Channel,
    CheckpointRequest,
)
from colo.transport import address as addresses
from colo.transport import handshake
from colo.transport.address import Address
from colo.transport.link import Link
from colo.transport.listener import CLIENTS_MAX
from colo.transport.wire import Decoder, Encoder
from tests.link.support import World, closed, hello, lost, raw, run, shut, still_accepts, until


def test_a_listener_survives_bad_clients(world: World) -> None:
    frame = bytes(Encoder().frame(hello()))
    protocol, beats = addresses.PREAMBLES[Channel.PROTOCOL], addresses.PREAMBLES[Channel.HEARTBEAT]
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


def test_a_peer_without_heartbeat_is_dropped(world: World) -> None:
    async def test() -> None:
        async with world.listener(greeting_s=0.5) as listener:
            sock = await addresses.connect(listener.address, Channel.PROTOCOL)
            context = world.credentials.client if world.credentials else None
            link = await Link.over(sock, context, "localhost")
            await handshake.introduce(link, hello())
            assert await lost(link)
            await link.wait_closed()
            assert "within 0.5 s" in listener.last_turned_away
            await still_accepts(world, listener)

    run(test())


def test_a_heartbeat_with_another_token_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        world = World(Address.parse(f"unix:{tmp_path}/s"), None)
        async with world.listener(greeting_s=1.0) as listener:
            client = await raw(listener, addresses.PREAMBLES[Channel.PROTOCOL] + Encoder().frame(hello()))
            await until(lambda: listener._tokens)
            intruder = await raw(listener, addresses.PREAMBLES[Channel.HEARTBEAT])
            shown = Encoder().frame(hello(channel=Channel.HEARTBEAT, token=bytes(16)))
            loop, decoder = asyncio.get_running_loop(), Decoder()
            await loop.sock_sendall(intruder, shown)
            while (said := decoder.next()) is None:
                decoder.feed(await loop.sock_recv(intruder, 1000))
            assert "belongs to no connection" in str(said)
            assert await closed(intruder)
            assert await closed(client)
            client.close()
            intruder.close()
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
