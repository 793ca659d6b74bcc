"""What the simulated world consists of: processes on hosts, and their halves of pairings."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from colo.arbiter import Arbiter
from colo.failover import Ending
from colo.messages import Packet
from tests.protocol.arbiters import Distant, Patience
from tests.protocol.companions import ToyCompanion
from tests.protocol.network import End, Until
from tests.protocol.toy_machine import ToyMachine
from tests.protocol.toy_primary import ToyPrimary
from tests.protocol.toy_secondary import ToySecondary

Half = ToyPrimary | ToySecondary

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
    policies: tuple[str, ...] = ("periodic",)
    """One of them is a world's first, and others it may switch to."""
    companion: str = "unix"
    noisy_every: int = 1
    """Of the guest's words."""
    step_ms: tuple[float, ...] = (0.3, 1, 5)
    """One of them is what a step of the world takes, for rules that go by the host's time."""
    delays: tuple[int, int] = (30, 120)
    """Steps between two checkpoints of a policy that needs few."""


BRIEF: dict[str, Any] = {"operations": 2, "epochs": 1, "delays": (20, 60)}
"""Short enough to be run again for each of its steps."""


def parts(policies: str, **others: Any) -> Parts:
    """Of a world with one of ``policies``, or several to switch between.

    Where both guests run they say the same more often than not, and have time to.
    """
    names = tuple(policies.split())
    if "colo" in names:
        others = {"noisy_every": 12, "step_ms": (0.25, 0.5, 1), **others}
    return Parts(policies=names, **others)


@dataclass(eq=False)
class Pairing:
    """One node's half of a pairing."""

    number: int
    half: Any  # a Half
    end: End
    patience: Patience
    arbiter: Distant
    coroutine: Coroutine[Until, None, Ending]
    other: Node
    op: Until
    companion: ToyCompanion
    lost: str | None = None
    """Why the companion is lost, until somebody acts on it."""
    silent_since: int = FOREVER

    def __post_init__(self) -> None:
        self.is_primary = isinstance(self.half, ToyPrimary)


@dataclass(eq=False)
class Node:
    """A process on a host."""

    name: str
    machine: ToyMachine
    arbiter: Arbiter
    generation: int = 0
    alive: bool = True
    paused_until: int = 0
    breath: int = FOREVER
    """Pieces until it dies, or stops."""
    stops: bool = False
    throat: deque[tuple[int, bytes]] = field(default_factory=deque)
    """What it was about to say when it was stopped."""
    pairing: Pairing | None = None
    half: Half | None = None
    """Of its latest pairing."""
    serves: bool = False
    """Alone or primary: the bridge brings it packets."""
    ending: Ending | None = None
    inbox: deque[Packet] = field(default_factory=deque)
