"""How the faults of a plan befall the simulated world."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from colo.failover import FailoverStatus
from colo.life import Life
from colo.messages import Dissolve
from tests.protocol.companions import TcpCompanion
from tests.protocol.faults import Event, Fault
from tests.protocol.nodes import Node, Pairing
from tests.protocol.toy_guest import CONSOLE, POWER_OFF
from tests.protocol.toy_primary import ToyPrimary

if TYPE_CHECKING:
    from tests.protocol.world import World


def befall(world: World, event: Event) -> None:
    match event.fault:
        case Fault.ARBITER:
            world.arbiter_down_until = world.now + event.length
            world.note("", event.fault.value, event.length)
            return
        case Fault.SWITCH:
            _switch(world, event)
            return
    node = _victim(world, event.who)
    if node is None or not node.alive:
        return
    world.note(node.name, event.fault.value, event.length or "")
    match event.fault:
        case Fault.KILL:
            world.die(node)
        case Fault.VANISH:
            world.die(node, silently=True)
        case Fault.LAST_WORDS | Fault.GASP:
            node.breath, node.stops = event.length, event.fault is Fault.GASP
        case Fault.PAUSE:
            node.paused_until = world.now + event.length
        case Fault.POWER_OFF:
            world.powers_off = True
            world.master().inbox.append((CONSOLE, POWER_OFF))
        case _ if node.pairing is not None:
            _befall_pairing(world, node, node.pairing, event)


def _befall_pairing(world: World, node: Node, pairing: Pairing, event: Event) -> None:
    end, companion = pairing.end, pairing.companion
    match event.fault:
        case Fault.DEAF:
            end.into.cut = True
            if isinstance(companion, TcpCompanion):
                companion.into.cut = True
        case Fault.CUT:
            end.into.cut = end.out.cut = True
            if isinstance(companion, TcpCompanion):
                companion.into.cut = companion.out.cut = True
        case Fault.STRAY if not end.closed:
            end.out.flying.append(Dissolve("quit"))
        case Fault.SUSPECT if node.paused_until <= world.now:
            pairing.half.failover.request("heartbeats stopped")
        case Fault.COMMAND if world.person.is_free(pairing):
            world.person.tells(node)
        case Fault.SNAP:
            companion.snap()
        case Fault.FLIP:
            _flip(world, node, pairing, event.length)


def _flip(world: World, node: Node, pairing: Pairing, length: int) -> None:
    """In what a checkpoint would mend: a guest that lives, and is not being replaced."""
    half, machine = pairing.half, node.machine
    if isinstance(half, ToyPrimary) or half.life is Life.WAIT or not machine.thread.running:
        return
    if half.stage is None and half.failover.status is FailoverStatus.NONE:
        machine.flipped = True
        world.note(node.name, "has a bit flipped:", machine.guest.flip(Random(f"{world.seed} {length}")))


def _switch(world: World, event: Event) -> None:
    """As ``migrate-set-parameters`` with another ``x-policy``."""
    world.policy = world.new_policy(world.rng.choice(world.parts.policies))
    world.note("", event.fault.value, world.policy.name)
    half = world.master().half
    if world.master().pairing is not None and isinstance(half, ToyPrimary):
        half.policy = world.policy
        half.request("parameters")


def _victim(world: World, who: str) -> Node | None:
    """Of the newest pairing; alone, the one that serves is the primary."""
    for node in reversed(world.nodes):
        if node.pairing is not None and node.pairing.is_primary == (who == "primary"):
            return node
    return world.master() if who == "primary" else None
