"""Whether a primary may still say something before the commit, asked right before each frame.

A survivor shuts the companion connection before it speaks (:mod:`colo.lockstep`, :mod:`colo.node.compared`).
On one host the kernel tells at once that it did.  Between two hosts that word is on its way while the
survivor speaks already, and a primary that was stopped meanwhile finds answers in its queue that were meant
for the world of then.  What it can know by itself is for how long it was silent: once that is as long as the
peer waits for a heartbeat, the peer may have gone on, and this node's pairing has to end before it speaks.

Not modelled: a node that is stopped between this look and the system call behind it still says one frame;
nothing in user space can help that.
"""

from __future__ import annotations

from collections.abc import Callable

from colo.transport.companion import Companion

OVERDUE = "this node stood still for longer than its peer waits: it may have gone on alone"


class Fence:
    """For the guest's thread."""

    def __init__(
        self,
        companion: Companion,
        overdue: Callable[[], bool] = lambda: False,
        lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """``overdue``: was this node silent for as long as its peer waits?  ``lost`` is told so, once."""
        self._companion = companion
        self._overdue = overdue
        self._lost = lost
        self._told = False

    @property
    def is_shut(self) -> bool:
        """The peer acts alone, or may."""
        if self._companion.peer_left:
            return True
        if self._companion.held_on_send or not self._overdue():
            return False
        if not self._told:
            self._told = True
            self._lost(OVERDUE)
        return True
