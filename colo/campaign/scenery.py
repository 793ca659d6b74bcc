"""``[world]`` of a plan, and the golden runs of its worlds: one for each policy that it compares.

*Golden runs.*  A world's golden run is its trial without faults whose seed is the plan's.  Wildcards of a
plan with several policies draw from one golden run, so that a trial has the same faults in every world:
that of the machine that nobody protects, or of the first policy when there is no such world.  Times and
numbers of instructions are of the shortest, so that hardly a fault that is drawn comes too late in another.
They know what all of its worlds have: the machine (an empty target: the machine alone, or the pair's
primary), its disk, and the clients' cables.  A plan with one policy knows its world's nodes, cables, steps
and arbiters by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from colo.faults import golden
from colo.faults.errors import FaultError
from colo.faults.fields import Text, Whole
from colo.faults.triggers import Ns, Part
from colo.sim import clients

Policy = Literal["none", "periodic", "lockstep", "colo"]
UNPROTECTED: Policy = "none"
CLIENTS_MAX, OPERATIONS_MAX = 64, 100_000
DIGEST_SIZE = 16


class Scenery(Part, frozen=True, kw_only=True):
    """``[world]``, and what belongs to it from elsewhere in a plan."""

    guest: str = ""
    policy: Policy | tuple[Policy, ...] = "colo"
    """A list: every trial is run in a world of each."""
    client: Literal["", "udp-echo", "redis-counter", "http-get"] = ""
    """Empty: that of the guest's own service."""
    path: Annotated[str, Text(r"/[!-~]*", 200, "a path, which begins with /")] = "/1k.txt"
    """That http-get asks for."""
    clients: Annotated[int, Whole(1, CLIENTS_MAX, "clients")] = 1
    operations: Annotated[int, Whole(1, OPERATIONS_MAX, "answers that each client wants")] = 40
    pause_ns: Ns = 5_000_000
    begin: Literal["protected", "start"] = "protected"
    two_hosts: bool = False
    """What a node's kernel holds is lost with its host."""
    again_ns: Ns = 0
    """A survivor gets a new node so much later; 0: never."""
    limit_ns: Ns = 10_000_000_000
    """From when faults are armed, for all answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.policies or len(set(self.policies)) < len(self.policies):
            raise FaultError(("policy",), repr(self.policy), "policies, each once")

    @property
    def policies(self) -> tuple[Policy, ...]:
        return self.policy if isinstance(self.policy, tuple) else (self.policy,)

    def under(self, policy: Policy) -> Scenery:
        """One of its worlds."""
        return msgspec.structs.replace(self, policy=policy)

    @property
    def asks(self) -> str:
        """What its clients are; empty: the guest has no service that is known here."""
        return self.client or clients.OF_GUEST.get(self.guest, "")


class Unharmed(msgspec.Struct, frozen=True, kw_only=True):
    """One world without faults."""

    policy: Policy
    span_ns: int
    """From when faults would be armed to the last answer."""
    log: str
    """Digest of all that happened."""
    noticed: tuple[str, ...]
    """In what the pair's machines differed, although nothing was wrong (:mod:`colo.campaign.noticed`)."""
    steps: dict[str, dict[str, int]]
    """By node, words and changes since then."""
    cables: tuple[str, ...]
    clients: tuple[str, ...]
    """Of the cables, those of clients."""
    disks: dict[str, int]
    pairs: tuple[str, ...]
    first: str
    """The machine alone, or the pair's primary."""
    guests: dict[str, golden.Guest]

    def facts(self) -> golden.Golden:
        """What wildcards stand for in this world alone."""
        return golden.Golden(
            end_ns=self.span_ns,
            guests=self.guests,
            links=self.cables,
            disks=self.disks,
            arbiters=self.pairs,
            steps=self.steps,
        )

    def facts_for(self, worlds: Sequence[Unharmed]) -> golden.Golden:
        """What they stand for in all of these: as here, and as long as in the shortest of them."""
        least = min(each.guests[each.first].instructions for each in worlds)
        return golden.Golden(
            end_ns=min(each.span_ns for each in worlds),
            guests={"": msgspec.structs.replace(self.guests[self.first], instructions=least)},
            links=self.clients,
            disks={"": self.disks[self.first]} if self.first in self.disks else {},
        )


class WorldRun(msgspec.Struct, frozen=True, kw_only=True, tag="world"):
    """The worlds without faults, in the plan's order."""

    scenario: Scenery
    seed: int
    worlds: tuple[Unharmed, ...]

    @property
    def digest(self) -> str:
        """Of all that happened in all of them."""
        return hashlib.blake2b(
            " ".join(each.log for each in self.worlds).encode(), digest_size=DIGEST_SIZE
        ).hexdigest()

    def of(self, policy: str) -> Unharmed:
        """The world under this policy, which is one of the plan's."""
        return next(each for each in self.worlds if each.policy == policy)

    def facts(self) -> golden.Golden:
        """What wildcards stand for."""
        if len(self.worlds) == 1:
            return self.worlds[0].facts()
        named = {each.policy: each for each in self.worlds}
        return named.get(UNPROTECTED, self.worlds[0]).facts_for(self.worlds)
