"""A pair but for its sockets: both halves in one loop, each on a real machine in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from colo.errors import PeerLost, ProtocolViolation
from colo.failover import Failover
from colo.node.following import Following
from colo.node.leading import Leading, Settings
from colo.policy import Periodic, Policy
from colo.primary import checkpoint, synchronise
from colo.secondary import follow
from tests.machine.support import MS
from tests.replica.support import LIMIT_S, RAM_MIB, Node, companions, connection, started
from vmm.boot.source import BootSource
from vmm.machine import Ended


class Pair:
    """A primary and a secondary in one loop; the test is the protocol's clock."""

    def __init__(
        self, primary: Node, secondary: Node, settings: Settings, policy: Policy | None = None
    ) -> None:
        self.primary, self.secondary = primary, secondary
        self.here, self.there = connection()
        self.protected = 0
        beside, beside_there = companions()
        self.leading = Leading(primary.replica, policy or Periodic(), settings, self._protected, beside)
        self.leading.attach(self.here)
        self.failover = Failover()
        self.failover.guard(self.there)
        self.violations: list[str] = []
        self.following = Following(secondary.replica, self.failover, beside_there, self.violations.append)
        self.epoch = -1
        self._task = asyncio.create_task(follow(self.following, self.there))

    def _protected(self) -> None:
        self.protected += 1

    async def synchronise(self) -> None:
        await self._attended(synchronise(self.leading, self.here))
        self.epoch = 0

    async def checkpoint(self) -> None:
        self.epoch += 1
        await self._attended(checkpoint(self.leading, self.here, self.epoch))

    async def _attended(self, work: Coroutine[Any, Any, None]) -> None:
        """``work``, unless the secondary fails meanwhile."""
        task = asyncio.ensure_future(work)
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait({task, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            task.cancel()
            self._task.result()
        await task

    async def lost(self) -> str:
        """The connection is cut; what the secondary says of it, having read what arrived."""
        self.here.close()
        try:
            await self._task
        except (PeerLost, ProtocolViolation) as exc:
            return str(exc)
        raise AssertionError("the secondary did not notice")

    async def received(self, count: int) -> None:
        """Until the secondary has so many inputs of the open epoch."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.following._inputs) < count:
                await asyncio.sleep(0)


@asynccontextmanager
async def pair(
    boot: BootSource,
    settings: Settings | None = None,
    *,
    ram_mib: int = RAM_MIB,
    begin_ns: int = 20 * MS,
    policy: Policy | None = None,
) -> AsyncIterator[Pair]:
    """Both guest threads run; the primary's guest was started and has come as far as ``begin_ns``."""
    primary = Node(boot, ram_mib=ram_mib, name="a")
    secondary = Node(boot, ram_mib=ram_mib, name="b", standing_by=True)
    primary.machine.run(begin_ns)
    with started(primary, secondary):
        made = Pair(primary, secondary, settings or Settings(), policy)
        try:
            yield made
        finally:
            made.leading.changes.close()
            made._task.cancel()
            await asyncio.gather(made._task, return_exceptions=True)


def held_there(node: Node, until_ns: int) -> str:
    """In the guest's thread: run to this time; the hash of everything."""
    while (ended := node.machine.run(until_ns)) is not Ended.TIME:
        assert ended is Ended.REQUEST, ended
    return node.machine.digest


def take_over_until(made: Pair, at_ns: int) -> str:
    """The secondary takes over and serves up to exactly this time."""
    hashes: list[str] = []
    made.secondary.on["took-over"] = lambda: hashes.append(held_there(made.secondary, at_ns))
    made.following.take_over()
    return hashes[0]
