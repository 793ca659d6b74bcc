"""The golden run: the scenario without a fault, and what is kept of it.

A trial is judged by comparison (:mod:`colo.campaign.outcome`), so the golden run keeps what a trial can be
compared with: the digest of the whole state at *marks*, every output with its time, how the guest ended.
Plans draw from it what a wildcard stands for: how long it is, in time and instructions, which pages it
wrote, and where its code is (:mod:`colo.campaign.touched`).

It is observed for the scenario's span and then for the limit more, without marks: a trial that is a little
late says there what the golden run said within its span, and one that is a little early says what the
golden run said next.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import msgspec

from colo.campaign.scenario import Scenario
from colo.campaign.subject import Said, Subject
from colo.campaign.touched import Touched
from colo.errors import ColoError
from colo.faults.golden import Golden, Guest, spans
from vmm import hashing

SAID_MAX_BYTES = 64 << 20
"""A golden run that says more has an observation window that is too long to keep."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The golden run at one time."""

    ns: int
    """Where it stood: at the first block boundary at or after the time that was asked for."""
    instructions: int
    state: bytes
    parts: bytes
    """The state without RAM."""
    written: dict[int, bytes]
    """Pages of the mapping that changed since the mark before, and digests of what they hold now."""


class GoldenRun(msgspec.Struct, frozen=True, kw_only=True, tag="machine"):
    """All that a trial, a plan or an explanation needs of the run without faults."""

    scenario: Scenario
    start: bytes
    """The state before anything happened."""
    marks: tuple[Mark, ...]
    """In order; the last one is where the span or the guest ended."""
    said: tuple[Said, ...]
    tail: bytes
    """What was begun and not ended on the console, at the end of everything."""
    ended: str | None
    """:class:`vmm.machine.Ended`, when the guest ended by itself."""
    ended_ns: int
    exit_code: int | None
    pages: tuple[int, ...]
    """Numbers of the physical pages that were written within the span, ascending."""
    virtual: tuple[int, ...]
    """Their virtual ones."""
    executed: tuple[tuple[int, int], ...]
    """Some addresses of its code, with how often it was found there."""
    disks: tuple[int, ...]
    """Sectors of each."""

    @property
    def span_ns(self) -> int:
        """Virtual time from the start state to the end of the span, or of the guest."""
        return self.marks[-1].ns

    @property
    def instructions(self) -> int:
        """Executed within the span."""
        return self.marks[-1].instructions

    def mark_after(self, ns: int) -> int:
        """Number of the first mark after ``ns``; there may be none: ``len(marks)``."""
        return bisect.bisect_right(self.marks, ns, key=lambda mark: mark.ns)

    def said_on(self, ports: Iterable[str]) -> dict[str, list[Said]]:
        """The outputs of each port, in order."""
        found: dict[str, list[Said]] = {port: [] for port in ports}
        for each in self.said:
            if each.port in found:
                found[each.port].append(each)
        return found

    def facts(self) -> Golden:
        """What wildcards stand for."""
        guest = Guest(
            instructions=self.instructions,
            virtual=spans(self.virtual),
            physical=spans(self.pages),
            executed=self.executed,
        )
        disks = {"": self.disks[0]} if len(self.disks) == 1 else {}
        return Golden(end_ns=self.span_ns, guests={"": guest}, disks=disks)

    @property
    def digest(self) -> str:
        """What a second golden run, here or on another host, has to come to."""
        return hashing.state_digest({"golden": msgspec.msgpack.encode(self)}, b"").hex()


def record(subject: Subject) -> GoldenRun:
    """Run ``subject``, which has not run yet, through its scenario."""
    scenario = subject.scenario
    start = subject.state()
    touched = Touched(subject)
    marks = _marks(subject, touched)
    subject.advance(scenario.last_ns)
    if sum(len(each.data) for each in subject.said) > SAID_MAX_BYTES:
        raise ColoError(
            f"golden run of {scenario.guest}: more than {SAID_MAX_BYTES >> 20} MiB of output: shorten it"
        )
    return GoldenRun(
        scenario=scenario,
        start=start,
        marks=tuple(marks),
        said=tuple(subject.said),
        tail=subject.tail,
        ended=None if subject.ended is None else subject.ended.value,
        ended_ns=subject.now_ns,
        exit_code=subject.exit_code,
        pages=touched.pages,
        virtual=touched.virtual,
        executed=touched.executed,
        disks=tuple(disk.sectors for disk in subject.machine.disks),
    )


def _marks(subject: Subject, touched: Touched) -> list[Mark]:
    """To the end of the span, or of the guest."""
    marks: list[Mark] = []
    for at_ns in subject.scenario.mark_times():
        subject.advance(at_ns)
        written = {page: subject.page_digest(page) for page in touched.note_pages()}
        marks.append(Mark(subject.now_ns, subject.instructions, subject.state(), subject.parts(), written))
        if subject.ended is not None:
            break
    touched.end()
    return marks
