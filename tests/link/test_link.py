"""The link between two nodes over real sockets: order, back-pressure, ends, and clients who misbehave."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from pathlib import Path

import pytest

from colo.errors import FrameError, PeerLost
from colo.messages import (
    BATCH_MAX,
    CheckpointRequest,
    Dissolve,
    Message,
    RamPages,
    VmstateReceived,
    VmstateSize,
    Welcome,
)
from colo.transport import wire
from colo.transport.link import UNSENT_MAX, Link
from colo.transport.wire import Encoder
from tests.link.support import World, lost, run, until

BATCH = RamPages(1, 1, bytes(range(256)) * (BATCH_MAX // 256))


# Messages


def test_messages_pass_both_ways_in_order(world: World) -> None:
    async def test() -> None:
        words: list[Message] = [
            CheckpointRequest(1),
            BATCH,
            VmstateSize(1, b"", 1, {"a": bytes(5 << 20)}, []),
        ]
        async with world.pair() as (near, far):

            async def talk(link: Link) -> list[Message]:
                async def say() -> None:
                    for word in words:
                        await link.send(word)

                saying = asyncio.create_task(say())
                heard = [await link.receive() for _ in words]
                await saying
                return heard

            assert list(await asyncio.gather(talk(near.link), talk(far.link))) == [words, words]
            assert near.link.bytes_sent == far.link.bytes_received > BATCH_MAX
            assert far.link.bytes_sent == near.link.bytes_received > BATCH_MAX

    run(test())


def test_several_tasks_send_whole_frames(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):

            async def say(epoch: int) -> None:
                for _ in range(4):
                    await near.link.send(RamPages(epoch, 1, bytes([epoch]) * (BATCH_MAX // 2)))
                    await near.link.send(CheckpointRequest(epoch))

            saying = [asyncio.create_task(say(epoch)) for epoch in range(4)]
            heard = [await far.link.receive() for _ in range(4 * 4 * 2)]
            await asyncio.gather(*saying)
            assert sum(isinstance(word, RamPages) for word in heard) == 16
            assert all(set(word.data) == {word.epoch} for word in heard if isinstance(word, RamPages))

    run(test())


def test_a_sender_that_is_too_fast_waits(world: World) -> None:
    """Little is held here, whoever the slow one is; and closing wakes the sender."""

    async def test() -> None:
        async with world.pair() as (near, far):
            sending = asyncio.create_task(send_for_ever(near.link))
            seen = [0]

            def stalled() -> bool:
                seen.append(near.link.bytes_sent)
                return len(seen) > 200 and seen[-200] == seen[-1] > UNSENT_MAX

            await until(stalled)
            assert near.link._transport is not None
            assert near.link._transport.get_write_buffer_size() < 3 * UNSENT_MAX
            assert far.link._decoder.waiting <= 2 * wire.CAPACITY_KEPT
            near.link.close("enough")
            with pytest.raises(PeerLost, match="enough"):
                await sending

    run(test())


async def collect(link: Link, heard: list[Message]) -> None:
    while True:
        heard.append(await link.receive())


async def send_for_ever(link: Link) -> None:
    while True:
        await link.send(BATCH)


# Ends


def test_close_wakes_who_receives_and_ends_the_other_side(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            receiving = asyncio.create_task(lost(near.link))
            await asyncio.sleep(0)
            near.link.close()
            assert await receiving == "closed here"
            assert "closed" in await lost(far.link) or "reset" in await lost(far.link)
            for link in (near.link, far.link):
                with pytest.raises(PeerLost):
                    await link.send(CheckpointRequest(1))
                with pytest.raises(PeerLost):
                    await link.receive()

    run(test())


def test_close_from_another_thread(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, _):
            thread = threading.Thread(target=near.link.close_threadsafe, args=("by another thread",))
            receiving = asyncio.create_task(lost(near.link))
            thread.start()
            assert await receiving == "by another thread"
            thread.join()

    run(test())


def test_what_was_said_before_closing_is_heard(world: World) -> None:
    """Even when the other side was talking all the time, which makes TCP reset the connection."""

    async def test() -> None:
        async with world.pair() as (near, far):
            await far.link.send(CheckpointRequest(1))

            async def last_words() -> None:
                for _ in range(5):
                    await near.link.send(BATCH)
                await near.link.send(Dissolve("quit"))
                await near.finish()

            finishing = asyncio.create_task(last_words())
            heard = [await far.link.receive() for _ in range(6)]
            assert heard[-1] == Dissolve("quit")
            assert far.lost is None, "the heartbeat went on meanwhile"
            far.close()
            await finishing

    run(test())


def test_both_may_take_their_leave_at_once(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            for each in (near, far):
                await each.link.send(Dissolve("quit"))
            await asyncio.gather(near.finish(), far.finish())
            assert near.lost is far.lost is None

    run(test())


def test_losing_either_channel_closes_both_and_tells_once(world: World) -> None:
    async def test() -> None:
        for channel in ("link", "heartbeat"):
            async with world.pair() as (near, far):
                told: list[str] = []
                near.watch(told.append)
                getattr(far, channel).close()
                await until(lambda: near.lost)
                assert await lost(near.link)
                await until(lambda near=near: not near.heartbeat._thread.is_alive())
                assert told == [near.lost]
                near.watch(told.append)
                assert told == [near.lost] * 2, "a late watcher is told at once"

    run(test())


def test_closing_is_no_loss(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, _):
            told: list[str] = []
            near.watch(told.append)
            near.close()
            await near.link.wait_closed()
            assert (told, near.lost) == ([], None)

    run(test())


def test_a_frame_cut_short_is_a_lost_peer(tmp_path: Path) -> None:
    """At every byte of a conversation: whole messages, then PeerLost, and never a wait."""
    encoder = Encoder()
    words: list[Message] = [Welcome(50, bytes(16)), RamPages(1, 1, bytes(100)), VmstateReceived(1)]
    data = b"".join(encoder.frame(word) for word in words)

    async def test() -> None:
        for size in range(len(data) + 1):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            link = await Link.over(ours, None)
            theirs.sendall(data[:size])
            theirs.close()
            heard: list[Message] = []
            with pytest.raises(PeerLost) as caught:
                await collect(link, heard)
            assert heard == words[: len(heard)]
            whole = sum(len(Encoder().frame(word)) for word in heard) == size
            assert ("in the middle of a frame" in str(caught.value)) != whole
            link.close()
            await link.wait_closed()

    run(test())


def test_a_damaged_frame_closes_the_link(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            assert near.link._transport is not None
            near.link._transport.write(b"x" * 100)
            with pytest.raises(FrameError, match="where a frame begins"):
                await far.link.receive()
            assert "where a frame begins" in await lost(far.link)
            await lost(near.link)

    run(test())


def test_a_reset_is_a_lost_peer() -> None:
    async def test() -> None:
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.setblocking(False)
        link = await Link.over(accepted, None)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.close()
        assert await lost(link) == "the peer reset the connection"
        await link.wait_closed()

    run(test())
