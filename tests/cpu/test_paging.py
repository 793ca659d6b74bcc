"""The debugger's page walk: SDM vol. 3 4.3 to 4.5, and agreement with the engine's own."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cpu.machine import DATA, Machine, long, protected
from vmm.cpu.paging import CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA, is_canonical, translate

PE = 1


class Memory:
    """Sparse physical memory; what nobody wrote reads as zero."""

    def __init__(self) -> None:
        self.words: dict[int, bytes] = {}

    def entry(self, table: int, index: int, value: int, size: int = 8) -> None:
        self.words[table + index * size] = value.to_bytes(size, "little")

    def __call__(self, address: int, length: int) -> bytes:
        return self.words.get(address, bytes(length))


def test_without_paging_linear_is_physical() -> None:
    assert translate(Memory(), PE, 0x1000, 0, 0, 0x1234_5678) == 0x1234_5678
    assert translate(Memory(), 0, 0, 0, 0, 0x1_0000_0010) == 0x10, "32 bits"


def test_two_levels() -> None:
    memory = Memory()
    memory.entry(0x1000, 0x3FF, 0x2001, 4)
    memory.entry(0x2000, 0x001, 0xABCDE001, 4)
    assert translate(memory, CR0_PG, 0x1018, 0, 0, 0xFFC0_1234) == 0xABCD_E234, "CR3's flag bits are ignored"
    assert translate(memory, CR0_PG, 0x1000, 0, 0, 0xFFC0_2234) is None
    assert translate(memory, CR0_PG, 0x1000, 0, 0, 0x0000_1234) is None


def test_large_pages_of_32_bit_paging() -> None:
    memory = Memory()
    memory.entry(0x1000, 1, 0x1240_0081 | 0x5A << 13, 4)
    assert translate(memory, CR0_PG, 0x1000, CR4_PSE, 0, 0x0041_2345) == 0x5A_1241_2345, "PSE-36"
    assert translate(memory, CR0_PG, 0x1000, 0, 0, 0x0041_2345) is None, "without PSE bit 7 is ignored"


def test_pae() -> None:
    memory = Memory()
    memory.entry(0x1020, 3, 0x2001)
    memory.entry(0x2000, 0x1FF, 0x3001)
    memory.entry(0x3000, 0x1FF, 0x8000_0001_2345_6001)
    memory.entry(0x2000, 0, 0x40_0020_0081)
    assert translate(memory, CR0_PG, 0x1020, CR4_PAE, 0, 0xFFFF_F123) == 0x1_2345_6123
    assert translate(memory, CR0_PG, 0x1020, CR4_PAE, 0, 0xC010_0123) == 0x40_0030_0123
    assert translate(memory, CR0_PG, 0x1020, CR4_PAE, 0, 0x0010_0123) is None


def test_four_levels() -> None:
    memory = Memory()
    memory.entry(0x1000, 0x1FF, 0x2003)
    memory.entry(0x2000, 0x1FE, 0x40_0000_0083)  # 1 GiB
    memory.entry(0x2000, 0x1FF, 0x3003)
    memory.entry(0x3000, 0x000, 0x60_0000_1083)  # 2 MiB, PAT
    memory.entry(0x3000, 0x001, 0x4003)
    memory.entry(0x4000, 0x002, 0x8000_0000_0000_5083)  # 4 KiB: bit 7 is PAT; NX is no address bit

    def at(address: int) -> int | None:
        return translate(memory, CR0_PG, 0x1000, CR4_PAE, EFER_LMA, address)

    assert at(0xFFFF_FFFF_8123_4567) == 0x40_0123_4567
    assert at(0xFFFF_FFFF_C012_3456) == 0x60_0012_3456
    assert at(0xFFFF_FFFF_C020_2ABC) == 0x5ABC
    assert at(0xFFFF_FFFF_C020_3ABC) is None
    assert at(0x0000_FFFF_C020_2ABC) is None, "not canonical"


@given(st.integers(0, (1 << 64) - 1))
def test_canonical(address: int) -> None:
    signed = struct.unpack("<q", struct.pack("<Q", address))[0]
    assert is_canonical(address) == (-(1 << 47) <= signed < 1 << 47)


@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([(0, 0), (CR4_PSE, 0), (CR4_PAE, 0), (CR4_PAE, EFER_LMA)]),
    st.integers(0, (1 << 64) - 1),
)
def test_any_tables_end(cr3: int, address: int, mode: tuple[int, int], filling: int) -> None:
    """Tables that point to themselves, or to anything, end after at most four entries."""
    reads = []

    def read(at: int, length: int) -> bytes:
        reads.append(at)
        return (filling & (1 << 8 * length) - 1).to_bytes(length, "little")

    found = translate(read, CR0_PG | PE, cr3, mode[0], mode[1], address)
    assert len(reads) <= 4
    assert found is None or 0 <= found < 1 << 52


@pytest.mark.parametrize("paging", ["32", "pae", "long"])
def test_agrees_with_the_engine(machine: Machine, paging: str) -> None:
    """A store through a changed mapping lands where the walk says."""
    linear, target = DATA, DATA + 0x5000
    source = f"mov dword ptr ds:[{linear + 0x10:#x}], 0x1234567\n hlt"
    if paging == "long":
        long(machine, source)
        machine.poke(0x83000 + 8 * (linear >> 12), target | 7)
    else:
        protected(machine, source, paging)
        table, size = (0x81000, 4) if paging == "32" else (0x82000, 8)
        machine.poke(table + size * (linear >> 12), target | 7, size)
    machine.finish()
    state = machine.cpu.state
    found = translate(
        machine.ram.read, state.control[0], state.control[3], state.control[4], state.efer, linear + 0x10
    )
    assert found == target + 0x10
    assert machine.word(found, 4) == 0x1234567
