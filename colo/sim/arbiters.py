"""Arbiters in the world: the test-and-set of :class:`colo.arbiter.FileArbiter` in memory, and what goes
wrong.

A :class:`Ballot` is the shared storage; each node asks it through an :class:`ArbiterLine` of its own, which
takes time, and which faults make slow or unreachable.  *Wrong* is an arbiter that lies: it tells everyone who
asks that he has won.  No pair survives that one; the world is there to show what it does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from colo.errors import ArbiterError
from colo.faults.delay import Delay
from colo.faults.model import ArbiterFault
from vmm.clock import NEVER_NS

ASK_NS = 200_000
"""To the storage and back."""


class Ballot:
    """Who has which generation of which pair."""

    def __init__(self) -> None:
        self.holders: dict[tuple[str, int], str] = {}
        self._faults: list[tuple[ArbiterFault, int, random.Random]] = []

    def begin(self, fault: ArbiterFault, now_ns: int, rng: random.Random) -> None:
        until_ns = now_ns + fault.for_ns if fault.for_ns else NEVER_NS
        self._faults.append((fault, until_ns, rng))

    def wrong(self, effect: str, now_ns: int) -> bool:
        return any(fault.effect == effect and until_ns > now_ns for fault, until_ns, _ in self._faults)

    def late_ns(self, now_ns: int) -> int:
        delays: list[tuple[Delay, random.Random]] = [
            (fault.delay, rng)
            for fault, until_ns, rng in self._faults
            if fault.delay is not None and until_ns > now_ns
        ]
        return sum(delay.draw(rng) for delay, rng in delays)

    def claim(self, pair: str, generation: int, node: str) -> bool:
        return self.holders.setdefault((pair, generation), node) == node


class ArbiterLine:
    """One node's way to the ballot (:class:`colo.arbiter.Arbiter`).

    ``passes`` tells whether anything of the node still gets there.
    """

    spec = "world"

    def __init__(
        self,
        ballot: Ballot,
        now_ns: Callable[[], int],
        passes: Callable[[], bool],
        tell: Callable[[str, str], None],
    ) -> None:
        self._ballot, self._now_ns, self._passes, self._tell = ballot, now_ns, passes, tell

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        ballot = self._ballot
        await asyncio.sleep((ASK_NS + ballot.late_ns(self._now_ns())) / 1e9)
        if not self._passes() or ballot.wrong("unreachable", self._now_ns()):
            self._tell("arbiter", f"generation {generation}: no answer")
            raise ArbiterError(f"arbiter {self.spec}: no answer about generation {generation} of {pair}")
        won = ballot.claim(pair, generation, node) or ballot.wrong("wrong", self._now_ns())
        self._tell("arbiter", f"generation {generation}: {'won' if won else 'lost'}")
        return won

    async def check(self, pair: str, generation: int) -> None:
        """A world's pairs have names of their own."""

    def command(self) -> None:
        """The ballot decides between two nodes that both have a person's word."""

    def forget(self) -> None:
        """Nothing was remembered."""
