"""The MP tables, read as MP specification 1.4 and its two readers (xv6, Linux) read them."""

from __future__ import annotations

import struct
from collections import Counter

import pytest

from vmm.boot import mptable
from vmm.errors import ConfigError
from vmm.ram import Ram

PCI_IRQS = [(1, 0, 11), (2, 0, 10), (3, 0, 11)]
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


@pytest.fixture
def ram() -> Ram:
    ram = Ram(4)
    mptable.place(ram, ram.size, PCI_IRQS, 0x0006_0FB1, 0x0781_ABFD)
    return ram


def search(ram: Ram, start: int, length: int) -> int | None:
    for address in range(start, start + length, 16):
        block = ram.read(address, 16)
        if block[:4] == b"_MP_" and sum(block) & 0xFF == 0:
            return address
    return None


def find(ram: Ram) -> int:
    """xv6's order: the EBDA if 40:0E names one, then the BIOS area (MP specification §4)."""
    (segment,) = struct.unpack("<H", ram.read(0x40E, 2))
    assert segment, "xv6 would look below 40:13 instead"
    found = search(ram, segment << 4, 1024)
    assert found is None
    found = search(ram, 0xF0000, 0x10000)
    assert found is not None
    return found


def entries(ram: Ram) -> list[bytes]:
    (table,) = struct.unpack("<I", ram.read(find(ram) + 4, 4))
    header = ram.read(table, 44)
    length, count = struct.unpack_from("<H", header, 4)[0], struct.unpack_from("<H", header, 34)[0]
    made, at = [], table + 44
    while at < table + length:
        size = SIZES[ram.read(at, 1)[0]]
        made.append(ram.read(at, size))
        at += size
    assert at == table + length
    assert len(made) == count
    return made


def test_floating_pointer_and_header(ram: Ram) -> None:
    pointer = ram.read(find(ram), 16)
    table, length, revision, _, feature_1, feature_2 = struct.unpack("<4xIBBBBB3x", pointer)
    assert (length, revision, feature_1, feature_2) == (1, 4, 0, 0)
    header = ram.read(table, 44)
    assert header[:4] == b"PCMP"
    assert header[6] == 4
    assert struct.unpack_from("<I", header, 36) == (0xFEE0_0000,)
    assert sum(ram.read(table, struct.unpack_from("<H", header, 4)[0])) & 0xFF == 0


def test_entries_ascend_by_type(ram: Ram) -> None:
    types = [entry[0] for entry in entries(ram)]
    assert types == sorted(types), "§4.3: in ascending order"
    assert Counter(types) == {0: 1, 1: 2, 2: 1, 3: 13 + 3, 4: 2}


def test_processor_buses_and_ioapic(ram: Ram) -> None:
    processor, pci, isa, ioapic = entries(ram)[:4]
    assert struct.unpack("<BBBBII8x", processor) == (0, 0, 0x14, 3, 0x0006_0FB1, 0x0781_ABFD)
    assert pci == b"\1\0PCI   "
    assert isa == b"\1\1ISA   "
    assert struct.unpack("<BBBBI", ioapic) == (2, 1, 0x11, 1, 0xFEC0_0000)


def test_interrupt_routing(ram: Ram) -> None:
    """(bus, source) -> (flags, pin); PCI sources are device << 2 | INTx (appendix D.3)."""
    routes = {}
    for entry in entries(ram):
        if entry[0] == 3:
            kind, flags, bus, source, apic, pin = struct.unpack("<xBHBBBB", entry)
            assert (kind, apic) == (0, 1)
            routes[bus, source] = flags, pin
    isa = {irq: (0, irq) for irq in range(16) if irq not in (0, 2, 10, 11)} | {0: (0, 2)}
    assert {source: route for (bus, source), route in routes.items() if bus == 1} == isa
    pci = {source: route for (bus, source), route in routes.items() if bus == 0}
    assert pci == {1 << 2: (0xF, 11), 2 << 2: (0xF, 10), 3 << 2: (0xF, 11)}


def test_local_interrupts_are_virtual_wire(ram: Ram) -> None:
    local = [struct.unpack("<xBHBBBB", entry) for entry in entries(ram) if entry[0] == 4]
    assert [(kind, pin) for kind, _, _, _, _, pin in local] == [(3, 0), (1, 1)]


def test_bios_data_area_agrees_with_the_ebda(ram: Ram) -> None:
    (segment,), (base_kib,) = struct.unpack("<H", ram.read(0x40E, 2)), struct.unpack("<H", ram.read(0x413, 2))
    assert segment << 4 == base_kib << 10 == 639 << 10
    assert ram.read(segment << 4, 1) == b"\1", "the first byte of an EBDA is its size in KiB"


def test_ram_must_hold_the_tables() -> None:
    with pytest.raises(ConfigError, match="MP tables"):
        mptable.build(0xA0000, [])
