"""The guest threads' connection: its words, what the kernel does not take, and damage."""

from __future__ import annotations

import asyncio
import select

import pytest

from colo.errors import FrameError, PeerLost, ProtocolViolation
from colo.messages import INPUTS_MAX, Beat, CheckpointRequest, Message, Progress, Said
from colo.transport import wire
from colo.transport.companion import BACKLOG_MAX
from colo.transport.wire import Encoder
from tests.link.companions import bare, end, fill, hear, said
from tests.link.support import World, lost, run, until

TOO_LONG = Said(0, [("net0", bytes(1 << 17))] * 16)
"""More than a companion takes, in a message that is within its declaration."""


# Words


def test_words_pass_both_ways_in_order(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            words: list[Message] = [said(1), Progress(1, 2, 3), said(2, 100_000), said(3)]
            for one, other in ((near.companion, far.companion), (far.companion, near.companion)):
                assert other.receive() is None
                assert one.send(words[0])
                assert one.send_all(words[1:])
                assert one.send_all([])
                assert await hear(other, len(words)) == words
                assert other.receive() is None
            assert near.lost is far.lost is None

    run(test())


def test_only_a_unix_socket_holds_what_it_took(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            assert near.companion.held_on_send == far.companion.held_on_send == (world.credentials is None)

    run(test())


def test_what_the_kernel_does_not_take_waits_in_order(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            words = fill(near.companion)
            waiting = near.companion.backlog
            assert 0 < waiting
            assert not near.companion.flush()
            assert near.companion.backlog == waiting
            more: list[Message] = [said(number, 300) for number in range(10)]
            assert not near.companion.send(more[0])
            assert not near.companion.send_all(more[1:])
            assert near.companion.backlog > waiting + 10 * 300
            hearing = asyncio.create_task(hear(far.companion, len(words + more)))
            await until(near.companion.flush)
            assert await hearing == words + more
            assert near.companion.backlog == 0
            assert near.companion.send(said(1))

    run(test())


def test_both_may_be_full_and_talk_on(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            first, second = fill(near.companion), fill(far.companion)
            hearing = hear(near.companion, len(second)), hear(far.companion, len(first))
            flushing = until(near.companion.flush), until(far.companion.flush)
            heard = await asyncio.gather(*hearing, *flushing)
            assert heard[:2] == [second, first]

    run(test())


def test_a_peer_that_does_not_read_is_lost(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            fill(near.companion)

            def say_on() -> None:
                while True:
                    assert near.companion.backlog <= BACKLOG_MAX
                    near.companion.send(said(0, 100_000))

            with pytest.raises(PeerLost, match="the peer does not read"):
                say_on()
            assert near.companion.backlog == 0
            assert near.lost is not None
            assert near.lost.startswith("the peer does not read")
            assert "the peer does not read" in await lost(near.link)
            await lost(far.link)

    run(test())


def test_everything_that_came_is_found_without_another_poll(world: World) -> None:
    """TLS reads more than it gives: the descriptor is not ready any more, and words are here."""

    async def test() -> None:
        async with world.pair() as (near, far):
            words: list[Message] = [said(number, 3000) for number in range(60)]
            assert near.companion.send_all(words)
            heard: list[Message] = []

            def all_of_it() -> bool:
                if select.select([far.companion], [], [], 0)[0]:
                    while (message := far.companion.receive()) is not None:
                        heard.append(message)
                return len(heard) == len(words)

            await until(all_of_it)
            assert heard == words

    run(test())


def test_a_word_that_is_too_long_is_not_said_and_others_are(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            with pytest.raises(FrameError, match="a frame has"):
                near.companion.send(TOO_LONG)
            with pytest.raises(FrameError, match="a frame has"):
                near.companion.send_all([said(0), TOO_LONG])
            assert near.companion.send(said(1))
            assert await hear(far.companion, 1) == [said(1)]
            assert near.lost is None

    run(test())


def test_the_longest_word_passes(world: World) -> None:
    async def test() -> None:
        async with world.pair() as (near, far):
            word = Said(0, [("net0", bytes(2400))] * INPUTS_MAX)
            assert len(Encoder().frame(word)) > 1 << 20
            hearing = asyncio.create_task(hear(far.companion, 2))
            near.companion.send_all([word, said(1)])
            await until(near.companion.flush)
            assert await hearing == [word, said(1)]

    run(test())


# Damage


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"x" * 100, FrameError, "where a frame begins"),
        (bytes(Encoder().frame(said(0))) * 2, FrameError, "found frame 0, expected 1"),
        (bytes(Encoder().frame(TOO_LONG))[:100], FrameError, f"expected {wire.COMPANION_MAX} at most"),
        (bytes(Encoder().frame(Beat(0))), ProtocolViolation, "Beat is no word of the companion's"),
        (bytes(Encoder().frame(CheckpointRequest(1))), ProtocolViolation, "CheckpointRequest is no word"),
    ],
    ids=["bytes", "repeated", "too long", "a beat", "a word of the protocol"],
)
def test_anything_but_its_words_is_refused_and_a_loss(
    data: bytes, error: type[Exception], reason: str
) -> None:
    def all_of_it() -> None:
        while one.companion.receive() is not None:
            continue

    with bare() as one:
        one.theirs.sendall(data)
        with pytest.raises(error, match=reason):
            all_of_it()
        assert len(one.losses) == 1
        assert reason in one.losses[0]
        with pytest.raises(PeerLost, match=reason):
            one.companion.receive()
        with pytest.raises(PeerLost, match=reason):
            one.companion.send(said(0))
        assert len(one.losses) == 1


def test_words_cut_short_at_every_byte() -> None:
    """Whole words, then PeerLost, and never a wait."""
    encoder = Encoder()
    words: list[Message] = [said(1, 30), Progress(1, 2, 3), said(2, 30)]
    frames = [bytes(encoder.frame(word)) for word in words]
    data = b"".join(frames)
    bounds = {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    for size in range(len(data) + 1):
        with bare() as one:
            one.theirs.sendall(data[:size])
            one.theirs.close()
            heard, reason = run(end(one.companion))
            assert heard == words[: len(heard)]
            assert reason.endswith("in the middle of a frame") == (size not in bounds)
            assert len(one.losses) == 1
