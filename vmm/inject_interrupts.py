"""Interrupts that get lost between the interrupt controller and the processor.

The processor's acknowledge cycle is carried out and its vector thrown away.  The controller must then hear
of an end of interrupt, or it would hold back everything of lower priority for ever (8259A data sheet, "End of
Interrupt"; SDM vol. 3, "Signaling Interrupt Servicing Completion").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.clock import NEVER_NS

if TYPE_CHECKING:
    from vmm.machine import Machine

_LAPIC_EOI = 0xB0
_PIC_SPECIFIC_EOI = 0x60
_CASCADE = 2
_IOAPIC_PIN_OF_LINE_0 = 2


@dataclass
class _Loss:
    vector: int | None
    line: int | None
    left: int


class Losses:
    """What one machine is going to lose."""

    __slots__ = ("_losses", "_machine")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._losses: list[_Loss] = []

    def lose(self, vector: int | None, line: int | None, times: int) -> None:
        """The next ``times`` (0: all) interrupts with this vector, or from this line."""
        self._losses.append(_Loss(vector, line, times or NEVER_NS))
        self._machine.cpu.filter_interrupts(self._keep)

    def _keep(self, vector: int) -> bool:
        """Does the interrupt that was just acknowledged reach the processor?"""
        local = self._is_local(vector)
        for loss in self._losses:
            wanted = self._vector(loss.line, local) if loss.vector is None and loss.line is not None else None
            if vector == (loss.vector if wanted is None else wanted):
                self._end(vector, local)
                loss.left -= 1
                if loss.left == 0:
                    self._losses.remove(loss)
                    if not self._losses:
                        self._machine.loop.errands.append(self._unhook)
                self._machine.cpu.request_stop()  # a halted processor stays halted
                return False
        return True

    def _unhook(self) -> None:
        if not self._losses:
            self._machine.cpu.filter_interrupts(None)

    def _is_local(self, vector: int) -> bool:
        """Is it in service in the local APIC, and not in the 8259As?"""
        in_service: bytearray = self._machine.devices["lapic"].state.isr
        return bool(in_service[vector >> 3] >> (vector & 7) & 1)

    def _vector(self, line: int, local: bool) -> int:
        """What a line's interrupts have as their vector now."""
        if local:
            pin = _IOAPIC_PIN_OF_LINE_0 if line == 0 else line
            return int(self._machine.devices["ioapic"].state.redirection[pin]) & 0xFF
        state = self._machine.devices["pic"].state
        chip = state.master if line < 8 else state.slave
        return int(chip.icw2) & 0xF8 | line & 7

    def _end(self, vector: int, local: bool) -> None:
        if local:
            self._machine.devices["lapic"].write(_LAPIC_EOI, 4, 0)
            return
        pic = self._machine.devices["pic"]
        if vector & 0xF8 == pic.state.slave.icw2 & 0xF8 and pic.state.slave.isr:
            pic.slave.write(0, 1, _PIC_SPECIFIC_EOI | vector & 7)
            vector = _CASCADE
        pic.master.write(0, 1, _PIC_SPECIFIC_EOI | vector & 7)
