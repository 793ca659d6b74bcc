"""How often input is looked for while the guest runs.

A look is a system call and the end of a chain of blocks, so a running guest's input is looked for once a
quantum.  What came meanwhile enters together, and that is what a busy guest wants: it handles several
frames for one interrupt, as with a card whose interrupts are moderated.

A guest that speaks and listens in turns loses by it.  Its peer's answer comes while it is on its way to
its idle loop, is not looked for until it halts, and costs it the way there and back, a fifth of all that
it does for an answer.  So after some turns of one frame out and one frame in, each frame is followed by a
number of closer looks, until two frames come in a row.  Several clients at a time, or a stream, are never
taken for that; and a guest that computes for long before it answers loses no more than these looks.

When an input enters is the host's business in any case: nothing that the guest computes depends on a look.
"""

from __future__ import annotations

from vmm.cpu.control import ControlBlock

CLOSE_NS = 2_000
"""Quantum of a guest in conversation: a few looks between its word and its idle loop."""
LOOKS = 25
"""How many after each frame: Linux has answered a request, and is idle, in less."""
TURNS = 16
"""Frames in and out by turns that make a conversation."""


class Attention:
    """Of the processor of ``block`` to what its cards bring."""

    __slots__ = ("_block", "_received", "_sent", "_turns")

    def __init__(self, block: ControlBlock) -> None:
        self._block = block
        block["USUAL_QUANTUM"] = block["QUANTUM"]
        self._received = self._sent = self._turns = 0

    def gave(self, received: int, sent: int) -> None:
        """The guest was given input; ``received`` and ``sent`` frames are its cards' counts by now."""
        new = received - self._received
        if new == 0:
            return
        in_turns = new == 1 and sent != self._sent
        self._turns = self._turns + 1 if in_turns else 0
        self._received, self._sent = received, sent
        block, close = self._block, self._turns >= TURNS
        block["CLOSE_LOOKS"] = LOOKS if close else 0
        block["QUANTUM"] = CLOSE_NS if close else block["USUAL_QUANTUM"]
