"""When to checkpoint, and what may be said before: chosen by name.

A policy decides from :class:`Facts` alone.  A new one is a file with a class and a line in
:data:`POLICIES`.

=========  =====================================  ==========================================
policy     a checkpoint                           what may go before its commit
=========  =====================================  ==========================================
periodic   every ``x-checkpoint-delay``           nothing
lockstep   at the start, and to repair            what follows from the log that the secondary holds
colo       when the two guests say different      what both said
=========  =====================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable

from colo.policy.colo import Colo
from colo.policy.facts import DELAY_MS_MAX, DELAY_MS_MIN, Decision, Facts, Policy
from colo.policy.lockstep import Lockstep
from colo.policy.periodic import DELAY_MS_DEFAULT, IDLE_FACTOR, Periodic

__all__ = [
    "DELAY_MS_DEFAULT",
    "DELAY_MS_MAX",
    "DELAY_MS_MIN",
    "IDLE_FACTOR",
    "POLICIES",
    "Colo",
    "Decision",
    "Facts",
    "Lockstep",
    "Periodic",
    "Policy",
    "choose",
]

POLICIES: dict[str, Callable[[int | None], Policy]] = {
    "periodic": Periodic,
    "lockstep": Lockstep,
    "colo": Colo,
}


def choose(name: str, delay_ms: int | None = None) -> Policy:
    """The policy called ``name``, with its own delay when none is given; KeyError when there is none."""
    return POLICIES[name](delay_ms)
