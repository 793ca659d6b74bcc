"""The prologue of a translated block: what the engine wrote, understood, and pieces of what we write there.

The engine begins a block with a few register loads and a call, twice (:mod:`vmm.cpu.inline_clock`).
Nothing but the few instructions that its code generator uses for that is understood.  An argument below
4 GiB is loaded by five bytes instead of ten.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import ENV_TO_BUDGET
from vmm.cpu.native import load8, load16, load32, load64, native, store8, store16, store32, store64

STORED_EIP = 16
"""Index in the scratch words, after sixteen decoded registers, of what is stored to env->eip."""
CHARGE_MAX = 127
"""The largest charge that is one byte of its instruction."""

_EIP = layout.EIP
_UNSET = 0x5BAD5BAD5BAD
_LOADS_MAX = 12
_BUDGET_DISPLACEMENT = ENV_TO_BUDGET & 0xFFFFFFFF


@native
def signed32(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


@native
def _call_length(at: int) -> int:
    """Bytes of the call instruction at ``at``; 0 if it is none."""
    if load8(at) == 0xE8:  # call rel32
        return 5
    return 6 if load16(at) == 0x15FF else 0  # call [rip+d]


@native
def _call_target(at: int, length: int) -> int:
    end = at + length
    operand = end + signed32(load32(end - 4))
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
        store64(registers + 8 * STORED_EIP, signed32(load32(at + 6)))  # mov [rbp+eip], imm32
        return at + 10
    if opcode == 0xC7 and rex & 8 and modrm & 0xF8 == 0xC0:  # mov r, simm32
        store64(registers + 8 * rm, signed32(load32(at + 2)))
        return at + 6
    if opcode == 0x8D and rex & 8 and modrm & 0xC7 == 5:  # lea r, [rip+d]
        store64(registers + 8 * reg, at + 6 + signed32(load32(at + 2)))
        return at + 6
    if opcode == 0x89 and rex & 0xF9 == 0x48 and modrm & 0xC7 == 0x85 and load32(at + 2) == _EIP:
        store64(registers + 8 * STORED_EIP, load64(registers + 8 * reg))  # mov [rbp+eip], r
        return at + 6
    if opcode == 0x8B and rex & 8 and modrm >= 0xC0:  # mov r, r
        store64(registers + 8 * reg, load64(registers + 8 * rm))
        return at + 2
    if opcode == 0x33 and modrm >= 0xC0 and reg == rm:  # xor r, r
        store64(registers + 8 * reg, 0)
        return at + 2
    return 0


@native
def decode(at: int, registers: int, target: int) -> int:
    """Follow register loads from ``at`` to a call of ``target``.

    Returns the address after the call, or 0 when anything is not one of the few instructions that
    the engine's code generator uses for this.  ``registers`` are 17 words (see STORED_EIP).
    """
    for index in range(17):
        store64(registers + 8 * index, _UNSET)
    for _ in range(_LOADS_MAX):
        length = _call_length(at)
        if length != 0:
            return at + length if _call_target(at, length) == target else 0
        at = _follow_load(at, registers)
        if at == 0:
            return 0
    return 0


@native
def fits_imm32(value: int) -> bool:
    return -(1 << 31) <= value < (1 << 31)


@native
def write_charge(at: int, charge: int) -> int:
    """Take ``charge`` from the budget; the address after it."""
    if charge <= CHARGE_MAX:  # sub qword [rbp + budget], charge
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
def slow_path_length(eip: int, charge: int, kind: int) -> int:
    """Bytes that :func:`write_slow_path` needs."""
    arguments = 5 if kind != 0 else 4 if charge > CHARGE_MAX else 7
    return (11 if fits_imm32(eip) else 17) + arguments


@native
def _write_store(at: int, eip: int) -> int:
    """Store ``eip``; the address after it."""
    if fits_imm32(eip):  # mov qword [rbp + eip], imm32
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
def write_slow_path(at: int, call: int, eip: int, charge: int, kind: int) -> None:
    """Store ``eip`` and load the arguments of the hook's ``call``: env, the kind of repetition, the charge.

    One instruction that repeats needs no charge, and a large charge is in edx already.
    """
    at = _write_store(at, eip)
    if kind == 0 and charge <= CHARGE_MAX:  # push charge; pop rdx: two bytes less than mov
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
