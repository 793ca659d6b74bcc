"""Registers by name, read from and written to the running engine.

16, 32 and 64-bit names of the general registers, segment selectors, ip and flags.  Segment writes
are those of real mode (base = selector * 16): what the BIOS needs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from vmm.cpu import layout
from vmm.cpu.cpu import Cpu
from vmm.cpu.registers import GENERAL, SEGMENT_NAMES

_LEGACY = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")


def _names() -> dict[str, tuple[int, int]]:
    """Name -> (offset in env, bits)."""
    found: dict[str, tuple[int, int]] = {"rip": (layout.EIP, 64), "eip": (layout.EIP, 32)}
    found["ip"] = (layout.EIP, 16)
    for index, name in enumerate(GENERAL):
        found[name] = (8 * index, 64)
    for index, name in enumerate(_LEGACY):
        found[name] = (8 * index, 16)
        found["e" + name] = (8 * index, 32)
    for index, name in enumerate(SEGMENT_NAMES):
        found[name] = (layout.SEGMENTS + layout.SEGMENT_SIZE * index, 32)
    for number in (0, 2, 3, 4):
        found[f"cr{number}"] = (layout.CR0 + 8 * number, 64)
    found["efer"] = (layout.EFER, 64)
    return found


_NAMES = _names()


class RegisterFile:
    """Mapping-like access to one processor's registers."""

    __slots__ = ("_cpu",)

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def get(self, name: str) -> int:
        if name in ("rflags", "eflags", "flags"):
            return self._cpu.rflags
        offset, bits = _NAMES[name]
        return ctypes.c_uint64.from_address(self._cpu.env + offset).value & ((1 << bits) - 1)

    def set(self, name: str, value: int) -> None:
        offset, bits = _NAMES[name]
        cell = ctypes.c_uint64.from_address(self._cpu.env + offset)
        mask = (1 << bits) - 1
        if name in SEGMENT_NAMES:
            ctypes.c_uint64.from_address(self._cpu.env + offset + layout.SEGMENT_BASE).value = value << 4
        if bits == 32 and name not in SEGMENT_NAMES:
            cell.value = value & mask  # a 32-bit write clears the upper half
        else:
            cell.value = (cell.value & ~mask) | (value & mask)

    def __getitem__(self, name: str) -> int:
        return self.get(name)

    def __setitem__(self, name: str, value: int) -> None:
        self.set(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def as_dict(self) -> dict[str, int]:
        """The 64-bit view: general registers, rip, rflags, control registers, selectors."""
        wide = (*GENERAL, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer", *SEGMENT_NAMES)
        return {name: self.get(name) for name in wide}
