"""What the simulated world consists of: processes on hosts, and their halves of pairings."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field

from colo.arbiter import Arbiter
from colo.failover import Ending
from colo.messages import Packet
from tests.protocol.arbiters import Distant, Patience
from tests.protocol.network import End, Until
from tests.protocol.toy_machine import Half, ToyMachine, ToyPrimary, ToySecondary

FOREVER = 1 << 60
"""Steps."""


class Killed(BaseException):
    """``kill -9`` in the middle of something: no code of the node runs any more."""


@dataclass
class Parts:
    """What a world is made of; a test plants a wrong one."""

    primary: type[ToyPrimary] = ToyPrimary
    secondary: type[ToySecondary] = ToySecondary
    operations: int = 4
    """That each client has done in the end."""
    epochs: int = 2
    """That a pairing gets to at least, when nothing disturbs it."""


@dataclass
class Pairing:
    """One node's half of a pairing."""

    number: int
    half: Half
    end: End
    patience: Patience
    arbiter: Distant
    coroutine: Coroutine[Until, None, Ending]
    other: Node
    op: Until
    silent_since: int = FOREVER

    @property
    def is_primary(self) -> bool:
        return isinstance(self.half, ToyPrimary)


@dataclass
class Node:
    """A process on a host."""

    name: str
    machine: ToyMachine
    arbiter: Arbiter
    generation: int = 0
    alive: bool = True
    paused_until: int = 0
    breath: int = FOREVER
    """Words until it dies."""
    pairing: Pairing | None = None
    half: Half | None = None
    """Of its latest pairing."""
    serves: bool = False
    """Alone or primary: the bridge brings it packets."""
    ending: Ending | None = None
    inbox: deque[Packet] = field(default_factory=deque)
