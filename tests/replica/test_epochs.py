"""Epoch after epoch, on real machines in real threads: states, outputs and inputs are cut at one instant."""

from __future__ import annotations

import asyncio

import pytest

from colo.errors import ProtocolViolation
from colo.failover import Failover
from colo.messages import Inputs, VmstateSize
from colo.node.following import Following
from colo.node.leading import Settings
from tests.machine.support import MS, arp_request, udp_echo
from tests.replica.conftest import Source
from tests.replica.pairs import pair
from tests.replica.support import bare, companions, moved, until


@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verified"])
def test_epoch_after_epoch_the_machines_are_one(source: Source, verify: bool) -> None:
    """A guest that writes to 4 MiB of pages each millisecond of its time, running all the while."""

    async def scenario() -> None:
        settings = Settings(dirty_source=source, verify=verify)
        async with pair(bare("counter", "mib=4 ms=1"), settings) as made:
            primary, following = made.primary, made.following
            primary.guest.start()
            await made.synchronise()
            assert made.protected == 1
            for _ in range(12):
                reached = moved(primary, 2 * MS)
                await asyncio.to_thread(until, reached, "the primary's guest runs")
                await made.checkpoint()
            assert following.epoch == made.leading.epoch == 12
            for node in (primary, made.secondary):
                assert node.replica.statistics.totals.verified == (13 if verify else 0)
            primary.guest.stop()
            primary.guest.call(lambda: None)
            await made.checkpoint()
            standby = made.secondary.standby
            assert standby is not None
            assert (standby.image == primary.machine.ram.array).all()
            assert following._state == primary.machine.everything()
            totals = primary.replica.statistics.totals
            assert totals.checkpoints == 14
            assert totals.pages_sent >= 12 * 1024

    asyncio.run(scenario())


def test_a_secondary_whose_machine_differs_says_so_and_does_not_stand_for_it() -> None:
    """Verification finds a byte that was lost on the way."""

    async def scenario() -> None:
        async with pair(bare("counter", "mib=1 ms=1"), Settings(verify=True)) as made:
            made.primary.guest.start()
            await made.synchronise()
            standby = made.secondary.standby
            assert standby is not None
            standby.image[12 * 1024 * 1024] ^= 1
            with pytest.raises(ProtocolViolation, match=r"epoch 1: after installing.*report this"):
                await made.checkpoint()
            assert not made.following.has_sealed

    asyncio.run(scenario())


def test_nothing_is_said_before_it_is_committed_and_everything_then(source: Source) -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho"), Settings(dirty_source=source)) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            primary.cable.arrive(arp_request(), udp_echo(b"one"))
            await asyncio.to_thread(until, lambda: primary.hold.held_frames == 2, "both are answered")
            assert primary.cable.heard == []
            await made.checkpoint()
            assert len(primary.cable.heard) == 2
            assert b"one" in primary.cable.heard[1]
            assert made.secondary.cable.heard == []

    asyncio.run(scenario())


def test_inputs_belong_to_the_epoch_in_which_the_guest_was_given_them() -> None:
    """Cut exactly at the pause: the secondary forgets what the state that it installed contains."""

    async def scenario() -> None:
        async with pair(bare("udpecho")) as made:
            primary, following = made.primary, made.following
            primary.guest.start()
            await made.synchronise()
            for number in range(1, 30):
                primary.cable.arrive(udp_echo(number.to_bytes(4, "big")))
                await asyncio.to_thread(until, lambda: primary.hold.held_frames > 0, "it is answered")
                await made.checkpoint()
                held = [each for each in made.here.sent if isinstance(each, VmstateSize)][-1].held
                assert [each[1][-4:] for each in held] == [number.to_bytes(4, "big")]
                assert not following._inputs
            epochs = {
                each.packets[0][1][-4:]: each.epoch for each in made.here.sent if isinstance(each, Inputs)
            }
            assert epochs == {number.to_bytes(4, "big"): number for number in range(1, 30)}

    asyncio.run(scenario())


def test_an_input_for_a_port_that_is_not_here_is_refused() -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho")) as made:
            await made.synchronise()
            await made.here.send(Inputs(1, [("net0", arp_request()), ("net7", b"x")]))
            assert "net7" in await made.lost()

    asyncio.run(scenario())


def test_a_primary_that_goes_on_alone_says_what_it_held_and_holds_nothing_more(source: Source) -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho"), Settings(dirty_source=source)) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            primary.cable.arrive(udp_echo(b"held"))
            await asyncio.to_thread(until, lambda: primary.hold.held_frames == 1, "it is answered")
            made.leading.freeze()
            assert not primary.guest.running
            assert primary.cable.heard == []
            made.leading.go_alone()
            assert [b"held" in each for each in primary.cable.heard] == [True]
            assert primary.guest.running
            assert primary.net.filters == ()
            primary.cable.arrive(udp_echo(b"after"))
            await asyncio.to_thread(until, lambda: len(primary.cable.heard) == 2, "said at once")
            assert primary.machine.door.heard is None

    asyncio.run(scenario())


def test_a_primary_that_lost_says_nothing_ever_again() -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho")) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            primary.cable.arrive(udp_echo(b"held"))
            await asyncio.to_thread(until, lambda: primary.hold.held_frames == 1, "it is answered")
            made.leading.freeze()
            made.leading.halt()
            assert primary.cable.heard == []
            assert primary.hold.held_frames == 0
            assert primary.net.muted
            assert not primary.guest.running

    asyncio.run(scenario())


def test_a_new_primary_finds_an_empty_secondary() -> None:
    """The first one went away in the middle of its first epoch: nothing of it is left."""

    async def scenario() -> None:
        async with pair(bare("counter", "mib=1 ms=1")) as made:
            made.primary.guest.start()
            await made.synchronise()
            await made.lost()
            secondary = made.secondary
            again = Following(secondary.replica, Failover(), companions()[0], made.violations.append)
            assert secondary.standby is not None
            assert not secondary.standby.image.any()
            assert not secondary.machine.ram.array.any()
            assert not again.has_sealed

    asyncio.run(scenario())
