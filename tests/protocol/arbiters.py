"""Arbiters of the simulated world.

``file`` is the real :class:`colo.arbiter.FileArbiter` behind a network, ``memory`` the same behind it
without a disk, ``manual`` the real :class:`colo.arbiter.ManualArbiter` with a person who keeps its rule: look
at both nodes, tell one.

A network lies between: the arbiter may be out of reach, answer late, or decide and have its answer lost.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from colo.arbiter import Arbiter, FileArbiter, ManualArbiter
from colo.errors import ArbiterError
from tests.protocol.network import Until, always

LATE_MAX = 60
"""Steps."""
ASK_AGAIN = 12
"""Steps until a node that got no answer asks again."""


class Claims:
    """A test-and-set in memory."""

    def __init__(self) -> None:
        self._winners: dict[tuple[str, int], str] = {}
        self.spec = "memory:"

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        return self._winners.setdefault((pair, generation), node) == node

    def command(self) -> None:
        """Not needed: see FileArbiter."""

    def forget(self) -> None:
        """Not needed: see FileArbiter."""


class Distant:
    """One node's way to an arbiter."""

    def __init__(
        self,
        inner: Arbiter,
        rng: Random,
        now: Callable[[], int],
        is_down: Callable[[], bool],
        won: Callable[[str, int], None],
    ) -> None:
        self.inner, self.spec = inner, inner.spec
        self._rng, self._now, self._is_down, self._won = rng, now, is_down, won

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        await Until("arbiter: asking", always)
        self._check("is out of reach")
        won = await self.inner.claim(pair, generation, node)
        if won:
            self._won(node, generation)
        if self._rng.random() < 0.3:
            ready_at = self._now() + self._rng.randrange(LATE_MAX)
            await Until("arbiter: answer under way", lambda: self._now() >= ready_at)
            self._check("decided, its answer is lost")
        return won

    def _check(self, text: str) -> None:
        if self._is_down():
            raise ArbiterError(f"arbiter {self.spec} {text}")

    def command(self) -> None:
        self.inner.command()

    def forget(self) -> None:
        self.inner.forget()


class Patience:
    """A :class:`colo.failover.Waiter`."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self.told = False
        self.waits = False

    async def before_asking_again(self, refusal: ArbiterError) -> None:
        self.told, self.waits = False, True
        until = self._now() + ASK_AGAIN
        await Until("arbiter: asking again", lambda: self.told or self._now() >= until)
        self.waits = False

    async def give_way(self) -> None:
        until = self._now() + ASK_AGAIN
        await Until("gives way", lambda: self._now() >= until)


def kinds(directory: str) -> dict[str, Callable[[], Callable[[], Arbiter]]]:
    """By name: what makes the arbiters of one world, one for each node."""

    def in_memory() -> Callable[[], Arbiter]:
        claims = Claims()
        return lambda: claims

    return {
        "memory": in_memory,
        "file": lambda: lambda: FileArbiter(directory),
        "manual": lambda: ManualArbiter,
    }
