"""The primary's side before and beside the epochs: live rounds, the pause, when a checkpoint is due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from colo.errors import ColoError, PeerLost
from colo.node import precopy
from colo.node.leading import Leading, Settings
from colo.pages.delta import BATCH_PAGES, Outgoing, apply, decode
from colo.policy import IDLE_FACTOR, POLICIES, Facts, Periodic, choose
from tests.machine.support import MS
from tests.replica.support import LIMIT_S, Node, bare, companions, connection, moved, started, until
from vmm.ram import MIB, PAGE_SIZE

HOUR_MS = 3_600_000


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


@asynccontextmanager
async def primary(
    command_line: str = "mib=1 ms=1", settings: Settings | None = None, delay_ms: int = HOUR_MS
) -> AsyncIterator[tuple[Node, Leading]]:
    node = Node(bare("counter", command_line))
    node.machine.run(20 * MS)
    with started(node):
        here, _ = connection()
        beside, _ = companions()
        made = Leading(node.replica, Periodic(delay_ms), settings or Settings(), lambda: None, beside)
        made.attach(here)
        try:
            yield node, made
        finally:
            made.changes.close()


# When


async def is_waiting(task: asyncio.Task[Any]) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def test_a_request_an_overflow_and_a_period_each_make_a_checkpoint_due() -> None:
    async def scenario() -> None:
        async with primary() as (_, made):
            for wake, reason in (
                (lambda: made.request("asked"), "asked"),
                (lambda: made.output_held(True), "held output"),
            ):
                due = asyncio.create_task(made.due())
                assert await is_waiting(due)
                made.output_held(False)
                assert await is_waiting(due), "something is held, which is no hurry"
                wake()
                assert await due == reason
            made.policy = Periodic(1)
            assert await made.due() == "period"

    run(scenario)


def test_the_first_of_two_requests_gives_the_reason_and_both_are_met() -> None:
    async def scenario() -> None:
        async with primary() as (_, made):
            made.request("one")
            made.request("two")
            assert await made.due() == "one"
            due = asyncio.create_task(made.due())
            assert await is_waiting(due)
            due.cancel()

    run(scenario)


def test_a_lost_peer_and_an_ended_guest_end_the_wait() -> None:
    async def scenario() -> None:
        async with primary() as (_, made):
            due = asyncio.create_task(made.due())
            assert await is_waiting(due)
            made.guest_ended("guest-shutdown")
            assert await due is None
            assert made.ended() == "guest-shutdown"
            made.lose("no heartbeat")
            made.lose("and no connection")
            with pytest.raises(PeerLost, match="no heartbeat"):
                await made.due()

    run(scenario)


@pytest.mark.parametrize(
    ("facts", "reason", "wait_ms"),
    [
        (Facts(since_ms=0), None, 20.0 * IDLE_FACTOR),
        (Facts(since_ms=19, held_packets=1), None, 1.0),
        (Facts(since_ms=20, held_packets=1), "period", 0),
        (Facts(since_ms=99), None, 1.0),
        (Facts(since_ms=100), "period", 0),
        (Facts(since_ms=0, over_limit=True), "held output", 0),
        (Facts(since_ms=0, over_limit=True, requested="asked"), "asked", 0),
    ],
)
def test_periodic_is_remus_rule_and_slower_for_an_idle_pair(
    facts: Facts, reason: str | None, wait_ms: float
) -> None:
    decision = Periodic(20).decide(facts)
    assert (decision.reason, decision.wait_ms) == (reason, pytest.approx(wait_ms))


def test_policies_are_chosen_by_name() -> None:
    for name in POLICIES:
        chosen = choose(name, 7)
        assert (chosen.name, chosen.delay_ms) == (name, 7)
    with pytest.raises(KeyError):
        choose("weekly", 7)


# Live rounds


class Receiver:
    """What the other side would have."""

    def __init__(self, size: int) -> None:
        self.image = np.zeros(size, np.uint8)

    def take(self, batches: Any) -> int:
        pages = 0
        for count, data in batches:
            if not count:
                continue  # a sender lets others run
            index, contents = decode(count, data, self.image, BATCH_PAGES)
            apply(self.image, index, contents)
            pages += count
        return pages


@pytest.mark.parametrize("source", ["kernel", "scan"])
def test_live_rounds_and_the_pause_leave_the_other_side_with_the_same_ram(source: Any) -> None:
    async def scenario() -> None:
        try:
            async with primary("mib=2 ms=1", Settings(dirty_source=source)) as (node, made):
                assert made.changes.source.name == source
                node.guest.start()
                receiver, sent = Receiver(node.machine.ram.size), 0
                while (batches := made.live_round()) is not None:
                    sent += receiver.take(batches)
                assert made.progress.rounds >= 1
                assert made.progress.pages_sent == sent
                node.guest.stop()
                node.guest.call(lambda: None)
                captured = made.capture(0)
                sent += receiver.take(captured.batches())
                assert (receiver.image == node.machine.ram.array).all()
                vmstate = captured.vmstate()
                assert vmstate.pages == sent
                assert vmstate.sections == node.machine.everything()
                assert node.hold.active
        except ColoError as exc:
            if "cannot track" not in str(exc):
                raise
            pytest.skip(str(exc))

    run(scenario)


def test_a_guest_that_dirties_faster_than_a_pause_carries_is_slowed_and_then_let_go() -> None:
    """A budget of nothing: no rest is ever small enough while the guest writes."""

    async def scenario() -> None:
        settings = Settings(pause_budget_ms=0.0, dirty_source="scan")
        async with primary("mib=4 ms=1", settings) as (node, made):
            node.guest.start()
            receiver = Receiver(node.machine.ram.size)
            throttles = []
            while (batches := made.live_round()) is not None:
                throttles.append(node.guest.throttle)
                receiver.take(batches)
                await asyncio.to_thread(until, moved(node, MS), "it runs")
                if made.progress.rounds >= 8:
                    break
            assert throttles[:3] == [0.0] * 3
            assert throttles == sorted(throttles)
            assert 0 < throttles[-1] <= precopy.THROTTLE_MAX
            assert made.progress.throttle == throttles[-1]
            made.capture(0)
            assert node.guest.throttle == 0.0, "a pair that is formed is not slowed"

    run(scenario)


def test_rounds_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precopy, "ROUNDS_MAX", 3)

    async def scenario() -> None:
        async with primary("mib=4 ms=1", Settings(pause_budget_ms=-1.0)) as (node, made):
            receiver, rounds = Receiver(node.machine.ram.size), 0
            while (batches := made.live_round()) is not None:
                receiver.take(batches)
                rounds += 1
            assert rounds == 3
            receiver.take(made.capture(0).batches())
            assert (receiver.image == node.machine.ram.array).all()

    run(scenario)


def test_what_a_round_left_over_is_in_the_pause() -> None:
    """The source has named these pages, and will not name them again."""

    async def scenario() -> None:
        async with primary("mib=0 ms=1000") as (node, made):
            receiver = Receiver(node.machine.ram.size)
            batches = made.live_round()
            assert batches is not None
            receiver.take(batches)
            node.machine.ram.array[9 * MIB] = 77
            assert made.live_round() is None
            node.machine.ram.array[10 * MIB] = 78
            receiver.take(made.capture(0).batches())
            assert (receiver.image[9 * MIB], receiver.image[10 * MIB]) == (77, 78)

    run(scenario)


# The pause


def test_a_pause_is_one_instant() -> None:
    """Pages, device state, digest and the cut of the output are of the same moment, the guest running on."""

    async def scenario() -> None:
        async with primary("mib=1 ms=1", Settings(verify=True)) as (node, made):
            node.guest.start()
            other, receiver = Node(bare("counter", "mib=1 ms=1")), Receiver(node.machine.ram.size)
            for epoch in range(6):
                captured = made.capture(epoch)
                receiver.take(captured.batches())
                other.machine.ram.array[:] = receiver.image
                other.machine.load_sections(captured.sections)
                assert other.machine.state_hash() == captured.digest
                made.commit(epoch)
                made.loaded(epoch)
            other.close()
            record = node.replica.statistics.epochs[-1]
            assert record.epoch == 5
            assert record.pause_ms > 0
            assert record.commit_ms >= record.pause_ms
            assert record.pages_copied >= record.pages_sent
            assert node.replica.statistics.totals.checkpoints == 6
            assert [facts["record"].epoch for name, facts in node.events if name == "epoch"] == [*range(6)]

    run(scenario)


def test_compression_is_the_callers_choice_and_changes_nothing_else() -> None:
    ram = np.tile(np.arange(256, dtype=np.uint8), MIB // 256)
    for compress in (False, True):
        outgoing, shadow, receiver = Outgoing(MIB, compress), np.zeros(MIB, np.uint8), Receiver(MIB)
        outgoing.capture(ram, shadow, None)
        assert receiver.take(outgoing.batches(shadow)) == MIB // PAGE_SIZE
        assert (receiver.image == ram).all()
