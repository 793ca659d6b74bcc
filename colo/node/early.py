"""What a primary's guest may say before the commit: one rule for each life of the secondary's guest.

A rule is attached in the pause of a checkpoint and lives until a later pause attaches another one.  Between
a cut and its commit every rule holds everything: the secondary does not have the new epoch yet.

=================================  ============================================
:class:`Waiting`                   nothing goes early; inputs are mirrored for a survivor's sake
:class:`colo.node.logged.Logged`   what follows from the log that the secondary holds
=================================  ============================================
"""

from __future__ import annotations

from typing import Protocol

from colo.life import Life
from colo.node.input_mirror import InputMirror
from colo.node.replica import Replica


class Early(Protocol):
    """Everything but :meth:`facts` is called in the guest's thread."""

    life: Life

    def begin(self, epoch: int) -> None:
        """In the pause, state and held output being cut: this epoch follows."""

    def open(self) -> None:
        """The epoch's cut is committed: what follows from it may go by this rule."""

    def end(self) -> None:
        """The rule ends, or its epoch is cut short: listen to nothing more."""

    def facts(self) -> dict[str, int | float]:
        """For a status: what it counted.  From any thread, while the guest's goes on counting."""


class Waiting:
    """Life.WAIT."""

    life = Life.WAIT

    def __init__(self, replica: Replica, mirror: InputMirror) -> None:
        self._replica = replica
        self._machine = replica.machine
        self._mirror = mirror

    def begin(self, epoch: int) -> None:
        self._mirror.epoch = epoch + 1
        self._machine.door.heard = self._hear

    def _hear(self, port: str, payload: bytes) -> None:
        self._mirror.hear(port, self._replica.as_sent(port, payload))

    def open(self) -> None:
        """There is nothing that could go."""

    def end(self) -> None:
        self._machine.door.heard = None

    def facts(self) -> dict[str, int | float]:
        return {}
