"""What a judge answers: right, wrong, or unknown, with the reason and what shows it.

Three values, as in model checking: a search that met its limit has found nothing wrong, which is not the
same as that there is nothing.  ``ok`` is therefore true for RIGHT alone, and :meth:`Verdict.require` fails on
UNKNOWN, too, with a reason that says which limit to raise.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from colo.errors import ColoError

EVIDENCE_SHOWN = 24
"""Lines of evidence in the text of a verdict; all of them are in ``evidence``."""


class CheckFailed(ColoError):
    """A verdict that is not RIGHT, in full."""


class Outcome(Enum):
    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One judge's answer."""

    judge: str
    outcome: Outcome
    reason: str
    evidence: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.RIGHT

    def require(self) -> None:
        """CheckFailed unless the verdict is RIGHT; pytest points to the line that required it."""
        __tracebackhide__ = True
        if not self.ok:
            raise CheckFailed(str(self))

    def __str__(self) -> str:
        shown = self.evidence[-EVIDENCE_SHOWN:]
        hidden = len(self.evidence) - len(shown)
        lines = [f"{self.judge}: {self.outcome.value}: {self.reason}"]
        lines += [f"  ... {hidden} lines before"] if hidden else []
        return "\n".join([*lines, *(f"  {line}" for line in shown)])


def right(judge: str, reason: str) -> Verdict:
    return Verdict(judge=judge, outcome=Outcome.RIGHT, reason=reason)


def wrong(judge: str, reason: str, evidence: tuple[str, ...] = ()) -> Verdict:
    return Verdict(judge=judge, outcome=Outcome.WRONG, reason=reason, evidence=evidence)


def unknown(judge: str, reason: str) -> Verdict:
    return Verdict(judge=judge, outcome=Outcome.UNKNOWN, reason=reason)
