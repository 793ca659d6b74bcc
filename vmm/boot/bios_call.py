"""One BIOS call: the caller's registers, the flags that IRET will restore, and real-mode memory.

Source: Intel SDM volume 3B, section 20.1 (real-address mode, interrupt stack frame).  Inside the
OUT of a service stub the stack holds

    SS:SP+0   vector, to be replaced by the offset at which the stub goes on
    SS:SP+2   IP, CS, FLAGS of the caller

Not here: callers in protected or virtual-8086 mode; firmware of this kind serves real mode only.
"""

from __future__ import annotations

import struct
from typing import Protocol

from vmm.device import Memory

FLAG_CF = 1 << 0
FLAG_ZF = 1 << 6
STACK_FLAGS = 6


class CpuRegisters(Protocol):
    """Registers by their 16 or 32-bit name: "ax", "eax", "es", "sp"."""

    def get(self, name: str) -> int: ...

    def set(self, name: str, value: int) -> None: ...


class Call:
    """What a service sees."""

    __slots__ = ("_frame", "memory", "registers")

    def __init__(self, registers: CpuRegisters, memory: Memory) -> None:
        self.registers = registers
        self.memory = memory
        self._frame = self.linear("ss", registers.get("sp"))

    # Registers.

    def get(self, name: str) -> int:
        return self.registers.get(name)

    def set(self, name: str, value: int) -> None:
        self.registers.set(name, value)

    def high(self, name: str) -> int:
        """AH of "ax", and so on."""
        return self.registers.get(name) >> 8 & 0xFF

    def low(self, name: str) -> int:
        return self.registers.get(name) & 0xFF

    def set_high(self, name: str, value: int) -> None:
        self.registers.set(name, self.registers.get(name) & 0x00FF | (value & 0xFF) << 8)

    def set_low(self, name: str, value: int) -> None:
        self.registers.set(name, self.registers.get(name) & 0xFF00 | value & 0xFF)

    # The stack frame.

    @property
    def vector(self) -> int:
        return self.word(self._frame)

    def go_on_at(self, offset: int) -> None:
        """Where in segment F000 the stub returns to."""
        self.memory.write(self._frame, struct.pack("<H", offset))

    def set_carry(self, value: bool) -> None:
        self._set_flag(FLAG_CF, value)

    def set_zero(self, value: bool) -> None:
        self._set_flag(FLAG_ZF, value)

    def _set_flag(self, flag: int, value: bool) -> None:
        at = self._frame + STACK_FLAGS
        flags = self.word(at) & ~flag | (flag if value else 0)
        self.memory.write(at, struct.pack("<H", flags))

    # Memory.

    def linear(self, segment: str, offset: int) -> int:
        """The address of ``segment:offset``; the offset wraps at 64 KiB."""
        return (self.registers.get(segment) & 0xFFFF) * 16 + (offset & 0xFFFF)

    def byte(self, address: int) -> int:
        return self.memory.read(address, 1)[0]

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")

    def dword(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 4), "little")

    def put_byte(self, address: int, value: int) -> None:
        self.memory.write(address, bytes((value & 0xFF,)))

    def put_word(self, address: int, value: int) -> None:
        self.memory.write(address, struct.pack("<H", value & 0xFFFF))

    def put_dword(self, address: int, value: int) -> None:
        self.memory.write(address, struct.pack("<I", value & 0xFFFF_FFFF))
