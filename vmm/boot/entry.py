"""The processor as a loader leaves it: what the machine puts into the registers before it starts.

Source: Intel SDM volume 3A, section 3.4.5 (segment descriptors), 2.5 (control registers), 9.1.1
(processor state after reset) and 9.8.5 (IA-32e mode).

A loader is a pure function of its arguments: it writes guest RAM and returns an :class:`Entry`.
It never sees the engine, so the same loader serves every way of starting a machine.

Not here: XMM, x87, debug and model-specific registers other than EFER keep their reset values;
no boot protocol that we follow says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# CR0, CR4 and EFER bits that the boot protocols name (SDM 3A 2.5, 2.2.1).
CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

RFLAGS_RESERVED = 1 << 1
"""Bit 1 always reads as one."""
RFLAGS_IF = 1 << 9

# Segment flags are the high dword of a descriptor without its base and limit bits (SDM 3A 3.4.5).
FLAGS_MASK = 0x00F0_FF00
CODE64 = 0x00A0_9B00
"""Present, code, readable, accessed, L, 4 KiB granularity."""
CODE32 = 0x00C0_9B00
DATA32 = 0x00C0_9300
CODE16 = 0x0000_9B00
DATA16 = 0x0000_9300
TSS_BUSY = 0x0000_8B00
"""Busy TSS: 32-bit in protected mode, 64-bit in IA-32e mode."""
LDT = 0x0000_8200
FLAT_LIMIT = 0xFFFF_FFFF
TSS_LIMIT = 0x67

DATA_SEGMENTS = ("ds", "es", "fs", "gs", "ss")
SEGMENTS = ("cs", *DATA_SEGMENTS, "tr", "ldt")

Mode = Literal["real", "protected", "long"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part.

    ``limit`` is in bytes, as scaled by the granularity bit; ``flags`` are bits 8 to 15 and 20 to
    23 of the descriptor's high dword.
    """

    selector: int
    base: int
    limit: int
    flags: int

    def __post_init__(self) -> None:
        assert self.flags & ~FLAGS_MASK == 0, f"flags {self.flags:#x} hold base or limit bits"

    @property
    def descriptor(self) -> int:
        """The 8-byte descriptor that would load this segment."""
        limit = self.limit >> 12 if self.flags & (1 << 23) else self.limit
        low = (limit & 0xFFFF) | (self.base & 0xFFFF) << 16
        high = (self.base >> 16 & 0xFF) | self.flags | (limit & 0xF_0000) | (self.base & 0xFF00_0000)
        return low | high << 32


@dataclass(frozen=True, slots=True)
class Entry:
    """Everything a loader decides about the processor.

    ``registers`` holds general registers by 64-bit name ("rax", "rsi", "r8"); those left out are
    zero.  ``gdt`` and ``idt`` are ``(base, limit)``.
    """

    mode: Mode
    ip: int
    registers: Mapping[str, int]
    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int
    segments: Mapping[str, Segment]
    gdt: tuple[int, int]
    idt: tuple[int, int]


def long_mode_entry(
    ip: int,
    registers: Mapping[str, int],
    *,
    cr3: int,
    gdt: tuple[int, int],
    code_selector: int,
    data_selector: int,
) -> Entry:
    """64-bit mode with paging on, interrupts off and flat segments."""
    data = Segment(data_selector, 0, FLAT_LIMIT, DATA32)
    return Entry(
        mode="long",
        ip=ip,
        registers=dict(registers),
        cr0=CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_PE,
        cr3=cr3,
        cr4=CR4_PAE,
        efer=EFER_LMA | EFER_LME,
        rflags=RFLAGS_RESERVED,
        segments={
            "cs": Segment(code_selector, 0, FLAT_LIMIT, CODE64),
            **dict.fromkeys(DATA_SEGMENTS, data),
            "tr": Segment(0, 0, TSS_LIMIT, TSS_BUSY),
            "ldt": Segment(0, 0, 0, LDT),
        },
        gdt=gdt,
        idt=(0, 0),
    )


def protected_entry(
    ip: int,
    registers: Mapping[str, int],
    *,
    gdt: tuple[int, int],
    code_selector: int,
    data_selector: int,
) -> Entry:
    """32-bit protected mode without paging, interrupts off, flat segments."""
    data = Segment(data_selector, 0, FLAT_LIMIT, DATA32)
    return Entry(
        mode="protected",
        ip=ip,
        registers=dict(registers),
        cr0=CR0_ET | CR0_PE,
        cr3=0,
        cr4=0,
        efer=0,
        rflags=RFLAGS_RESERVED,
        segments={
            "cs": Segment(code_selector, 0, FLAT_LIMIT, CODE32),
            **dict.fromkeys(DATA_SEGMENTS, data),
            "tr": Segment(0, 0, TSS_LIMIT, TSS_BUSY),
            "ldt": Segment(0, 0, 0, LDT),
        },
        gdt=gdt,
        idt=(0, 0),
    )


def real_mode_entry(
    cs: int,
    ip: int,
    registers: Mapping[str, int],
    *,
    data: int = 0,
    interrupts: bool = False,
) -> Entry:
    """Real-address mode at ``cs:ip`` with every data segment at ``data``; IDT at 0 as after reset."""
    selector = Segment(data, data << 4, 0xFFFF, DATA16)
    return Entry(
        mode="real",
        ip=ip,
        registers=dict(registers),
        cr0=CR0_ET,
        cr3=0,
        cr4=0,
        efer=0,
        rflags=RFLAGS_RESERVED | (RFLAGS_IF if interrupts else 0),
        segments={
            "cs": Segment(cs, cs << 4, 0xFFFF, CODE16),
            **dict.fromkeys(DATA_SEGMENTS, selector),
            "tr": Segment(0, 0, 0xFFFF, TSS_BUSY),
            "ldt": Segment(0, 0, 0xFFFF, LDT),
        },
        gdt=(0, 0xFFFF),
        idt=(0, 0x3FF),
    )
