"""Stops at an exact instruction, which leave the guest's time and state as if there had been none.

The clock charges a block when it begins, and interrupts enter between blocks.  So a block that is cut in two
must be charged once, must see nothing between its halves, and must end where it would have ended.  The
engine can run a block of a given number of instructions: it does so itself, with one instruction, to step
over a store into its own code (``cflags_next_tb``).  Here the block of n instructions that begins at ``at``
becomes a part of k and a rest of n - k:

    boundary    charge n, ask for a block of k                         IDLE  -> ASKED
    part        ask for a block of n - k behind it, no charge          ASKED -> RUNNING
    PART_END    stop, or go on with the rest: no charge, no look       RUNNING -> IDLE
    resumed     ask for a block of n - k again                         RESUME -> IDLE

An exception in the part leads to another address than PART_END: the rest is dropped, as it would have been
in the whole block, and what begins there is an ordinary block.

Which place is how far ahead is known before a block runs: for a charge or a time by arithmetic (the inline
clock calls its hook before the block that reaches the next look, so nothing is looked at on the way there),
for addresses from the table by which the engine finds the guest instruction of a host address.  Blocks with
a watched address keep their plain hook.

What is counted is what the clock is charged for.  Each repetition of a string instruction counts, and so
does an instruction that faults and is started again.  The rest of a block that an exception leaves was
charged too: a count that falls into it stops at the next boundary.

Not exact: a block that overwrites its own instructions behind the place where it was cut.  The engine notices
such a store in the block that it runs, which then holds the first part only, so the clock differs by what
the store's second run would have cost.
"""

from __future__ import annotations

from vmm.clock import NEVER_NS
from vmm.cpu import layout
from vmm.cpu.control import (
    ASKED,
    BASE,
    BUDGET,
    COST_INSTRUCTION,
    CPU,
    EXACT,
    FN_EMU_STOP,
    FN_LOOP_EXIT,
    FOUND,
    IDLE,
    INDEX,
    PART,
    PART_AT,
    PART_END,
    QUIET,
    REASON,
    REST,
    RESUME,
    RUNNING,
    SEGMENT,
    STAGE,
    STOP_AT,
    STOP_AT_NS,
    STOPPED_PART,
    STOPPED_PLACE,
    UC,
    WATCH_COUNT,
    WATCH_WORDS,
    WATCHES,
)
from vmm.cpu.inline_clock import block_instructions, default_block
from vmm.cpu.native import call1, i64, load16, load64, native, store32, store64
from vmm.cpu.ticks import now, until_stop
from vmm.cpu.unwind import find_instruction

RUN, CHARGED, STOPPED, BOUNDARY = range(4)
"""Charge the block and run it; run it; do not run it; it is an ordinary one."""


@native
def stop(control: int, reason: int) -> None:
    """The block that begins does not run."""
    store64(control + REASON, reason)
    call1(load64(control + FN_EMU_STOP), load64(control + UC))


# Watched instructions


@native
def _next_watch(control: int, block: int, above: int) -> tuple[int, int]:
    """The first watched instruction of ``block`` behind number ``above``: its row and number; row 0: none."""
    begin = load64(block + layout.TB_PC)
    end = begin + load16(block + layout.TB_SIZE)
    found, best = i64(0), i64(0)
    row = load64(control + WATCHES)
    for _ in range(load64(control + WATCH_COUNT)):
        address = load64(row)
        if begin <= address and address < end:
            number, _pc = find_instruction(block, i64(-1), address)
            if number > above and (found == 0 or number < best):
                found, best = row, number
        row += 8 * WATCH_WORDS
    return found, best


@native
def is_watched(control: int, block: int) -> bool:
    """May ``block`` hold a watched instruction?"""
    begin = load64(block + layout.TB_PC)
    end = begin + load16(block + layout.TB_SIZE)
    row = load64(control + WATCHES)
    for _ in range(load64(control + WATCH_COUNT)):
        if begin <= load64(row) and load64(row) < end:
            return True
        row += 8 * WATCH_WORDS
    return False


@native
def _passed(control: int, address: int) -> None:
    """The instruction at ``address`` is executed: if it is watched, one execution less is ahead."""
    row = load64(control + WATCHES)
    for _ in range(load64(control + WATCH_COUNT)):
        if load64(row) == address and load64(row + 8) > 1:
            store64(row + 8, load64(row + 8) - 1)
        row += 8 * WATCH_WORDS


# Parts


@native
def _settle(control: int) -> None:
    """No part is on its way: is there still a place to look for?"""
    wanted = load64(control + STOP_AT) != NEVER_NS or load64(control + STOP_AT_NS) != NEVER_NS
    store64(control + STAGE, IDLE)
    store64(control + EXACT, 1 if wanted else 0)


@native
def _request(control: int, instructions: int) -> None:
    """The next block that the engine looks up has so many instructions."""
    store64(control + PART, instructions)
    store32(load64(control + CPU) + layout.CPU_CFLAGS_NEXT, layout.TB_CFLAGS_DEFAULT | instructions)


@native
def _begin_part(control: int, at: int, block: int, size: int, part: int, charged: int) -> int:
    """Run ``part`` of ``size`` instructions; does not return unless that is all of them."""
    if charged == 0:
        budget = load64(control + BUDGET)
        store64(budget, load64(budget) - size * load64(control + COST_INSTRUCTION))
    store64(control + BASE, now(control))  # look before the next block
    store64(load64(control + BUDGET), 0)
    store64(control + EXACT, 1)
    store64(control + PART_AT, at)
    if part >= size:
        store64(control + REST, 0)
        store64(control + STAGE, RUNNING)
        return CHARGED
    if block == 0:
        block = default_block(control, at)
    _, end = find_instruction(block, part, i64(0))
    store64(control + PART_END, end)
    store64(control + REST, size - part)
    store64(control + STAGE, ASKED)
    _request(control, part)
    call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))  # longjmp: does not return
    return CHARGED


@native
def _left(control: int, counted: bool) -> int:
    """The part did not end where it should have: this is an ordinary boundary."""
    quiet = load64(control + QUIET)
    store64(control + REST, 0)
    store64(control + QUIET, 0)
    _settle(control)
    if quiet == 0:
        stop(control, STOPPED_PART)
        return STOPPED
    if counted:  # a handler's block that has the length of our rest: look it up again, without
        call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))
    return BOUNDARY


@native
def _resume(control: int, at: int, block: int) -> int:
    """The rest of a block begins."""
    counted = load64(control + QUIET)
    store64(control + QUIET, 0)
    _settle(control)
    verdict = enter(control, at, block, block_instructions(block), 1, i64(0 if counted != 0 else -1))
    if verdict == STOPPED:
        store64(control + QUIET, counted)
        return STOPPED
    store64(control + REST, 0)
    return CHARGED


@native
def _arrived(control: int, at: int, block: int, counted: bool) -> int:
    """At the end of a part."""
    if load64(control + QUIET) == 0:
        _settle(control)
        stop(control, STOPPED_PART)
        return STOPPED
    _passed(control, at)
    if counted:
        return _resume(control, at, block)
    store64(control + PART_AT, at)
    store64(control + STAGE, RESUME)
    _request(control, load64(control + REST))
    call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))
    return CHARGED


@native
def go_on(control: int, at: int, block: int, counted: bool) -> int:
    """A block begins while a part is on its way (STAGE is not IDLE)."""
    stage, rest = load64(control + STAGE), load64(control + REST)
    if stage != RUNNING:
        if at != load64(control + PART_AT):
            return _left(control, counted)
        if not counted:  # the engine's buffer was full: it forgot everything, our request too
            _request(control, load64(control + PART))
            call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))
        if stage == RESUME:
            return _resume(control, at, block)
        store64(control + STAGE, RUNNING)
        _request(control, rest)
        return CHARGED
    if rest > 0 and at == load64(control + PART_END):
        return _arrived(control, at, block, counted)
    inside = load64(control + PART_AT) <= at and at < load64(control + PART_END)
    if counted and (rest == 0 or inside):  # the second run of a store into its own block
        store64(control + REST, 0)
        return RUN
    return _left(control, counted)


@native
def enter(control: int, at: int, block: int, size: int, charged: int, above: int) -> int:
    """What becomes of a block of ``size`` instructions, or of the rest of one, which is charged already.

    ``block`` 0: a patched one, which holds no watched address.  ``above`` 0: the execution of its first
    instruction was counted already; else it is counted here, unless the block does not run.
    """
    segment = load64(control + SEGMENT)
    if segment > 0:
        store64(control + SEGMENT, 0)
        if at == load64(control + PART_AT):
            if above < 0:
                _passed(control, at)
            return _begin_part(control, at, block, size, segment, charged)
        return _left(control, False)  # an interrupt came first
    cost = load64(control + COST_INSTRUCTION)
    left = until_stop(control, now(control) - charged * size * cost)
    index, found = min(max((left + cost - 1) // cost, 0), size), i64(0)
    first = above < 0
    while block != 0:
        row, place = _next_watch(control, block, above)
        if row == 0 or place > index:
            break
        if load64(row + 8) == 1:
            index, found = place, row
            break
        if place > 0:
            if first:
                _passed(control, at)
            store64(control + QUIET, 1)
            return _begin_part(control, at, block, size, place, charged)
        above = i64(0)
    if index == size:
        if first and block != 0:
            _passed(control, at)
        return RUN
    store64(control + INDEX, index)
    store64(control + FOUND, found)
    stop(control, STOPPED_PLACE)
    return STOPPED
