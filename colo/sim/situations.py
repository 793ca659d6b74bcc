"""What a trial in a world goes through, as combinations that coverage counts (:mod:`colo.faults.coverage`).

At each step of the protocol (a word that a node says or hears, an event that it reports):

* the *state* is what the node is, and how far it has come: its role and the last word of the checkpoint
  transaction that it said or heard, or the state of its failover (:mod:`colo.failover`);
* the *message* is the step;
* the *fault* is one that is in effect, with what it befell: ``node:kill primary``, ``link:drop wire``.

A fault is in effect from its injection on, for as long as it says.  What it does not say (a kill, a frame) is
taken to last for a heartbeat's silence, which is how long a pair needs to find out.  A permanent one lasts.

Not seen: what goes on within a guest, and values, such as epochs; a state is a name of the protocol.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from colo.failover import FailoverStatus
from colo.faults.coverage import NO_FAULT, Combination, label
from colo.faults.model import Fault, LinkFault, NodeFault, Trial
from colo.node.pairing import PrimaryPairing
from colo.sim.pair import SILENCE_MS
from vmm.clock import NEVER_NS

if TYPE_CHECKING:
    from colo.sim.events import Line
    from colo.sim.node import SimNode
    from colo.sim.world import World

LASTS_NS = SILENCE_MS * 1_000_000
TRANSACTION = frozenset(
    (
        *("CheckpointRequest", "CheckpointReply", "VmstateSend", "RamPages", "VmstateSize"),
        *("VmstateReceived", "Released", "VmstateLoaded", "CheckpointReady", "GuestShutdown"),
    )
)
"""Words by which a checkpoint moves on; others come at any time."""


class Situations:
    """Listens to ``world``, in which ``trial`` is about to be armed."""

    def __init__(self, world: World, trial: Trial) -> None:
        self._world, self._trial = world, trial
        self._last: dict[str, str] = {}
        self._effects: list[tuple[str, int]] = []
        """Labels, and until when."""
        self._found: Counter[Combination] = Counter()
        world.log.sinks.append(self._hear)
        world.on_step.insert(0, self._step)  # a word is seen before the fault that it triggers

    @property
    def found(self) -> tuple[Combination, ...]:
        """Each once, in order."""
        return tuple(sorted(self._found))

    def _step(self, node: SimNode, event: str) -> None:
        state, now_ns = self._state(node), self._world.now_ns
        labels = {label for label, until_ns in self._effects if now_ns < until_ns}
        for each in sorted(labels) or (NO_FAULT,):
            self._found[Combination(state, event, each)] += 1
        if event in TRANSACTION:
            self._last[node.name] = event

    def _state(self, node: SimNode) -> str:
        pairing = node.pairing
        if pairing is None:
            return "halted" if node.halted else "alone" if node.serves else "idle"
        role = _role(node)
        if pairing.failover.status is not FailoverStatus.NONE:
            return f"{role}, failover {pairing.failover.status.value}"
        first = "VmstateLoaded" if pairing.in_colo else "nothing"  # a trial begins between two checkpoints
        return f"{role} after {self._last.get(node.name, first)}"

    def _hear(self, line: Line) -> None:
        if line.what != "fault":
            return
        fault = next((fault for fault in self._trial.faults if _is_told_by(fault, line)), None)
        if fault is not None:
            self._effects.append(
                (f"{label(fault)} {self._where(fault)}".rstrip(), line.at_ns + _lasts(fault))
            )

    def _where(self, fault: Fault) -> str:
        """What it befalls, in words that do not depend on how many nodes there were before."""
        if isinstance(fault, LinkFault):
            return "wire" if fault.target in self._world.wires else "cable"
        node = self._world.nodes.get(fault.target)
        return _role(node) if node is not None else ""


def _role(node: SimNode) -> str:
    if node.pairing is None:
        return "survivor" if node.serves else "other"
    return "primary" if isinstance(node.pairing, PrimaryPairing) else "secondary"


def _is_told_by(fault: Fault, line: Line) -> bool:
    """As :mod:`colo.sim.faults` writes it."""
    kind, effect = str(fault.__struct_config__.tag), getattr(fault, "effect", "")
    if line.detail.startswith(f"{kind}: "):
        return fault.target in ("", line.who)
    return line.detail == f"{kind} {effect}".rstrip() and line.who == (fault.target or "world")


def _lasts(fault: Fault) -> int:
    if fault.persistence == "permanent":
        return NEVER_NS
    if isinstance(fault, NodeFault) and fault.effect == "restart":
        return LASTS_NS
    return getattr(fault, "for_ns", 0) or LASTS_NS
