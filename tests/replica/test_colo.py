"""Policy ``colo`` on two real machines in one process: both run, and what both say goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from colo.life import Life
from colo.node.compared import Compared
from colo.policy import Colo, Lockstep, Periodic
from tests.machine.support import ECHO, MS, arp_request, sector, udp_echo
from tests.replica.pairs import Pair, held_there, pair
from tests.replica.support import LIMIT_S, Node, bare, until


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


async def meanwhile(happened: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(until, happened, what)


def rule(made: Pair) -> Compared:
    assert isinstance(made.leading.early, Compared)
    return made.leading.early


def heard(node: Node, data: bytes) -> Callable[[], bool]:
    return lambda: node.ear.heard == data


async def checkpoints_when_due(made: Pair) -> None:
    """What the policy does in a node: whenever it wants a checkpoint, one is made."""
    while await made.leading.due() is not None:
        await made.checkpoint()


ECHOES = sector(ECHO.format(idle="hlt"))


def test_what_both_say_goes_out_without_a_checkpoint() -> None:
    async def scenario() -> None:
        async with pair(ECHOES, begin_ns=MS, ram_mib=1, policy=Colo()) as made:
            made.primary.guest.start()
            await made.synchronise()
            said = b""
            for byte in (b"both", b"say", b"it"):
                said += byte
                made.primary.ear.type(byte)
                await meanwhile(heard(made.primary, said), "the echo is heard at once")
            assert made.epoch == 0
            assert made.secondary.ear.heard == b""
            assert rule(made).facts()["said"] == rule(made).facts()["taken"] > 0

    run(scenario)


def test_frames_enter_both_and_equal_answers_leave() -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho"), policy=Colo()) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            primary.cable.arrive(arp_request(), *(udp_echo(b"%d" % number) for number in range(20)))
            watching = asyncio.create_task(checkpoints_when_due(made))  # a slow host may be late
            await meanwhile(lambda: len(primary.cable.heard) >= 21, "every answer has left")
            watching.cancel()
            assert rule(made).facts()["said"] > 0
            assert made.secondary.cable.heard == []

    run(scenario)


def test_a_frame_that_comes_to_both_is_given_to_each_once() -> None:
    """And again to what the secondary's guest is made from, unless the primary's had it by the cut."""

    async def scenario() -> None:
        async with pair(bare("udpecho"), policy=Colo()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            watching = asyncio.create_task(checkpoints_when_due(made))
            frames = [arp_request(), *(udp_echo(b"%d" % number) for number in range(20))]
            for number, frame in enumerate(frames, start=1):
                for node in (primary, secondary):
                    node.cable.arrive(frame)
                await meanwhile(lambda number=number: len(primary.cable.heard) >= number, "it is answered")
            watching.cancel()
            given = secondary.guest.call(lambda: made.following._runner.given)
            assert given >= len(frames)
            assert made.epoch or given == len(frames), "no checkpoint, and a frame was given twice"
            assert secondary.cable.heard == []
            await made.checkpoint()
            answer = len(frames) + 1
            for node in (primary, secondary):
                node.cable.arrive(udp_echo(b"after the checkpoint"))
            await meanwhile(lambda: len(primary.cable.heard) >= answer, "it is answered")
            assert len(primary.cable.heard) == answer, "nothing is answered twice"

    run(scenario)


def test_a_frame_that_only_the_secondary_hears_is_ended_by_a_checkpoint() -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho"), policy=Colo()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            watching = asyncio.create_task(checkpoints_when_due(made))  # a slow host may be late
            for node in (primary, secondary):
                node.cable.arrive(arp_request())
            await meanwhile(lambda: primary.cable.heard, "both know the way to the client")
            before = made.epoch
            secondary.cable.arrive(udp_echo(b"alone"))
            await meanwhile(lambda: made.epoch > before, "a checkpoint ends it")
            watching.cancel()
            assert [frame for frame in primary.cable.heard if b"alone" in frame] == []

    run(scenario)


def test_a_difference_waits_for_a_checkpoint_that_ends_it() -> None:
    """The secondary's guest hears nothing, and so says nothing."""

    async def scenario() -> None:
        async with pair(ECHOES, begin_ns=MS, ram_mib=1, policy=Colo()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            secondary.guest.call(lambda: make_deaf(secondary))
            primary.ear.type(b"x")
            await meanwhile(lambda: rule(made).facts()["held-frames"], "the echo is compared")
            assert primary.ear.heard == b""
            watching = asyncio.create_task(checkpoints_when_due(made))
            await meanwhile(heard(primary, b"x"), "a checkpoint lets it go")
            primary.ear.type(b"y")
            await meanwhile(heard(primary, b"xy"), "the two are the same again")
            watching.cancel()
            assert made.epoch >= 1
            assert primary.replica.statistics.totals.reasons.keys() == {"synchronisation", *causes(made)}

    run(scenario)


def make_deaf(node: Node) -> None:
    """Its interrupt controller masks the serial line."""
    node.machine.devices["pic"].state.master.imr |= 1 << 4


def causes(made: Pair) -> set[str]:
    reasons = made.primary.replica.statistics.totals.reasons
    return {reason for reason in reasons if reason.startswith("late")}


def test_a_survivor_is_the_guest_as_it_ran() -> None:
    """Not the last checkpoint: what the world heard since then, the survivor said too."""

    async def scenario() -> None:
        async with pair(ECHOES, begin_ns=MS, ram_mib=1, policy=Colo()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            primary.ear.type(b"abc")
            await meanwhile(heard(primary, b"abc"), "the echo is heard")
            made.leading.freeze()
            await made.lost()
            notes: list[bytes] = []
            secondary.on["took-over"] = lambda: notes.append(noted(secondary, 3))
            made.following.take_over()
            assert notes == [b"abc"]
            secondary.ear.type(b"d")
            await meanwhile(lambda: secondary.ear.heard.endswith(b"d"), "the survivor serves")

    run(scenario)


def noted(node: Node, count: int) -> bytes:
    """The bytes that ECHO noted: each after four bytes that say in which turn it came."""
    held_there(node, node.machine.clock.now_ns + MS)
    log = node.machine.ram.array[0x1000 : 0x1000 + 8 * count]
    return bytes(log.reshape(count, 8)[:, 4])


def test_a_survivor_of_a_sealed_epoch_is_that_epoch() -> None:
    async def scenario() -> None:
        async with pair(ECHOES, begin_ns=MS, ram_mib=1, policy=Colo()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            primary.ear.type(b"ab")
            await meanwhile(heard(primary, b"ab"), "the echo is heard")
            await made.checkpoint()
            primary.ear.type(b"c")
            await meanwhile(heard(primary, b"abc"), "the echo is heard")
            made.leading.freeze()
            await made.lost()
            notes: list[bytes] = []
            secondary.on["took-over"] = lambda: notes.append(noted(secondary, 3))
            made.following.take_over()
            assert notes == [b"abc"]

    run(scenario)


def test_every_policy_follows_every_other() -> None:
    async def scenario() -> None:
        async with pair(ECHOES, begin_ns=MS, ram_mib=1) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            said = b""
            for make in (Colo, Lockstep, Colo, Periodic, Lockstep, Periodic, Colo):
                made.leading.policy = policy = make()
                await made.checkpoint()
                assert made.leading.early.life is policy.life
                said += b"x"
                primary.ear.type(b"x")
                if policy.life is Life.WAIT:
                    await meanwhile(lambda: primary.hold.held_frames, "the echo is held")
                    await made.checkpoint()
                await meanwhile(heard(primary, said), f"the echo is heard under {policy.name}")

    run(scenario)


def test_a_guest_that_ends_by_itself_on_the_secondary_ends_nothing() -> None:
    async def scenario() -> None:
        async with pair(ECHOES, begin_ns=MS, ram_mib=1, policy=Colo()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            secondary.guest.call(lambda: secondary.machine.door.enter("com1", b"q"))
            primary.ear.type(b"x")
            watching = asyncio.create_task(checkpoints_when_due(made))
            await meanwhile(heard(primary, b"x"), "a checkpoint lets it go")
            watching.cancel()
            assert secondary.ended == []

    run(scenario)
