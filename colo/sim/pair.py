"""A pair in a world: two nodes, the wire between their hosts, their arbiter, and who makes it whole again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from colo import policy as policies
from colo.node.leading import Settings
from colo.sim.arbiters import ArbiterLine, Ballot
from colo.sim.connection import connect
from colo.sim.image import Image
from colo.sim.loop import WorldError
from colo.sim.node import SimNode
from colo.sim.wire import Wire

if TYPE_CHECKING:
    from colo.sim.world import World

HEARTBEAT_MS, SILENCE_MS = 50, 300


@dataclass(frozen=True)
class PairOptions:
    """What a world may be told about a pair."""

    policy: str = "colo"
    delay_ms: int | None = None
    """Between checkpoints; None: the policy's own."""
    unix: bool = True
    """Both nodes on one host: what one gave to the kernel outlives it.  False: two hosts, and TCP."""
    delay_ns: int = 50_000
    """Of the wire between the nodes."""
    bytes_per_s: int = 0
    heartbeat_ms: int = HEARTBEAT_MS
    silence_ms: int = SILENCE_MS
    again_after_s: float | None = None
    """After a failover a new node stands by for the survivor; None: never."""
    segment: str = ""
    """The switch that its nodes are on."""
    verify: bool = False
    settings: Settings = field(default_factory=lambda: Settings(dirty_source="exact"))
    """``exact``: which pages changed must not depend on what the host's kernel can tell."""


class SimPair:
    """``name`` in ``world``; nodes are ``name-0``, ``name-1``, ... in the order in which they were made."""

    def __init__(self, world: World, name: str, image: Image, options: PairOptions) -> None:
        self.world, self.name, self.image, self.options = world, name, image, options
        self.ballot = Ballot()
        self.nodes: list[SimNode] = []
        self.wires: list[Wire] = []
        options.settings.verify = options.verify
        self.policy = policies.choose(options.policy, options.delay_ms)
        self.protect(self._begin())

    # What a scenario asks

    @property
    def serving(self) -> SimNode | None:
        """The node that the world hears; of two that both think so, the one that took over."""
        return next((node for node in reversed(self.nodes) if node.serves), None)

    @property
    def primary(self) -> SimNode:
        node = self.serving
        if node is None:
            raise WorldError(f"pair {self.name}: nobody serves: {self._states()}")
        return node

    @property
    def secondary(self) -> SimNode:
        for node in self.nodes:
            if node.alive and not node.serves and not node.halted and node.pairing is not None:
                return node
        raise WorldError(f"pair {self.name}: nobody stands by: {self._states()}")

    @property
    def is_protected(self) -> bool:
        """Both hold one epoch."""
        serving = self.serving
        return serving is not None and serving.is_protected

    @property
    def wire(self) -> Wire:
        """Between the two nodes of the latest pairing."""
        return self.wires[-1]

    def cut(self) -> None:
        """The connection between the nodes breaks; both go on."""
        for node in self.nodes:
            if node.alive and node.connection is not None:
                node.connection.snap()
        self.wire.cut()

    # Making it

    def _begin(self) -> SimNode:
        first = self._new_node(incoming=False)
        first.guest.start()
        return first

    def come_back(self) -> None:
        """A host is there again: to stand by for who serves, or from the beginning when nobody does."""
        serving = self.serving
        if serving is None:
            self._begin()
        else:
            self._make_whole(serving)

    def _new_node(self, *, incoming: bool) -> SimNode:
        node = self.world.new_node(
            f"{self.name}-{len(self.nodes)}",
            self.name,
            self.image,
            incoming=incoming,
            segment=self.options.segment,
        )
        node.changed = lambda event, facts: self._changed(node, event)
        self.nodes.append(node)
        return node

    def protect(self, primary: SimNode) -> SimNode:
        """A new node stands by for ``primary``."""
        options = self.options
        secondary = self._new_node(incoming=True)
        wire = Wire(self.world.agenda, options.delay_ns, options.bytes_per_s)
        self.wires.append(wire)
        self.world.name_wire(f"{self.name}-wire", wire)
        near, far = connect(
            primary,
            secondary,
            wire,
            unix=options.unix,
            interval_ms=options.heartbeat_ms,
            silence_ms=options.silence_ms,
        )
        secondary.stand_by(far, self._line(secondary), primary.replica.generation)
        primary.lead(near, self._line(primary), self.policy, options.settings)
        return secondary

    def _line(self, node: SimNode) -> ArbiterLine:
        return ArbiterLine(
            self.ballot,
            lambda: self.world.now_ns,
            lambda: node.alive,
            lambda what, detail: self.world.tell(node.name, what, detail),
        )

    def _changed(self, node: SimNode, event: str) -> None:
        self.world.stepped(node, event)
        again_s = self.options.again_after_s
        if event == "pairing-ended" and again_s is not None and node.serves:
            self.world.after(again_s, lambda: self._make_whole(node))

    def _make_whole(self, node: SimNode) -> None:
        if node.serves and node.pairing is None and node.ended is None:
            self.protect(node)

    def _states(self) -> str:
        return ", ".join(f"{node.name} {_state(node)}" for node in self.nodes)


def _state(node: SimNode) -> str:
    if not node.alive:
        return "dead"
    if node.halted:
        return "halted"
    return "stopped" if node.stopped else "serves" if node.serves else "stands by"
