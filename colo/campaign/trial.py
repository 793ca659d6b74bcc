"""One trial, in a process of its own that was forked from the golden run: inject, go on, compare.

*Rejoining.*  A machine is deterministic, so a trial whose state at a mark is the golden run's, bit for bit,
with nothing of its faults still to come, goes on as the golden run did: it is masked, and need not be
executed to the end.  Looking is done in three steps, each dearer than the one before, and each only if the
one before found no difference: the components' states; the pages that the golden run ever wrote, where most
errors are; all of RAM.  A flipped bit in a page that nobody writes lets the first two agree for ever, so
after a look at all of RAM the next one is twice as far away.  Such a trial is masked too, in the end, and
*latent*: the error is still there.
"""

from __future__ import annotations

import msgspec

from colo.campaign.golden import GoldenRun
from colo.campaign.injection import Armed, Happened
from colo.campaign.outcome import Judge, Verdict
from colo.campaign.subject import Subject
from colo.faults.coverage import Combination
from colo.faults.model import Outcome

REJOINED = Verdict(Outcome.MASKED, "the same state")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial's process says at its end."""

    outcome: Outcome | None = None
    """None: there is none, and ``failure`` says why."""
    why: str = ""
    difference: str = ""
    happened: tuple[Happened, ...] = ()
    forked_ns: int = 0
    """Where it left the golden run."""
    ended_ns: int = 0
    """Virtual time from the start state at which the outcome was known."""
    rejoined: bool = False
    latent: bool = False
    digest: str = ""
    """Of all that happened, where it is known: a world's log."""
    failure: str = ""
    """What the host did: such a trial says nothing about the guest."""
    wall_ms: float = 0.0
    reached: tuple[Combination, ...] = ()
    """Situations of a world's protocol, where somebody explores (:mod:`colo.campaign.exploring`)."""


def follow(subject: Subject, golden: GoldenRun, judge: Judge, armed: Armed) -> Report:
    """Run ``subject``, whose faults are armed, until its outcome is known."""
    rejoined = _rejoins(subject, golden, armed)
    if not rejoined:
        _run_out(subject, golden, judge)
    verdict = REJOINED if rejoined else judge.verdict(subject)
    return Report(
        outcome=verdict.outcome,
        why=verdict.why,
        difference=verdict.difference,
        happened=tuple(armed.happened),
        ended_ns=subject.now_ns,
        rejoined=rejoined,
        latent=verdict.outcome is Outcome.MASKED and not rejoined,
    )


def _rejoins(subject: Subject, golden: GoldenRun, armed: Armed) -> bool:
    """Run from mark to mark; True at the first one where the trial is the golden run again."""
    next_look, distance = 0, 1
    expected = _Expected(subject, golden)
    for number in range(golden.mark_after(subject.now_ns), len(golden.marks)):
        mark = golden.marks[number]
        subject.advance(mark.ns)
        if subject.now_ns != mark.ns or number < next_look or not armed.finished:
            continue
        if subject.parts() == mark.parts and expected.agrees(number):
            if subject.state() == mark.state:
                return True
            next_look, distance = number + distance, 2 * distance
    return False


class _Expected:
    """What the pages that the golden run wrote hold at a mark."""

    def __init__(self, subject: Subject, golden: GoldenRun) -> None:
        self._subject, self._golden = subject, golden
        self._known: dict[int, bytes] = {}
        self._next = 0

    def agrees(self, number: int) -> bool:
        """Does the trial have the same in them at this mark?"""
        for mark in self._golden.marks[self._next : number + 1]:
            self._known.update(mark.written)
        self._next = number + 1
        digest = self._subject.page_digest
        return all(digest(page) == expected for page, expected in self._known.items())


def _run_out(subject: Subject, golden: GoldenRun, judge: Judge) -> None:
    """To the end of the guest, of what it has to say, or of patience."""
    scenario = golden.scenario
    while subject.ended is None and subject.now_ns < scenario.last_ns:
        if golden.ended is None and judge.complete(subject):
            return
        subject.advance(min(subject.now_ns + scenario.interval_ns, scenario.last_ns))
