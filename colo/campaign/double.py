"""Double failures: more happened to a pair than it is there for.

A pair survives one failure at a time.  When nobody serves after a node failed, and also another node, the
wire between the two or their arbiter, there is nothing to look into.  Failures count that were injected and
came to something; a slow node and a card's cable leave both machines what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from colo.campaign.injection import Happened
from colo.faults.model import ArbiterFault, Fault, LinkFault, NodeFault, Trial


def is_double(trial: Trial, happened: Sequence[Happened]) -> bool:
    """Of a trial after which nobody serves."""
    done = {each.text for each in happened if not each.failed}
    struck = [fault for fault in trial.faults if _can_end_protection(fault) and _as_told(fault) in done]
    befallen = {fault.target for fault in struck}
    return len(befallen) > 1 and any(isinstance(fault, NodeFault) for fault in struck)


def _can_end_protection(fault: Fault) -> bool:
    if isinstance(fault, LinkFault):
        return fault.target.endswith("-wire")
    if isinstance(fault, NodeFault):
        return fault.effect != "slow"
    return isinstance(fault, ArbiterFault)


def _as_told(fault: Fault) -> str:
    """As a world's log has it (:mod:`colo.sim.faults`)."""
    kind, effect = fault.__struct_config__.tag, getattr(fault, "effect", "")
    return f"{fault.target or 'world'}: {kind} {effect}".rstrip()
