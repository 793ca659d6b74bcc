"""What ``"*"`` means in each field: any, each as likely, that the golden run knows of.

======================  ==============================================================================
``when.ns``             a time of the golden run, outside the quiet periods
``when.count``          an instruction of the golden run, outside the quiet periods; of a step, its
                        first to its last time
``when.address``        an instruction that was executed; ``hits`` its first to its last time
``when.step``           a step that was done
``target``, ``node``    any there is
``register``            a general register, rip or rflags
``address``             of data: any that was touched, aligned to ``width``; of an instruction: executed
``mask``                one bit
``value``               any bits of ``mask``
``line``, ``vector``    an interrupt that happened
``first_sector``        any of the disk
a word                  any that the field takes (``effect``, ``direction``, ``operation`` ...)
======================  ==============================================================================
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from colo.faults import model
from colo.faults.errors import FaultError, nearest, shown
from colo.faults.fields import hints, words
from colo.faults.golden import Golden, Guest, Span
from colo.faults.triggers import Quiet

T = TypeVar("T")

FIRST = ("target", "when", "node", "space", "width", "address", "step", "operation", "mask")
"""Fields that others depend on, in the order in which they are drawn; the rest follows."""


@dataclass(frozen=True)
class Options:
    """What a wildcard stands for: ``count`` values, of which ``at`` gives each by its number."""

    count: int
    at: Callable[[int], Any]


@dataclass
class Scene:
    """What a value is drawn from, and what has been drawn before it."""

    golden: Golden
    quiet: Quiet
    source: random.Random
    fault: Mapping[str, Any]
    """Fields of the fault that are known already."""
    part: Mapping[str, Any]
    """Of the table that the field is in: the fault itself or its trigger."""

    def any(self, options: Sequence[T], what: str) -> Options:
        """One of these."""
        if not options:
            advice = "give the values, or a golden run that looks for them"
            raise FaultError((), "'*'", f"a golden run with {what}", advice)
        return Options(len(options), options.__getitem__)

    def guest(self) -> Guest:
        """The machine that the fault or its trigger is about."""
        guests = self.golden.guests
        for name in (self.part.get("node", ""), self.fault.get("target", "")):
            if name in guests:
                return guests[name]
            if name and "node" in self.part and self.part["node"] == name:
                raise FaultError((), f"the machine {shown(name)}", "one of " + ", ".join(guests))
        if len(guests) != 1:
            advice = "say whose: node in a trigger, target in a fault"
            raise FaultError((), f"a golden run of {len(guests)} machines", "one machine", advice)
        return next(iter(guests.values()))

    def times(self) -> Span:
        """First and last virtual time outside the quiet periods."""
        return self.quiet.start_ns, self.golden.end_ns - self.quiet.end_ns

    def instructions(self) -> Span:
        """First and last instruction outside the quiet periods."""
        return self.quiet.start_instructions, self.guest().instructions - self.quiet.end_instructions - 1

    def within(self, window: Span, what: str) -> Options:
        """A number from the first to the last, both included."""
        if window[0] > window[1]:
            found = f"{what} {window[0]} to {window[1]}"
            raise FaultError((), found, "a window", "the quiet periods leave nothing of the golden run")
        return Options(window[1] - window[0] + 1, lambda index: window[0] + index)


def _targets(kind: type[msgspec.Struct]) -> Callable[[Scene], Options]:
    def pick(scene: Scene) -> Options:
        golden = scene.golden
        if kind is model.LinkFault:
            return scene.any(golden.links, "links")
        if kind is model.DiskFault:
            return scene.any(sorted(golden.disks), "disks")
        if kind is model.ArbiterFault:
            return scene.any(golden.arbiters, "arbiters")
        return scene.any(sorted(golden.guests), "machines")

    return pick


def _steps(scene: Scene) -> Mapping[str, int]:
    steps = scene.golden.steps
    name = scene.part.get("node", "")
    if not name and len(steps) == 1:
        return next(iter(steps.values()))
    if name not in steps:
        expected = "steps of " + (", ".join(sorted(steps)) or "some node")
        raise FaultError((), f"no steps of the node {shown(name)}", expected, "say whose: node")
    return steps[name]


def _step_count(scene: Scene) -> Options:
    steps, step = _steps(scene), scene.part["step"]
    if step not in steps:
        expected = "a step that it did: " + ", ".join(sorted(steps))
        raise FaultError(
            (), f"{shown(step)}, which the golden run did not do", expected, nearest(step, steps)
        )
    return scene.within((1, steps[step]), "times")


def _executed(scene: Scene) -> Options:
    executed = scene.guest().executed
    count = scene.any(executed, "addresses that were executed").count
    return Options(count, lambda index: executed[index][0])


def _hits(scene: Scene) -> Options:
    executed = scene.guest().executed
    address: int = scene.part["address"]
    index = bisect_left(executed, (address, 0))
    if index == len(executed) or executed[index][0] != address:
        raise FaultError((), f"{address:#x}, which was not executed", "an address that was", "give hits")
    return scene.within((1, executed[index][1]), "hits")


def _touched(scene: Scene) -> Options:
    space = scene.part.get("space", "virtual")
    width: int = scene.part.get("width", 8)
    guest = scene.guest()
    spans = guest.virtual if space == "virtual" else guest.physical
    places = [(first + width - 1) // width for first, _ in spans]
    ends = list(accumulate(end // width - place for place, (_, end) in zip(places, spans, strict=True)))

    def at(index: int) -> int:
        span = bisect_right(ends, index)
        return (places[span] + index - (ends[span - 1] if span else 0)) * width

    count = scene.any(range(ends[-1] if ends else 0), f"{space} pages that were touched").count
    return Options(count, at)


def _bit(scene: Scene) -> Options:
    width: int = scene.part.get("width", 8)
    return Options(8 * width, lambda index: 1 << index)


def _bits(scene: Scene) -> Options:
    mask: int = scene.part["mask"]
    places = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
    return Options(
        1 << len(places), lambda index: sum((index >> n & 1) << bit for n, bit in enumerate(places))
    )


def _sector(scene: Scene) -> Options:
    disks = scene.golden.disks
    name = scene.fault.get("target", "") or (next(iter(disks)) if len(disks) == 1 else "")
    return scene.any(range(disks.get(name, 0)), f"the size of the disk {shown(name)}")


@dataclass(frozen=True)
class Wildcard:
    """What it stands for, and a value with which a plan is checked before there is a golden run."""

    options: Callable[[Scene], Options]
    probe: Any = 0
    needs: tuple[str, ...] = ()
    """Fields beside it that decide what it stands for."""


_PEERS = Wildcard(lambda scene: scene.any(sorted(scene.golden.steps), "nodes"), "")
_NODES = Wildcard(lambda scene: scene.any(sorted(scene.golden.guests), "machines"), "")

WILDCARDS: dict[tuple[type[msgspec.Struct], str], Wildcard] = {
    (model.AtTime, "ns"): Wildcard(lambda scene: scene.within(scene.times(), "times")),
    (model.AtInstruction, "count"): Wildcard(
        lambda scene: scene.within(scene.instructions(), "instructions")
    ),
    (model.AtInstruction, "node"): _NODES,
    (model.AtAddress, "node"): _NODES,
    (model.AtAddress, "address"): Wildcard(_executed),
    (model.AtAddress, "hits"): Wildcard(_hits, 1, ("address",)),
    (model.AtText, "node"): _NODES,
    (model.AtStep, "node"): _PEERS,
    (model.AtStep, "step"): Wildcard(lambda scene: scene.any(sorted(_steps(scene)), "steps"), "step"),
    (model.AtStep, "count"): Wildcard(_step_count, 1, ("step",)),
    (model.RegisterFault, "register"): Wildcard(
        lambda scene: scene.any(scene.guest().registers, "registers"), "rax"
    ),
    (model.DataFault, "address"): Wildcard(_touched, 0, ("space", "width")),
    (model.InstructionFault, "address"): Wildcard(_executed),
    (model.LostInterrupt, "line"): Wildcard(lambda scene: scene.any(scene.guest().lines, "interrupt lines")),
    (model.LostInterrupt, "vector"): Wildcard(
        lambda scene: scene.any(scene.guest().vectors, "interrupt vectors"), 32
    ),
    (model.DiskFault, "first_sector"): Wildcard(_sector),
    **{
        (kind, name): wildcard
        for kind in (model.RegisterFault, model.DataFault, model.InstructionFault)
        for name, wildcard in (
            ("mask", Wildcard(_bit, 1, ("width",))),
            ("value", Wildcard(_bits, 0, ("mask",))),
        )
    },
    **{(kind, "target"): Wildcard(_targets(kind), "") for kind in model.KINDS.values()},
}


def options(kind: type[msgspec.Struct], name: str, scene: Scene) -> Options:
    """What ``"*"`` stands for in a field."""
    wildcard = WILDCARDS.get((kind, name))
    return wildcard.options(scene) if wildcard else scene.any(words(hints(kind)[name]), "words")


def outside_quiet(
    kind: type[msgspec.Struct], name: str, scene: Scene, low: Any, high: Any
) -> tuple[Any, Any]:
    """A range of a trigger, without the quiet periods."""
    if kind is model.AtTime and name == "ns":
        window, quiet = scene.times, (scene.quiet.start_ns, scene.quiet.end_ns)
    elif kind is model.AtInstruction and name == "count":
        window, quiet = scene.instructions, (scene.quiet.start_instructions, scene.quiet.end_instructions)
    else:
        return low, high
    first, last = max(low, quiet[0]), min(high, window()[1]) if quiet[1] else high
    if first > last:
        raise FaultError((), f"{low}..{high}", "a range with something outside the quiet periods")
    return first, last
