"""The fork server of a machine: it walks along the golden run, and a trial's child leaves it there.

Trials come in the order of their injection points, so one walk serves all of them; a point that lies behind
needs a new walk from the start.  The walker checks every mark that it passes against the golden run: what is
compared with a golden run must be able to repeat it.
"""

from __future__ import annotations

import msgspec

from colo.campaign.fork_server import WALL_LIMIT_S, ForkServer, settle
from colo.campaign.golden import GoldenRun
from colo.campaign.injection import NEAR_NS, arm, not_before_ns
from colo.campaign.outcome import Judge
from colo.campaign.subject import Say, Subject
from colo.campaign.trial import Report, follow
from colo.errors import ColoError
from colo.faults.model import Trial
from vmm.inject import Register


class Walker(ForkServer):
    """One machine on the golden run's way."""

    def __init__(
        self, golden: GoldenRun, *, wall_limit_s: float = WALL_LIMIT_S, say: Say = lambda text: None
    ) -> None:
        super().__init__(wall_limit_s)
        self._golden = golden
        self._judge = Judge(golden)
        self._say = say
        self._subject = self._at_start()
        self.walks = 1
        """How often it began at the start."""

    def _at_start(self) -> Subject:
        subject = Subject(self._golden.scenario, self._say)
        if (found := subject.state()) != self._golden.start:
            subject.close()
            raise ColoError(
                f"guest {self._golden.scenario.guest} starts in state {found.hex()}, the golden run in"
                f" {self._golden.start.hex()}: expected the same build and guest; make the golden run again"
            )
        # What a child imports it would import again and again; a check of an injection brings all of it.
        subject.machine.injector.check(Register("rax", toggle=1))
        settle()
        return subject

    def prepare(self, trial: Trial, policy: str = "") -> None:
        """Walk to a moment before the first fault; a point that was passed is not come back to by waiting."""
        ns = not_before_ns(trial, self._golden)
        if ns + NEAR_NS < self._subject.now_ns:
            self._subject.close()
            self._subject = self._at_start()
            self.walks += 1
        marks = self._golden.marks
        number = self._golden.mark_after(self._subject.now_ns)
        while number < len(marks) and marks[number].ns <= ns:
            mark = marks[number]
            self._subject.advance(mark.ns)
            if self._subject.state() != mark.state:
                raise ColoError(
                    f"guest {self._golden.scenario.guest} departs from its golden run before {mark.ns} ns:"
                    " expected the same state; check that this build and engine made the golden run"
                )
            number += 1
        self._subject.advance(ns)

    def perform(self, trial: Trial) -> Report:
        self._subject.machine.after_fork()
        report = follow(self._subject, self._golden, self._judge, arm(self._subject, trial))
        return msgspec.structs.replace(report, forked_ns=not_before_ns(trial, self._golden))

    def close(self) -> None:
        self._subject.close()
