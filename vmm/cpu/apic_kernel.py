"""Accepting, acknowledging and ending an interrupt, compiled: the local APIC's part in every one of them.

Source: Intel SDM volume 3A, "Interrupt, Task, and Processor Priority", "Interrupt Acceptance for Fixed
Interrupts" and "Signaling Interrupt Servicing Completion".

It works on the chip's own registers (:mod:`vmm.cpu.local_apic` says where they are) and does what
:mod:`vmm.devices.lapic` says of them.  ExtINT, whoever wants to see a vector first, and the end of a
level-triggered interrupt, of which others must hear, are the chip's.
"""

from __future__ import annotations

from vmm.cpu.control import APIC_ALONE, APIC_IRR, APIC_ISR, APIC_TMR, APIC_TPR, INTR
from vmm.cpu.native import callback, i64, load8, load32, load64, native, store8, store64, void
from vmm.cpu.ticks import look_at

EOI_ADDRESS = 0xFEE0_00B0
_HALVES = ((0xFFFF_0000, 16), (0xFF00, 8), (0xF0, 4), (0xC, 2), (0x2, 1))


@native
def _highest(vectors: int) -> int:
    """The highest of 256 vectors that is set, or -1."""
    for word in range(7, -1, -1):
        bits = load32(vectors + 4 * word)
        if bits != 0:
            highest = 32 * word
            for upper, width in _HALVES:
                if bits & upper:
                    bits >>= width
                    highest += width
            return highest
    return -1


@native
def _priority(control: int) -> int:
    """The processor's priority class (PPR): that of TPR or of what is in service."""
    return max(_highest(load64(control + APIC_ISR)) >> 4, load64(control + APIC_TPR) >> 4)


@native
def _deliverable(control: int) -> int:
    """The vector in IRR whose class is above the processor's, or -1."""
    vector = _highest(load64(control + APIC_IRR))
    return vector if vector >> 4 > _priority(control) else -1


@native
def _flip(vectors: int, vector: int) -> None:
    at = vectors + (vector >> 3)
    store8(at, load8(at) ^ 1 << (vector & 7))


@native
def _raise_line(control: int) -> None:
    """To the processor, which sees a rise before the next block."""
    if load64(control + INTR) == 0:
        store64(control + INTR, 1)
        look_at(control, 0)


@native
def _drive(control: int) -> None:
    """The line, from the registers alone."""
    if _deliverable(control) >= 0:
        _raise_line(control)
    else:
        store64(control + INTR, 0)


@callback(void(i64, i64, i64))
def accept(control: int, vector: int, level: int) -> None:
    """A fixed interrupt comes: into IRR, and TMR says whether it wants an EOI."""
    at, bit = vector >> 3, 1 << (vector & 7)
    irr, tmr = load64(control + APIC_IRR) + at, load64(control + APIC_TMR) + at
    store8(irr, load8(irr) | bit)
    store8(tmr, load8(tmr) | bit if level != 0 else load8(tmr) & ~bit)
    if vector >> 4 > _priority(control):
        _raise_line(control)


@native
def acknowledge(control: int) -> int:
    """The processor takes an interrupt: its vector, which is in service now, or -1: the chip must say it."""
    if load64(control + APIC_ALONE) == 0:
        return -1
    vector = _deliverable(control)
    if vector >= 0:
        _flip(load64(control + APIC_IRR), vector)
        _flip(load64(control + APIC_ISR), vector)
        _drive(control)
    return vector


@native
def end_of_interrupt(control: int) -> bool:
    """The guest wrote EOI; False: nothing was done, the chip must be told."""
    if load64(control + APIC_ALONE) == 0:
        return False
    vector = _highest(load64(control + APIC_ISR))
    if vector >= 0:
        if load8(load64(control + APIC_TMR) + (vector >> 3)) >> (vector & 7) & 1:
            return False
        _flip(load64(control + APIC_ISR), vector)
        _drive(control)
    return True
