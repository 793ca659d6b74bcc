"""Time stamps of one connection: between the guest's clock and the one that the client has seen.

Follows RFC 7323.  A client drops every segment whose time stamp (TSval) is before the last one that it
took (section 5, PAWS), and a guest measures with what comes back (TSecr, section 4).  Two hosts that run
from one checkpoint disagree about time in two ways: their clocks are some milliseconds apart, and, since
a host adds a secret to its clock that it may draw as late as for its first connection, they may be
anywhere in 32 bits.  So there are two corrections.

* ``shift`` is the difference for good: learned in the handshake, where the client echoes the primary's
  time stamp and the secondary's own is known.  The echo is taken for that of the guest's *first* SYN.
  That makes it one the guest has sent, which is what Linux insists on while a connection opens, and it
  is exact where it must be: SYN cookies keep options in the low bits of a time stamp.
* ``floor`` is the least that may be shown: the latest that the client is known to have had, since it
  echoed it.  A clock that is behind by at most ``HOLD_MAX`` is *held* there until it has come as far: time
  stamps may stand still, and when the clock has come there is nothing left to correct.  One that is
  further behind is *raised* for good.  Either way what the client sees never goes back.

A client also had time stamps that it did not echo, or whose echo was lost with the primary.  They are not
known here, but they are of the primary's clock, which was little ahead of the guest's, or the comparison
would have asked for a checkpoint.  So after a take-over ``floor`` begins ``MARGIN`` ahead of the guest's.

The other way round a guest is never shown an echo of a time stamp that it has not sent yet: the primary's
clock may be ahead, and then the echo is that of the last one that it did send.

``floor`` can be forged by somebody who guesses ports: the client's time stamps then jump, which no client
minds, since they jump forwards.  Forged further than half the space, the client objects with the true one
in its answer, which is after the forged one, and so becomes the floor.
"""

from __future__ import annotations

from colo.compare.seq import HALF, MASK, after, between, latest

HOLD_MAX = 4096
"""Time stamps; four seconds on Linux.  RFC 7323 lets a clock tick as slowly as once a second."""
MARGIN = 1024
"""Time stamps that a primary may have been ahead of the secondary when it died: a second on Linux, where the
comparison lets frames wait for a tenth of that at most."""


class Stamps:
    """In numbers of 32 bits that wrap; ``shift`` is added to the guest's."""

    __slots__ = ("first", "floor", "guard", "last", "shift", "used")

    def __init__(self) -> None:
        self.shift = 0
        self.floor: int | None = None  # what the client had at least; its numbers
        self.first: int | None = None  # of the guest's first SYN; the guest's numbers
        self.last: int | None = None  # of whatever the guest sent last
        self.guard = False  # the guest's next time stamp has to be ``MARGIN`` ahead
        self.used = False  # there were some before the last checkpoint

    def outward(self, own: int) -> int:
        """What the client may see for the guest's time stamp ``own``."""
        self.last = own
        shown = (own + self.shift) & MASK
        behind = self._behind(shown)
        if behind > HOLD_MAX:
            self.shift = (self.shift + behind) & MASK
        return (shown + behind) & MASK

    def _behind(self, shown: int) -> int:
        """How far ``shown`` is before the least that may be shown; with a guard that can be past ``HALF``."""
        behind = 0 if self.floor is None else (self.floor - shown) & MASK
        if behind >= HALF:
            behind = 0
        if self.guard:
            self.guard = False
            behind += MARGIN
            self.floor = (shown + behind) & MASK
        return behind

    def inward(self, echo: int) -> int:
        """What the guest may see for the client's ``echo``."""
        floor = self.floor
        if floor is None or 0 < (echo - floor) & MASK < HALF:
            self.floor = echo
        own = (echo - self.shift) & MASK
        last = self.last
        if last is not None and 0 < (own - last) & MASK < HALF:
            return last
        return own

    def learn(self, echo: int, alone: bool) -> None:
        """The client's first ``echo`` on this connection; ``alone``: the primary is gone."""
        first, last = self.first, self.last
        if first is None or last is None:
            return
        own = (echo - self.shift) & MASK
        known = not self.guard and echo == self.outward(last)  # as said, and as nobody else said it
        if not known and own != last and not between(own, first, last):
            self.shift = (echo - first) & MASK
        self.floor = echo
        self.guard = alone and not known

    def take_over(self) -> None:
        """What the guest says from now on follows what the primary said."""
        self.guard |= self.used or self.floor is not None or self.last is not None

    def rebase(self, shift: int, floor: int | None, guard: bool) -> None:
        """The guest's clock is now the primary's, which is ``shift`` from the client's."""
        self.shift = shift
        if floor is not None:
            self.floor = floor if self.floor is None else latest(self.floor, floor)
        self.guard = guard
        self.used |= self.floor is not None or self.last is not None
        self.first = self.last = None  # it may have sent more than is known here

    def is_behind(self) -> bool:
        """May the guest's next time stamp still be before what the client had?"""
        if self.guard or self.floor is None:
            return self.guard
        return self.last is None or after(self.floor, (self.last + self.shift) & MASK)
