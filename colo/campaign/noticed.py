"""What a pair itself says of its two machines: that they are no longer the same.

*lockstep*.  Every output and, window by window, the whole state of the two machines are compared
(:mod:`colo.node.follower`).  They are deterministic and have the same inputs, so a difference is an error in
one of them, or in what travels between them.

*colo*.  What the two say is compared (:mod:`colo.filters.compared`), and a difference is answered with a
checkpoint, whose reason it is.  Other bytes, or a connection that ends or begins otherwise, are noticed;
lateness is not: two guests that run at once are never in step.  Guests may also differ in bytes without a
fault (a time of day, a random number), so a cause that the same world without faults has, too, says nothing.

*periodic* compares nothing.

Not told: which of the two is wrong.  Two machines cannot know; both policies go on with the primary.
"""

from __future__ import annotations

from collections.abc import Iterable

from colo.compare.verdict import Reason
from colo.sim.events import Line

DIFFERENCES = tuple(
    reason.name.lower().replace("_", " ")
    for reason in (
        *(Reason.PAYLOAD, Reason.SYN_DIFFERS, Reason.FIN_DIFFERS, Reason.RST_DIFFERS),
        *(Reason.CONTENT, Reason.FRAGMENTS),
    )
)
"""Reasons of checkpoints that tell of other contents."""
DEPARTED = "departed"


class Noticed:
    """Listens to a world's log from :meth:`begin` on."""

    def __init__(self) -> None:
        self._began = False
        self.causes: dict[str, str] = {}
        """Kinds of differences, each with the first one in words."""

    def begin(self) -> None:
        self._began = True

    def hear(self, line: Line) -> None:
        """A sink of the log."""
        if not self._began:
            return
        if line.what == DEPARTED:
            what = line.detail.partition("what=")[2]
            self.causes.setdefault(DEPARTED, f"{line.who} differs: {what}")
        elif line.what == "epoch":
            reason = line.detail.partition(" ")[2].partition(":")[0]
            if reason in DIFFERENCES:
                self.causes.setdefault(reason, f"the two say different things: {reason}")

    def beside(self, known: Iterable[str]) -> str:
        """The first difference of a kind that is not ``known``; empty: there is none."""
        expected = set(known)
        return next((text for cause, text in self.causes.items() if cause not in expected), "")
