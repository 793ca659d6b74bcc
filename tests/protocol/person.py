"""The operator of the simulated world: ``x-colo-lost-heartbeat``, and what a manual arbiter waits for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from colo.arbiter import ManualArbiter
from colo.errors import ArbiterError
from tests.protocol.network import Until, always
from tests.protocol.nodes import Node, Pairing


@dataclass(eq=False)
class Order:
    """A command that a node carries out beside the protocol."""

    node: Node
    coroutine: Coroutine[Until, None, None]
    op: Until


class Person:
    """Tells one node of a pairing that its peer is lost, and never both."""

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self.orders: list[Order] = []
        self._note = note
        self._told: dict[int, Node] = {}

    def has_told(self, node: Node) -> bool:
        """In the pairing that it is in."""
        return node.pairing is not None and self._told.get(node.pairing.number) is node

    def is_free(self, pairing: Pairing) -> bool:
        """Neither node of it was told."""
        return pairing.number not in self._told

    def is_waited_for(self, nodes: list[Node]) -> bool:
        return isinstance(nodes[0].arbiter, ManualArbiter) and any(map(self._waits, nodes))

    def looks(self, nodes: list[Node], winners: dict[int, str], end: Callable[[Node], None]) -> None:
        """At both nodes of a pairing: tells one that waits, unless another may go on; ends losers."""
        for node in filter(self._waits, nodes):
            assert node.pairing is not None
            told = self._told.get(node.pairing.number)
            if winners.get(node.generation + 1, node.name) != node.name:
                end(node)
            elif told is None or not told.alive or told.pairing is None:
                self.tells(node)

    def tells(self, node: Node) -> None:
        """As :meth:`colo.node.node.Node.lost_heartbeat` and :mod:`colo.node.pairing` carry it out."""
        pairing = node.pairing
        assert pairing is not None
        self._note(node.name, "is told that its peer is lost")
        self._told[pairing.number] = node
        self.orders.append(Order(node, self._lose(pairing), Until("command", always)))

    def proceed(self, order: Order) -> None:
        """The node goes on with it."""
        try:
            order.op = order.coroutine.send(None)
        except StopIteration:
            self.orders.remove(order)

    def forget(self, node: Node) -> None:
        """It died, and its commands with it."""
        for order in [order for order in self.orders if order.node is node]:
            order.coroutine.close()
            self.orders.remove(order)

    def _waits(self, node: Node) -> bool:
        return node.alive and node.pairing is not None and node.pairing.patience.waits

    async def _lose(self, pairing: Pairing) -> None:
        """The claim comes before the connection is shut: so the node that was named is the one that wins."""
        half: Any = pairing.half
        if half.failover.status.value == "none" and half.epoch >= 0:
            with suppress(ArbiterError):
                await pairing.arbiter.claim(half.pair, half.generation + 1, half.node)
        pairing.arbiter.command()
        pairing.patience.told = True
        half.failover.request("x-colo-lost-heartbeat", on_demand=True)
