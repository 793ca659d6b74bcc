"""The ACPI tables: how a kernel finds the APICs, the PCI windows and routing, poweroff and reset.

Source: ACPI specification 6.4, section 5.2 (tables), section 4.8 (fixed hardware), section 6.2.13
(_PRT), section 7.4.2.6 (\\_S5); PCI Firmware Specification 3.3, section 4.1 (host bridge).

    E0000H  RSDP, where the search of E0000H-FFFFFH begins (5.2.5.1)
    E0040H  FACS, aligned to 64 bytes (5.2.10)
    E0080H  DSDT, FADT, MADT, RSDT, XSDT, each aligned to 16 bytes

The interrupts are those of the MP tables (mptable.py), and a kernel reads one or the other: ISA
interrupts enter the I/O APIC at the pin of their number but for IRQ 0, which is at pin 2; PCI
interrupts are level-triggered, active low, and _PRT names their pins directly, so that no link
device has to be programmed.  The system control interrupt is IRQ 9, level-triggered, active high.

The tables are the same for every guest with the same cards, and hold no methods: nothing here is
computed by the guest.

Not here: a processor device, so that idling is HLT (C1, as the FADT says) and a kernel's choice
among idle states, one of which polls, has nothing to choose from; PCI Express configuration space
(MCFG), because the host bridge has none; HPET, because there is none; SMBIOS.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmm.boot import aml, memory_map, mptable
from vmm.device import Memory
from vmm.devices import acpi_pm, pci

BASE = memory_map.FIRMWARE
FACS = BASE + 0x40
TABLES = BASE + 0x80
TABLES_END = BASE + 0x1_0000

PM_BASE = 0x600
"""Where the board decodes the power management ports."""
SCI_IRQ = 9
RESET_PORT, RESET_VALUE = 0xCF9, 0x06
"""82371SB reset control: hard reset, and the bit whose rise resets."""
CENTURY = 0x32
"""The CMOS byte that holds the century."""

OEM, OEM_TABLE, CREATOR = b"VMM   ", b"PC      ", b"VMM "

# Section 5.2.6: one header for all tables but the RSDP and the FACS.
HEADER = struct.Struct("<4sIBB6s8sI4sI")
CHECKSUM_AT = 9

# Section 5.2.9: fixed ACPI description table.
FADT_REVISION, FADT_MINOR = 6, 4
LEGACY_DEVICES, KEYBOARD_8042 = 1 << 0, 1 << 1
WBINVD, PROC_C1, SLP_BUTTON, FIX_RTC, RESET_REG_SUP = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 10
"""SLP_BUTTON and FIX_RTC say that the fixed registers lack these; PWR_BUTTON 0 that they have it."""
NO_C2_US, NO_C3_US = 101, 1001
"""Latencies beyond which a state does not exist."""
SYSTEM_IO = 1
BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 2, 3

# Section 5.2.12: multiple APIC description table.
MADT_REVISION = 5
PCAT_COMPAT = 1
"""There are 8259s too."""
LOCAL_APIC, IO_APIC, SOURCE_OVERRIDE, LOCAL_APIC_NMI = 0, 1, 2, 4
ENABLED = 1
EVERY_PROCESSOR = 0xFF
CONFORMS, LEVEL_HIGH, LEVEL_LOW = 0x0, 0xD, 0xF
"""MPS INTI flags (table 5.26)."""
NMI_LINT = 1

DSDT_REVISION = 2
"""From 2 on, integers are 64 bits wide."""
ANY_FUNCTION = 0xFFFF

PciIrqs = Sequence[tuple[int, int, int]]
"""(device, pin 0-3 for INTA-INTD, IRQ), as mptable.py takes them."""


def place(memory: Memory, pci_irqs: PciIrqs) -> None:
    """Write the tables."""
    memory.write(BASE, build(pci_irqs))


def build(pci_irqs: PciIrqs) -> bytes:
    """Everything from ``BASE`` on."""
    image = bytearray(TABLES - BASE)

    def add(table: bytearray) -> int:
        image.extend(bytes(-len(image) % 16))
        image.extend(table)
        return BASE + len(image) - len(table)

    dsdt = add(_dsdt(pci_irqs))
    listed = [add(_fadt(dsdt)), add(_madt(pci_irqs))]
    rsdt = add(_table(b"RSDT", 1, struct.pack(f"<{len(listed)}I", *listed)))
    xsdt = add(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    for at, table in ((BASE, _rsdp(rsdt, xsdt)), (FACS, _facs())):
        image[at - BASE : at - BASE + len(table)] = table
    assert len(image) <= TABLES_END - BASE
    return bytes(image)


def _table(signature: bytes, revision: int, body: bytes) -> bytearray:
    """A table with its header (5.2.6); all its bytes add up to 0."""
    length = HEADER.size + len(body)
    header = HEADER.pack(signature, length, revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1)
    return _summed(bytearray(header + body), CHECKSUM_AT, length)


def _summed(table: bytearray, at: int, length: int) -> bytearray:
    """Set the byte ``at`` so that the first ``length`` bytes add up to 0 modulo 256."""
    table[at] = -sum(table[:length]) & 0xFF
    return table


def _rsdp(rsdt: int, xsdt: int) -> bytearray:
    """Root system description pointer (5.2.5.3): a checksum for revision 0's part, and one for all."""
    table = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, rsdt, 36, xsdt, 0))
    return _summed(_summed(table, 8, 20), 32, 36)


def _facs() -> bytes:
    """Firmware ACPI control structure (5.2.10), version 2: no waking vector, global lock free."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _fadt(dsdt: int) -> bytearray:
    """Table 5.9, line by line."""
    event, control, timer = (PM_BASE + at for at in (acpi_pm.PM1_STS, acpi_pm.PM1_CNT, acpi_pm.PM_TMR))
    flags = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | RESET_REG_SUP
    body = b"".join(
        (
            struct.pack("<II", FACS, dsdt),
            struct.pack("<xBHIBBBB", 0, SCI_IRQ, 0, 0, 0, 0, 0),  # profile, SCI, no SMI command port
            struct.pack("<8I", event, 0, control, 0, 0, timer, 0, 0),  # PM1a, PM1b, PM2, timer, GPE0, 1
            struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0),  # their lengths
            struct.pack("<HHHH", NO_C2_US, NO_C3_US, 0, 0),  # flush size and stride: WBINVD works
            struct.pack("<BBBBB", 0, 0, 0, 0, CENTURY),  # duty cycle; alarm day and month: none
            struct.pack("<HxI", LEGACY_DEVICES | KEYBOARD_8042, flags),
            _register(RESET_PORT, 8, BYTE_ACCESS),
            struct.pack("<BHB", RESET_VALUE, 0, FADT_MINOR),
            struct.pack("<QQ", 0, dsdt),  # X_FIRMWARE_CTRL is 0 when FIRMWARE_CTRL is not
            _register(event, 32, WORD_ACCESS),
            NO_REGISTER,
            _register(control, 16, WORD_ACCESS),
            NO_REGISTER * 2,
            _register(timer, 32, DWORD_ACCESS),
            NO_REGISTER * 4,  # GPE0, GPE1, sleep control, sleep status
            struct.pack("<Q", 0),  # hypervisor vendor
        )
    )
    return _table(b"FACP", FADT_REVISION, body)


def _register(port: int, bits: int, access: int) -> bytes:
    """Generic address structure (5.2.3.2)."""
    return struct.pack("<BBBBQ", SYSTEM_IO, bits, 0, access, port)


NO_REGISTER = bytes(12)


def _madt(pci_irqs: PciIrqs) -> bytearray:
    overrides = [(mptable.TIMER_IRQ, mptable.TIMER_PIN, CONFORMS), (SCI_IRQ, SCI_IRQ, LEVEL_HIGH)]
    overrides += [(irq, irq, LEVEL_LOW) for irq in sorted({irq for _, _, irq in pci_irqs})]
    entries = [
        struct.pack("<BBBBI", LOCAL_APIC, 8, 0, mptable.LAPIC_ID, ENABLED),
        struct.pack("<BBBxII", IO_APIC, 12, mptable.IOAPIC_ID, mptable.IOAPIC_BASE, 0),
        *(struct.pack("<BBBBIH", SOURCE_OVERRIDE, 10, 0, irq, pin, how) for irq, pin, how in overrides),
        struct.pack("<BBBHB", LOCAL_APIC_NMI, 6, EVERY_PROCESSOR, CONFORMS, NMI_LINT),
    ]
    addresses = struct.pack("<II", mptable.LAPIC_BASE, PCAT_COMPAT)
    return _table(b"APIC", MADT_REVISION, addresses + b"".join(entries))


def _dsdt(pci_irqs: PciIrqs) -> bytearray:
    soft_off = aml.package(*(aml.integer(value) for value in (acpi_pm.SLP_TYP_S5, 0, 0, 0)))
    devices = aml.scope("\\_SB", _host_bridge(pci_irqs), *_isa_devices())
    return _table(b"DSDT", DSDT_REVISION, aml.name("\\_S5", soft_off) + devices)


def _host_bridge(pci_irqs: PciIrqs) -> bytes:
    routes = (
        aml.package(
            aml.integer(device << 16 | ANY_FUNCTION),
            aml.integer(pin),
            aml.integer(0),  # no link device:
            aml.integer(irq),  # the global interrupt
        )
        for device, pin, irq in pci_irqs
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(range(1)),
                aml.io_ports(0xCF8, 8),
                aml.io_window(pci.IO_WINDOW),
                aml.memory_window(pci.MEMORY_WINDOW),
            ),
        ),
        aml.name("_PRT", aml.package(*routes)),
    )


def _isa_devices() -> tuple[bytes, ...]:
    """What plug and play cannot find: the devices that kernels want to be told about."""

    def isa(path: str, identifier: str, *descriptors: bytes) -> bytes:
        return aml.device(
            path,
            aml.name("_HID", aml.eisa_id(identifier)),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CRS", aml.resources(*descriptors)),
        )

    return (
        isa("RTC", "PNP0B00", aml.io_ports(0x70, 2), aml.irq(8)),
        isa("KBD", "PNP0303", aml.io_ports(0x60, 1), aml.io_ports(0x64, 1), aml.irq(1)),
        isa("COM1", "PNP0501", aml.io_ports(0x3F8, 8), aml.irq(4)),
    )
