"""When a simulated world has come to rest, and what is still owed when it does not.

Liveness: once the faults are over, every node that must find out about its peer does, and if anybody is left
who can serve and may, somebody does, and every client is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colo.failover import FailoverStatus
from tests.protocol.nodes import Pairing
from tests.protocol.toy_secondary import ToySecondary

if TYPE_CHECKING:
    from tests.protocol.world import World


def is_settled(world: World) -> bool:
    if any(node.alive and node.paused_until > world.now for node in world.nodes):
        return False
    if world.pairings == 0 and world.master().alive:
        return False
    if any(_must_end(pairing) for pairing in _pairings(world)):
        return False
    if world.powers_off and world.master().machine.guest.registers.ended:
        return not _pairings(world)
    if any(node.machine.flipped for node in world.nodes if node.pairing is not None):
        return False
    if any(pairing.half.epoch < world.parts.epochs for pairing in _pairings(world)):
        return False
    return not _is_service_due(world) or all(
        not client.waits and client.acknowledged >= world.parts.operations for client in world.judge.clients
    )


def why_not(world: World) -> str:
    """Who waits for what."""
    waiting = [f"{node.name} waits: {node.pairing.op.what}" for node in world.nodes if node.pairing]
    clients = [f"client {client.number} waits" for client in world.judge.clients if client.waits]
    return "; ".join([f"{world.judge.master} has the word", *waiting, *clients])


def _pairings(world: World) -> list[Pairing]:
    return [node.pairing for node in world.nodes if node.pairing is not None]


def _must_end(pairing: Pairing) -> bool:
    """The peer is gone, or is taken for gone."""
    gone = pairing.other.pairing is None or pairing.other.pairing.number != pairing.number
    asked = pairing.half.failover.status is not FailoverStatus.NONE
    end, lost = pairing.end, pairing.companion.lost is not None
    return gone or asked or lost or end.closed or end.into.eof or end.into.cut or end.out.cut


def _is_service_due(world: World) -> bool:
    """Is anybody left who can and may serve?  Who won and died has taken the service along."""
    master, winners = world.master(), world.judge.winners
    return master.alive or any(
        node.alive
        and isinstance(node.half, ToySecondary)
        and node.half.epoch >= 0
        and world.judge.led_by[node.name] == master.name
        and winners.get(node.half.generation + 1, node.name) == node.name
        for node in world.nodes
    )
