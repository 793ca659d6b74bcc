"""One pairing of a node: the connection, the half of the protocol that this node runs, and its end.

A pairing begins with a connection and ends with an :class:`colo.failover.Ending`; a node has one at a
time.  That the peer is lost shows at the protocol's next ``await`` on the connection, which fails with
its heartbeat; a primary that waits for its next checkpoint is woken.  A person who says so
(:meth:`Pairing.lose`) has the connection shut, and then it is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from colo.arbiter import Arbiter
from colo.errors import ArbiterError
from colo.failover import Ending, Failover, lead, stand_by
from colo.node.following import Following
from colo.node.leading import Leading, Settings
from colo.node.replica import Replica
from colo.policy import Policy
from colo.transport.link import Connection

ASK_AGAIN_S = 0.5
"""An arbiter that gave no answer is asked again after this time, or when a person says so."""
WAY_SILENCES = 3
"""Of the heartbeat: one until the primary misses it, one more that it may listen for, one to ask in."""


class Pairing:
    """What both roles have: a connection, a failover, and somebody who waits for an arbiter."""

    def __init__(self, replica: Replica, connection: Connection, arbiter: Arbiter) -> None:
        self.replica = replica
        self.connection = connection
        self.arbiter = arbiter
        self.failover = Failover(lambda status: replica.report("failover", {"status": status.value}))
        self.waiting_for: str | None = None
        """What the arbiter said instead of an answer, while it gives none."""
        self._asked = asyncio.Event()

    @property
    def in_colo(self) -> bool:
        """Both hold the same epoch: either could go on."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        raise NotImplementedError

    async def claim(self) -> None:
        """Before the connection is shut, so that the node that a person names is the one that wins."""
        replica = self.replica
        with suppress(ArbiterError):  # it is asked again, as after any loss
            await self.arbiter.claim(replica.pair, replica.generation + 1, replica.node)

    def lose(self, reason: str) -> bool:
        """A person says that the peer is lost; False when a failover is under way already."""
        self.arbiter.command()
        self._asked.set()
        return self.failover.request(reason, on_demand=True)

    async def before_asking_again(self, refusal: ArbiterError) -> None:
        """For :mod:`colo.failover`: until a person acts, or a while."""
        if self.waiting_for != str(refusal):
            self.waiting_for = str(refusal)
            self.replica.report("arbiter", {"refused": str(refusal)})
        self._asked.clear()
        await self._asked_within(ASK_AGAIN_S)

    async def give_way(self) -> None:
        """For :mod:`colo.failover`."""
        self.replica.report("gives-way", {})
        await self._asked_within(WAY_SILENCES * self.connection.heartbeat.silence_ms / 1000)

    async def _asked_within(self, seconds: float) -> None:
        """Until a person acts, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()

    def close(self) -> None:
        self.connection.close()


class PrimaryPairing(Pairing):
    """This node's machine, protected by the node at the other end of ``connection``."""

    def __init__(
        self,
        replica: Replica,
        connection: Connection,
        arbiter: Arbiter,
        policy: Policy,
        settings: Settings,
        protected: Callable[[], None],
        *,
        compress: bool,
    ) -> None:
        """``protected`` is called when the first epoch is installed on the other side."""
        super().__init__(replica, connection, arbiter)
        self.vm = Leading(
            replica,
            policy,
            settings,
            protected,
            connection.companion,
            overdue=connection.heartbeat.is_overdue,
            compress=compress,
        )
        self.vm.attach(connection.link)
        loop = asyncio.get_running_loop()

        def wake(reason: str) -> None:
            loop.call_soon_threadsafe(self.vm.lose, reason)

        connection.watch(wake)

    @property
    def in_colo(self) -> bool:
        return self.vm.epoch >= 0

    @property
    def epoch(self) -> int:
        return max(self.vm.epoch, 0)

    def lose(self, reason: str) -> bool:
        fresh = super().lose(reason)
        self.vm.lose(reason)
        return fresh

    async def run(self) -> Ending:
        """Until the pairing is over; the machine then goes on, or is halted, or has ended."""
        try:
            ending = await lead(self.vm, self.connection.link, self.arbiter, self.failover, self)
            if ending is Ending.SHUTDOWN:
                self.vm.shut_down()
                await self.connection.finish()
            return ending
        finally:
            self.close()


class SecondaryPairing(Pairing):
    """This node, standing by for the one at the other end of ``connection``."""

    def __init__(self, replica: Replica, connection: Connection, arbiter: Arbiter) -> None:
        super().__init__(replica, connection, arbiter)
        self.vm = Following(replica, self.failover, connection.companion, connection.link.close_threadsafe)

    @property
    def in_colo(self) -> bool:
        return self.vm.has_sealed

    @property
    def epoch(self) -> int:
        return max(self.vm.epoch, 0)

    async def run(self) -> Ending:
        """Until the pairing is over; the machine then serves, or never will."""
        try:
            ending = await stand_by(self.vm, self.connection.link, self.arbiter, self.failover, self)
            if ending is Ending.SHUTDOWN:
                self.vm.shut_down()
            return ending
        finally:
            self.close()
