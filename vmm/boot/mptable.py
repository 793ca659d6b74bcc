"""The MP tables: how a kernel without ACPI finds the APICs and the interrupt routing.

Source: Intel MultiProcessor Specification 1.4, §4.1 (floating pointer), §4.2 (header), §4.3 (entries),
§3.6.2 (virtual wire mode), appendix D.3 (PCI interrupts); the BIOS data area words 40:0E and 40:13 from
IBM's PC BIOS.

    F5000H  floating pointer, 16 bytes, in the BIOS area that §4 says to search last
    F5010H  configuration table: processor, buses 0 (PCI) and 1 (ISA), I/O APIC, interrupts
    9FC00H  extended BIOS data area, 1 KiB; §4 says to search it first, so it must be known and empty

ISA interrupts conform to their bus (edge, active high) and enter the I/O APIC at the pin of their
number, but for IRQ 0, which is at pin 2.  IRQ 2 is the cascade and goes nowhere.  An IRQ that PCI uses
is level-triggered, active low, and is listed for the PCI devices alone.

Left out: extended entries (§4.4), which nobody needs with one PCI bus, and the ExtINT I/O APIC
input, because the 8259A is wired to LINT0 alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot.memory_map import (
    BASE_MEMORY_KIB,
    BDA_BASE_MEMORY_KIB,
    BDA_EBDA_SEGMENT,
    EBDA,
    EBDA_SIZE_KIB,
)
from vmm.device import Memory
from vmm.errors import ConfigError

MP_BASE = 0xF5000
LAPIC_BASE, IOAPIC_BASE = 0xFEE0_0000, 0xFEC0_0000
LAPIC_ID, LAPIC_VERSION = 0, 0x14
IOAPIC_ID, IOAPIC_VERSION, IOAPIC_PINS = 1, 0x11, 24
PCI_BUS, ISA_BUS = 0, 1
"""A PCI bus must have its own number (appendix D.3)."""

RAM_TOP_MIN = 0x10_0000

PROCESSOR, BUS, IOAPIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)
ENABLED, BOOT_PROCESSOR = 1, 2
INT, NMI, EXTINT = 0, 1, 3
CONFORMS, LEVEL_LOW = 0x0, 0xF
ALL_LAPICS = 0xFF
CASCADE_IRQ, TIMER_IRQ, TIMER_PIN = 2, 0, 2

CPU_SIGNATURE = 0x0600
"""Family 6; CPUID leaf 1 EAX."""
CPU_FEATURES = 0x0000_0201
"""FPU and APIC; CPUID leaf 1 EDX."""


def build(
    ram_top: int,
    pci_irqs: Sequence[tuple[int, int, int]],
    cpu_signature: int = CPU_SIGNATURE,
    cpu_features: int = CPU_FEATURES,
) -> bytes:
    """Floating pointer and configuration table, to lie at MP_BASE.

    ``pci_irqs`` are (device, pin 0-3 for INTA-INTD, IRQ); the IRQ is also the I/O APIC pin.  RAM must
    reach ``RAM_TOP_MIN``, or the tables would lie outside it.
    """
    if ram_top < RAM_TOP_MIN:
        raise ConfigError(f"MP tables at {MP_BASE:#x}: RAM ends at {ram_top:#x}, need {RAM_TOP_MIN:#x}")
    entries = [
        struct.pack(
            "<BBBB2I8x",
            PROCESSOR,
            LAPIC_ID,
            LAPIC_VERSION,
            ENABLED | BOOT_PROCESSOR,
            cpu_signature,
            cpu_features,
        ),
        struct.pack("<BB6s", BUS, PCI_BUS, b"PCI   "),
        struct.pack("<BB6s", BUS, ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", IOAPIC, IOAPIC_ID, IOAPIC_VERSION, ENABLED, IOAPIC_BASE),
        *_io_interrupts(pci_irqs),
        _interrupt(LOCAL_INTERRUPT, EXTINT, CONFORMS, ISA_BUS, 0, LAPIC_ID, 0),
        _interrupt(LOCAL_INTERRUPT, NMI, CONFORMS, ISA_BUS, 0, ALL_LAPICS, 1),
    ]
    return _floating_pointer(MP_BASE + 16) + _configuration(entries)


def place(
    memory: Memory,
    ram_top: int,
    pci_irqs: Sequence[tuple[int, int, int]],
    cpu_signature: int = CPU_SIGNATURE,
    cpu_features: int = CPU_FEATURES,
) -> None:
    """Write the tables, and the BIOS data area words that lead a search past an empty EBDA to them."""
    memory.write(MP_BASE, build(ram_top, pci_irqs, cpu_signature, cpu_features))
    memory.write(BDA_EBDA_SEGMENT, struct.pack("<H", EBDA >> 4))
    memory.write(BDA_BASE_MEMORY_KIB, struct.pack("<H", BASE_MEMORY_KIB))
    memory.write(EBDA, bytes([EBDA_SIZE_KIB]).ljust(EBDA_SIZE_KIB << 10, b"\0"))


def _floating_pointer(table: int) -> bytes:
    """§4.1; feature byte 1 is 0: a table is present; feature byte 2 is 0: virtual wire, no IMCR."""
    return _checksummed(struct.pack("<4sIBBBBB3x", b"_MP_", table, 1, 4, 0, 0, 0), 10)


def _configuration(entries: list[bytes]) -> bytes:
    """§4.2: the header, then the entries in ascending order of type."""
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBx",
        b"PCMP",
        44 + len(body),
        4,
        0,
        b"VMM     ",
        b"PC          ",
        0,
        0,
        len(entries),
        LAPIC_BASE,
        0,
        0,
    )
    return _checksummed(header + body, 7)


def _io_interrupts(pci_irqs: Sequence[tuple[int, int, int]]) -> list[bytes]:
    taken = {irq for _, _, irq in pci_irqs}
    entries = []
    for irq in range(16):
        if irq != CASCADE_IRQ and irq not in taken:
            pin = TIMER_PIN if irq == TIMER_IRQ else irq
            entries.append(_interrupt(IO_INTERRUPT, INT, CONFORMS, ISA_BUS, irq, IOAPIC_ID, pin))
    for device, pin, irq in pci_irqs:
        assert 0 <= device < 32
        assert 0 <= pin < 4
        assert 0 <= irq < IOAPIC_PINS
        entries.append(_interrupt(IO_INTERRUPT, INT, LEVEL_LOW, PCI_BUS, device << 2 | pin, IOAPIC_ID, irq))
    return entries


def _interrupt(entry: int, kind: int, flags: int, bus: int, irq: int, apic: int, pin: int) -> bytes:
    """§4.3.4, §4.3.5: an interrupt source and where it goes."""
    return struct.pack("<BBHBBBB", entry, kind, flags, bus, irq, apic, pin)


def _checksummed(table: bytes, at: int) -> bytes:
    """All bytes add up to 0 modulo 256."""
    made = bytearray(table)
    made[at] = -sum(made) & 0xFF
    return bytes(made)
