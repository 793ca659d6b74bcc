"""A processor on the smallest board that can test it, and guests' surroundings for each mode.

The memory map is the same in every mode:

    0x01000  GDT                     0x10000  the test's program
    0x02000  IDT                     0x18000  exception handlers
    0x03000  TSS, I/O bitmap         0x40000  data for tests
    0x06000  log of exceptions       0x80000  page tables
    0x0A000  ring 0 stack (top)      0x0C000  ring 3 stack (top)
    0x0B000  IST 1 stack (top)

The handlers log (vector, error code, rip, cs, rflags, rsp, ss, cr2) and go on where the *resume*
register says, r15 in 64-bit code and edi in 32-bit code: 0 halts, -1 goes on where the exception
left off, and an address goes there once.  Vector 0x30, open to ring 3, ends a program; vectors from
0x40 are for devices and always return.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, NamedTuple

from tests.cpu.assembler import Program, assemble
from vmm.boot.entry import (
    CODE16,
    CODE32,
    CODE64,
    DATA32,
    FLAT_LIMIT,
    Entry,
    Segment,
    long_mode_entry,
    protected_entry,
    real_mode_entry,
)
from vmm.bus import Bus
from vmm.cpu.cpu import Cpu, Questions, Stop
from vmm.cpu.engine import DEFAULT_COSTS, Costs
from vmm.ram import Ram

GDT, IDT, TSS, LOG, STACK0, IST1, STACK3 = 0x1000, 0x2000, 0x3000, 0x6000, 0xA000, 0xB000, 0xC000
PROGRAM, HANDLERS, DATA, TABLES = 0x10000, 0x18000, 0x40000, 0x80000
MMIO = 0xE000_0000
IO_BITMAP = 0x68
IO_PORTS = 0x400
TSS_LIMIT = IO_BITMAP + IO_PORTS // 8
EXIT_VECTOR = 0x30
KERNEL_CODE, KERNEL_DATA, USER_CODE32, USER_DATA, USER_CODE64, TASK = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x30
ABSENT, GATE, LOW_CODE16 = 0x40, 0x48, 0x50
"""A data segment that is not present; a call gate; 16-bit code at 0."""
DPL3 = 0x6000
TSS_LOADED = 0x8900
"""What the engine keeps after LTR: it sets the busy bit in memory only (and wants it so for I/O bitmaps)."""
PRESENT, WRITABLE, USER, LARGE, NX = 1, 2, 4, 0x80, 1 << 63
LIMIT_NS = 20_000_000
"""A guest that still runs after this much virtual time is lost."""


class Recorder:
    """A device that answers from ``answers`` (else counts up) and remembers every access."""

    def __init__(self) -> None:
        self.state: Any = None
        self.log: list[tuple[int, ...]] = []
        self.answers: list[int] = []
        self.on_write: Any = None
        self.on_read: Any = None

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size))
        if self.on_read is not None:
            self.on_read()
        return self.answers.pop(0) if self.answers else len(self.log)

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))
        if self.on_write is not None:
            self.on_write()

    def reset(self) -> None: ...

    def restored(self) -> None: ...


class Logged(NamedTuple):
    """One exception, as a handler saw it."""

    vector: int
    error: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int
    cr2: int


class Machine:
    """``Cpu`` with 4 MiB, a port recorder at 0-0x3FF, an MMIO recorder, and a vector queue."""

    def __init__(self, *, patching: bool = True, costs: Costs = DEFAULT_COSTS, ram_mib: int = 4) -> None:
        self.ram = Ram(ram_mib)
        self.cpu = Cpu(self.ram, costs, patching=patching)
        self.ports, self.mmio = Recorder(), Recorder()
        self.vectors: list[int] = []
        self.tpr = 0
        self.msrs: dict[int, int] = {0x1B: 0xFEE00900, 0x6E0: 0}
        port_bus, mmio_bus = Bus("ports"), Bus("memory")
        port_bus.claim(0, IO_PORTS, self.ports, "recorder")
        mmio_bus.claim(MMIO, 0x1000, self.mmio, "recorder")
        self.mmio_bus = mmio_bus
        self.cpu.attach(
            Questions(
                port_bus,
                mmio_bus,
                self._acknowledge,
                lambda register: self.msrs[register],
                self._write_msr,
                lambda: self.tpr,
                self._write_tpr,
            )
        )

    def _acknowledge(self) -> int:
        vector = self.vectors.pop(0) if self.vectors else -1
        self.cpu.interrupt_line.set(bool(self.vectors))
        return vector

    def _write_msr(self, register: int, value: int) -> bool:
        self.msrs[register] = value
        return value != 0xBAD

    def _write_tpr(self, value: int) -> None:
        self.tpr = value

    def interrupt(self, *vectors: int) -> None:
        """Ask for an interrupt with these vectors, one after another."""
        self.vectors += vectors
        self.cpu.interrupt_line.set(True)

    def run(self, limit_ns: int = LIMIT_NS) -> Stop:
        """Run for at most ``limit_ns``."""
        self.cpu.clock.set_limit(self.cpu.clock.now_ns + limit_ns)
        return self.cpu.run()

    def finish(self) -> Machine:
        """Run to the program's halt."""
        stop = self.run()
        assert stop is Stop.HALT, f"{stop} at {self.cpu.rip:#x}: {self.log}"
        return self

    def can_take_interrupt(self) -> bool:
        """As a call: a property's value would be taken as constant by the type checker."""
        return self.cpu.can_take_interrupt

    # What the guest left behind

    def register(self, name: str) -> int:
        from vmm.cpu.registers import GENERAL

        return int(self.cpu.state.general[GENERAL.index(name)])

    @property
    def log(self) -> list[Logged]:
        count = self.word(LOG, 4)
        raw = self.ram.read(LOG + 0x40, 64 * min(count, 64))
        return [Logged(*struct.unpack_from("<8Q", raw, 64 * n)) for n in range(min(count, 64))]

    @property
    def vectors_seen(self) -> list[int]:
        return [entry.vector for entry in self.log]

    def word(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.ram.read(address, size), "little")

    def poke(self, address: int, value: int, size: int = 8) -> None:
        self.ram.write(address, value.to_bytes(size, "little"))

    def load(self, source: str, bits: int, origin: int = PROGRAM) -> Program:
        program = assemble(source, origin, bits)
        self.ram.write(origin, program.code)
        return program


# Modes


def real(machine: Machine, source: str, **options: Any) -> Program:
    """Real mode at 0:0x7C00 with the stack below."""
    program = machine.load(source, 16, 0x7C00)
    machine.cpu.enter(real_mode_entry(0, 0x7C00, {"rsp": 0x7C00}, **options))
    return program


def protected(machine: Machine, source: str, paging: str = "off") -> Program:
    """32-bit protected mode; paging "off", "32" (with PSE) or "pae"; everything open to ring 3."""
    program = machine.load(source, 32)
    handlers = machine.load(_handlers(32), 32, HANDLERS)
    _write_gdt(machine, KERNEL_CODE, CODE32)
    for vector in (*range(32), EXIT_VECTOR, *range(0x40, 0x50)):
        at = handlers.origin + 16 * vector
        gate = 0xEE00 if vector in (3, 4, EXIT_VECTOR) else 0x8E00
        low = (at & 0xFFFF) | KERNEL_CODE << 16
        machine.poke(IDT + 8 * vector, low | ((at & ~0xFFFF) | gate) << 32)
    machine.ram.write(TSS + 4, struct.pack("<II", STACK0, KERNEL_DATA))
    _write_io_bitmap(machine)
    entry = protected_entry(
        PROGRAM, {"rsp": STACK0}, gdt=(GDT, 0x7F), code_selector=KERNEL_CODE, data_selector=KERNEL_DATA
    )
    tables = {"off": lambda _: {}, "32": _tables32, "pae": _tables_pae}[paging]
    machine.cpu.enter(_surroundings(entry, tables(machine)))
    return program


def long(machine: Machine, source: str) -> Program:
    """64-bit mode, identity-mapped, everything open to ring 3, the first 2 MiB by 4 KiB pages."""
    program = machine.load(source, 64)
    handlers = machine.load(_handlers(64), 64, HANDLERS)
    _write_gdt(machine, KERNEL_CODE, CODE64)
    for vector in (*range(32), EXIT_VECTOR, *range(0x40, 0x50)):
        set_gate(machine, vector, handlers.origin + 16 * vector)
    machine.ram.write(TSS + 4, struct.pack("<Q", STACK0))
    machine.ram.write(TSS + 0x24, struct.pack("<Q", IST1))
    _write_io_bitmap(machine)
    _tables64(machine)
    entry = long_mode_entry(
        PROGRAM,
        {"rsp": STACK0},
        cr3=TABLES,
        gdt=(GDT, 0x7F),
        code_selector=KERNEL_CODE,
        data_selector=KERNEL_DATA,
    )
    machine.cpu.enter(_surroundings(entry, {"cr4": 0x620, "efer": entry.efer | 0x801}))
    return program


def set_gate(machine: Machine, vector: int, address: int, ist: int = 0) -> None:
    """A 64-bit interrupt gate."""
    gate = 0xEE00 if vector in (3, 4, EXIT_VECTOR) else 0x8E00
    low = (address & 0xFFFF) | KERNEL_CODE << 16 | ist << 32 | gate << 32 | (address >> 16 & 0xFFFF) << 48
    machine.ram.write(IDT + 16 * vector, struct.pack("<QQ", low, address >> 32))


def page64(machine: Machine, address: int, entry: int) -> None:
    """Replace the entry of one 4 KiB page below 2 MiB (long mode)."""
    machine.poke(TABLES + 0x3000 + 8 * (address >> 12), entry)


def to_user(label: str, flags: int = 2, bits: int = 64, code: int = USER_CODE64) -> str:
    """Code that leaves ring 0 for ``label``."""
    stack, ending = ("r", "iretq") if bits == 64 else ("e", "iretd")
    return f"""
        push {USER_DATA}
        push {STACK3}
        push {flags}
        push {code if bits == 64 else USER_CODE32}
        lea {stack}ax, [{label}]
        push {stack}ax
        {ending}
    """


def _surroundings(entry: Entry, extra: dict[str, int]) -> Entry:
    task = Segment(TASK, TSS, TSS_LIMIT, TSS_LOADED)
    changed: dict[str, Any] = dict(extra)
    return dataclasses.replace(entry, idt=(IDT, 0xFFF), segments={**entry.segments, "tr": task}, **changed)


def _write_gdt(machine: Machine, selector: int, code: int) -> None:
    segments = {
        selector: Segment(0, 0, FLAT_LIMIT, code),
        KERNEL_DATA: Segment(0, 0, FLAT_LIMIT, DATA32),
        USER_CODE32: Segment(0, 0, FLAT_LIMIT, CODE32 | DPL3),
        USER_DATA: Segment(0, 0, FLAT_LIMIT, DATA32 | DPL3),
        USER_CODE64: Segment(0, 0, FLAT_LIMIT, CODE64 | DPL3),
        TASK: Segment(0, TSS, TSS_LIMIT, 0x8900),
        ABSENT: Segment(0, 0, FLAT_LIMIT, DATA32 & ~0x8000),
        LOW_CODE16: Segment(0, 0, 0xFFFF, CODE16),
    }
    for number, segment in segments.items():
        machine.poke(GDT + (number & ~7), segment.descriptor)


def _write_io_bitmap(machine: Machine) -> None:
    machine.poke(TSS + 0x66, IO_BITMAP, 2)
    machine.ram.write(TSS + IO_BITMAP, b"\xff" * (IO_PORTS // 8 + 1))


def allow_port(machine: Machine, port: int) -> None:
    """Clear a port's bit in the TSS."""
    at = TSS + IO_BITMAP + port // 8
    machine.poke(at, machine.word(at, 1) & ~(1 << port % 8), 1)


_OPEN = PRESENT | WRITABLE | USER


def _tables32(machine: Machine) -> dict[str, int]:
    """4 MiB by 4 KiB pages, then 4 MiB pages; CR4.PSE."""
    entries = [n << 12 | _OPEN for n in range(1024)]
    directory = [TABLES + 0x1000 | _OPEN, *(n << 22 | LARGE | _OPEN for n in range(1, 1024))]
    machine.ram.write(TABLES, struct.pack("<2048I", *directory, *entries))
    return {"cr0": 0x8001_0031, "cr3": TABLES, "cr4": 0x10}


def _tables_pae(machine: Machine) -> dict[str, int]:
    pointers = [TABLES + 0x1000 | 1, 0, 0, TABLES + 0x3000 | 1]
    machine.ram.write(TABLES, struct.pack("<4Q", *pointers))
    first = [TABLES + 0x2000 | _OPEN, *(n << 21 | LARGE | _OPEN for n in range(1, 512))]
    pages = [n << 12 | _OPEN for n in range(512)]
    last = [3 << 30 | n << 21 | LARGE | _OPEN for n in range(512)]
    machine.ram.write(TABLES + 0x1000, struct.pack("<1536Q", *first, *pages, *last))
    return {"cr0": 0x8001_0031, "cr3": TABLES, "cr4": 0x20, "efer": 0x800}


def _tables64(machine: Machine) -> None:
    top = [TABLES + 0x1000 | _OPEN, *[0] * 511]
    pointers = [TABLES + 0x2000 | _OPEN, 1 << 30 | LARGE | _OPEN, 0, TABLES + 0x4000 | _OPEN, *[0] * 508]
    first = [TABLES + 0x3000 | _OPEN, *(n << 21 | LARGE | _OPEN for n in range(1, 512))]
    pages = [n << 12 | _OPEN for n in range(512)]
    last = [3 << 30 | n << 21 | LARGE | _OPEN for n in range(512)]
    machine.ram.write(TABLES, struct.pack("<2560Q", *top, *pointers, *first, *pages, *last))


_WITH_ERROR = (8, 10, 11, 12, 13, 14, 17)


def _stubs() -> str:
    return "\n".join(
        f".org {16 * n}\n {'' if n in _WITH_ERROR else 'push 0'}\n push {n}\n jmp common" for n in range(0x50)
    )


def _copies(register: str, stack: str, word: int) -> str:
    return "\n".join(
        f"mov {register}, [{stack} + {(2 + field) * word}]\n mov [ebx + {8 * field}], {register}"
        for field in range(7)
    )


def _handlers(bits: int) -> str:
    """Sixteen bytes a vector, then the common part."""
    a, b, sp, word, resume = (
        ("rax", "rbx", "rsp", 8, "r15") if bits == 64 else ("eax", "ebx", "esp", 4, "edi")
    )
    vector, rip = f"[{sp} + {2 * word}]", f"[{sp} + {4 * word}]"
    return f"""
    {_stubs()}
    common:
        push {a}
        push {b}
        mov ebx, ds:[{LOG}]
        inc dword ptr ds:[{LOG}]
        and ebx, 63
        shl ebx, 6
        add ebx, {LOG + 0x40}
        {_copies(a, sp, word)}
        mov {a}, cr2
        mov [ebx + 56], {a}
        mov {a}, {vector}
        cmp eax, 0x40
        jae resume
        cmp eax, {EXIT_VECTOR}
        je stop
        test {resume}, {resume}
        jz stop
        cmp {resume}, -1
        je resume
        mov {rip}, {resume}
        xor {resume}, {resume}
    resume:
        pop {b}
        pop {a}
        add {sp}, {2 * word}
        {"iretq" if bits == 64 else "iretd"}
    stop:
        pop {b}
        pop {a}
        hlt
        jmp stop
    """
