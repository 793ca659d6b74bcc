"""Policy ``lockstep`` on two real machines in one process: the same at every instant, and told when not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from colo.life import Life
from colo.node.logged import Logged
from colo.policy import Lockstep, Periodic
from tests.machine.support import ECHO, MS, arp_request, sector, udp_echo
from tests.replica.pairs import Pair, held_there, pair
from tests.replica.support import LIMIT_S, Node, bare, moved, until
from vmm.machine import Machine

COUNTER = "mib=1 ms=1"


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


async def meanwhile(happened: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(until, happened, what)


def facts(made: Pair) -> dict[str, int | float]:
    assert isinstance(made.leading.early, Logged)
    return made.leading.early.facts()


async def in_step(made: Pair, marks: int = 2) -> None:
    """Until the secondary's guest was compared so often and found the same."""
    departed = made.secondary.events_of("departed")
    goal = facts(made)["marks"] + marks
    await meanwhile(lambda: facts(made)["marks"] >= goal, "marks are made")
    words = facts(made)["log-words"]
    await meanwhile(
        lambda: made.following._follower.words >= words - facts(made)["marks"], "the log is followed"
    )
    assert made.secondary.events_of("departed") == departed


def heard(node: Node, data: bytes) -> Callable[[], bool]:
    return lambda: node.ear.heard == data


def has_said(node: Node, count: int) -> Callable[[], bool]:
    """So many bytes, heard or held."""
    return lambda: len(node.ear.heard) + node.hold.held_bytes == count


async def stopped_primary(made: Pair) -> tuple[int, str]:
    """The primary's guest stands still for good: when, and what its whole state is."""
    made.leading.freeze()
    primary = made.primary
    return primary.guest.call(lambda: (primary.machine.clock.now_ns, primary.machine.digest))


def survivor_at(made: Pair, at_ns: int) -> str:
    """The secondary takes over; its state at this instant, which the log may or may not reach."""
    found: list[str] = []
    made.secondary.on["took-over"] = lambda: found.append(held_there(made.secondary, at_ns))
    made.following.take_over()
    return found[0]


def test_a_survivor_is_bit_by_bit_what_the_primary_was() -> None:
    """Without a single checkpoint after the first: the log alone brought it there."""

    async def scenario() -> None:
        async with pair(bare("counter", COUNTER), policy=Lockstep()) as made:
            made.primary.guest.start()
            await made.synchronise()
            await in_step(made)
            at_ns, expected = await stopped_primary(made)
            await made.lost()
            assert survivor_at(made, at_ns) == expected
            assert made.secondary.told("took-over")["same"] is True

    run(scenario)


@pytest.mark.parametrize("idle", ["hlt", ""], ids=["waiting", "computing"])
def test_what_is_typed_enters_both_at_the_same_turn(idle: str) -> None:
    """ECHO notes in which turn of its loop each byte came: a log that is off by one block would show."""

    async def scenario() -> None:
        async with pair(sector(ECHO.format(idle=idle)), begin_ns=MS, ram_mib=1, policy=Lockstep()) as made:
            made.primary.guest.start()
            await made.synchronise()
            said = b""
            for byte in (b"lock", b"step", b"!"):
                said += byte
                made.primary.ear.type(byte)
                await meanwhile(heard(made.primary, said), "the echo is heard at once")
            at_ns, expected = await stopped_primary(made)
            await made.lost()
            assert survivor_at(made, at_ns) == expected

    run(scenario)


def test_frames_enter_both_and_answers_leave_without_a_checkpoint() -> None:
    async def scenario() -> None:
        async with pair(bare("udpecho"), policy=Lockstep()) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            await meanwhile(lambda: facts(made)["log-words"], "the gate is open")
            primary.cable.arrive(arp_request(), *(udp_echo(b"%d" % number) for number in range(20)))
            await meanwhile(lambda: len(primary.cable.heard) >= 21, "every answer has left")
            assert made.epoch == 0
            await in_step(made, 1)
            at_ns, expected = await stopped_primary(made)
            await made.lost()
            assert survivor_at(made, at_ns) == expected

    run(scenario)


def flip_ram(machine: Machine) -> None:
    machine.ram.array[0x5000] ^= 1


def flip_register(machine: Machine) -> None:
    machine.components["cpu"].state.r15 ^= 1


def flip_chip(machine: Machine) -> None:
    machine.devices["rtc"].state.cmos[0x40] ^= 1


def leak_host_time(machine: Machine) -> None:
    """A clock chip that goes by the host's clock from now on."""
    chip = machine.devices["rtc"]
    chip.state.offset_ns = time.monotonic_ns() & 0xFFFF | 1


@pytest.mark.parametrize(
    ("plant", "named"),
    [(flip_ram, "page 0x5 of RAM"), (flip_chip, "rtc.cmos"), (leak_host_time, "rtc.offset_ns")],
    ids=["ram", "chip", "host time"],
)
def test_a_planted_difference_is_found_named_and_repaired(
    plant: Callable[[Machine], None], named: str
) -> None:
    async def scenario() -> None:
        async with pair(bare("counter", COUNTER), policy=Lockstep()) as made:
            secondary, totals = made.secondary, made.primary.replica.statistics.totals
            made.primary.guest.start()
            await made.synchronise()
            await in_step(made)
            secondary.guest.call(lambda: plant(secondary.machine))
            await meanwhile(lambda: totals.divergences, "the difference is found")
            (facts_told,) = made.primary.events_of("diverged")
            assert named in str(facts_told)
            assert await made.leading.due() == "divergence"
            await made.checkpoint()
            await in_step(made)
            assert totals.divergences == 1
            at_ns, expected = await stopped_primary(made)
            await made.lost()
            assert survivor_at(made, at_ns) == expected

    run(scenario)


def test_nothing_is_said_early_while_the_two_differ() -> None:
    async def scenario() -> None:
        async with pair(sector(ECHO.format(idle="hlt")), begin_ns=MS, ram_mib=1, policy=Lockstep()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            secondary.guest.call(lambda: flip_ram(secondary.machine))
            typed = 0
            while not primary.replica.statistics.totals.divergences:
                primary.ear.type(b"x")
                typed += 1
                await meanwhile(has_said(primary, typed), "the echo is said or held")
            primary.ear.type(b"!")
            await meanwhile(has_said(primary, typed + 1), "the echo is held")
            assert b"!" not in primary.ear.heard
            await made.checkpoint()
            assert primary.ear.heard == b"x" * typed + b"!"

    run(scenario)


def test_policies_are_changed_in_a_checkpoint() -> None:
    async def scenario() -> None:
        async with pair(sector(ECHO.format(idle="hlt")), begin_ns=MS, ram_mib=1) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            echoed = b""
            for policy in (Lockstep(), Periodic(), Lockstep()):
                made.leading.policy = policy
                await made.checkpoint()
                assert made.leading.early.life is policy.life
                primary.ear.type(b"x")
                if policy.life is Life.WAIT:
                    await meanwhile(lambda: primary.hold.held_frames, "the echo is held")
                    assert bytes(primary.ear.heard) == echoed
                    await made.checkpoint()
                echoed += b"x"
                await meanwhile(heard(primary, echoed), "the echo is heard")
            at_ns, expected = await stopped_primary(made)
            await made.lost()
            assert survivor_at(made, at_ns) == expected

    run(scenario)


def test_a_reset_happens_in_both() -> None:
    async def scenario() -> None:
        async with pair(bare("counter", COUNTER), policy=Lockstep()) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            await in_step(made, 1)
            primary.guest.call(lambda: primary.machine.door.enter("reset", b"\0"))
            await in_step(made)
            at_ns, expected = await stopped_primary(made)
            await made.lost()
            assert survivor_at(made, at_ns) == expected

    run(scenario)


def test_a_primary_waits_for_a_secondary_that_is_far_behind() -> None:
    async def scenario() -> None:
        async with pair(bare("counter", COUNTER), policy=Lockstep()) as made:
            primary, secondary = made.primary, made.secondary
            primary.guest.start()
            await made.synchronise()
            await in_step(made, 1)
            secondary.guest.freeze()
            await meanwhile(lambda: facts(made)["stalls"], "the primary's guest stands still")
            stood_at = primary.guest.call(lambda: primary.machine.clock.now_ns)
            assert primary.guest.call(lambda: primary.machine.clock.now_ns) == stood_at
            secondary.guest.thaw()
            await meanwhile(moved(primary, MS), "it goes on")
            await in_step(made, 1)

    run(scenario)


def test_a_survivor_of_a_checkpoint_that_was_not_sealed_follows_the_old_log(monkeypatch: Any) -> None:
    """The primary dies between its pause and its last page: the log before the cut is still good."""

    async def scenario() -> None:
        async with pair(bare("counter", COUNTER), policy=Lockstep()) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            await in_step(made, 1)
            cut: list[tuple[int, str]] = []
            inner = made.leading._pause

            def pause(captured: Any) -> None:
                inner(captured)
                cut.append((primary.machine.clock.now_ns, primary.machine.digest))
                primary.guest.freeze()

            monkeypatch.setattr(made.leading, "_pause", pause)
            made.leading.capture(1)
            await made.lost()
            ((at_ns, _),) = cut
            survivor_at(made, at_ns)
            took = made.secondary.told("took-over")
            assert took["same"] is True
            assert took["epoch"] == 0
            assert made.secondary.machine.clock.now_ns >= at_ns

    run(scenario)


def test_a_secondary_refuses_a_log_that_goes_back(monkeypatch: Any) -> None:
    async def scenario() -> None:
        async with pair(bare("counter", COUNTER), policy=Lockstep()) as made:
            primary = made.primary
            primary.guest.start()
            await made.synchronise()
            await in_step(made, 1)
            early = made.leading.early
            assert isinstance(early, Logged)
            writer = early._writer

            def lie() -> None:
                words = writer.take(0, {})
                early._send(words)

            primary.guest.call(lie)
            await meanwhile(lambda: made.violations, "the violation is told")
            assert "0 ns after" in made.violations[0]

    run(scenario)
