"""A jump cache of our own: where the code for a linear address is, in rows that need nothing else.

An indirect jump goes to a block that was rarely executed a moment ago, so whatever is looked at to find it
comes from far away.  The engine's jump cache has pointers to block descriptors, and compares those: two
places.  A row here has all that is compared and the answer:

    pc      linear address of the block; code segments that do not begin at 0 have no rows
    key     flags, the mode that the block was translated for, and a generation
    code    where to jump
    page    RAM address of the page that it was translated from; -1 if these are two

Two rows are a line of the processor's cache; the latest is the first, and the other one has its place when it
is asked for.  (To choose between them at once takes a branch that is mispredicted, or longer.)

A row is believed while its generation is the present one.  A new one begins when address translations are
forgotten.  Then :func:`renew_row` believes a row if the page is mapped where it was, by the TLB; if it is not
there the page is looked up as the engine does, which walks page tables, sets accessed bits or faults.
A block that becomes invalid loses its row, of whatever generation, and all rows go when all translated code
is dropped.  The engine's functions for these events are detoured (:mod:`vmm.cpu.detour`): each is called
whoever causes the event, because the library calls what it exports through its PLT.

A guest that invalidates one page (INVLPG) mostly means data.  So the pages that rows of this generation lie
in are noted, as bits at a hash of their number, and another page begins no generation.  If the page lay in
the bounds of large pages the engine forgot a whole TLB: then everything is forgotten here as well.  (The
engine keeps what its jump cache has of the rest of a large page.)

Blocks of an extraordinary length (:func:`vmm.cpu.inline_clock.forget_block`) are not what is looked for here,
and have no rows.  A block that is found before its first execution gets its prologue rewritten later; what
its row leads to stays its entry.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.constants import (
    FIRST_GENERATION,
    JUMP_LINE_BITS,
    JUMP_LINE_SIZE,
    JUMP_LINES,
    JUMP_PAGES_SIZE,
    JUMP_ROW_SIZE,
)
from vmm.cpu.control import (
    ENV_TO_CONTROL,
    ENV_TO_GENERATION,
    ENV_TO_ROWS,
    FN_CODE_PAGE,
    FN_FIND_CODE,
    FN_MEMSET,
    FN_RENEW_ROW,
    LOW_END,
    SCRATCH_CONTROL,
    SCRATCH_GENERATION,
    SCRATCH_ROWS,
)
from vmm.cpu.inline_clock import jump_cache_slot
from vmm.cpu.native import (
    call1,
    call2,
    call3,
    call4,
    callback,
    i64,
    load8,
    load16,
    load32,
    load64,
    native,
    store8,
    store64,
    void,
)
from vmm.cpu.tlb import present_entry

_KEY_AT, _CODE_AT, _PAGE_AT = 8, 16, 24
"""In a row, which begins with pc."""
_SECOND = JUMP_ROW_SIZE
"""From a line's first row to its other one."""
_NOTHING, _EVERY_BYTE = -1, 0xFF
"""Key and page of no row: no flags and no page are that."""

_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 divided by the golden ratio, as a signed word: a product's high bits depend on all bits."""
_PAGE = -4096
_PAGE_SIZE = 4096
_SLOTS_OF_PAGE = 8 * 64
"""Bytes of the engine's jump cache, which keeps the blocks of a page together."""
_NO_SECOND_PAGE = -1
_CS_BASE = layout.CS + layout.SEGMENT_BASE
NO_PAGE = -4096
"""The engine's -1, of which the offset in the page was taken off."""
_FLAGS = 0xFFFF_FFFF
"""Of a key; above it is the generation."""


@native
def _line_of(rows: int, pc: int) -> int:
    """Where the rows for ``pc`` are."""
    return rows + JUMP_LINE_SIZE * (pc * _SPREAD >> (64 - JUMP_LINE_BITS) & (JUMP_LINES - 1))


@native
def _is_row_for(row: int, pc: int, cs_base: int, key: int) -> bool:
    """Is this what was found for an address and a mode, in this generation?  One branch for all."""
    return load64(row) ^ pc | load64(row + _KEY_AT) ^ key | cs_base == 0


@native
def code_page(control: int, env: int, address: int) -> int:
    """RAM address of the page of code at ``address``, or NO_PAGE; faults as the engine does."""
    entry = present_entry(env, address)
    page = load64(entry + layout.TLB_PHYSICAL)
    if load64(entry + layout.TLB_ADDR_CODE) == address & _PAGE and 0 <= page < load64(control + LOW_END):
        return page
    return call2(load64(control + FN_CODE_PAGE), env, address) & _PAGE


# Notes of the pages that rows lie in


@native
def _note_byte(rows: int, page: int) -> int:
    """Where a page, given by its number, is noted; which bit it is says _note_bit."""
    return rows + JUMP_LINE_SIZE * JUMP_LINES + (page * _SPREAD >> 32 & (JUMP_PAGES_SIZE - 1))


@native
def _note_bit(page: int) -> int:
    bit: int = i64(1) << (page * _SPREAD >> 61 & 7)
    return bit


@native
def _note_page(rows: int, address: int) -> None:
    page = address >> 12
    at = _note_byte(rows, page)
    store8(at, load8(at) | _note_bit(page))


# Rows


@native
def _copy_row(source: int, target: int) -> None:
    for word in range(0, JUMP_ROW_SIZE, 8):
        store64(target + word, load64(source + word))


@native
def _is_present(row: int, key: int) -> bool:
    """Is a row of the generation of ``key``?"""
    return load64(row + _KEY_AT) >> 32 == key >> 32


@native
def _write_row(row: int, pc: int, key: int, code: int, page: int) -> None:
    store64(row, pc)
    store64(row + _KEY_AT, key)
    store64(row + _CODE_AT, code)
    store64(row + _PAGE_AT, page)


@native
def set_row(env: int, pc: int, flags: int, block: int) -> None:
    """``block`` was found for ``pc``."""
    rows, key = load64(env + ENV_TO_ROWS), flags | load64(env + ENV_TO_GENERATION)
    row = _line_of(rows, pc)
    if _is_present(row, key):
        _copy_row(row, row + _SECOND)
    page = load64(block + layout.TB_PAGE)
    _note_page(rows, pc)
    if load64(block + layout.TB_SECOND_PAGE) != _NO_SECOND_PAGE:
        _note_page(rows, pc + _PAGE_SIZE)
        page = i64(_NOTHING)
    _write_row(row, pc, key, load64(block + layout.TB_CODE), page)


@native
def _is_for(row: int, pc: int, flags: int) -> bool:
    """Was this found for an address and a mode, in whatever generation?"""
    return load64(row) == pc and load64(row + _KEY_AT) & _FLAGS == flags


@native
def _flags(env: int) -> int:
    """The mode that the processor is in, as blocks are translated for one."""
    return load32(env + layout.HFLAGS) | load64(env + layout.EFLAGS) & layout.TB_FLAGS_FROM_EFLAGS


@callback(i64(i64))
def renew_row(env: int) -> int:
    """The rest of :func:`lookup_block`: the other row, or one of an earlier generation, becomes the first."""
    control, cs_base, flags = load64(env + ENV_TO_CONTROL), load64(env + _CS_BASE), _flags(env)
    pc = load64(env + layout.EIP) + cs_base
    key, line = flags | load64(env + ENV_TO_GENERATION), _line_of(load64(env + ENV_TO_ROWS), pc)
    row = line if _is_for(line, pc, flags) else line + _SECOND
    page = load64(row + _PAGE_AT)
    known = _is_for(row, pc, flags) and cs_base == 0
    if not known or (load64(row + _KEY_AT) != key and page != code_page(control, env, pc)):
        return call4(load64(control + FN_FIND_CODE), env, pc, cs_base, flags)
    code = load64(row + _CODE_AT)
    if row != line:
        _copy_row(line, row)
    _write_row(line, pc, key, code, page)
    _note_page(load64(env + ENV_TO_ROWS), pc)
    return code


@callback(i64(i64))
def lookup_block(env: int) -> int:
    """helper_lookup_tb_ptr: the code to go on with, or that which returns to the engine's main loop."""
    cs_base = load64(env + _CS_BASE)
    pc = load64(env + layout.EIP) + cs_base
    line = _line_of(load64(env + ENV_TO_ROWS), pc)
    if _is_row_for(line, pc, cs_base, _flags(env) | load64(env + ENV_TO_GENERATION)):
        return load64(line + _CODE_AT)
    return call1(load64(load64(env + ENV_TO_CONTROL) + FN_RENEW_ROW), env)


# What ends a generation, or a row


@native
def _drop_rows(control: int, rows: int) -> None:
    call3(load64(control + FN_MEMSET), rows, _EVERY_BYTE, JUMP_LINE_SIZE * JUMP_LINES)


@native
def forget_rows(control: int, cpu: int) -> None:
    """Another generation begins."""
    rows = load64(cpu + SCRATCH_ROWS)
    generation = load64(cpu + SCRATCH_GENERATION) + FIRST_GENERATION
    if generation == 0:  # the numbers begin anew, and rows may have them
        _drop_rows(control, rows)
    store64(cpu + SCRATCH_GENERATION, generation)
    call3(load64(control + FN_MEMSET), rows + JUMP_LINE_SIZE * JUMP_LINES, 0, JUMP_PAGES_SIZE)


@native
def _was_emptied(cpu: int) -> bool:
    """Is there a TLB with nothing in it, although something was filled?"""
    filled = load16(cpu + layout.CPU_TLB_DIRTY)
    for mode in range(layout.CPU_TLB_MODES):
        used = cpu + layout.CPU_TLB_DESCRIPTORS + layout.TLB_DESCRIPTOR_SIZE * mode + layout.TLB_USED
        if filled >> mode & 1 and load64(used) == 0:
            return True
    return False


@callback(void(i64, i64))
def flush_page(cpu: int, address: int) -> None:
    """tb_flush_jmp_cache: the translation of the page at ``address`` was forgotten."""
    control = load64(cpu + SCRATCH_CONTROL)
    if control == 0:
        return  # the engine is being made, and has found nothing
    clear = load64(control + FN_MEMSET)
    if _was_emptied(cpu):
        call3(clear, cpu + layout.CPU_TB_JMP_CACHE, 0, layout.TB_JMP_CACHE_SIZE)
        forget_rows(control, cpu)
        return
    for page in (address - _PAGE_SIZE, address):  # a block of the one before may reach into this one
        call3(clear, jump_cache_slot(cpu, page), 0, _SLOTS_OF_PAGE)
    page = address >> 12
    if load8(_note_byte(load64(cpu + SCRATCH_ROWS), page)) & _note_bit(page):
        forget_rows(control, cpu)


@callback(void(i64, i64))
def before_flush(cpu: int, back: int) -> None:
    """Before tb_flush: all translated code is dropped."""
    control = load64(cpu + SCRATCH_CONTROL)
    if control != 0:
        _drop_rows(control, load64(cpu + SCRATCH_ROWS))


@callback(void(i64, i64))
def invalidated(translator: int, block: int) -> None:
    """At the end of do_tb_phys_invalidate: this block must not be executed any more."""
    cpu = load64(load64(translator + layout.TCG_UC) + layout.UC_CPU)
    rows, pc = load64(cpu + SCRATCH_ROWS), load64(block + layout.TB_PC)
    line = _line_of(rows, pc)
    for row in (line, line + _SECOND):
        page = load64(row + _PAGE_AT)
        if load64(row) == pc and (page == _NOTHING or page == load64(block + layout.TB_PAGE)):
            store64(row + _KEY_AT, _NOTHING)
