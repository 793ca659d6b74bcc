"""When a fault happens and how long it lasts: triggers and persistence, and types that fields share.

Not modelled: a trigger on a value (a watchpoint), or on two things at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from colo.faults.delay import NS_MAX
from colo.faults.fields import U64_MAX, Real, Text, Whole, check

COUNT_MAX = 1 << 32

Name = Annotated[str, Text(r"[A-Za-z0-9_.:/-]*", 64, "a name of letters, digits and _.:/-")]
Ns = Annotated[int, Whole(0, NS_MAX, "virtual nanoseconds")]
Times = Annotated[int, Whole(0, COUNT_MAX)]
Count = Annotated[int, Whole(1, COUNT_MAX)]
U64 = Annotated[int, Whole(0, U64_MAX)]
Probability = Annotated[float, Real(0.0, 1.0)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a fault, checked when it is made."""

    def __post_init__(self) -> None:
        check(self)


class AtTime(Part, frozen=True, kw_only=True, tag_field="at", tag="time"):
    """At this virtual time, counted from the start state of the trial."""

    ns: Ns


class AtInstruction(Part, frozen=True, kw_only=True, tag_field="at", tag="instruction"):
    """Before the guest executes the instruction number ``count``, counted from 0 at the start state."""

    count: Annotated[int, Whole(0, NS_MAX, "guest instructions")]
    node: Name = ""
    """Whose instructions; empty: the target's, or the only machine's.  The same below."""


class AtAddress(Part, frozen=True, kw_only=True, tag_field="at", tag="address"):
    """Before the instruction at this virtual address is executed for the ``hits``-th time."""

    address: U64
    hits: Count = 1
    node: Name = ""


class AtStep(Part, frozen=True, kw_only=True, tag_field="at", tag="step"):
    """When the protocol does this step for the ``count``-th time.

    A step is a word of :mod:`colo.messages` ("VmstateReceived") or a phase of the node.
    """

    step: Annotated[str, Text(r"[A-Za-z][A-Za-z0-9_.:/-]*", 64, "the name of a message or a phase")]
    count: Count = 1
    node: Name = ""


class AtText(Part, frozen=True, kw_only=True, tag_field="at", tag="text"):
    """When the guest has said this on its console for the ``count``-th time."""

    text: Annotated[str, Text(r"(?s)[^\ud800-\udfff]+", 256, "some text")]
    count: Count = 1
    node: Name = ""


Trigger = AtTime | AtInstruction | AtAddress | AtStep | AtText


class Intermittent(Part, frozen=True, kw_only=True, tag_field="is", tag="intermittent"):
    """``times`` times in all, one every ``period_ns``, the first at the trigger."""

    period_ns: Annotated[int, Whole(1, NS_MAX, "virtual nanoseconds")]
    times: Annotated[int, Whole(2, COUNT_MAX)]


Persistence = Literal["transient", "permanent"] | Intermittent


TRIGGERS: dict[str, type[Part]] = {
    str(kind.__struct_config__.tag): kind for kind in (AtTime, AtInstruction, AtAddress, AtStep, AtText)
}


class Quiet(Part, frozen=True, kw_only=True):
    """When nothing is to happen, so that there is a run to disturb and time to show what became of it.

    Ranges and wildcards of triggers keep out of these periods at the beginning and the end of the golden run;
    a value that a plan gives as one number stands.  Faults at a time that are nearer to each other than
    ``between_ns`` are moved apart, the later one to later.
    """

    start_ns: Ns = 0
    end_ns: Ns = 0
    start_instructions: Ns = 0
    end_instructions: Ns = 0
    between_ns: Ns = 0
