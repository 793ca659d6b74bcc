"""The whole of a pair but its sockets: real machines, real threads, every epoch, and the day after.

The strongest thing to say of a survivor: it goes on bit by bit as the primary does that it replaced.
A machine is deterministic, so that can be asked.  After the last commit the primary runs on to some
virtual time without any input, and the survivor, which loaded that commit, runs to the same time.
"""

from __future__ import annotations

import asyncio

import pytest

from colo.errors import PeerLost
from colo.messages import Message, RamPages, Released, VmstateReceived
from colo.node.leading import Settings
from colo.node.rehearsal import Rehearsal
from tests.machine.support import MS, arp_request, sector, udp_echo
from tests.replica.conftest import Source
from tests.replica.pairs import Pair, held_there, pair, take_over_until
from tests.replica.support import Node, bare, moved, started, until


def test_a_survivor_goes_on_bit_by_bit_as_the_primary_would_have(source: Source) -> None:
    """The primary forks its future: its own, and the survivor's from the last commit."""

    async def scenario() -> None:
        async with pair(bare("counter", "mib=4 ms=1"), Settings(dirty_source=source)) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            for _ in range(5):
                await asyncio.to_thread(until, moved(primary, 3 * MS), "the primary's guest runs")
                await made.checkpoint()
            await made.lost()
            await asyncio.to_thread(until, moved(primary, 5 * MS), "the primary does not know yet")
            primary.guest.stop()
            at_ns = primary.guest.call(lambda: primary.machine.clock.now_ns) + 50 * MS
            expected = primary.guest.call(lambda: held_there(primary, at_ns))
            assert take_over_until(made, at_ns) == expected
            assert made.secondary.guest.running

    asyncio.run(scenario())


PATCHES_ITSELF = """
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
turn:
    inc byte ptr [changed + 1]
    jmp go
go:
    nop
changed:
    mov al, 0
    movzx eax, al
    imul esi, esi, 1664525
    add esi, eax
    mov ebx, esi
    shr ebx, 17
    mov [bx + 0x8000], esi
    in al, 0x61
    jmp turn
"""


def test_a_survivor_runs_code_that_changed_in_every_epoch(source: Source) -> None:
    """With rehearsals in every epoch: each leaves translations of code that the next epoch replaces."""

    async def scenario() -> None:
        boot = sector(PATCHES_ITSELF)
        async with pair(boot, Settings(dirty_source=source), ram_mib=1, begin_ns=MS) as made:
            primary, following = made.primary, made.following
            primary.guest.start()
            await made.synchronise()
            for number in range(10):
                following._rehearsal.begin(following._state, [])
                if number % 2:
                    rehearsed = following._rehearsal._running
                    assert rehearsed is not None
                    await asyncio.wrap_future(rehearsed)
                await made.checkpoint()
            await made.lost()
            primary.guest.stop()
            at_ns = primary.guest.call(lambda: primary.machine.clock.now_ns) + 10 * MS
            expected = primary.guest.call(lambda: held_there(primary, at_ns))
            assert take_over_until(made, at_ns) == expected

    asyncio.run(scenario())


PATCHED_BY_WHAT_IS_TYPED = """
    xor ax, ax
    mov ds, ax
turn:
    inc dword ptr [0x600]
changed:
    mov al, 0x11
    movzx eax, al
    add [0x604], eax
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz turn
    mov dx, 0x3f8
    in al, dx
    mov [changed + 1], al
    jmp turn
"""


def test_a_survivor_runs_the_code_that_was_committed_and_not_what_it_rehearsed(source: Source) -> None:
    """The primary changes an instruction once; whoever stands by has translated the one before."""

    async def scenario() -> None:
        boot = sector(PATCHED_BY_WHAT_IS_TYPED)
        async with pair(boot, Settings(dirty_source=source), ram_mib=1, begin_ns=MS) as made:
            primary, following = made.primary, made.following
            await made.synchronise()
            for number in range(1, 6):
                following._rehearsal.begin(following._state, [])
                rehearsed = following._rehearsal._running
                assert rehearsed is not None
                await asyncio.wrap_future(rehearsed)
                primary.guest.call(lambda typed=bytes([number]): primary.machine.serial.send(typed))
                at_ns = primary.machine.clock.now_ns + 2 * MS
                primary.guest.call(lambda at_ns=at_ns: held_there(primary, at_ns))
                await made.checkpoint()
            await made.lost()
            at_ns = primary.machine.clock.now_ns + 10 * MS
            expected = primary.guest.call(lambda: held_there(primary, at_ns))
            assert take_over_until(made, at_ns) == expected

    asyncio.run(scenario())


def test_an_epoch_that_is_not_whole_does_not_count() -> None:
    """The primary dies between two batches: the survivor is the epoch before, RAM and all."""

    async def scenario() -> None:
        async with pair(bare("counter", "mib=4 ms=1")) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            await made.checkpoint()
            primary.guest.stop()
            primary.guest.call(lambda: None)
            await made.checkpoint()
            committed_ns = primary.machine.clock.now_ns
            expected = primary.machine.digest
            primary.guest.call(lambda: held_there(primary, committed_ns + 10 * MS))
            send = made.here.send

            async def until_the_first_batch(message: Message) -> None:
                await send(message)
                if isinstance(message, RamPages):
                    made.here.close()

            made.here.send = until_the_first_batch  # type: ignore[method-assign]
            with pytest.raises(PeerLost):
                await made.checkpoint()
            await made.lost()
            assert made.following.epoch == 2
            assert take_over_until(made, committed_ns) == expected

    asyncio.run(scenario())


def test_a_sealed_epoch_counts_though_it_was_not_installed() -> None:
    """The connection is gone between the promise and the install."""

    async def scenario() -> None:
        async with pair(bare("counter", "mib=4 ms=1")) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            primary.guest.stop()
            primary.guest.call(lambda: None)
            primary.guest.call(lambda: held_there(primary, primary.machine.clock.now_ns + 3 * MS))
            at_ns, expected = primary.machine.clock.now_ns, primary.machine.digest
            send = made.there.send

            async def dies_promising(message: Message) -> None:
                if message == VmstateReceived(1):
                    made.there.close()
                await send(message)

            made.there.send = dies_promising  # type: ignore[method-assign]
            with pytest.raises(PeerLost):
                await made.checkpoint()
            await made.lost()
            assert made.following.epoch == 1
            standby = made.secondary.standby
            assert standby is not None
            assert (standby.image != primary.machine.ram.array).any(), "not installed yet"
            assert take_over_until(made, at_ns) == expected

    asyncio.run(scenario())


def test_a_survivor_can_be_protected_again(source: Source) -> None:
    """Its RAM lies over a file now, and its past is a rehearsed one: the next pair is as exact."""

    async def scenario() -> None:
        boot, settings = bare("counter", "mib=2 ms=1"), Settings(dirty_source=source, verify=True)
        async with pair(boot, settings) as made:
            made.primary.guest.start()
            await made.synchronise()
            await made.checkpoint()
            await made.lost()
            made.following.take_over()
            survivor, third = made.secondary, Node(boot, standing_by=True, name="c")
            with started(third):
                again = Pair(survivor, third, settings)
                await again.synchronise()
                for _ in range(4):
                    await asyncio.to_thread(until, moved(survivor, 3 * MS), "the survivor's guest runs")
                    await again.checkpoint()
                await again.lost()
                survivor.guest.stop()
                at_ns = survivor.guest.call(lambda: survivor.machine.clock.now_ns) + 20 * MS
                expected = survivor.guest.call(lambda: held_there(survivor, at_ns))
                assert take_over_until(again, at_ns) == expected
                again.leading.changes.close()

    asyncio.run(scenario())


def test_rehearsals_of_a_pair_leave_the_standby_as_committed() -> None:
    """Requests come all the time, so there is something to rehearse in every epoch."""

    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("colo.node.rehearsal.EVERY_S", 0.0)
        monkeypatch.setattr("colo.node.rehearsal.AGAIN_S", 0.0)
        async with pair(bare("udpecho"), Settings(verify=True)) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            for number in range(1, 25):
                primary.cable.arrive(udp_echo(number.to_bytes(4, "big")))
                await made.received(1)
                await made.checkpoint()
            assert isinstance(made.following._rehearsal, Rehearsal)
            assert made.following._rehearsal.count == 24
            assert secondary.cable.heard == []
            assert secondary.ear.heard == b""
            await made.lost()
            primary.guest.stop()
            at_ns = primary.guest.call(lambda: primary.machine.clock.now_ns) + 5 * MS
            expected = primary.guest.call(lambda: held_there(primary, at_ns))
            assert take_over_until(made, at_ns) == expected

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(scenario(monkeypatch))


def test_a_survivor_says_again_what_may_be_unsaid_and_answers_what_was_asked(source: Source) -> None:
    """One answer travelled with the last epoch, unreleased; one request came after it."""

    async def scenario() -> None:
        async with pair(bare("udpecho"), Settings(dirty_source=source)) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            primary.cable.arrive(arp_request(), udp_echo(b"held"))
            await asyncio.to_thread(until, lambda: primary.hold.held_frames == 2, "both are answered")
            send = made.here.send

            async def not_released(message: Message) -> None:
                if not isinstance(message, Released):
                    await send(message)

            made.here.send = not_released  # type: ignore[method-assign]
            await made.checkpoint()
            primary.cable.arrive(udp_echo(b"later"), udp_echo(b"last"))
            await made.received(2)
            await made.lost()
            made.following.take_over()
            await asyncio.to_thread(until, lambda: len(secondary.cable.heard) >= 5, "all are answered")
            said = [bytes(each) for each in secondary.cable.heard]
            assert said[0][12:14] == b"\x80\x35", "where the card is now"
            assert [b"held" in each for each in said].count(True) == 1
            assert b"held" in said[2]
            assert b"later" in said[3]
            assert b"last" in said[4]
            facts = secondary.told("took-over")
            assert (facts["epoch"], facts["inputs_repeated"], facts["frames_unheard"]) == (1, 2, 0)

    asyncio.run(scenario())


def test_a_survivor_is_given_frames_that_no_guest_was_given() -> None:
    """On a bridge that never learns both nodes get every frame; one came when the primary was dead."""

    async def scenario() -> None:
        async with pair(bare("udpecho")) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            both = [arp_request(), udp_echo(b"to both")]
            primary.cable.arrive(*both)
            secondary.cable.arrive(*both)
            await asyncio.to_thread(until, lambda: primary.hold.held_frames == 2, "both are answered")
            await made.checkpoint()
            secondary.cable.arrive(udp_echo(b"to a dead one"))
            await made.lost()
            secondary.cable.heard.clear()
            made.following.take_over()
            await asyncio.to_thread(
                until,
                lambda: any(b"to a dead one" in each for each in secondary.cable.heard),
                "it is answered",
            )
            assert not any(b"to both" in each for each in secondary.cable.heard)
            assert secondary.told("took-over")["frames_unheard"] == 1

    asyncio.run(scenario())
