"""Trials chosen by what earlier ones reached: coverage-guided exploration, as AFL does it with inputs.

A trial that reached a combination (:mod:`colo.faults.coverage`) for the first time is kept.  One proposal
in four is a fresh trial of the plan; the others change a kept one a little: another seed, a fault more, less
or in place of another, or a trigger a little earlier or later.  New faults come from fresh trials
and triggers keep out of the quiet periods, so what is tried is of the kind that the plan describes.

Proposals depend on the plan, the golden run and the order of answers, nothing else: ask for a batch, run it
anywhere, and tell the results in the order in which they were proposed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec

from colo.faults.coverage import Combination, Coverage
from colo.faults.expand import count, trial
from colo.faults.golden import Golden
from colo.faults.model import AtInstruction, AtTime, Fault, Trial
from colo.faults.plan import Plan

FRESH_IN = 4
"""One proposal in so many is a fresh trial: what the plan's distributions say is never starved."""
SHIFT_BITS = 20
"""A trigger moves by less than 2^20 ns or instructions, any power of two as likely."""
RECENT_OF = 3
"""The latest of so many kept ones: what was hard to reach was reached late."""
CHANGES = ("seed", "more", "less", "other", "shift", "shift")


class Explorer:
    """Proposes trials; is told what they reached."""

    def __init__(self, plan: Plan, golden: Golden, coverage: Coverage | None = None) -> None:
        """``coverage``: what is known already, of another exploration."""
        self.coverage = coverage if coverage is not None else Coverage()
        self.kept: list[Trial] = []
        """Trials that reached something first, in the order in which they did."""
        self._plan, self._golden, self._count = plan, golden, count(plan, golden)
        self._proposals = 0
        self._fresh = 0

    def propose(self) -> Trial:
        """The next trial to run."""
        source = random.Random(f"{self._plan.head.seed} explore {self._proposals}")
        self._proposals += 1
        if not self.kept or source.randrange(FRESH_IN) == 0:
            return self._next_fresh()
        recent = max(source.randrange(len(self.kept)) for _ in range(RECENT_OF))
        return self._changed(self.kept[recent], source)

    def tell(self, tried: Trial, combinations: Iterable[Combination]) -> int:
        """What a trial went through; how much of it was new."""
        new = self.coverage.add(combinations)
        if new:
            self.kept.append(tried)
        return new

    def _next_fresh(self) -> Trial:
        """The plan's trials in order, and from the start again when they are used up."""
        found = trial(self._plan, self._golden, self._fresh % self._count)
        self._fresh += 1
        return found

    def _changed(self, old: Trial, source: random.Random) -> Trial:
        faults = list(old.faults)
        new = list(self._next_fresh().faults)
        change = CHANGES[source.randrange(len(CHANGES))]
        at = source.randrange(len(faults)) if faults else 0
        if change == "seed" or not faults:
            return Trial(seed=source.getrandbits(63), faults=old.faults)
        if change == "less":
            del faults[at]
        elif change == "shift":
            faults[at] = self._shifted(faults[at], source)
        elif new:
            faults[at : at + (change == "other")] = [new[source.randrange(len(new))]]
        most = max(len(self._plan.templates), len(new), len(old.faults))
        return Trial(seed=old.seed, faults=tuple(faults[:most]))

    def _shifted(self, fault: Fault, source: random.Random) -> Fault:
        """Its trigger a little earlier or later; a trigger that is no number stays."""
        by = source.getrandbits(source.randrange(1, SHIFT_BITS + 1)) * (2 * source.randrange(2) - 1)
        quiet, guests = self._plan.quiet, self._golden.guests.values()
        match fault.when:
            case AtTime(ns=ns):
                ns = _within(ns + by, ns, quiet.start_ns, self._golden.end_ns - quiet.end_ns)
                return msgspec.structs.replace(fault, when=AtTime(ns=ns))
            case AtInstruction(count=number, node=node):
                last = max((guest.instructions for guest in guests), default=0) - quiet.end_instructions - 1
                number = _within(number + by, number, quiet.start_instructions, last)
                return msgspec.structs.replace(fault, when=AtInstruction(count=number, node=node))
        return fault


def _within(value: int, old: int, first: int, last: int) -> int:
    """Between the first and the last; what was outside already goes no further."""
    return min(max(value, min(first, old)), max(last, old))
