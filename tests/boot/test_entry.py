"""Processor state at entry: descriptor layout (SDM 3A 3.4.5) and the modes' control bits."""

from __future__ import annotations

import pytest

from vmm.boot import entry
from vmm.boot.entry import Segment


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        # The flat descriptors of Linux' boot GDT (arch/x86/boot, boot.rst "__BOOT_CS").
        (Segment(0x10, 0, 0xFFFFFFFF, entry.CODE32), 0x00CF9B000000FFFF),
        (Segment(0x18, 0, 0xFFFFFFFF, entry.DATA32), 0x00CF93000000FFFF),
        (Segment(0x10, 0, 0xFFFFFFFF, entry.CODE64), 0x00AF9B000000FFFF),
        (Segment(0, 0x12345678, 0x67, entry.TSS_BUSY), 0x12008B3456780067),
    ],
)
def test_descriptor(segment: Segment, descriptor: int) -> None:
    assert segment.descriptor == descriptor


def test_flags_hold_no_base_or_limit() -> None:
    with pytest.raises(AssertionError):
        Segment(0, 0, 0, 0x00CF9300)


def test_long_mode() -> None:
    """SDM 3A 9.8.5: PAE, EFER.LME and CR0.PG together are IA-32e mode; CS.L makes it 64-bit."""
    made = entry.long_mode_entry(
        0x1000, {"rsi": 7}, cr3=0x9000, gdt=(0x500, 31), code_selector=16, data_selector=24
    )
    assert made.mode == "long"
    assert made.cr4 & entry.CR4_PAE
    assert made.efer == entry.EFER_LME | entry.EFER_LMA
    assert made.cr0 & entry.CR0_PG
    assert made.cr0 & entry.CR0_PE
    assert made.segments["cs"].flags & 1 << 21
    assert not made.segments["cs"].flags & 1 << 22, "L and D together are reserved"
    assert set(made.segments) == set(entry.SEGMENTS)
    assert not made.rflags & entry.RFLAGS_IF


def test_protected_mode() -> None:
    made = entry.protected_entry(0x1000, {}, gdt=(0, 23), code_selector=8, data_selector=16)
    assert made.cr0 & entry.CR0_PE
    assert not made.cr0 & entry.CR0_PG
    assert made.segments["cs"].selector == 8
    assert {made.segments[name].selector for name in entry.DATA_SEGMENTS} == {16}


def test_real_mode() -> None:
    """SDM 3B 20.1: base = selector << 4, 64 KiB limits, vectors at 0."""
    made = entry.real_mode_entry(0xF000, 0xFFF0, {}, data=0x40)
    assert not made.cr0 & entry.CR0_PE
    assert made.segments["cs"].base == 0xF0000
    assert made.segments["ds"].base == 0x400
    assert made.segments["ss"].limit == 0xFFFF
    assert made.idt == (0, 0x3FF)
