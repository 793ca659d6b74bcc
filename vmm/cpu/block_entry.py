"""The entry of a translated block, moved to just before its instructions.

Source: QEMU 5.0, include/exec/exec-all.h (TranslationBlock), accel/tcg/translate-all.c and cpu-exec.c (jump
lists, tb_set_jmp_target, tb_reset_jump), tcg/tcg.c (the tree of blocks by host address).

A prologue that charges the clock in front of the engine's own (:mod:`vmm.cpu.inline_clock`) jumps over that
on every run: two lines of code to fetch and a jump for ten bytes.  So the block is entered behind it:

    start:  jmp   ENTRY           from jumps that were not redirected
    SLOW:   store pc; edx=charge; rcx=env; edi=0
            (nops) call hook      same bytes, same place
    R:      jmp   END
    ENTRY:  sub   qword [rbp + budget], charge
            jle   SLOW
    END:    guest instructions, unchanged

The hook, which is running while it writes this, returns to R.  The engine's stop check was between R and
END.  On the slow path the hook calls it instead; and the first time, when R was the engine's code until now,
the hook has not stopped the run, or else it would not have come to patch, and nobody else stops one.

The engine reckons from where a block's code begins, and gets that begin moved with all that depends on it:

* the two exits, whose jumps are set when blocks are linked and reset when they part;
* the jumps of other blocks to this one, the last of which was made just now;
* the end of the first instruction's code (:mod:`vmm.cpu.unwind`);
* the size, whose end stays where it was.  The tree of blocks remains in order.

Nothing is lost in the tree: of what runs before ENTRY, only the stop check asked for the guest instruction of
its return address, and the slow path has stored the same address before.

What does not fit, a charge above one byte among it, is patched in place as before.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.native import load8, load16, load32, load64, native, store8, store16, store32, store64
from vmm.cpu.prologue import CHARGE_MAX, signed32, slow_path_length, write_charge, write_slow_path
from vmm.cpu.unwind import end_of_first, write_leb128

ENTRY_LENGTH = 10
_JUMP_LENGTH = 2
_JUMP = 0xE9
"""jmp rel32, by which a block's exit jumps."""
_TB_CODE, _TB_CODE_SIZE = layout.TB_CODE, layout.TB_CODE_SIZE


@native
def _is_exit(block: int, number: int, by: int) -> bool:
    """Is an exit of ``block`` one as we know it, behind the first ``by`` bytes, or none?"""
    unlinked = load16(block + layout.TB_EXIT_UNLINKED + 2 * number)
    if unlinked == layout.NO_EXIT:
        return True
    jump = load64(block + layout.TB_EXIT_JUMP + 8 * number)
    return by < jump and jump + 4 == unlinked and load8(load64(block + _TB_CODE) + jump - 1) == _JUMP


@native
def _move_exit(block: int, number: int, by: int) -> None:
    """Its place is reckoned from ``by`` bytes further on."""
    unlinked = block + layout.TB_EXIT_UNLINKED + 2 * number
    if load16(unlinked) != layout.NO_EXIT:
        jump = block + layout.TB_EXIT_JUMP + 8 * number
        store16(unlinked, load16(unlinked) - by)
        store64(jump, load64(jump) - by)


@native
def _redirect(block: int, entry: int) -> None:
    """The exits that jump to ``block`` shall jump to ``entry``."""
    start = load64(block + _TB_CODE)
    link = load64(block + layout.TB_INCOMING)
    while link != 0:
        source, number = link & -2, link & 1
        at = load64(source + _TB_CODE) + load64(source + layout.TB_EXIT_JUMP + 8 * number)
        behind = at + 4
        if load8(at - 1) == _JUMP and behind + signed32(load32(at)) == start:
            store32(at, entry - behind)
        link = load64(source + layout.TB_NEXT_INCOMING + 8 * number)


@native
def _write_jump(at: int, to: int) -> None:
    store8(at, 0xEB)
    store8(at + 1, to - at - _JUMP_LENGTH)


@native
def move_entry(block: int, call: int, resume: int, end: int, eip: int, charge: int) -> bool:
    """Write all this, if it fits: the hook's call is at ``call`` and returns to ``resume``."""
    start, entry = load64(block + _TB_CODE), end - ENTRY_LENGTH
    by = entry - start
    if charge > CHARGE_MAX or resume + _JUMP_LENGTH > entry:
        return False
    slow = start + _JUMP_LENGTH
    if slow + slow_path_length(eip, charge, 0) > call:
        return False
    first, begin, behind = end_of_first(block)
    if first < end - start or not _is_exit(block, 0, by) or not _is_exit(block, 1, by):
        return False
    _write_jump(start, entry)
    write_slow_path(slow, call, eip, charge, 0)
    _write_jump(resume, end)
    write_charge(entry, charge)
    store8(end - 2, 0x7E)  # jle SLOW
    store8(end - 1, slow - end)
    _redirect(block, entry)
    _move_exit(block, 0, by)
    _move_exit(block, 1, by)
    write_leb128(begin, behind, first - by)
    store64(block + _TB_CODE, entry)
    store64(block + _TB_CODE_SIZE, load64(block + _TB_CODE_SIZE) - by)
    return True
