"""What each half does when the other is gone, and the state machine of QEMU's ``FailoverStatus``.

::

    none ──request──▶ require ──begin──▶ active ──▶ completed
      ▲                  │
      │                  │ while the secondary installs an epoch
      └── installed ── relaunch

A request comes from the link (PeerLost), or from a person (``x-colo-lost-heartbeat``).  Either way
the connection is shut first, so that nothing blocks on it and both ends learn of it; then the guest
stands still, the arbiter is asked, and the node that wins goes on.  The one that loses halts its
guest for good and drops what it held: from here on the other one's word is the truth.

Who must ask: a secondary that holds a sealed epoch, and a primary that may have completed one
(``vm.promised``).  Before that nobody could take over, so the primary just goes on, and a secondary
that has nothing to stand for gives up.  A secondary whose guest is known not to be what the primary's is
(it departed from the log, or has ended) gives way first: a primary that lives asks meanwhile and wins, and
only when there is none is that guest better than nothing.

A request that comes while an epoch is being installed waits for the end of that (relaunch): half of
one state and half of another is no machine.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from colo.arbiter import Arbiter
from colo.errors import ArbiterError, PeerLost, ProtocolViolation
from colo.peer import Peer
from colo.primary import PrimaryVm, protect, synchronise
from colo.secondary import SecondaryVm, follow


class FailoverStatus(Enum):
    """QEMU's words (qapi/migration.json)."""

    NONE = "none"
    REQUIRE = "require"
    ACTIVE = "active"
    COMPLETED = "completed"
    RELAUNCH = "relaunch"


TRANSITIONS = {
    FailoverStatus.NONE: (FailoverStatus.REQUIRE, FailoverStatus.RELAUNCH),
    FailoverStatus.RELAUNCH: (FailoverStatus.NONE,),
    FailoverStatus.REQUIRE: (FailoverStatus.ACTIVE,),
    FailoverStatus.ACTIVE: (FailoverStatus.COMPLETED,),
    FailoverStatus.COMPLETED: (),
}
"""All that may follow on what; nothing else does."""


class Failover:
    """The state of one node's failover, for one pairing.

    ``reason`` is why it was requested; ``on_demand`` whether a person did.
    """

    def __init__(self, changed: Callable[[FailoverStatus], None] = lambda status: None) -> None:
        self._changed = changed
        self.status = FailoverStatus.NONE
        self.reason = ""
        self.on_demand = False
        self.loading = False
        self._peer: Peer | None = None

    def guard(self, peer: Peer) -> None:
        """The connection that a request shuts; one that came before this shuts it now."""
        self._peer = peer
        if self.status is not FailoverStatus.NONE:
            peer.close()

    def request(self, reason: str, *, on_demand: bool = False) -> bool:
        """Ask for a failover; False when one is under way already."""
        if self.status is not FailoverStatus.NONE:
            return False
        self.reason, self.on_demand = reason, on_demand
        if self.loading:
            self._become(FailoverStatus.RELAUNCH)
            return True
        self._become(FailoverStatus.REQUIRE)
        if self._peer is not None:
            self._peer.close()
        return True

    def begin_loading(self) -> None:
        """An epoch is being installed: nothing may begin meanwhile."""
        self.loading = True

    def end_loading(self) -> None:
        """It is installed; a request that came meanwhile is made now."""
        self.loading = False
        if self.status is FailoverStatus.RELAUNCH:
            self._become(FailoverStatus.NONE)
            self.request(self.reason, on_demand=self.on_demand)

    def begin(self, reason: str) -> None:
        """The protocol has ended: from here on this node acts on its own."""
        self.request(reason)
        self._become(FailoverStatus.ACTIVE)

    def complete(self) -> None:
        self._become(FailoverStatus.COMPLETED)

    def _become(self, status: FailoverStatus) -> None:
        assert status in TRANSITIONS[self.status], f"{self.status} to {status}"
        self.status = status
        self._changed(status)


class Ending(Enum):
    """How a pairing ended for a node."""

    ALONE = "alone"
    """This node goes on by itself."""
    LOST = "lost"
    """The other one does: this one's guest is halted."""
    SHUTDOWN = "shutdown"
    """The guest ended; both nodes know."""
    NOTHING = "nothing"
    """A secondary that never held a whole epoch."""


class Waiter(Protocol):
    """What else a node waits for."""

    async def before_asking_again(self, refusal: ArbiterError) -> None:
        """The arbiter gave no answer: wait, until a person or some time says to ask again."""

    async def give_way(self) -> None:
        """Wait for longer than a peer that lives needs to find out and to ask, unless a person has said."""


class SurvivingPrimary(PrimaryVm, Protocol):
    """A primary that may be left alone."""

    pair: str
    generation: int
    node: str
    has_promised: bool

    def freeze(self) -> None:
        """The guest stands still, and nothing more of it is released."""

    def go_alone(self) -> None:
        """Nobody else remembers: what is held may go, and nothing need be held any more."""

    def halt(self) -> None:
        """The other one goes on: drop what is held; this guest never runs again."""


class SurvivingSecondary(SecondaryVm, Protocol):
    """A secondary that may have to take over."""

    pair: str
    generation: int
    node: str
    has_sealed: bool

    @property
    def has_departed(self) -> bool:
        """The guest is not what the primary's is, and nothing has repaired it yet."""

    def take_over(self) -> None:
        """Install what is sealed, say again what may be unsaid, and serve."""

    def halt(self) -> None:
        """The other one goes on: this guest never runs."""


async def lead(
    vm: SurvivingPrimary, peer: Peer, arbiter: Arbiter, failover: Failover, waiter: Waiter
) -> Ending:
    """The primary's life in one pairing, from the first page to its end."""
    failover.guard(peer)
    arbiter.forget()
    try:
        await synchronise(vm, peer)
        await protect(vm, peer)
        return Ending.SHUTDOWN
    except (PeerLost, ProtocolViolation) as exc:
        reason = str(exc)
    vm.freeze()
    failover.begin(reason)
    peer.close()
    if not vm.has_promised or await _wins(vm, arbiter, waiter):
        vm.go_alone()
        failover.complete()
        return Ending.ALONE
    vm.halt()
    failover.complete()
    return Ending.LOST


async def stand_by(
    vm: SurvivingSecondary, peer: Peer, arbiter: Arbiter, failover: Failover, waiter: Waiter
) -> Ending:
    """The secondary's life in one pairing."""
    failover.guard(peer)
    arbiter.forget()
    try:
        failover.reason = await follow(vm, peer)
        return Ending.SHUTDOWN
    except (PeerLost, ProtocolViolation) as exc:
        reason = str(exc)
    failover.begin(reason)
    peer.close()
    if not vm.has_sealed:
        failover.complete()
        return Ending.NOTHING
    if vm.has_departed:
        await waiter.give_way()
    if await _wins(vm, arbiter, waiter):
        vm.take_over()
        failover.complete()
        return Ending.ALONE
    vm.halt()
    failover.complete()
    return Ending.LOST


async def _wins(vm: SurvivingPrimary | SurvivingSecondary, arbiter: Arbiter, waiter: Waiter) -> bool:
    """Ask until there is an answer; the next generation belongs to who is told yes."""
    while True:
        try:
            return await arbiter.claim(vm.pair, vm.generation + 1, vm.node)
        except ArbiterError as exc:
            await waiter.before_asking_again(exc)
