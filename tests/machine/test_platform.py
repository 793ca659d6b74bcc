"""Boards from a kernel's point of view: chips and processor together, in a few instructions."""

from __future__ import annotations

from tests.machine.support import MS, machine
from vmm.machine import Ended

RESULT = 0x600

SERIAL_INPUT = f"""
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7c00
        mov word ptr [4 * 0x24], offset handler
        mov word ptr [4 * 0x24 + 2], 0
        mov al, 0x11            # ICW1: edge, cascade, ICW4
        out 0x20, al
        mov al, 0x20            # ICW2: vectors from 0x20
        out 0x21, al
        mov al, 0x04
        out 0x21, al
        mov al, 0x01
        out 0x21, al
        mov al, 0xef            # IRQ 4 alone
        out 0x21, al
        mov dx, 0x3fc
        xor ax, ax
        out dx, al              # MCR: nothing
        mov dx, 0x3f9
        mov al, 1
        out dx, al              # IER: received data
        sti
    wait:
        hlt
        jmp wait
    handler:
        mov dx, 0x3f8
        in al, dx
        mov [{RESULT:#x}], al
        inc byte ptr [{RESULT + 1:#x}]
        mov al, 0x20
        out 0x20, al
        iret
"""
"""Notes the byte that COM1 received, and counts interrupts behind it."""


def test_serial_interrupt_with_all_modem_outputs_off() -> None:
    """A kernel that writes 0 to MCR gets its input all the same, by IRQ 4 through the 8259A."""
    with machine(SERIAL_INPUT) as pc:
        pc.run(1 * MS)
        pc.serial.send(b"k")
        pc.run(5 * MS)
        assert pc.ram.read(RESULT, 2) == b"k\x01"


def test_local_apic_switched_off_and_on() -> None:
    """CPUID follows IA32_APIC_BASE (SDM vol. 3 11.4.3)."""
    source = f"""
        xor ax, ax
        mov ds, ax
        mov ecx, 0x1b
        rdmsr
        mov esi, eax
        and eax, 0xfffff7ff
        wrmsr
        mov eax, 1
        cpuid
        mov [{RESULT:#x}], edx
        xor edx, edx
        mov eax, esi
        mov ecx, 0x1b
        wrmsr
        mov eax, 1
        cpuid
        mov [{RESULT + 4:#x}], edx
        cli
        hlt
    """
    with machine(source) as pc:
        assert pc.run(1 * MS) is Ended.POWEROFF
        off, on = (int.from_bytes(pc.ram.read(RESULT + at, 4), "little") for at in (0, 4))
        assert (off >> 9 & 1, on >> 9 & 1) == (0, 1)
        assert off | 1 << 9 == on
