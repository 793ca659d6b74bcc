"""Worlds for tests: a pair with the echo guest, and what its clients heard."""

from __future__ import annotations

from colo.sim.clients import udp_echo
from colo.sim.events import Line
from colo.sim.host import Host
from colo.sim.pair import SimPair
from colo.sim.world import World

POLICIES = ("periodic", "lockstep", "colo")
LIMIT_S = 5.0
"""Of virtual time: more than any failover takes."""


class Echoes:
    """A world in which a client of an echo guest's pair counts what came back."""

    def __init__(self, world: World, policy: str, **options: object) -> None:
        self.world = world
        self.heard: list[int] = []
        self.lines: list[Line] = []
        world.log.sinks.append(self.lines.append)
        self.pair: SimPair = world.pair("udpecho", policy, **options)
        self.client: Host = world.client(udp_echo(self.heard.append))
        world.run_until(lambda: self.pair.is_protected and self.heard, LIMIT_S)

    def more(self, count: int, within_s: float = LIMIT_S) -> None:
        """Run until the client has heard so many more."""
        wanted = len(self.heard) + count
        self.world.run_until(lambda: len(self.heard) >= wanted, within_s)

    def told(self, what: str) -> list[str]:
        """Details of the lines of this kind."""
        return [line.detail for line in self.lines if line.what == what]
