"""RDMSR and WRMSR over the table of :mod:`vmm.cpu.msr_table`."""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import (
    MSR_COUNT,
    MSR_ROWS,
    N_MSR,
    PY_MSR_READ,
    PY_MSR_WRITE,
)
from vmm.cpu.instructions import control_of, general_protection
from vmm.cpu.msr_table import BOARD, CANONICAL, EXTENDED, IGNORED, ROW_WORDS, TSC
from vmm.cpu.native import call3, callback, i64, load32, load64, native, store32, store64, void
from vmm.cpu.ticks import count, time_stamp

_LOW32 = 0xFFFFFFFF
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_PAT_LOWEST_BITS = 0x0101010101010101
"""One a field: memory types 2 and 3 do not exist (SDM vol. 3 12.12.2)."""


@native
def _find(control: int, register: int) -> int:
    row = load64(control + MSR_ROWS)
    for _ in range(load64(control + MSR_COUNT)):
        if load64(row) == register:
            return row
        row += 8 * ROW_WORDS
    return 0


@native
def _is_canonical(value: int) -> bool:
    return (value << 16) >> 16 == value


@native
def _read(control: int, env: int, row: int) -> int:
    kind = load64(row + 8)
    if kind == IGNORED:
        return load64(row + 24)
    if kind == TSC:
        return time_stamp(control, env)
    if kind == BOARD:
        return call3(load64(control + PY_MSR_READ), load64(row), 0, 0)
    offset = load64(row + 16)
    return load32(env + offset) if offset == layout.SYSENTER_CS else load64(env + offset)


@native
def _accepts(control: int, env: int, row: int, value: int) -> bool:
    """Store ``value``; False: it must fault."""
    kind = load64(row + 8)
    offset = load64(row + 16)
    mask = load64(row + 24)
    if kind == IGNORED:
        return True
    if kind == TSC:
        store64(env + offset, value - (time_stamp(control, env) - load64(env + offset)))
        return True
    if kind == BOARD:
        return call3(load64(control + PY_MSR_WRITE), load64(row), 0, value) != 0
    if kind == CANONICAL and not _is_canonical(value):
        return False
    if value & ~mask:
        return False
    if offset == layout.PAT and (value >> 1) & ~(value >> 2) & _PAT_LOWEST_BITS:
        return False
    if kind == EXTENDED:
        old = load64(env + offset)
        if (value ^ old) & _EFER_LME and load64(env + layout.CR0) & (1 << 31):
            return False
        value = (value & ~_EFER_LMA) | (old & _EFER_LMA)
    if offset == layout.SYSENTER_CS:
        store32(env + offset, value)
    else:
        store64(env + offset, value)
    return True


@callback(void(i64, i64))
def rdmsr(env: int, back: int) -> None:
    """RDMSR: EDX:EAX from the register in ECX."""
    control = control_of(env)
    count(control, N_MSR)
    row = _find(control, load64(env + layout.RCX) & _LOW32)
    if row == 0:
        general_protection(control, env, back)
    value = _read(control, env, row)
    store64(env + layout.RAX, value & _LOW32)
    store64(env + layout.RDX, (value >> 32) & _LOW32)


@callback(void(i64, i64))
def wrmsr(env: int, back: int) -> None:
    """WRMSR: EDX:EAX to the register in ECX."""
    control = control_of(env)
    count(control, N_MSR)
    row = _find(control, load64(env + layout.RCX) & _LOW32)
    value = (load64(env + layout.RAX) & _LOW32) | (load64(env + layout.RDX) << 32)
    if row == 0 or not _accepts(control, env, row, value):
        general_protection(control, env, back)
