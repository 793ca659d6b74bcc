"""Compiled code accepts, acknowledges and ends interrupts exactly as the chip would.

A guest does random things to its local APIC, and a device sends random messages.  It runs on two machines:
one whose processor does its part by itself, and one that leaves every vector and every EOI to the chip.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.cpu.machine import DATA, Machine, long, set_gate
from vmm.devices import lapic_registers as reg
from vmm.devices.lapic import Lapic

APIC = 0xFEE0_0000
LOWEST = 0x41
STEPS = 250
EXTERNAL = 0x40
"""What the 8259A answers here."""


class WithApic(Machine):
    """``chip_only``: everything goes through the chip."""

    def __init__(self, chip_only: bool, **options: Any) -> None:
        super().__init__(**options)
        cpu = self.cpu
        self.ended: list[int] = []
        self.lapic = Lapic(
            cpu.clock,
            cpu.interrupt_line,
            self._external,
            cpu.raise_nmi,
            self.ended.append,
            None if chip_only else cpu.local_apic,
        )
        self.mmio_bus.claim(APIC, 0x1000, self.lapic, "local APIC")
        self.asked = 0
        self.lapic.reset()
        self.lapic.virtual_wire()

    def _external(self) -> int:
        """The 8259A: its request ends with the acknowledge cycle."""
        self.lapic.lint0.set(False)
        return EXTERNAL

    def _acknowledge(self) -> int:
        self.asked += 1
        return self.lapic.acknowledge()

    def _write_tpr(self, value: int) -> None:
        self.lapic.set_tpr(value << 4)


def stubs() -> str:
    """A handler for each vector from 0x40: it notes the vector; EOI is the program's business."""
    entries = "\n".join(f"v{vector}: push {vector}\n jmp common" for vector in range(EXTERNAL, 256))
    return f"{entries}\ncommon: pop [r14]\n add r14, 8\n iretq\n"


def step(rng: random.Random, number: int) -> str:
    """One thing that a guest does; OUT is answered by :func:`message`."""
    match rng.randrange(7):
        case 0 | 1:
            return f"mov dword ptr [rsi+{reg.ICR_LOW}], {reg.ICR_SELF | rng.randrange(LOWEST, 256)}"
        case 2 | 3:
            return f"mov dword ptr [rsi+{reg.EOI}], 0"
        case 4:
            return f"mov eax, {rng.choice((0, 0, 4, 8, 15))}\n mov cr8, rax"
        case 5:
            return "out 0x60, al"
        case _:
            return f"sti\n nop\n jmp w{number}\nw{number}: nop\n jmp x{number}\nx{number}: cli"


def message(machine: WithApic, rng: random.Random) -> None:
    """What devices do meanwhile: edges, levels, ExtINT messages, the 8259A's line."""
    match rng.randrange(5):
        case 0 | 1 | 2:
            machine.lapic.deliver(rng.randrange(LOWEST, 256), rng.random() < 0.4)
        case 3:
            machine.lapic.deliver(0, False, reg.EXTINT)
        case _:
            machine.lapic.lint0.set(rng.random() < 0.5)


def run(machine: WithApic, seed: int) -> tuple[Any, ...]:
    """Everything that can be seen afterwards."""
    rng = random.Random(f"{seed} program")
    steps = "\n".join(step(rng, number) for number in range(STEPS))
    program = long(machine, f"mov esi, {APIC}\n mov r14d, {DATA}\n{steps}\n hlt\n{stubs()}")
    for vector in range(EXTERNAL, 256):
        set_gate(machine, vector, program[f"v{vector}"])
    messages = random.Random(f"{seed} messages")
    machine.ports.on_write = lambda: message(machine, messages)
    machine.finish()
    taken = (machine.register("r14") - DATA) // 8
    vectors = [machine.word(DATA + 8 * n) for n in range(taken)]
    return vectors, machine.ended, machine.lapic.state, machine.cpu.state, machine.cpu.block["INTR"]


@pytest.mark.parametrize("seed", range(12))
def test_the_processor_does_what_the_chip_would(seed: int, patching: bool) -> None:
    alone, chip_only = (WithApic(only, patching=patching) for only in (False, True))
    found, expected = run(alone, seed), run(chip_only, seed)
    alone.cpu.close()
    chip_only.cpu.close()
    assert found == expected
    vectors = found[0]
    assert len(vectors) > 10, "the guest was interrupted"
    assert alone.asked < chip_only.asked == len(vectors)


def test_no_question_is_asked_of_the_chip(new: Callable[..., Machine]) -> None:
    """An edge-triggered interrupt and its EOI never leave compiled code."""
    machine = WithApic(False)
    program = long(
        machine,
        f"mov esi, {APIC}\n mov r14d, {DATA}\n mov dword ptr [rsi+{reg.ICR_LOW}], {reg.ICR_SELF | 0x80}\n"
        f" sti\n nop\n jmp w\nw: mov dword ptr [rsi+{reg.EOI}], 0\n cli\n hlt\n{stubs()}",
    )
    set_gate(machine, 0x80, program["v128"])
    machine.finish()
    assert machine.word(DATA) == 0x80
    assert machine.asked == 0
    assert machine.lapic.state.isr == bytearray(32), "the chip sees what was done to its registers"
    machine.cpu.close()


def test_a_chip_that_was_never_reset_shares_its_registers(new: Callable[..., Machine]) -> None:
    """Compiled code has somewhere to write from the chip's first moment on."""
    cpu = new().cpu
    chip = Lapic(cpu.clock, cpu.interrupt_line, lambda: EXTERNAL, cpu.raise_nmi, None, cpu.local_apic)
    chip.write(reg.SVR, 4, reg.SVR_ENABLE | 0xFF)
    chip.deliver(0x80, False)
    assert chip.state.irr[0x80 >> 3] == 1
