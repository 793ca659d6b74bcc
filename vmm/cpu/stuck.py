"""Bits that are stuck: forced to a level again before every block.

A cell that is stuck at 0 or 1 takes no other value, whatever is written to it.  Here it does until the end of
the block that wrote it: a block that stores to such a word, or loads such a register, and uses it itself sees
what it stored.  That is the granularity of this fault, and its price is the plain hook: no prologue is
patched while a bit is stuck (:meth:`vmm.cpu.cpu.Cpu.stick`).

Each row is five words: the host's address of a 64-bit word, the bits to clear, the bits to set, and the
physical addresses between which translated code becomes wrong when it changes (none when both are the same).
"""

from __future__ import annotations

from vmm.cpu.control import FN_INVALIDATE_RANGE, STUCK, STUCK_COUNT, STUCK_WORDS, UC
from vmm.cpu.native import call3, load64, native, store64


@native
def apply_stuck(control: int) -> None:
    """Force every stuck bit to its level."""
    row = load64(control + STUCK)
    for _ in range(load64(control + STUCK_COUNT)):
        word = load64(row)
        old = load64(word)
        new = (old & ~load64(row + 8)) | load64(row + 16)
        if new != old:
            store64(word, new)
            begin, end = load64(row + 24), load64(row + 32)
            if begin != end:
                call3(load64(control + FN_INVALIDATE_RANGE), load64(control + UC), begin, end)
        row += 8 * STUCK_WORDS
