"""Nanoseconds for each thing that an emulator must stop for: a bare program, timed by its marks.

``costs.S`` says a letter on COM1 before a loop and a full stop after it; the host notes when each
arrives.  The same program runs under QEMU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks.emulator import WITHIN_S, Board, Emulator, Lost
from tools.benchmarks.host import HERE, compiled
from tools.benchmarks.measure import SIDES
from tools.benchmarks.run import Run

METHOD = (
    "a bare 64-bit program loops over each; nanoseconds for one turn of its loop, which is timed on the host "
    "between two marks on the serial port and includes the loop's own two instructions (see `block`)"
)
END = "."


@dataclass(frozen=True)
class Loop:
    """A loop of costs.S, by its label, and how often it turns: some tens of milliseconds on either side."""

    label: str
    name: str
    turns: int

    def repeated(self, run: Run) -> int:
        """Turns in this run, so many in a quick one too that a busy host does not read both marks at once."""
        return max(run.scaled(self.turns), min(self.turns, TURNS_MIN))


TURNS_MIN = 100_000
LOOPS = (
    Loop("block", "block (decrement, jump)", 50_000_000),
    Loop("load", "load and store", 20_000_000),
    Loop("call", "call and return", 10_000_000),
    Loop("indirect", "indirect jump", 10_000_000),
    Loop("rdtsc", "RDTSC", 1_000_000),
    Loop("cpuid", "CPUID", 300_000),
    Loop("rdmsr", "RDMSR (kernel GS base)", 300_000),
    Loop("wrmsr", "WRMSR (kernel GS base)", 300_000),
    Loop("int", "software interrupt and IRETQ", 500_000),
    Loop("ud", "exception #UD and IRETQ", 300_000),
    Loop("pf", "exception #PF and IRETQ", 300_000),
    Loop("syscall", "SYSCALL and SYSRET", 1_000_000),
    Loop("ipi", "interrupt: APIC self-IPI, EOI, IRETQ", 30_000),
    Loop("invlpg", "INVLPG and a load", 500_000),
    Loop("cr3", "MOV CR3 and a load", 300_000),
    Loop("in_lsr", "port read, 16550 line status", 50_000),
    Loop("in_imr", "port read, 8259A mask", 50_000),
    Loop("in_pit", "port read, 8254 counter", 50_000),
    Loop("out_imr", "port write, 8259A mask", 50_000),
    Loop("out_post", "port write, nobody there", 50_000),
    Loop("lapic_read", "MMIO read, local APIC", 50_000),
    Loop("lapic_write", "MMIO write, local APIC", 50_000),
    Loop("ioapic_read", "MMIO read, I/O APIC", 50_000),
)


def measure(run: Run) -> None:
    board = Board(multiboot=assembled(run), marks=True)
    measures = [run.measure(loop.name, "ns") for loop in LOOPS]
    for _ in run.rounds():
        for side in SIDES:
            for loop, measure, seconds in zip(LOOPS, measures, timed(side, board), strict=True):
                measure.add(side, seconds / loop.repeated(run) * 1e9)


def assembled(run: Run) -> Path:
    """The program, with the number of turns of each loop in it."""
    turns = [f"-DTURNS_{loop.label}={loop.repeated(run)}" for loop in LOOPS]
    layout = ["-Wl,-T," + str(HERE / "costs.ld"), "-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments"]
    return compiled(HERE / "costs.S", ["-m32", "-nostdlib", "-static", *layout, *turns], "costs")


def letter(index: int) -> str:
    return chr(ord("a") + index)


def timed(side: str, board: Board) -> list[float]:
    """Seconds of each loop."""
    seconds: list[float] = []
    began = 0.0
    with Emulator.start(side, board) as emulator:
        while len(seconds) < len(LOOPS):
            said, came = emulator.read(WITHIN_S)
            for mark in said.decode(errors="replace"):
                if mark == letter(len(seconds)):
                    began = came
                elif mark == END:
                    seconds.append(came - began)
                else:
                    raise Lost(f"{mark!r} on the console, where {letter(len(seconds))!r} or {END!r} was due")
    return seconds
