"""A clock without a call: rewriting the prologue of a translated block.

With a block hook installed the engine begins every block with two calls, the hook and its own stop
check.  They are most of the time of a short block.  On a block's first execution the hook calls
:func:`patch_block`, which decodes that prologue and, only if every argument and both call targets are
what they should be, writes a subtraction in front:

    engine's prologue                               after patching
      A:  store pc to env->eip                        sub  qword [rbp + budget], charge
          rdi=uc rsi=pc edx=size rcx=control          jg   END
          call hook                                   store pc; edx=charge; rcx=env; edi=0
      R:  rdi=uc esi=0                                (nops) call hook        same bytes, same place
          call helper_check_exit_request          R:  unchanged
    END:  guest instructions                      END: unchanged

That is the shape of blocks that are long or special; the others are entered just before END, with nothing
to jump over (:mod:`vmm.cpu.block_entry`).  In both the call is never touched, so the hook, which is running
while it patches, returns to R as if nothing had happened, and the slow path is the old path told apart by
``edi == 0`` ("already charged").  A block whose prologue is not understood stays as it is and is charged by
the hook: same clock, slower.

A block that repeats a string instruction (:mod:`vmm.cpu.repeat`) has its count looked at as well: it goes
on at END with few elements left only, and else calls the hook with the kind of repetition in edi.  Such a
block has one instruction, so its charge need not be said.

Room is scarce.  An argument below 4 GiB is loaded by five bytes instead of ten, and the heap of a Python
that is not position-independent, as Debian's and Ubuntu's are, is there: the patch has to fit even then.

A block is charged its number of guest instructions, which the engine keeps in the block descriptor.
"""

from __future__ import annotations

from typing import Any

from vmm.cpu import layout
from vmm.cpu.block_entry import move_entry
from vmm.cpu.control import (
    CPU,
    ENV,
    FN_CHECK_EXIT,
    FN_TB_LOOKUP,
    HOOK_ADDRESS,
    SCRATCH,
    UC,
)
from vmm.cpu.native import call5, load8, load16, load32, load64, native, store8, store16, store32, store64
from vmm.cpu.prologue import CHARGE_MAX, STORED_EIP, decode, slow_path_length, write_charge, write_slow_path
from vmm.cpu.repeat import FEW

_CS_BASE = layout.CS + layout.SEGMENT_BASE
_EIP = layout.EIP
PROLOGUE_MAX = 120

_TB_PC, _TB_SIZE, _TB_ICOUNT = layout.TB_PC, layout.TB_SIZE, layout.TB_ICOUNT
_TB_CS_BASE, _TB_CODE, _TB_CODE_SIZE = layout.TB_CS_BASE, layout.TB_CODE, layout.TB_CODE_SIZE
_HFLAGS, _EFLAGS = layout.HFLAGS, layout.EFLAGS
_TB_FLAGS, _TB_CFLAGS = layout.TB_FLAGS_FROM_EFLAGS, layout.TB_CFLAGS_DEFAULT
_JMP_CACHE = layout.CPU_TB_JMP_CACHE

PATCHED, NO_BLOCK, NOT_A_PROLOGUE, OTHER_ARGUMENTS, NO_STOP_CHECK, NO_ROOM = range(6)


@native
def jump_cache_slot(cpu: int, pc: int) -> int:
    """Where the jump cache would hold the block at ``pc``."""
    folded = pc ^ (pc >> 6)
    return cpu + _JMP_CACHE + 8 * (((folded >> 6) & 0xFC0) | (folded & 0x3F))


@native
def default_block(control: int, pc: int) -> int:
    """The engine's own lookup of the block of ordinary length at ``pc``, in the processor's present mode."""
    env = load64(control + ENV)
    flags = load32(env + _HFLAGS) | (load64(env + _EFLAGS) & _TB_FLAGS)
    cs_base = load64(env + _CS_BASE)
    return call5(load64(control + FN_TB_LOOKUP), load64(control + CPU), pc, cs_base, flags, _TB_CFLAGS)


@native
def find_block(control: int, pc: int, size: int) -> int:
    """The descriptor of the block that starts at linear address ``pc``, or 0.

    The jump cache holds it unless the block was entered for the first time; then the engine's own
    lookup does.
    """
    block = load64(jump_cache_slot(load64(control + CPU), pc))
    if block != 0 and load64(block + _TB_PC) == pc and load16(block + _TB_SIZE) == size:
        return block
    block = default_block(control, pc)
    return block if block != 0 and load16(block + _TB_SIZE) == size else 0


@native
def forget_block(control: int, pc: int) -> None:
    """The block at ``pc`` has an extraordinary length: it must not be found in place of the ordinary one."""
    store64(jump_cache_slot(load64(control + CPU), pc), 0)


@native
def linear_pc(control: int) -> int:
    """Linear address of the block that begins."""
    env = load64(control + ENV)
    return load64(env + _EIP) + load64(env + _CS_BASE)


@native
def is_counted(block: int) -> bool:
    """Was a length asked for?  A block that is not found is one that the engine made for one run."""
    return block == 0 or load32(block + layout.TB_CFLAGS) & layout.TB_COUNT_MASK != 0


@native
def block_instructions(block: int) -> int:
    """Guest instructions of a block; one for the unlisted one-instruction blocks."""
    return load16(block + _TB_ICOUNT) if block != 0 else 1


@native
def patch_block(control: int, block: int, pc: int, size: int, charge: int, kind: int) -> int:
    """Rewrite the prologue of ``block``; PATCHED or the reason why it was left alone.

    ``kind`` says what it repeats (:mod:`vmm.cpu.repeat`), or is 0.
    """
    if block == 0:
        return NO_BLOCK
    start = load64(block + _TB_CODE)
    registers = load64(control + SCRATCH)
    resume = decode(start, registers, load64(control + HOOK_ADDRESS))
    if resume == 0:
        return NOT_A_PROLOGUE
    eip = load64(registers + 8 * STORED_EIP)
    uc = load64(control + UC)
    if (
        eip != pc - load64(block + _TB_CS_BASE)
        or load64(registers + 8 * 7) != uc
        or load64(registers + 8 * 6) != pc
        or load64(registers + 8 * 2) != size
        or load64(registers + 8 * 1) != control
    ):
        return OTHER_ARGUMENTS
    call = resume - (5 if load8(resume - 5) == 0xE8 else 6)
    end = decode(resume, registers, load64(control + FN_CHECK_EXIT))
    if end == 0 or load64(registers + 8 * 7) != uc or load64(registers + 8 * 6) != 0:
        return NO_STOP_CHECK
    if end - start > PROLOGUE_MAX or end > start + load64(block + _TB_CODE_SIZE):
        return NO_ROOM
    if kind != 0 and start + _patch_length(eip, charge, kind) > call:
        kind = 0  # then it goes on element by element
    if kind == 0 and move_entry(block, call, resume, end, eip, charge):
        return PATCHED
    if start + _patch_length(eip, charge, kind) > call:
        return NO_ROOM
    _write_patch(start, call, end, eip, charge, kind)
    return PATCHED


@native
def _patch_length(eip: int, charge: int, kind: int) -> int:
    way_past = 9 if kind != 0 else 2
    return (8 if charge <= CHARGE_MAX else 12) + way_past + slow_path_length(eip, charge, kind)


@native
def _write_way_past(at: int, end: int, kind: int) -> int:
    """Jump to ``end`` where nothing is to be done; the address after it."""
    if kind != 0:  # jle over the next two; cmp qword [rbp + rcx], FEW; jbe end
        store16(at, 0x077E)
        store32(at + 2, 0x007D8348 | layout.RCX << 24)
        store8(at + 6, FEW)
        at += 7
    store8(at, 0x7F if kind == 0 else 0x76)  # jg end, or jbe end
    store8(at + 1, end - at - 2)
    return at + 2


@native
def _write_patch(start: int, call: int, end: int, eip: int, charge: int, kind: int) -> None:
    at = write_charge(start, charge)
    at = _write_way_past(at, end, kind)
    write_slow_path(at, call, eip, charge, kind)


def explain(reason: Any) -> str:
    """A word for a result of :func:`patch_block`."""
    names = ("patched", "no block", "not a prologue", "other arguments", "no stop check", "no room")
    return names[int(reason)]
