"""Who is told to stop while a subject starts leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from colo.experiment.subject import Counters
from colo.experiment.unbroken import Unbroken
from colo.network.host import Network


class Slow:
    """A subject whose start and end take as long as the test wants."""

    failovers = 0

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.go_on = asyncio.Event()
        self.reached = asyncio.Event()
        self.fails = False

    @property
    def network(self) -> Network:
        raise NotImplementedError

    async def __aenter__(self) -> Slow:
        await self._slowly("start")
        if self.fails:
            raise OSError("no room")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._slowly("end")

    async def _slowly(self, what: str) -> None:
        self.happened.append(f"{what} begins")
        self.reached.set()
        await self.go_on.wait()
        self.happened.append(f"{what} is done")

    async def counters(self) -> Counters:
        return {}

    def checkpoints(self, begin_s: float, end_s: float) -> list[dict[str, Any]]:
        return []


async def _use(slow: Slow) -> None:
    async with Unbroken(slow):
        slow.happened.append("used")


async def _cancelled_while(slow: Slow, what: str) -> list[str]:
    """What happened to a subject whose user is cancelled while it starts, or ends."""
    task = asyncio.ensure_future(_use(slow))
    await slow.reached.wait()
    if what == "end":
        slow.reached.clear()
        slow.go_on.set()
        await asyncio.sleep(0)
        slow.go_on.clear()
        await slow.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    slow.go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    return slow.happened


def test_a_start_is_finished_and_undone() -> None:
    async def run() -> list[str]:
        return await _cancelled_while(Slow(), "start")

    assert asyncio.run(run()) == ["start begins", "start is done", "end begins", "end is done"]


def test_an_end_is_finished() -> None:
    async def run() -> list[str]:
        return await _cancelled_while(Slow(), "end")

    assert asyncio.run(run()) == ["start begins", "start is done", "used", "end begins", "end is done"]


def test_a_start_that_fails_is_not_undone_again() -> None:
    async def run() -> list[str]:
        slow = Slow()
        slow.fails = True
        return await _cancelled_while(slow, "start")

    assert asyncio.run(run()) == ["start begins", "start is done"]


def test_undisturbed_it_is_as_without() -> None:
    async def run(slow: Slow) -> None:
        slow.go_on.set()
        await _use(slow)

    async def fail(slow: Slow) -> None:
        slow.fails = True
        await run(slow)

    async def both() -> None:
        await run(slow := Slow())
        assert slow.happened[-1] == "end is done"
        with pytest.raises(OSError, match="no room"):
            await fail(Slow())

    asyncio.run(both())
