"""SYSCALL and SYSENTER (AMD APM vol. 3, SDM vol. 2): the transitions that the engine left out.

SYSRET and SYSEXIT are the engine's own.  SYSENTER in long mode raises #UD, as on the AMD processors
whose SYSRET behaviour the engine has.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import (
    FN_RAISE,
    FN_READ_EFLAGS,
    FN_WRITE_EFLAGS,
    N_SYSCALLS,
)
from vmm.cpu.instructions import control_of, general_protection, restore_state
from vmm.cpu.native import call1, call3, call4, callback, i64, load32, load64, native, store32, store64, void
from vmm.cpu.ticks import count

_EFER_SCE = 1
_INVALID_OPCODE = 6
_LOW32 = 0xFFFFFFFF
_FLAGS_ALL = 0xFFFFFFFF & ~0x20000
_VM, _RF, _IF = 1 << 17, 1 << 16, 1 << 9
_FLAT_LIMIT = 0xFFFFFFFF
_CODE64, _CODE32, _DATA = 0x00A09B00, 0x00C09B00, 0x00C09300
"""Descriptor flags: present, DPL 0, accessed; G with L or D; execute/read or read/write."""


@native
def _load_flat(segment: int, selector: int, flags: int) -> None:
    store32(segment, selector)
    store64(segment + layout.SEGMENT_BASE, 0)
    store32(segment + layout.SEGMENT_LIMIT, _FLAT_LIMIT)
    store32(segment + layout.SEGMENT_FLAGS, flags)


@native
def _enter_kernel(env: int, selector: int, long: bool) -> None:
    """CS and SS flat at privilege level 0, and the hidden flags that follow from them."""
    _load_flat(env + layout.CS, selector & 0xFFFC, _CODE64 if long else _CODE32)
    _load_flat(env + layout.SS, (selector & 0xFFFC) + 8, _DATA)
    hflags = load32(env + layout.HFLAGS) & ~(layout.HF_CPL | layout.HF_CS64)
    hflags |= layout.HF_CS32 | layout.HF_SS32
    if long:
        hflags = (hflags | layout.HF_CS64) & ~layout.HF_ADDSEG
    store32(env + layout.HFLAGS, hflags)


@callback(void(i64, i64, i64))
def syscall(env: int, length: int, back: int) -> None:
    """SYSCALL from 64-bit, compatibility or legacy mode."""
    control = control_of(env)
    count(control, N_SYSCALLS)
    if not load64(env + layout.EFER) & _EFER_SCE:
        call4(load64(control + FN_RAISE), env, _INVALID_OPCODE, 0, back)
    star = load64(env + layout.STAR)
    selector = (star >> 32) & 0xFFFF
    following = load64(env + layout.EIP) + (length & _LOW32)
    flags = call1(load64(control + FN_READ_EFLAGS), env)
    hflags = load32(env + layout.HFLAGS)
    if hflags & layout.HF_LMA:
        store64(env + layout.RCX, following)
        store64(env + layout.R11, flags)
        kept = flags & ~load64(env + layout.FMASK) & ~_RF
        target = layout.LSTAR if hflags & layout.HF_CS64 else layout.CSTAR
        _enter_kernel(env, selector, True)
        store64(env + layout.EIP, load64(env + target))
    else:
        store64(env + layout.RCX, following & _LOW32)
        kept = flags & ~(_VM | _RF | _IF)
        _enter_kernel(env, selector, False)
        store64(env + layout.EIP, star & _LOW32)
    call3(load64(control + FN_WRITE_EFLAGS), env, kept, _FLAGS_ALL)


@callback(void(i64, i64, i64))
def sysenter(env: int, length: int, back: int) -> None:
    """SYSENTER in legacy protected mode."""
    control = control_of(env)
    count(control, N_SYSCALLS)
    restore_state(control, back)
    if load32(env + layout.HFLAGS) & layout.HF_LMA:
        call4(load64(control + FN_RAISE), env, _INVALID_OPCODE, 0, back)
    selector = load32(env + layout.SYSENTER_CS) & 0xFFFC
    if selector == 0:
        general_protection(control, env, back)
    flags = call1(load64(control + FN_READ_EFLAGS), env)
    call3(load64(control + FN_WRITE_EFLAGS), env, flags & ~(_VM | _RF | _IF), _FLAGS_ALL)
    _enter_kernel(env, selector, False)
    store64(env + layout.RSP, load64(env + layout.SYSENTER_ESP) & _LOW32)
    store64(env + layout.EIP, load64(env + layout.SYSENTER_EIP) & _LOW32)
