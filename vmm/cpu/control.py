"""The control block: what the native callbacks and Python share, one per machine.

It is an array of 64-bit words.  Native code is given its address and reads a word at a constant
byte offset (``load64(control + DEADLINE)``); Python uses :class:`ControlBlock`.

**The clock.**  Each translated block charges the clock for its instructions.  The charge is one
subtraction from ``budget``, a word that lies in the engine's own CPUState (in 200 bytes that this
engine does not use) so that generated code reaches it with one displacement from its env register:

    now = BASE - budget            in virtual nanoseconds

``BASE`` is the time at which somebody must look again: the next deadline, or one quantum ahead,
or at once.  While the budget stays positive nobody looks.  When it does not, the block hook runs
before the block and decides (:mod:`vmm.cpu.hooks`).

Only the thread that runs the machine writes the budget.  Other threads and signal handlers set
``STOP_REQUEST``, which is seen within a quantum.
"""

from __future__ import annotations

import ctypes

import numpy as np

from vmm.clock import NEVER_NS
from vmm.cpu import layout

(
    # clock
    BASE,  # budget + now
    BUDGET,  # address of the budget word
    DEADLINE,  # stop at the first block at or after this time
    QUANTUM,  # longest time between two looks, ns
    USUAL_QUANTUM,  # what it becomes after CLOSE_LOOKS
    CLOSE_LOOKS,  # how many looks it is another one (vmm.attention)
    COST_INSTRUCTION,  # ns an instruction
    COST_ACCESS,  # ns a port or MMIO access, beyond the instruction
    COST_PAUSE,  # ns a PAUSE
    COST_TSC,  # ns an RDTSC(P)
    # requests
    INTR,  # the interrupt controller's output line
    NMI,  # a non-maskable interrupt is pending
    STOP_REQUEST,  # anyone: leave at the next look
    # exact stops and faults (vmm.cpu.exact, vmm.cpu.stuck); nothing of it costs anything while unused
    EXACT,  # 1: look before every block that reaches a place, and while a part of a block runs
    NOT_CODE,  # ns of virtual time so far that no instruction was charged for
    STOP_AT,  # stop in the block in which this charge for instructions is reached, ns
    STOP_AT_NS,  # the same for virtual time
    WATCHES,  # address of rows: linear address of an instruction, executions until the stop
    WATCH_COUNT,
    INDEX,  # outcome: instructions of the block before the place
    FOUND,  # outcome: the row of the watch that is there, or 0
    SEGMENT,  # instructions to run of the block that comes next, or of the rest of this one; 0: all
    STAGE,  # how far that is (vmm.cpu.exact)
    PART,  # instructions of the part of a block that runs, its linear address, and that of what follows it
    PART_AT,
    PART_END,
    REST,  # instructions of the current block that are charged and have not run
    QUIET,  # 1: a part of a block ends at a watch that does not stop yet
    STUCK,  # address of rows (vmm.cpu.stuck)
    STUCK_COUNT,
    DRIFT_PPM,  # how much faster than virtual time the time stamp counter runs
    DRIFT_FROM,  # since when, ns
    POLL_FD,  # epoll descriptor looked at once a quantum, or -1
    POLL_EVENTS,  # address of a buffer for one event
    # outcome
    REASON,  # why the last run stopped (STOPPED_*)
    # engine
    UC,
    CPU,
    ENV,
    PATCHING,  # 1: rewrite block prologues (vmm.cpu.inline_clock)
    HOOK_ADDRESS,  # on_block's own address, to recognise a prologue
    SCRATCH,  # address of 24 words for decoding prologues
    CPUID_ROWS,
    CPUID_COUNT,
    MSR_ROWS,
    MSR_COUNT,
    # functions of the engine and of libc
    FN_DO_INTERRUPT,
    FN_DO_HARDIRQ,
    FN_LOOP_EXIT,
    FN_RAISE,
    FN_RESTORE_STATE,
    FN_READ_EFLAGS,
    FN_WRITE_EFLAGS,
    FN_CHECK_IO1,
    FN_CHECK_IO2,
    FN_CHECK_IO4,
    FN_UPDATE_CR0,
    FN_UPDATE_CR3,
    FN_UPDATE_CR4,
    FN_TB_LOOKUP,
    FN_CODE_PAGE,
    FN_CHECK_EXIT,
    FN_EMU_STOP,
    FN_EPOLL_WAIT,
    FN_INVALIDATE,
    FN_TLB_FILL,
    FN_TLB_FLUSH,
    FN_LOAD_CODE,
    FN_INVALIDATE_RANGE,
    # the first piece of RAM (vmm.cpu.regions)
    FN_FIND_REGION,
    LOW_REGION,  # the engine's descriptor
    LOW_END,  # address after its end
    LOW_HOST,  # where it lies in this process
    TLB_NOTES,  # address of the places that were filled (vmm.cpu.tlb_flush)
    # translated code (vmm.cpu.code_pages)
    CODE_PAGES,  # address of one byte a page of RAM
    CODE_PAGES_COUNT,
    # finding blocks (vmm.cpu.block_table)
    FN_FIND_CODE,  # find_code's own address
    FN_RENEW_ROW,  # and renew_row's (vmm.cpu.jump_cache)
    FN_MEMSET,
    FN_MEMMOVE,
    BLOCK_TABLE,  # address of its rows
    FLUSHES,  # address of the engine's count of flushes, and what it was when the table was cleared
    FLUSHES_SEEN,
    EPILOGUE,  # code that returns to the engine's main loop
    # Python callbacks, each (int64, int64, int64) -> int64
    PY_PORT_IN,
    PY_PORT_OUT,
    PY_MMIO_READ,
    PY_MMIO_WRITE,
    PY_ACKNOWLEDGE,
    PY_MSR_READ,
    PY_MSR_WRITE,
    PY_TPR,
    PY_HEAR,  # or 0: nobody takes input while the guest runs
    # the local APIC's registers (vmm.cpu.apic_kernel)
    APIC_ISR,  # addresses of 32 bytes each
    APIC_TMR,
    APIC_IRR,
    APIC_TPR,
    APIC_ALONE,  # 1: native code may acknowledge and end interrupts itself
    # counters
    N_LOOKS,
    N_BLOCKS_SEEN,
    N_PATCHED,
    N_UNPATCHED,
    N_EXCEPTIONS,
    N_INTERRUPTS,
    N_SYSCALLS,
    N_PORT,
    N_MMIO,
    N_TSC,
    N_CPUID,
    N_MSR,
    N_GENERAL_PROTECTION,
    N_REPEATED,  # elements of string instructions that were done many at once
) = range(0, 8 * 111, 8)
"""Byte offsets of the words."""

_OFFSET = {name: value for name, value in dict(globals()).items() if name.isupper() and type(value) is int}
NAMES = tuple(_OFFSET)

_INDEX = {name: value >> 3 for name, value in _OFFSET.items()}
_DEADLINE, _INTR, _NMI = DEADLINE >> 3, INTR >> 3, NMI >> 3
_STOP_REQUEST, _EXACT = STOP_REQUEST >> 3, EXACT >> 3

SIZE = 8 * len(NAMES)
SCRATCH_WORDS = 24

STOPPED_HALT, STOPPED_DEADLINE, STOPPED_REQUEST, STOPPED_HOST, STOPPED_PLACE, STOPPED_PART = range(6)
"""Values of REASON: the guest halted; DEADLINE came; STOP_REQUEST; POLL_FD is readable; a place that was
asked for is INDEX instructions ahead; the part of a block that was asked for has run."""

IDLE, ASKED, RUNNING, RESUME = range(4)
"""Values of STAGE: no part of a block is under way, comes next, runs; the rest of a block comes next."""
WATCH_WORDS, STUCK_WORDS = 2, 5
"""Words of a row."""

SCRATCH_BUDGET = layout.CPU_SCRATCH
SCRATCH_CONTROL = layout.CPU_SCRATCH + 8
SCRATCH_ROWS = layout.CPU_SCRATCH + 16
SCRATCH_GENERATION = layout.CPU_SCRATCH + 24
SCRATCH_USED = 32
"""In CPUState's unused bytes: the budget, the address of the control block (0: not our machine), and that of
the jump cache's rows with the generation that they are to have (vmm.cpu.jump_cache)."""
ENV_TO_BUDGET = SCRATCH_BUDGET - layout.ENV_FROM_CPU
ENV_TO_CONTROL = SCRATCH_CONTROL - layout.ENV_FROM_CPU
ENV_TO_ROWS = SCRATCH_ROWS - layout.ENV_FROM_CPU
ENV_TO_GENERATION = SCRATCH_GENERATION - layout.ENV_FROM_CPU


def offset(name: str) -> int:
    """Byte offset of a word."""
    return _OFFSET[name]


def index(name: str) -> int:
    """Which word it is, of :attr:`ControlBlock.words`."""
    return _INDEX[name]


class ControlBlock:
    """Python's view of one control block: ``block["DEADLINE"]`` reads and writes words."""

    __slots__ = ("_scratch", "address", "budget", "words")

    def __init__(self) -> None:
        words = (ctypes.c_int64 * len(NAMES))()
        self.words = memoryview(words).cast("B").cast("q")  # an item costs half of what an array's does
        """By number (:func:`index`), for what is done on every run."""
        self._scratch = np.zeros(SCRATCH_WORDS, np.int64)
        self.address = ctypes.addressof(words)
        self.budget = ctypes.c_int64(0)
        self["SCRATCH"] = int(self._scratch.ctypes.data)
        self["DEADLINE"] = self["STOP_AT"] = self["STOP_AT_NS"] = NEVER_NS
        self["POLL_FD"] = -1

    def __getitem__(self, name: str) -> int:
        return self.words[_INDEX[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self.words[_INDEX[name]] = value

    def attach(self, cpu: int) -> None:
        """Put the budget word into the engine's CPUState and let env find this block."""
        now = self.now_ns
        self.budget = ctypes.c_int64.from_address(cpu + SCRATCH_BUDGET)
        self["BUDGET"] = cpu + SCRATCH_BUDGET
        ctypes.c_int64.from_address(cpu + SCRATCH_CONTROL).value = self.address
        self.now_ns = now

    @property
    def now_ns(self) -> int:
        return self.words[0] - self.budget.value

    @now_ns.setter
    def now_ns(self, value: int) -> None:
        budget = self.words[0] - value
        self["NOT_CODE"] += self.budget.value - budget
        self.budget.value = budget

    def look_at(self, time_ns: int) -> None:
        """Look again at ``time_ns`` or a quantum from now, whichever comes first."""
        words = self.words
        now = words[0] - self.budget.value
        base = now + words[3]
        if time_ns < base:
            base = time_ns
        words[0] = base
        self.budget.value = base - now

    def stop_at(self, time_ns: int) -> None:
        """The next deadline; looked at there, or at once where something waits already."""
        words = self.words
        words[_DEADLINE] = time_ns
        if words[_INTR] or words[_NMI] or words[_STOP_REQUEST] or words[_EXACT]:
            time_ns = 0
        self.look_at(time_ns)

    def look_now(self) -> None:
        """Look before the next block."""
        self.look_at(0)
