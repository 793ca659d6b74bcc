"""A real-mode PC for the BIOS tests: the engine's 16-bit mode, a port bus, and interrupts by the book.

Interrupt delivery is the stack frame and vector table of SDM 3B 20.1.4, done between engine runs, so
the ROM's stubs, handlers and IRETs run for real.
"""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from typing import Any

import unicorn
from unicorn import x86_const as x86

from vmm.boot import mbr
from vmm.boot.bios import Bios
from vmm.boot.bios_rom import CALL_PORT
from vmm.bus import Bus
from vmm.clock import ManualClock
from vmm.device import Device
from vmm.ram import Ram
from vmm.state import State

STOP = b"\xfa\xf4"
"""cli; hlt: the end of a program."""
RUNS_MAX = 20_000
IF, TF = 1 << 9, 1 << 8
TIMER, KEYBOARD = 0x08, 0x09
TICK_NS = 54_925_494
PORT_NS = 1000
"""What a port access costs the machine."""


class Registers:
    """CpuRegisters on the engine's public interface."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get(self, name: str) -> int:
        return int(self._engine.reg_read(getattr(x86, f"UC_X86_REG_{name.upper()}")))

    def set(self, name: str, value: int) -> None:
        self._engine.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), value)


class Disk:
    """A medium in memory."""

    read_only = False

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    @property
    def sectors(self) -> int:
        return len(self.data) // 512

    def read(self, sector: int, count: int) -> bytes:
        return bytes(self.data[512 * sector : 512 * (sector + count)])

    def write(self, sector: int, data: bytes | memoryview) -> None:
        self.data[512 * sector : 512 * sector + len(data)] = data

    def flush(self) -> None:
        """Nothing is behind this medium."""


class Latch(Device):
    """Ports that remember what was written and give what the test puts there.

    Every port but the BIOS's is here, in two claims; ``written`` and ``values`` know ports by address.
    """

    def __init__(self, base: int, shared: Latch | None = None) -> None:
        self.state = State()
        self._base = base
        self.written: list[tuple[int, int]] = shared.written if shared else []
        self.values: dict[int, int] = shared.values if shared else {}

    def read(self, offset: int, size: int) -> int:
        return self.values.get(self._base + offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((self._base + offset, value))

    def reset(self) -> None:
        """Nothing to do: it is a notebook, not a chip."""

    def restored(self) -> None:
        """As for reset."""


class RealModePc:
    """RAM, the BIOS, and a boot sector in the engine."""

    def __init__(self, code: bytes, drives: dict[int, bytes] | None = None, ram_mib: int = 2) -> None:
        self.memory = Ram(ram_mib)
        self.clock = ManualClock()
        self.latch = Latch(0)
        untyped: Any = unicorn
        self.engine = untyped.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
        pointer = ctypes.c_void_p(self.memory.host_address)
        self.engine.mem_map_ptr(0, self.memory.size, unicorn.UC_PROT_ALL, pointer)
        self.registers = Registers(self.engine)
        self.ports = Bus("ports")
        self.disks = {number: Disk(data) for number, data in (drives or {}).items()}
        self.bios = Bios(self.registers, self.memory, self.ports, self.clock, self.disks)
        self.ports.claim(0, CALL_PORT, self.latch, "below")
        self.ports.claim(CALL_PORT, 1, self.bios, "BIOS calls")
        above = CALL_PORT + 1
        self.ports.claim(above, 0x10000 - above, Latch(above, self.latch), "above")
        self.bios.install()
        self.memory.write(0x7C00, code.ljust(512, b"\0"))
        self._interrupts: deque[int] = deque()
        self.keys: deque[int] = deque()
        self._hook()
        self._start()

    def _start(self) -> None:
        entry = mbr.load(self.memory, bytes(self.memory.read(0x7C00, 510)) + mbr.SIGNATURE)
        for name, value in (("cs", 0), ("ds", 0), ("es", 0), ("ss", 0), ("ip", entry.ip), ("esp", 0x7C00)):
            self.registers.set(name, value)
        self.registers.set("edx", entry.registers["rdx"])
        self.registers.set("eflags", entry.rflags)

    def _hook(self) -> None:
        def on_out(_: Any, port: int, size: int, value: int, __: Any) -> None:
            self.clock.advance(PORT_NS)
            self.ports.write(port, size, value)

        def on_in(_: Any, port: int, size: int, __: Any) -> int:
            return self.ports.read(port, size)

        def on_interrupt(engine: Any, vector: int, _: Any) -> None:
            self._interrupts.append(vector)
            engine.emu_stop()

        self.engine.hook_add(unicorn.UC_HOOK_INSN, on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        self.engine.hook_add(unicorn.UC_HOOK_INSN, on_in, None, 1, 0, x86.UC_X86_INS_IN)
        self.engine.hook_add(unicorn.UC_HOOK_INTR, on_interrupt)

    def deliver(self, vector: int) -> None:
        """Push FLAGS, CS, IP and go to the vector (SDM 3B 20.1.4)."""
        sp = self.registers.get("sp")
        for name in ("eflags", "cs", "ip"):
            sp = (sp - 2) & 0xFFFF
            value = self.registers.get(name) & 0xFFFF
            self.memory.write(self.registers.get("ss") * 16 + sp, value.to_bytes(2, "little"))
        self.registers.set("sp", sp)
        self.registers.set("eflags", self.registers.get("eflags") & ~(IF | TF))
        self.registers.set("ip", int.from_bytes(self.memory.read(4 * vector, 2), "little"))
        self.registers.set("cs", int.from_bytes(self.memory.read(4 * vector + 2, 2), "little"))

    def run(self) -> None:
        """Until HLT with interrupts off; HLT with interrupts on brings a key, or else a timer tick."""
        for _ in range(RUNS_MAX):
            at = self.registers.get("cs") * 16 + self.registers.get("ip")
            self.engine.emu_start(at, 0xFFFFF_FFFF, count=0)
            if self._interrupts:
                self.deliver(self._interrupts.popleft())
            elif not self.registers.get("eflags") & IF:
                return
            else:
                self._idle()
        raise AssertionError(f"still running at {self.registers.get('cs'):#x}:{self.registers.get('ip'):#x}")

    def _idle(self) -> None:
        self.clock.advance(TICK_NS)
        if self.keys:
            self.latch.values[0x60] = self.keys.popleft()
            self.deliver(KEYBOARD)
        else:
            self.deliver(TIMER)

    def row(self, number: int, page: int = 0) -> str:
        """One line of the screen."""
        cells = self.memory.read(0xB8000 + 0x1000 * page + 160 * number, 160)
        return cells[0::2].decode("cp437").rstrip()


# Programs, as bytes.


def mov(**registers: int) -> bytes:
    """mov r16, imm16 for each."""
    numbers = {"ax": 0, "cx": 1, "dx": 2, "bx": 3, "sp": 4, "bp": 5, "si": 6, "di": 7}
    return b"".join(struct.pack("<BH", 0xB8 + numbers[name], value) for name, value in registers.items())


def mov_e(**registers: int) -> bytes:
    """mov r32, imm32 for each."""
    numbers = {"eax": 0, "ecx": 1, "edx": 2, "ebx": 3}
    return b"".join(struct.pack("<BBI", 0x66, 0xB8 + numbers[name], v) for name, v in registers.items())


def call(vector: int, **registers: int) -> bytes:
    """Load registers, then INT."""
    return mov(**registers) + bytes((0xCD, vector))


def ran(code: bytes, drives: dict[int, bytes] | None = None) -> RealModePc:
    pc = RealModePc(code + STOP, drives)
    pc.run()
    return pc


def carry(pc: RealModePc) -> bool:
    return bool(pc.registers.get("eflags") & 1)


def high(pc: RealModePc, name: str) -> int:
    return pc.registers.get(name) >> 8
