"""What the engine calls at block boundaries and for exceptions: native, and short.

``on_block`` runs before a block: always for a block whose prologue is not patched, and otherwise
only when the clock's budget is used up (:mod:`vmm.cpu.inline_clock`).  It is the one place where the
machine stops and where interrupts enter, so both happen exactly at block boundaries, at a virtual
time that depends on nothing but the guest.

``on_exception`` delivers exceptions and software interrupts with the engine's own code.  Unicorn
replaced that delivery by this hook; calling it from here puts it back, nested faults included.

The engine leaves a callback by longjmp when delivery faults or when control must return to its main
loop.  That is sound here because compiled callbacks hold nothing that needs unwinding; it would not
be sound out of a Python callback, and never happens there.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.apic_kernel import acknowledge
from vmm.cpu.control import (
    BUDGET,
    COST_INSTRUCTION,
    CPU,
    DEADLINE,
    ENV,
    ENV_TO_CONTROL,
    EXACT,
    FN_CHECK_EXIT,
    FN_DO_HARDIRQ,
    FN_DO_INTERRUPT,
    FN_EPOLL_WAIT,
    FN_LOOP_EXIT,
    FN_RAISE,
    IDLE,
    INTR,
    N_BLOCKS_SEEN,
    N_EXCEPTIONS,
    N_INTERRUPTS,
    N_LOOKS,
    N_PATCHED,
    N_UNPATCHED,
    NMI,
    PATCHING,
    POLL_EVENTS,
    POLL_FD,
    PY_ACKNOWLEDGE,
    PY_HEAR,
    STAGE,
    STOP_REQUEST,
    STOPPED_DEADLINE,
    STOPPED_HOST,
    STOPPED_REQUEST,
    UC,
    WATCH_COUNT,
)
from vmm.cpu.exact import BOUNDARY, RUN, STOPPED, enter, go_on, is_watched, stop
from vmm.cpu.icebp import icebp_length
from vmm.cpu.inline_clock import (
    PATCHED,
    block_instructions,
    find_block,
    forget_block,
    is_counted,
    linear_pc,
    patch_block,
)
from vmm.cpu.native import (
    call1,
    call2,
    call3,
    call4,
    callback,
    i64,
    load32,
    load64,
    native,
    store32,
    store64,
    u32,
    void,
)
from vmm.cpu.repeat import KINDS_MAX, kind_of, repeat
from vmm.cpu.stuck import apply_stuck
from vmm.cpu.ticks import charge_ns, count, count_close_look, look_at, now

_EFLAGS, _HFLAGS, _HFLAGS2 = layout.EFLAGS, layout.HFLAGS, layout.HFLAGS2
_INHIBIT_IRQ, _NMI_MASKED = layout.HF_INHIBIT_IRQ, layout.HF2_NMI_MASKED
_EFLAGS_IF = 0x200
_NMI_VECTOR = 2
_NOT_PRESENT, _GENERAL_PROTECTION = 11, 13
_FROM_IDT = 2
_INVALID_OPCODE = 6
_DEBUG_EXCEPTION = 1
_NOT_FETCHED = 1
"""Marks #UD for want of code, in the error code that #UD does not have."""


@native
def _enter_interrupt(control: int, vector: int) -> None:
    """It takes the time of an instruction: a stop before it and one after it must differ in time.

    An input is found again, in a replay, by nothing but the virtual time of its block boundary.
    """
    count(control, N_INTERRUPTS)
    charge_ns(control, load64(control + COST_INSTRUCTION))
    call3(load64(control + FN_DO_HARDIRQ), load64(control + ENV), vector, 1)
    call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))  # longjmp: does not return


@native
def _take_interrupt(control: int) -> None:
    """Deliver a pending NMI or interrupt if the guest accepts one here; returns if not."""
    env = load64(control + ENV)
    if load32(env + _HFLAGS) & _INHIBIT_IRQ:
        return
    if load64(control + NMI) != 0 and not load32(env + _HFLAGS2) & _NMI_MASKED:
        store64(control + NMI, 0)
        store32(env + _HFLAGS2, load32(env + _HFLAGS2) | _NMI_MASKED)
        _enter_interrupt(control, _NMI_VECTOR)
    if load64(control + INTR) != 0 and load64(env + _EFLAGS) & _EFLAGS_IF:
        vector = acknowledge(control)
        if vector < 0:
            vector = call3(load64(control + PY_ACKNOWLEDGE), 0, 0, 0)
        if vector >= 0:
            _enter_interrupt(control, vector)


@native
def _is_heard(control: int) -> bool:
    """Was the host's input taken on the spot?  It is not while somebody counts the blocks of a run."""
    if load64(control + PY_HEAR) == 0 or load64(control + EXACT) != 0:
        return False
    return call3(load64(control + PY_HEAR), 0, 0, 0) != 0


@native
def _look(control: int) -> bool:
    """Budget used up: stop, deliver, or set the next time to look.  True: the run stops here."""
    count(control, N_LOOKS)
    if now(control) >= load64(control + DEADLINE):
        stop(control, STOPPED_DEADLINE)
        return True
    if load64(control + STOP_REQUEST) == 0 and (load64(control + INTR) != 0 or load64(control + NMI) != 0):
        _take_interrupt(control)
    if load64(control + STOP_REQUEST) != 0:  # from before, or from who was asked for the vector
        stop(control, STOPPED_REQUEST)
        return True
    count_close_look(control)
    pending = load64(control + INTR) != 0 or load64(control + NMI) != 0
    look_at(control, i64(0) if pending else load64(control + DEADLINE))
    poll = load64(control + POLL_FD)
    if poll < 0 or pending:
        return False
    if u32(call4(load64(control + FN_EPOLL_WAIT), poll, load64(control + POLL_EVENTS), 1, 0)) != 1:
        return False
    if not _is_heard(control):
        stop(control, STOPPED_HOST)
        return True
    if load64(control + STOP_REQUEST) != 0:
        stop(control, STOPPED_REQUEST)
        return True
    if load64(control + INTR) != 0 or load64(control + NMI) != 0:
        _take_interrupt(control)  # if not, whoever raised it has asked for a look before the next block
    return False


@native
def _exactly(control: int, at: int, block: int, counted: bool, size: int) -> int:
    """A boundary while places in the program are looked for (:mod:`vmm.cpu.exact`): what to do here."""
    if load64(control + STAGE) != IDLE:
        verdict = go_on(control, at, block, counted)
        if verdict != BOUNDARY:
            return verdict
    if load64(load64(control + BUDGET)) <= 0 and _look(control):
        return STOPPED
    return enter(control, at, block, size, 0, i64(-1))


@native
def _begin_patched(control: int, budget: int, charge: int) -> bool:
    """A patched prologue found the budget used up, and has charged its block.  Does it run?"""
    store64(budget, load64(budget) + charge)
    if load64(control + EXACT) != 0:
        size = charge // load64(control + COST_INSTRUCTION)
        runs = _exactly(control, linear_pc(control), i64(0), False, size) == RUN
    else:
        runs = load64(budget) > 0 or not _look(control)
    if runs:
        store64(budget, load64(budget) - charge)
    return runs


@callback(void(i64, i64, u32, i64))
def on_block(uc: int, address: int, size: int, control: int) -> None:
    """UC_HOOK_BLOCK.

    ``uc`` is 0 or a kind of repetition (:mod:`vmm.cpu.repeat`) where a patched prologue calls; it has
    already charged ``size``, or the one instruction that is repeated, and has env for ``control``.
    """
    if 0 <= uc <= KINDS_MAX:
        control = load64(control + ENV_TO_CONTROL)
        charge = i64(size) if uc == 0 else load64(control + COST_INSTRUCTION)
        if _begin_patched(control, load64(control + BUDGET), charge) and uc != 0:
            repeat(control, uc, charge)
        call2(load64(control + FN_CHECK_EXIT), load64(control + UC), 0)  # does not return from a stop
        return
    budget = load64(control + BUDGET)
    count(control, N_BLOCKS_SEEN)
    block = find_block(control, address, i64(size))
    counted = is_counted(block)
    if counted:
        forget_block(control, address)
    # No stop between a store into its own block and the store's second run, alone: the engine would
    # forget that it is to run alone, and the whole block would be charged once more.
    alone = counted and load64(control + STAGE) == IDLE
    if not alone and (load64(control + EXACT) != 0 or load64(control + WATCH_COUNT) != 0):
        if _exactly(control, address, block, counted, block_instructions(block)) != RUN:
            return
    elif not alone and load64(budget) <= 0 and _look(control):
        return
    apply_stuck(control)
    charge = block_instructions(block) * load64(control + COST_INSTRUCTION)
    store64(budget, load64(budget) - charge)
    if load64(control + PATCHING) != 0 and not counted and not is_watched(control, block):
        done = patch_block(control, block, address, i64(size), charge, kind_of(control, block, address))
        count(control, N_PATCHED if done == PATCHED else N_UNPATCHED)


@native
def _correct_error_code(control: int, number: int) -> None:
    """#NP and #GP from a 64-bit IDT entry: the engine puts in the entry's offset, not its index.

    SDM vol. 3 6.13: bits 15 to 3 are the vector, bit 1 says IDT.  Selectors never have bit 1 set.
    """
    env = load64(control + ENV)
    code = load32(env + layout.ERROR_CODE)
    concerned = number == _NOT_PRESENT or number == _GENERAL_PROTECTION
    if concerned and code & _FROM_IDT and load32(env + _HFLAGS) & layout.HF_LMA:
        store32(env + layout.ERROR_CODE, code >> 4 << 3 | _FROM_IDT)


@callback(void(i64, u32, i64))
def on_exception(uc: int, number: int, control: int) -> None:
    """UC_HOOK_INTR: deliver through the guest's IDT."""
    count(control, N_EXCEPTIONS)
    _correct_error_code(control, i64(number))
    call1(load64(control + FN_DO_INTERRUPT), load64(control + CPU))


@callback(i64(i64, i64))
def on_invalid(uc: int, control: int) -> int:
    """UC_HOOK_INSN_INVALID: #UD comes here instead of UC_HOOK_INTR; ICEBP is #DB behind the instruction."""
    count(control, N_EXCEPTIONS)
    env = load64(control + ENV)
    if load32(env + layout.ERROR_CODE) != _NOT_FETCHED:
        length = icebp_length(control, env)
        if length:
            store32(load64(control + CPU) + layout.CPU_EXCEPTION_INDEX, _DEBUG_EXCEPTION)
            store64(env + layout.EIP, load64(env + layout.EIP) + length)
    call1(load64(control + FN_DO_INTERRUPT), load64(control + CPU))
    return 1


@callback(i64(i64, u32, i64, u32, i64, i64))
def on_fetch(uc: int, access: int, address: int, size: int, value: int, control: int) -> int:
    """UC_HOOK_MEM_FETCH_PROT: code outside RAM.  What is there reads as ones, and FF FF is undefined."""
    call4(load64(control + FN_RAISE), load64(control + ENV), _INVALID_OPCODE, _NOT_FETCHED, 0)  # longjmp
    return 0
