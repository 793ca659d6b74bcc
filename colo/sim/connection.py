"""The connection of a pair in the world: the real ``Connection`` over simulated ends.

Both ends are made at once, as if they had greeted each other; what the greeting compares is alike by
construction, because one world makes both nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from colo.messages import Message, Welcome
from colo.sim.companion import SimCompanion
from colo.sim.heartbeat import SimHeartbeat
from colo.sim.node import SimNode
from colo.sim.transport import SimTransport, joined
from colo.sim.wire import Wire
from colo.transport.companion import Companion
from colo.transport.heartbeat import Heartbeat
from colo.transport.link import Connection, Link


class SpokenLink(Link):
    """Tells of every word of the protocol."""

    tell: Callable[[str, Message], None]

    async def send(self, message: Message) -> None:
        if self.lost is None:
            self.tell("says", message)
        await super().send(message)

    async def receive(self) -> Message:
        message = await super().receive()
        self.tell("hears", message)
        return message


class SimConnection(Connection):
    """One end of a pair's connection."""

    def __init__(self, link: Link, companion: SimCompanion, heartbeat: SimHeartbeat) -> None:
        self.ends = (companion, heartbeat)
        self._join(
            link,
            Welcome(heartbeat.interval_ms, b""),
            cast(Companion, companion),
            lambda: cast(Heartbeat, heartbeat),
        )
        companion.on_lost = heartbeat.on_lost = self._beside_lost

    def _transport_end(self) -> SimTransport:
        return cast(SimTransport, self.link._transport)

    def die(self, silently: bool) -> None:
        """The node's process is gone; ``silently``, and its host with it."""
        self._transport_end().die(silently)
        for end in self.ends:
            end.die(silently)

    def snap(self) -> None:
        """The connection breaks, and nothing else does."""
        self._transport_end().reset()
        for end in self.ends:
            end.snap()


def connect(
    near: SimNode, far: SimNode, wire: Wire, *, unix: bool, interval_ms: int, silence_ms: int
) -> tuple[SimConnection, SimConnection]:
    """Three connections over ``wire``, and the two nodes' ends of them."""
    nodes = (near, far)
    links = [_link(node) for node in nodes]
    joined(near, far, wire.both(), links)
    companions = [node.new_companion(out, unix) for node, out in zip(nodes, wire.both(), strict=True)]
    beats = [
        SimHeartbeat(node, out, interval_ms, silence_ms) for node, out in zip(nodes, wire.both(), strict=True)
    ]
    companions[0].peer, companions[1].peer = companions[1], companions[0]
    beats[0].peer, beats[1].peer = beats[1], beats[0]
    first, second = (
        SimConnection(link, companion, beat)
        for link, companion, beat in zip(links, companions, beats, strict=True)
    )
    for beat in beats:
        beat.begin()
    return first, second


def _link(node: SimNode) -> SpokenLink:
    with node.inside():
        link = SpokenLink()
    link.tell = node.spoke
    return link
