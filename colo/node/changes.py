"""What the secondary does not have yet: pages that changed, against a shadow of what was sent.

The dirty source says which pages may have changed (:mod:`colo.pages.dirty`), the shadow what the secondary
has of them.  ``capture`` is part of the pause; everything else happens while the guest runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from colo.pages import dirty
from colo.pages.delta import Outgoing
from colo.primary import Batches
from vmm.ram import Ram

Candidates = npt.NDArray[np.uint32] | None
"""Pages that may have changed; None: any."""
NONE: npt.NDArray[np.uint32] = np.empty(0, np.uint32)


class Changes:
    """Of one machine's RAM, in one pairing."""

    def __init__(self, ram: Ram, wanted: dirty.Wanted, compress: bool) -> None:
        self.source = dirty.open_source(ram, wanted)
        self._ram = ram
        self._shadow = np.zeros(ram.size, np.uint8)
        self._outgoing = Outgoing(ram.size, compress)
        self._left_over: Candidates = NONE

    def take(self) -> Candidates:
        """What may have changed since the last take, and what an earlier take left over."""
        fresh, left_over = self.source.take(), self._left_over
        self._left_over = NONE
        if fresh is None or left_over is None:
            return None
        return np.union1d(fresh, left_over) if len(left_over) else fresh

    def leave(self, candidates: Candidates) -> None:
        """These were taken and not sent: the next take has them, too."""
        self._left_over = candidates

    def capture(self) -> int:
        """In the pause: copy every page that may have changed; how many."""
        return self._outgoing.capture(self._ram.array, self._shadow, self.take())

    def encoded(self) -> Batches:
        """What the last capture found changed; the shadow is then what the secondary will have."""
        return self._outgoing.batches(self._shadow)

    def live(self, candidates: Candidates) -> Batches:
        """The same of these pages, while the guest runs.

        A page that is written while it is copied is written after it was taken, so comes again.
        """
        return self._outgoing.live(self._ram.array, self._shadow, candidates)

    def close(self) -> None:
        self.source.close()
