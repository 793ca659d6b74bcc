"""Where a trial meets its machine: the faults of a trial, armed in a child (:mod:`colo.faults.guest`).

A child is forked a little before the earliest moment at which a fault of its trial can happen
(:func:`not_before_ns`), so that it executes what differs from the golden run and not much more.  Triggers
count from the start state all the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from colo.campaign.golden import GoldenRun
from colo.campaign.outcome import CONSOLE
from colo.campaign.subject import Subject
from colo.faults import guest
from colo.faults.guest import ArmedFault
from colo.faults.model import (
    AtInstruction,
    AtText,
    AtTime,
    DataFault,
    Fault,
    InstructionFault,
    RegisterFault,
    Trial,
)

SLACK_NS = 10_000
"""How much before a fault a trial leaves the golden run.  A walker stops at a block boundary, hence up to a
block late, and trials that are closer than :data:`NEAR_NS` leave at one point."""
NEAR_NS = 5_000
"""No block, accesses to devices included, takes as long."""


class Happened(msgspec.Struct, frozen=True, array_like=True):
    """An injection: when, at which address the guest was, what changed, or why nothing did."""

    ns: int
    address: int
    text: str
    failed: str = ""

    def __str__(self) -> str:
        return self.text if not self.failed else f"nothing: {self.failed}"


class Armed:
    """The faults of one trial on one machine."""

    def __init__(self, subject: Subject, faults: Sequence[ArmedFault]) -> None:
        self._subject = subject
        self._faults = faults

    @property
    def finished(self) -> bool:
        """Nothing of them is still to come, and nothing lasts that the guest's state does not show."""
        return all(each.finished and _is_in_the_state(each.fault) for each in self._faults)

    @property
    def happened(self) -> list[Happened]:
        """In the order of their times."""
        start_ns = self._subject.start_ns
        found = [
            Happened(each.ns - start_ns, each.address, each.changed, each.failed)
            for fault in self._faults
            for each in fault.happened
        ]
        return sorted(found, key=lambda each: each.ns)


def _is_in_the_state(fault: Fault) -> bool:
    """Stuck bits, a clock that runs wrong, interrupts still to be lost are kept beside the guest's state."""
    kinds = RegisterFault | DataFault | InstructionFault
    return isinstance(fault, kinds) and fault.persistence != "permanent"


def arm(subject: Subject, trial: Trial) -> Armed:
    """Have the faults of ``trial`` happen while ``subject`` runs on.

    They are no inputs of a log (``private``), so they come where they belong even inside a block.
    """
    start = guest.Start(subject.start_ns, subject.start_instructions)
    faults = [
        guest.arm(
            subject.machine,
            fault,
            start=start,
            private=True,
            source=random.Random(f"{trial.seed} fault {number}"),
        )
        for number, fault in enumerate(trial.faults)
    ]
    return Armed(subject, faults)


def not_before_ns(trial: Trial, golden: GoldenRun) -> int:
    """A virtual time before which no fault of ``trial`` happens."""
    earliest = min((_earliest_ns(fault, golden) for fault in trial.faults), default=golden.span_ns)
    return max(0, min(earliest, golden.span_ns) - SLACK_NS)


def _earliest_ns(fault: Fault, golden: GoldenRun) -> int:
    match fault.when:
        case AtTime(ns=ns):
            return ns
        case AtInstruction(count=count):
            return _time_of_instruction(count, golden)
        case AtText(text=text):
            return _before_text(text.encode(), golden)
    return 0  # executions of an address count from the start


def _time_of_instruction(count: int, golden: GoldenRun) -> int:
    """An instruction takes a nanosecond and everything else only adds to that."""
    earlier = [mark for mark in golden.marks if mark.instructions <= count]
    if not earlier:
        return count
    return earlier[-1].ns + count - earlier[-1].instructions


def _before_text(text: bytes, golden: GoldenRun) -> int:
    """Before the output in which the text begins for the first time; 0 when it never does."""
    lines = [each for each in golden.said if each.port == CONSOLE]
    at = b"".join(each.data for each in lines).find(text)
    since = end = 0
    for each in lines:
        end += len(each.data)
        if at < end:
            return since if at >= 0 else 0
        since = each.ns
    return 0
