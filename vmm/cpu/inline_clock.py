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

The bytes from the call on are never touched, so the hook, which is running while it patches, returns
to R as if nothing had happened, and the slow path is the old path told apart by ``edi == 0``
("already charged").  A block whose prologue is not understood stays as it is and is charged by the
hook: same clock, slower.

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
from vmm.cpu.control import (
    CPU,
    ENV,
    ENV_TO_BUDGET,
    FN_CHECK_EXIT,
    FN_TB_LOOKUP,
    HOOK_ADDRESS,
    SCRATCH,
    UC,
)
from vmm.cpu.native import call5, load8, load16, load32, load64, native, store8, store16, store32, store64
from vmm.cpu.repeat import FEW

_CS_BASE = layout.CS + layout.SEGMENT_BASE
_EIP = layout.EIP
_UNSET = 0x5BAD5BAD5BAD
_STORED_EIP = 16
"""Index in the scratch words, after sixteen decoded registers, of what is stored to env->eip."""
PROLOGUE_MAX = 120
LOADS_MAX = 12

_BUDGET_DISPLACEMENT = ENV_TO_BUDGET & 0xFFFFFFFF
_TB_PC, _TB_SIZE, _TB_ICOUNT = layout.TB_PC, layout.TB_SIZE, layout.TB_ICOUNT
_TB_CS_BASE, _TB_CODE, _TB_CODE_SIZE = layout.TB_CS_BASE, layout.TB_CODE, layout.TB_CODE_SIZE
_HFLAGS, _EFLAGS = layout.HFLAGS, layout.EFLAGS
_TB_FLAGS, _TB_CFLAGS = layout.TB_FLAGS_FROM_EFLAGS, layout.TB_CFLAGS_DEFAULT
_JMP_CACHE = layout.CPU_TB_JMP_CACHE

PATCHED, NO_BLOCK, NOT_A_PROLOGUE, OTHER_ARGUMENTS, NO_STOP_CHECK, NO_ROOM = range(6)


@native
def _signed32(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


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
def _call_length(at: int) -> int:
    """Bytes of the call instruction at ``at``; 0 if it is none."""
    if load8(at) == 0xE8:  # call rel32
        return 5
    return 6 if load16(at) == 0x15FF else 0  # call [rip+d]


@native
def _call_target(at: int, length: int) -> int:
    end = at + length
    operand = end + _signed32(load32(end - 4))
    return operand if length == 5 else load64(operand)


@native
def _follow_load(at: int, registers: int) -> int:
    """Take note of the register load at ``at``; the address after it, or 0 when it is something else."""
    rex = load8(at) if load8(at) & 0xF0 == 0x40 else 0
    if rex != 0:
        at += 1
    opcode, modrm = load8(at), load8(at + 1)
    reg = (modrm >> 3 & 7) | (rex & 4) << 1
    rm = (modrm & 7) | (rex & 1) << 3
    if 0xB8 <= opcode <= 0xBF:  # mov r, imm
        rm = (opcode & 7) | (rex & 1) << 3
        wide = rex & 8 != 0
        store64(registers + 8 * rm, load64(at + 1) if wide else load32(at + 1))
        return at + (9 if wide else 5)
    if opcode == 0xC7 and rex == 0x48 and modrm == 0x85 and load32(at + 2) == _EIP:
        store64(registers + 8 * _STORED_EIP, _signed32(load32(at + 6)))  # mov [rbp+eip], imm32
        return at + 10
    if opcode == 0xC7 and rex & 8 and modrm & 0xF8 == 0xC0:  # mov r, simm32
        store64(registers + 8 * rm, _signed32(load32(at + 2)))
        return at + 6
    if opcode == 0x8D and rex & 8 and modrm & 0xC7 == 5:  # lea r, [rip+d]
        store64(registers + 8 * reg, at + 6 + _signed32(load32(at + 2)))
        return at + 6
    if opcode == 0x89 and rex & 0xF9 == 0x48 and modrm & 0xC7 == 0x85 and load32(at + 2) == _EIP:
        store64(registers + 8 * _STORED_EIP, load64(registers + 8 * reg))  # mov [rbp+eip], r
        return at + 6
    if opcode == 0x8B and rex & 8 and modrm >= 0xC0:  # mov r, r
        store64(registers + 8 * reg, load64(registers + 8 * rm))
        return at + 2
    if opcode == 0x33 and modrm >= 0xC0 and reg == rm:  # xor r, r
        store64(registers + 8 * reg, 0)
        return at + 2
    return 0


@native
def _decode(at: int, registers: int, target: int) -> int:
    """Follow register loads from ``at`` to a call of ``target``.

    Returns the address after the call, or 0 when anything is not one of the few instructions that
    the engine's code generator uses for this.  ``registers`` are 17 words (see _STORED_EIP).
    """
    for index in range(17):
        store64(registers + 8 * index, _UNSET)
    for _ in range(LOADS_MAX):
        length = _call_length(at)
        if length != 0:
            return at + length if _call_target(at, length) == target else 0
        at = _follow_load(at, registers)
        if at == 0:
            return 0
    return 0


@native
def patch_block(control: int, block: int, pc: int, size: int, charge: int, kind: int) -> int:
    """Rewrite the prologue of ``block``; PATCHED or the reason why it was left alone.

    ``kind`` says what it repeats (:mod:`vmm.cpu.repeat`), or is 0.
    """
    if block == 0:
        return NO_BLOCK
    start = load64(block + _TB_CODE)
    registers = load64(control + SCRATCH)
    resume = _decode(start, registers, load64(control + HOOK_ADDRESS))
    if resume == 0:
        return NOT_A_PROLOGUE
    eip = load64(registers + 8 * _STORED_EIP)
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
    end = _decode(resume, registers, load64(control + FN_CHECK_EXIT))
    if end == 0 or load64(registers + 8 * 7) != uc or load64(registers + 8 * 6) != 0:
        return NO_STOP_CHECK
    if kind != 0 and start + _patch_length(eip, charge, kind) > call:
        kind = 0  # then it goes on element by element
    if start + _patch_length(eip, charge, kind) > call or end - start > PROLOGUE_MAX:
        return NO_ROOM
    if end > start + load64(block + _TB_CODE_SIZE):
        return NO_ROOM
    _write_patch(start, call, end, eip, charge, kind)
    return PATCHED


@native
def _fits_imm32(value: int) -> bool:
    return -(1 << 31) <= value < (1 << 31)


@native
def _patch_length(eip: int, charge: int, kind: int) -> int:
    store_eip = 11 if _fits_imm32(eip) else 17
    if kind != 0:
        return 8 + 9 + store_eip + 2 + 3
    take_charge = 8 + 3 if charge <= 127 else 5 + 7
    return take_charge + 2 + store_eip + 2 + 2


@native
def _write_charge(at: int, charge: int) -> int:
    """Take ``charge`` from the budget; the address after it."""
    if charge <= 127:  # sub qword [rbp + budget], charge
        store8(at, 0x48)
        store16(at + 1, 0xAD83)
        store32(at + 3, _BUDGET_DISPLACEMENT)
        store8(at + 7, charge)
        return at + 8
    store8(at, 0xBA)  # mov edx, charge; sub qword [rbp + budget], rdx
    store32(at + 1, charge)
    store8(at + 5, 0x48)
    store16(at + 6, 0x9529)
    store32(at + 8, _BUDGET_DISPLACEMENT)
    return at + 12


@native
def _write_store(at: int, eip: int) -> int:
    """Store ``eip``; the address after it."""
    if _fits_imm32(eip):  # mov qword [rbp + eip], imm32
        store32(at, 0x0085C748 | (_EIP & 0xFF) << 24)
        store32(at + 4, _EIP >> 8)
        store32(at + 7, eip & 0xFFFFFFFF)
        return at + 11
    store16(at, 0xBE48)  # mov rsi, eip; mov [rbp + eip], rsi
    store64(at + 2, eip)
    store16(at + 10, 0x8948)
    store8(at + 12, 0xB5)
    store32(at + 13, _EIP)
    return at + 17


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
    at = _write_charge(start, charge)
    at = _write_way_past(at, end, kind)
    at = _write_store(at, eip)
    if (
        kind == 0 and charge <= 127
    ):  # push charge; pop rdx: two bytes less than mov, which large ones had above
        store16(at, charge << 8 | 0x6A)
        store8(at + 2, 0x5A)
        at += 3
    store16(at, 0x5955)  # push rbp; pop rcx
    at += 2
    if kind == 0:
        store16(at, 0xFF31)  # xor edi, edi
        at += 2
    else:
        store16(at, kind << 8 | 0x6A)  # push kind; pop rdi
        store8(at + 2, 0x5F)
        at += 3
    while at < call:
        store8(at, 0x90)
        at += 1


def explain(reason: Any) -> str:
    """A word for a result of :func:`patch_block`."""
    names = ("patched", "no block", "not a prologue", "other arguments", "no stop check", "no room")
    return names[int(reason)]
