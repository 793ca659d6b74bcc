"""REP STOS and REP MOVS, many elements at once.

Source: Intel SDM vol. 2, REP/REPE/REPNE, STOS, MOVS; vol. 1 7.3.9.3.

The engine translates a repeated string instruction to a block that does one element and jumps to itself.
Such a block has a prologue of its own kind (:mod:`vmm.cpu.inline_clock`): with more than :data:`FEW`
elements left it calls :func:`repeat`, which does what the next runs of the block would, and charges them.

A run is taken over only where nothing could happen in it but the store itself: 64-bit code, upwards,
elements that lie whole in one page whose translation is in the TLB and plain RAM, and the clock's budget
lasts.  So the element that crosses a page, faults, meets code, devices or a watchpoint, or before which
somebody has to look, is the engine's, and everything is at the same instruction and time as it was.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import BUDGET, ENV, EXACT, FN_MEMMOVE, LOW_END, LOW_HOST, N_REPEATED
from vmm.cpu.native import call3, i64, load8, load16, load32, load64, native, store8, store64
from vmm.cpu.tlb import present_entry

FEW = 31
"""So many elements the block does sooner itself."""
KIND, MOVES, WIDTH = 8, 4, 3
"""Bits of a kind: that it is one, MOVS rather than STOS, and the binary logarithm of the element's size."""

KINDS_MAX = KIND | MOVES | WIDTH

_PAGE_SIZE = 4096
_REP, _REX_W = 0xF3, 0x48
_MOVSB, _MOVS, _STOSB, _STOS = 0xA4, 0xA5, 0xAA, 0xAB
_TF = 0x100
_UP = 1
_NO_SECOND_PAGE = -1
_EACH_BYTE, _EACH_QUARTER = 0x0101_0101_0101_0101, 0x0000_0001_0000_0001


@native
def kind_of(control: int, block: int, pc: int) -> int:
    """What a block repeats, or 0 when it is not one such instruction in 64-bit code."""
    flags, size = load32(block + layout.TB_FLAGS), load16(block + layout.TB_SIZE)
    if load16(block + layout.TB_ICOUNT) != 1 or size > 3 or flags & (layout.HF_CS64 | _TF) != layout.HF_CS64:
        return 0
    at = load64(block + layout.TB_PAGE) + (pc & _PAGE_SIZE - 1)
    if load64(block + layout.TB_SECOND_PAGE) != _NO_SECOND_PAGE or not 0 <= at < load64(control + LOW_END):
        return 0
    code = load64(control + LOW_HOST) + at
    opcode, wide = load8(code + size - 1), size == 3
    if load8(code) != _REP or (wide and load8(code + 1) != _REX_W):
        return 0
    if opcode == _STOS or opcode == _MOVS:
        return KIND | (MOVES if opcode == _MOVS else 0) | (3 if wide else 2)
    if not wide and (opcode == _STOSB or opcode == _MOVSB):
        return KIND | (MOVES if opcode == _MOVSB else 0)
    return 0


@native
def _host(env: int, address: int, access: int) -> int:
    """Where plain RAM at a linear address lies in this process, by the TLB; 0: not there, or not plain."""
    entry = present_entry(env, address)
    if load64(entry + access) != address & -_PAGE_SIZE:
        return 0
    return load64(entry + layout.TLB_ADDEND) + address


@native
def _in_page(address: int, width: int) -> int:
    """Whole elements from ``address`` to the end of its page."""
    return (_PAGE_SIZE - (address & _PAGE_SIZE - 1)) >> width


@native
def _fill(at: int, size: int, value: int, width: int) -> None:
    """Store the lowest ``1 << width`` bytes of ``value`` again and again."""
    if width == 0:
        value = (value & 0xFF) * _EACH_BYTE
    elif width == 2:
        value = (value & 0xFFFF_FFFF) * _EACH_QUARTER
    whole = size & -8
    for offset in range(0, whole, 8):
        store64(at + offset, value)
    for offset in range(whole, size):
        store8(at + offset, value >> 8 * (offset & 7))


@native
def _affordable(control: int, env: int, charge: int) -> int:
    """Runs of the block before somebody must look, but no more than there are elements left."""
    budget, left = load64(load64(control + BUDGET)), load64(env + layout.RCX)
    runs = (budget + charge - 1) // charge if budget > 0 else i64(0)
    return min(runs, left) if left >= 0 else runs  # a count from 2^63 on


@native
def repeat(control: int, kind: int, charge: int) -> None:
    """Before a run of such a block, which was charged: do the next ones, as many as can be."""
    env = load64(control + ENV)
    if load64(control + EXACT) != 0 or load32(env + layout.DF) != _UP or charge <= 0:
        return
    width = kind & WIDTH
    target, source = load64(env + layout.RDI), load64(env + layout.RSI)
    runs = min(_affordable(control, env, charge), _in_page(target, width))
    to = _host(env, target, layout.TLB_ADDR_WRITE)
    if kind & MOVES:
        runs = min(runs, _in_page(source, width))
        come = _host(env, source, layout.TLB_ADDR_READ)
        if runs < 1 or to == 0 or come == 0 or come < to < come + (runs << width):
            return  # what was just stored would be loaded again
        call3(load64(control + FN_MEMMOVE), to, come, runs << width)
        store64(env + layout.RSI, source + (runs << width))
    elif runs < 1 or to == 0:
        return
    else:
        _fill(to, runs << width, load64(env + layout.RAX), width)
    store64(env + layout.RDI, target + (runs << width))
    store64(env + layout.RCX, load64(env + layout.RCX) - runs)
    store64(load64(control + BUDGET), load64(load64(control + BUDGET)) - runs * charge)
    store64(control + N_REPEATED, load64(control + N_REPEATED) + runs)
