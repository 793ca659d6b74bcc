"""Finding the next block after an indirect jump, when the jump cache does not know it.

Generated code calls a helper with the state of the processor and jumps to the block that it answers.
The engine looks in its jump cache, a table by virtual address, and else in a hash table of all blocks.
It clears the jump cache whenever it forgets address translations, so with every load of CR3, and a guest
that switches between processes finds the same few hundred blocks in the hash table again and again.

:func:`find_code` is the rest of our helper (:mod:`vmm.cpu.jump_cache`), with a table of our own between the
two: rows by virtual and physical address, which stay true whatever CR3 is.  The physical address comes from
the TLB, where the engine looks first as well; when it is not there the engine is asked, which then walks page
tables, sets accessed bits or faults.  A row is believed if its block still is what is looked for and is not
invalid.  Blocks are freed only all at once, by a flush, which the engine counts; the table is cleared then.

A block that lies in two pages is the right one if the second page, too, is mapped where it was; it is
translated after all else was found equal, as the engine does.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.constants import BLOCK_ROW_BITS, BLOCK_ROW_SIZE, BLOCK_ROWS
from vmm.cpu.control import (
    BLOCK_TABLE,
    ENV_TO_CONTROL,
    EPILOGUE,
    FLUSHES,
    FLUSHES_SEEN,
    FN_MEMSET,
    FN_TB_LOOKUP,
)
from vmm.cpu.inline_clock import jump_cache_slot
from vmm.cpu.jump_cache import NO_PAGE, code_page, set_row
from vmm.cpu.native import call3, call5, callback, i64, load32, load64, native, store64

_PAGE_AT, _SECOND_PAGE_AT, _BLOCK_AT = 8, 16, 24
"""In a row, which begins with the virtual address."""

_PAGE = -4096
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 divided by the golden ratio, as a signed word: a product's high bits depend on all bits."""
_NO_SECOND_PAGE = -1
_CFLAGS_KEY = 0xFF0EFFFF
"""The bits of cflags by which a block is looked for, with the one that says that it is invalid."""


@native
def _is_block(block: int, pc: int, cs_base: int, flags: int) -> bool:
    """Is this the valid block for an address and a mode?"""
    return (
        load64(block + layout.TB_PC) == pc
        and load64(block + layout.TB_CS_BASE) == cs_base
        and load32(block + layout.TB_FLAGS) == flags
        and load32(block + layout.TB_CFLAGS) & _CFLAGS_KEY == layout.TB_CFLAGS_DEFAULT
    )


@native
def _row(control: int, pc: int, page: int) -> int:
    """Where the block at ``pc`` in ``page`` would be."""
    flushes = load32(load64(control + FLUSHES))
    table = load64(control + BLOCK_TABLE)
    if flushes != load64(control + FLUSHES_SEEN):
        store64(control + FLUSHES_SEEN, flushes)
        call3(load64(control + FN_MEMSET), table, 0, BLOCK_ROW_SIZE * BLOCK_ROWS)
    mixed = (pc ^ page << 20) * _SPREAD
    return table + BLOCK_ROW_SIZE * (mixed >> (64 - BLOCK_ROW_BITS) & (BLOCK_ROWS - 1))


@native
def _second_page_is(control: int, env: int, pc: int, page: int) -> bool:
    """Is the page after that of ``pc`` mapped where it was when the block was translated?"""
    return page == _NO_SECOND_PAGE or code_page(control, env, (pc & _PAGE) - _PAGE) == page


@native
def _find(control: int, env: int, pc: int, cs_base: int, flags: int) -> int:
    """The block for an address and a mode that the jump cache does not hold, or 0."""
    cpu = env - layout.ENV_FROM_CPU
    page = code_page(control, env, pc)
    if page == NO_PAGE:
        return 0
    row = _row(control, pc, page)
    block = load64(row + _BLOCK_AT)
    if block != 0 and load64(row) == pc and load64(row + _PAGE_AT) == page:
        known = _is_block(block, pc, cs_base, flags)
        if known and _second_page_is(control, env, pc, load64(row + _SECOND_PAGE_AT)):
            return block
    block = call5(load64(control + FN_TB_LOOKUP), cpu, pc, cs_base, flags, layout.TB_CFLAGS_DEFAULT)
    if block != 0 and load64(block + layout.TB_PAGE) == page:
        store64(row, pc)
        store64(row + _PAGE_AT, page)
        store64(row + _SECOND_PAGE_AT, load64(block + layout.TB_SECOND_PAGE))
        store64(row + _BLOCK_AT, block)
    return block


@callback(i64(i64, i64, i64, i64))
def find_code(env: int, pc: int, cs_base: int, flags: int) -> int:
    """The rest of :func:`vmm.cpu.jump_cache.lookup_block` for what has no row."""
    slot = jump_cache_slot(env - layout.ENV_FROM_CPU, pc)
    block = load64(slot)
    if block == 0 or not _is_block(block, pc, cs_base, flags):
        control = load64(env + ENV_TO_CONTROL)
        block = _find(control, env, pc, cs_base, flags)
        if block == 0:
            return load64(control + EPILOGUE)
        store64(slot, block)
    if cs_base == 0:
        set_row(env, pc, flags, block)
    return load64(block + layout.TB_CODE)
