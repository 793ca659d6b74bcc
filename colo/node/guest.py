"""The half of a node's commands that acts on its machine and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from colo.arbiter import Arbiter
from colo.errors import ControlError
from colo.filters import FilteredNet, spec_of
from colo.node.replica import Replica
from colo.node.status import NodeStatus
from colo.node.tunables import Tunables
from colo.qmp import schema
from colo.qmp.schema import ShutdownCause

Emit = Callable[[str, Any], None]
"""Sends a QMP event: its name, and its data or None."""


class NodeGuest(NodeStatus):
    """Filters on the cards; stopping, continuing, resetting and switching off the guest."""

    def __init__(
        self, replica: Replica, arbiter: Arbiter, guest_name: str, tunables: Tunables, emit: Emit
    ) -> None:
        super().__init__(replica, arbiter, guest_name, tunables)
        self._emit = emit

    async def add_filter(self, kind: str, properties: dict[str, Any]) -> None:
        spec = spec_of(kind, properties)
        net = self._net(spec.netdev)
        self.replica.guest.call(lambda: net.add(spec, self.replica.hold))

    async def remove_filter(self, id: str) -> None:
        for net in self.replica.nets:
            if any(each.spec.id == id for each in net.filters):
                self.replica.guest.call(partial(net.remove, id))
                return
        raise ControlError(f"object {id!r} not found: no card has a filter of that id")

    def _net(self, name: str) -> FilteredNet:
        for net in self.replica.nets:
            if net.name == name:
                return net
        known = ", ".join(net.name for net in self.replica.nets) or "none"
        raise ControlError(f"netdev {name!r}: this machine has {known}")

    async def stop(self) -> None:
        self._refuse_without_guest()
        if self.replica.guest.running:
            self.replica.guest.stop()
            self.replica.guest.call(lambda: None)
            self._emit("STOP", None)

    async def cont(self) -> None:
        self._refuse_without_guest()
        if not self.replica.guest.running:
            self.replica.guest.start()
            self._emit("RESUME", None)

    async def reset(self) -> None:
        self._refuse_without_guest()
        self.replica.guest.call(lambda: self.replica.machine.door.enter("reset", b"\0"))
        self._emit("RESET", schema.Shutdown(guest=False, reason=ShutdownCause.HOST_QMP_SYSTEM_RESET))

    async def powerdown(self) -> None:
        self._refuse_without_guest()
        self.replica.guest.call(lambda: self.replica.machine.door.enter("power-button", b"\0"))

    def _refuse_without_guest(self) -> None:
        if self.halted or self.awaits_primary:
            raise ControlError("the guest of this node does not run: the other node has it, or will")
        if self.ended is not None:
            raise ControlError("the guest has ended")
