"""Faults in a world: the model of :mod:`colo.faults.model`, armed and applied.

    lossy = LinkFault(when=AtTime(ns=0), target="client0", effect="drop", probability=0.1, for_ns=10**9)
    world.inject(lossy)

Targets are names: of a cable (a node's or client's: ``pair-0``, ``client0``), of the wire between a pair's
nodes (``pair-wire``), of a node (and what is in its machine), of a pair (its arbiter, or the node that
serves).  An empty target is the only one there is; where there are several, the error names them.  ``to`` is
towards a cable's node, and towards the second node of a wire.

Triggers count from the moment of arming.  A *step* is a word that a node says, hears or tells
(``VmstateReceived``), or an event that it reports (``took-over``); with ``node`` only that one's count.
*Text* is what a guest says on its console, whether or not the world hears it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from colo.faults import guest
from colo.faults.model import (
    ArbiterFault,
    AtAddress,
    AtInstruction,
    AtStep,
    AtText,
    AtTime,
    Fault,
    Intermittent,
    LinkFault,
    NodeFault,
    Trial,
)
from colo.sim.loop import WorldError
from colo.sim.node import SimNode
from vmm.clock import NEVER_NS
from vmm.machine import Machine

if TYPE_CHECKING:
    from colo.sim.world import World

T = TypeVar("T")
TEXT_KEPT = 4096
"""Bytes of a console in which a text is looked for: it may be said in pieces."""


def arm(world: World, *faults: Fault) -> None:
    """From now on these wait for their triggers."""
    for number, fault in enumerate(faults):
        rng = world.rng(f"fault {world.log.count} {number}")
        if isinstance(fault, LinkFault | NodeFault | ArbiterFault):
            _arm(world, fault, rng)
        else:
            _arm_machine(world, fault, rng)


def arm_trial(world: World, trial: Trial) -> None:
    """All faults of a trial; the world is expected to have the trial's seed."""
    if world.seed != trial.seed:
        raise WorldError(
            f"the trial has seed {trial.seed}, this world {world.seed}: make it with the trial's"
        )
    arm(world, *trial.faults)


# Around machines


def _arm(world: World, fault: Fault, rng: random.Random) -> None:
    def strike() -> None:
        _strike(world, fault, rng)

    match fault.when:
        case AtTime(ns=ns):
            world.at(world.now_ns + ns, strike)
        case AtStep():
            _at_step(world, fault.when, strike)
        case AtText():
            _at_text(world, fault.when, strike)
        case AtInstruction(count=count, node=name):
            stops = _machine_of(world, name).stops
            stops.at_instruction(stops.instructions + count, lambda ahead: strike())
        case AtAddress(address=address, hits=hits, node=name):
            _machine_of(world, name).stops.at_address(address, hits, lambda ahead: strike())


def _machine_of(world: World, name: str) -> Machine:
    return _node_of(world, name).machine


def _node_of(world: World, name: str) -> SimNode:
    """A node by its name; of a pair by its name, the one that serves."""
    pair = world.pairs.get(name) or (next(iter(world.pairs.values())) if not name and world.pairs else None)
    serving = pair.serving if pair is not None else None
    return serving if serving is not None else chosen(world.nodes, name, "node")


# In a machine


def _arm_machine(world: World, fault: Fault, rng: random.Random) -> None:
    """By :mod:`colo.faults.guest`; it is no input of the log that another machine follows."""
    node = _node_of(world, fault.target)
    armed = guest.arm(node.machine, fault, private=True, source=rng)
    kind = str(type(fault).__struct_config__.tag)

    def told(happened: guest.Happened) -> None:
        if node.alive:
            world.tell(node.name, "fault", f"{kind}: {happened.changed or happened.failed}")

    armed.told = told
    if isinstance(fault.when, AtStep):
        _at_step(world, fault.when, lambda: _soon(node, armed.fire))


def _soon(node: SimNode, job: Callable[[], None]) -> None:
    """In the guest's thread, between two blocks."""
    if node.alive:
        node.guest.post(job)


def _at_step(world: World, when: AtStep, strike: Callable[[], None]) -> None:
    left = when.count

    def stepped(node: SimNode, event: str) -> None:
        nonlocal left
        if event == when.step and when.node in ("", node.name) and left:
            left -= 1
            if not left:
                strike()

    world.on_step.append(stepped)


def _at_text(world: World, when: AtText, strike: Callable[[], None]) -> None:
    left = when.count
    wanted = when.text.encode()
    heard: dict[str, bytearray] = {}

    def said(node: SimNode, data: bytes) -> None:
        nonlocal left
        if when.node not in ("", node.name) or not left:
            return
        text = heard.setdefault(node.name, bytearray())
        text += data
        while left and (at := text.find(wanted)) >= 0:
            del text[: at + len(wanted)]
            left -= 1
            if not left:
                strike()
        del text[:-TEXT_KEPT]

    world.on_text.append(said)


def _strike(world: World, fault: Fault, rng: random.Random) -> None:
    """It happens now, and again if it is intermittent."""
    persistence = fault.persistence
    times = persistence.times if isinstance(persistence, Intermittent) else 1
    period_ns = persistence.period_ns if isinstance(persistence, Intermittent) else 0
    for number in range(times):
        world.at(world.now_ns + number * period_ns, lambda: _apply(world, fault, rng))


def _apply(world: World, fault: Fault, rng: random.Random) -> None:
    kind = str(type(fault).__struct_config__.tag)
    world.tell(fault.target or "world", "fault", f"{kind} {getattr(fault, 'effect', '')}".rstrip())
    match fault:
        case LinkFault():
            _link(world, fault, rng)
        case NodeFault():
            _node(world, fault)
        case ArbiterFault():
            pair = chosen(world.pairs, fault.target, "pair")
            pair.ballot.begin(fault, world.now_ns, rng)


def _link(world: World, fault: LinkFault, rng: random.Random) -> None:
    media: dict[str, Any] = {**world.cables, **world.wires}
    if not fault.target and len(world.wires) == 1:
        media = dict(world.wires)
    medium = chosen(media, fault.target, "cable or wire")
    until_ns = medium.impairments.begin(fault, world.now_ns, rng)
    if until_ns != NEVER_NS:
        world.at(until_ns, medium.looked_at)


def _node(world: World, fault: NodeFault) -> None:
    """The target may be a pair: then it is the node that serves."""
    if fault.target in world.pairs or (not fault.target and len(world.pairs) == 1):
        pair = chosen(world.pairs, fault.target, "pair")
        node = pair.serving
    else:
        node = chosen(world.nodes, fault.target, "node")
    if node is None or not node.alive:
        world.tell(fault.target or "world", "fault-missed", "nobody is there")
        return
    for_s = fault.for_ns / 1e9 if fault.for_ns else None
    match fault.effect:
        case "kill":
            world.kill(node)
        case "pause":
            world.pause(node, for_s)
        case "restart":
            world.restart(node, for_s or 0.0)
        case "slow":
            world.slow(node, fault.factor, for_s)


def chosen(known: dict[str, T], name: str, what: str) -> T:
    """The one that is called so, or the only one."""
    if name in known:
        return known[name]
    if not name and len(known) == 1:
        return next(iter(known.values()))
    found = f"{name!r} is no {what}" if name else f"a target is missing, of several {what}s"
    raise WorldError(f"fault: {found} of this world: expected {', '.join(known) or 'that there is one'}")
