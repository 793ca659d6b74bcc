"""How the guest threads' connection ends: by the peer, by a loss, by this node; and what is received then."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import threading
from collections.abc import Callable

import pytest

from colo.errors import PeerLost
from colo.messages import Message
from colo.transport.companion import Companion
from colo.transport.frames import FrameSocket
from tests.link.companions import end, hear, said
from tests.link.support import LIMIT_S, World, lost, run, until


def test_the_end_of_the_companion_is_a_loss_after_all_that_came(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            told: list[str] = []
            near.watch(told.append)
            words: list[Message] = [said(number) for number in range(5)]
            assert far.companion.send_all(words)
            far.companion.close()
            heard, reason = await end(near.companion)
            assert heard == words
            assert told == [near.lost] == [reason]
            assert await lost(near.link) == reason
            await until(lambda: not near.heartbeat._thread.is_alive())
            with pytest.raises(PeerLost):
                near.companion.send(said(1))
            await lost(far.link)
            assert len(told) == 1

    run(test())


def test_what_came_is_received_when_nothing_can_be_sent_any_more(world: World) -> None:
    """A peer that was killed: a send finds it out first."""

    async def test() -> None:
        async with world.pair() as (near, far):
            words: list[Message] = [said(number) for number in range(5)]
            assert far.companion.send_all(words)
            far.companion.close()

            def find_out() -> bool:
                try:
                    near.companion.send(said(0))
                except PeerLost:
                    return True
                return False

            await until(find_out)
            assert near.lost
            assert (await end(near.companion))[0] == words

    run(test())


def test_what_came_is_received_when_the_peer_died_with_words_unread(world: World) -> None:
    """The kernel then resets the connection instead of ending it, which TLS may not tell apart."""

    async def test() -> None:
        async with world.pair() as (near, far):
            words: list[Message] = [said(number) for number in range(5)]
            assert near.companion.send(said(0))
            await until(lambda: select.select([far.companion], [], [], 0)[0])
            assert far.companion.send_all(words)
            far.companion._sock.close()
            heard, reason = await end(near.companion)
            assert heard == words
            assert "reset" in reason or (world.credentials and "closed" in reason)

    run(test())


def test_a_loss_of_the_others_leaves_what_came(world: World) -> None:
    async def test() -> None:
        for channel in ("link", "heartbeat"):
            async with world.pair() as (near, far):
                words: list[Message] = [said(number) for number in range(5)]
                assert far.companion.send_all(words)
                getattr(far, channel).close()
                await until(lambda near=near: near.lost)
                await lost(near.link)
                near.companion.shut()
                assert (await end(near.companion))[0] == words

    run(test())


def test_shut_ends_both_directions_and_keeps_what_came(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            told: list[str] = []
            near.watch(told.append)
            words: list[Message] = [said(number, 3000) for number in range(20)]
            assert far.companion.send_all(words)
            heard = await hear(near.companion, 1)
            assert near.companion.send(said(1))
            near.companion.shut("this node goes on alone")
            with pytest.raises(PeerLost, match="this node goes on alone"):
                near.companion.send(said(2))
            with pytest.raises(PeerLost, match="this node goes on alone"):
                near.companion.flush()
            rest, reason = await end(near.companion)
            assert reason.startswith("this node goes on alone")
            assert heard + rest == (words if near.companion.held_on_send else words[: len(heard + rest)])
            assert told == [], "what a node ends itself is no loss"

            assert await end(far.companion) == ([said(1)], far.lost)
            with pytest.raises(PeerLost):
                far.companion.send(said(3))

    run(test())


def test_a_peer_that_talks_on_cannot_keep_a_survivor_listening(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            heard_by_peer: list[str] = []

            def talk() -> None:
                try:
                    while True:
                        far.companion.send(said(0, 3000))
                        if far.companion.backlog:
                            select.select([], [far.companion], [])
                except PeerLost as exc:
                    heard_by_peer.append(str(exc))

            thread = threading.Thread(target=talk)
            thread.start()
            await hear(near.companion, 20)
            near.companion.shut()
            rest, reason = await end(near.companion)
            assert all(word == said(0, 3000) for word in rest)
            assert reason.startswith("shut here")
            await until(lambda: not thread.is_alive())
            assert heard_by_peer == [far.lost]

    run(test())


def test_a_fenced_peer_on_a_unix_socket_cannot_say_a_word_more() -> None:
    ours, theirs = socket.socketpair()
    losses: list[str] = []
    near, far = Companion(FrameSocket(ours), losses.append), Companion(FrameSocket(theirs), losses.append)
    assert far.send(said(1))
    near.shut()
    with pytest.raises(PeerLost, match="the peer reset the connection"):
        far.send(said(2))
    assert run(end(near)) == ([said(1)], "shut here")
    assert losses == ["the peer reset the connection"]


def test_closing_is_no_loss_and_drops_what_came(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            told: list[str] = []
            near.watch(told.append)
            assert far.companion.send_all([said(1), said(2)])
            await hear(near.companion, 1)
            near.close("enough")
            for use in (near.companion.receive, near.companion.flush, lambda: near.companion.send(said(1))):
                with pytest.raises(PeerLost, match="enough"):
                    use()
            near.companion.close()
            near.companion.shut()
            assert (told, near.lost) == ([], None)
            await end(far.companion)

    run(test())


def test_both_may_take_their_leave(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            await asyncio.gather(near.finish(), far.finish())
            for each in (near, far):
                assert each.lost is None
                with pytest.raises(PeerLost, match="closed here"):
                    each.companion.receive()

    run(test())


@pytest.mark.parametrize("ending", ["shut", "close"])
def test_a_thread_that_polls_it_is_woken_by_the_end(world: World, ending: str) -> None:
    """And the number that it polls stays this connection's as long as anybody has the object."""

    async def test() -> None:
        async with world.pair() as (near, _):
            companion, waiting, reasons = near.companion, threading.Event(), []
            descriptor = companion.fileno()

            def guest() -> None:
                poll = select.epoll()
                poll.register(companion, select.EPOLLIN)
                waiting.set()
                while not reasons and poll.poll(LIMIT_S):
                    listen(companion.receive, reasons)
                poll.unregister(descriptor)
                poll.close()

            thread = threading.Thread(target=guest)
            thread.start()
            await until(waiting.is_set)
            getattr(companion, ending)("over")
            await until(lambda: not thread.is_alive())
            assert reasons == ["over"]
            assert companion.fileno() == descriptor

    run(test())


def listen(receive: Callable[[], Message | None], reasons: list[str]) -> None:
    try:
        while receive() is not None:
            continue
    except PeerLost as exc:
        reasons.append(str(exc))


def test_the_descriptor_goes_with_the_object() -> None:
    ours, theirs = socket.socketpair()
    companion = Companion(FrameSocket(ours), lambda reason: None)
    descriptor = companion.fileno()
    del ours
    companion.close()
    os.fstat(descriptor)
    del companion
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    theirs.close()
