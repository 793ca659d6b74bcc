"""Registers of the local APIC: the map, the power-on values, and what follows from them alone.

Source: Intel SDM volume 3A, chapter 11, "Local APIC Register Address Map", "Local Vector Table" and
"Interrupt, Task, and Processor Priority".  What the APIC does with them, and what is not modelled,
is in lapic.py; the timer's part is in lapic_timer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

from vmm.devices.lapic_timer import TimerState
from vmm.state import State, field, length, u8, u32, u64

# Register offsets (SDM, "Local APIC Register Address Map")
ID, VERSION, TPR, APR, PPR, EOI, RRD = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0
LDR, DFR, SVR, ISR, TMR, IRR, ESR = 0xD0, 0xE0, 0xF0, 0x100, 0x180, 0x200, 0x280
ICR_LOW, ICR_HIGH, LVT_TIMER, LVT, LVT_END = 0x300, 0x310, 0x320, 0x330, 0x380
TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE = 0x380, 0x390, 0x3E0

# Local vector table: the timer's entry is the timer's, the others are LapicState.lvt
THERMAL, PERFORMANCE, LINT0, LINT1, ERROR = range(5)
LVT_WRITABLE = (0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF)
LVT_TIMER_WRITABLE = 0x700FF
LVT_MODE, LVT_REMOTE_IRR, LVT_LEVEL, LVT_MASKED = 0x700, 0x4000, 0x8000, 0x1_0000
LVT_EXTINT, LVT_NMI = 0x700, 0x400

FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7
"""Delivery modes."""

SVR_ENABLE = 0x100
ESR_SEND_ILLEGAL, ESR_RECEIVE_ILLEGAL, ESR_REGISTER = 0x20, 0x40, 0x80
ICR_LOGICAL, ICR_SHORTHAND, ICR_SELF, ICR_ALL = 0x800, 0xC_0000, 0x4_0000, 0x8_0000
BROADCAST = 0xFF
VERSION_VALUE = 0x0005_0014
"""An integrated APIC with LVT entries 0-5 and no EOI-broadcast suppression."""

BASE_DEFAULT = 0xFEE0_0900
BASE_ENABLE, BASE_BSP = 0x800, 0x100
VECTOR_MIN = 16

VECTORS_SIZE = 32
Vectors = Annotated[bytearray, length(VECTORS_SIZE)]
"""A bit for each of 256 vectors, the lowest first: the eight registers that the guest reads, in memory
that a processor's compiled code can work on (:class:`Core`)."""


def _no_vectors() -> bytearray:
    return bytearray(VECTORS_SIZE)


def _all_masked() -> list[int]:
    return [LVT_MASKED] * 5


class LapicState(State):
    base: u64 = BASE_DEFAULT  # IA32_APIC_BASE
    id: u8 = 0
    tpr: u8 = 0
    ldr: u32 = 0
    dfr: u32 = 0xFFFF_FFFF
    svr: u32 = 0xFF
    isr: Vectors = field(default_factory=_no_vectors)
    tmr: Vectors = field(default_factory=_no_vectors)
    irr: Vectors = field(default_factory=_no_vectors)
    esr: u32 = 0  # what reads show
    errors: u32 = 0  # what was found since the last write of ESR
    icr_low: u32 = 0
    icr_high: u32 = 0
    lvt: Annotated[list[u32], length(5)] = field(default_factory=_all_masked)
    timer: TimerState = field(default_factory=TimerState)
    extint: bool = False  # an ExtINT message waits to be acknowledged
    lint0: bool = False
    lint1: bool = False


class Core(Protocol):
    """A processor that accepts, acknowledges and ends interrupts by itself, in the registers that it is told.

    It leaves to the chip what concerns others: ExtINT, and the end of level-triggered interrupts.
    """

    def share(self, isr: bytearray, tmr: bytearray, irr: bytearray) -> None:
        """Where the registers are from now on."""

    def depends(self, tpr: int, ask: bool) -> None:
        """The task priority; and whether the chip has to be asked for every vector."""

    @property
    def accept(self) -> Callable[[int, bool], None]:
        """Put a fixed interrupt in IRR: its vector, and whether it wants an EOI."""


def highest(vectors: bytearray) -> int:
    """The highest vector that is set, or -1."""
    return int.from_bytes(vectors, "little").bit_length() - 1


def priority(s: LapicState) -> int:
    """PPR: TPR or the class of what is in service, whichever is higher."""
    in_service = highest(s.isr)
    return in_service & 0xF0 if in_service >> 4 > s.tpr >> 4 else s.tpr


def deliverable(s: LapicState) -> int:
    """The vector in IRR that the processor should take now, or -1."""
    vector = highest(s.irr)
    return vector if vector >> 4 > priority(s) >> 4 else -1


def stored(s: LapicState, offset: int) -> int | None:
    """The 32-bit register at ``offset``, or None where there is none."""
    if ISR <= offset < ESR:
        bits = s.isr if offset < TMR else s.tmr if offset < IRR else s.irr
        at = offset >> 2 & 0x1C
        return int.from_bytes(bits[at : at + 4], "little")
    if LVT <= offset < LVT_END:
        return s.lvt[(offset - LVT) >> 4]
    return {
        ID: s.id << 24,
        VERSION: VERSION_VALUE,
        TPR: s.tpr,
        APR: 0,
        PPR: priority(s),
        EOI: 0,
        RRD: 0,
        LDR: s.ldr,
        DFR: s.dfr,
        SVR: s.svr,
        ESR: s.esr,
        ICR_LOW: s.icr_low,
        ICR_HIGH: s.icr_high,
        LVT_TIMER: s.timer.lvt,
        TIMER_INITIAL: s.timer.initial,
        TIMER_CURRENT: 0,
        TIMER_DIVIDE: s.timer.divide,
    }.get(offset)
