"""A node's loop: asyncio in the world's time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from colo.sim import loop as loops
from colo.sim.agenda import Agenda
from colo.sim.loop import WorldError
from colo.sim.process import Process

SECOND = 1_000_000_000


class Rig:
    """A process on an agenda, and what failed."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.failures: list[BaseException] = []
        self.process = Process("p", self.agenda, self.failures.append)
        self.seen: list[tuple[int, object]] = []

    def see(self, what: object) -> None:
        self.seen.append((self.agenda.now_ns, what))

    def run(self, until_ns: int = 100 * SECOND) -> None:
        self.agenda.run(until_ns, lambda: bool(self.failures))


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.process.die()
    made.process.bury()


def test_sleeping_takes_the_worlds_time(rig: Rig) -> None:
    async def work() -> None:
        for seconds in (0.5, 0.25, 3600):
            await asyncio.sleep(seconds)
            rig.see(seconds)

    rig.process.undertake(work())
    rig.run(5000 * SECOND)
    assert rig.seen == [(SECOND // 2, 0.5), (3 * SECOND // 4, 0.25), (3600 * SECOND + 3 * SECOND // 4, 3600)]


def test_a_timeout_is_exact(rig: Rig) -> None:
    async def work() -> None:
        try:
            async with asyncio.timeout(0.0123):
                await asyncio.Event().wait()
        except TimeoutError:
            rig.see("late")

    rig.process.undertake(work())
    rig.run()
    assert rig.seen == [(12_300_000, "late")]


def test_work_for_another_thread_is_done_at_once(rig: Rig) -> None:
    async def work() -> None:
        rig.see(await asyncio.to_thread(lambda: 7))
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(int, "no")
        rig.see("refused")

    rig.process.undertake(work())
    rig.run()
    assert [what for _, what in rig.seen] == [7, "refused"]
    assert not rig.failures


def test_a_period_that_is_asked_for_again_and_again_ends(rig: Rig) -> None:
    """As a checkpoint policy does, with floats whose difference never is quite the period."""

    async def work() -> None:
        began_s = 0.0604
        await asyncio.sleep(began_s)
        while (since_ms := (rig.agenda.now_ns / 1e9 - began_s) * 1000) < 20:
            try:
                async with asyncio.timeout((20 - since_ms) / 1000):
                    await asyncio.Event().wait()
            except TimeoutError:
                continue
        rig.see("period")

    rig.process.undertake(work())
    rig.run(SECOND)
    ((at_ns, _),) = rig.seen
    assert 80_399_999 <= at_ns <= 80_400_002


def test_a_loop_without_an_end_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "SPINS_MAX", 10)

    async def work() -> None:
        while True:
            await asyncio.sleep(0)

    rig.process.undertake(work())
    with pytest.raises(WorldError, match="p: its loop has run without an end"):
        rig.run()


def test_a_stopped_process_goes_on_where_it_was(rig: Rig) -> None:
    async def work() -> None:
        await asyncio.sleep(1)
        rig.see("slept")

    rig.process.undertake(work())
    rig.agenda.at(SECOND // 2, rig.process.pause)
    rig.agenda.at(SECOND // 2 + 1, lambda: rig.process.act(lambda: rig.see("told")))
    rig.agenda.at(3 * SECOND, rig.process.resume)
    rig.run()
    assert rig.seen == [(3 * SECOND, "told"), (3 * SECOND, "slept")]


def test_a_killed_process_does_nothing_more(rig: Rig) -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(1)
            rig.see("never")
        finally:
            rig.process.act(lambda: rig.see("nor this"))

    rig.process.undertake(work())
    rig.agenda.at(SECOND // 2, rig.process.die)
    rig.run()
    rig.process.bury()
    assert rig.seen == []


def test_what_nobody_handles_fails_the_world(rig: Rig) -> None:
    async def work() -> None:
        raise ValueError("broken")

    rig.process.undertake(work())
    rig.run()
    assert [str(failure) for failure in rig.failures] == ["broken"]
