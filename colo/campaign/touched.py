"""Where a golden run was: the pages that it wrote, by physical and virtual address, and a sample of its code.

*Pages.*  A page counts as written when a mark finds its hash changed.  Its virtual addresses are read from
the page tables that are in force at that mark (SDM vol. 3, 4.5): all that map it, so a page of a Linux guest
has its address in the process, if that was running, and one in the kernel's direct map.  An address of a
process is mapped only while that process runs; a fault that comes at another time finds nothing there, and
says so.

*Code.*  The engine counts no executions of single instructions unless it is asked to, so the sample is the
block that the guest was about to execute at evenly spread numbers of instructions: addresses where it
computes, each with how often it was found there, which is at least how often it was executed.  How many
instructions a run has is known when it ends; so the sample begins dense, and whenever it is twice as large as
wanted every second entry goes, and from then on half as many come.

Not found out: pages that were only read; page tables of 32-bit guests and of PAE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from colo.campaign.subject import Subject
from vmm import hashing
from vmm.api import Pc
from vmm.errors import BadAddress
from vmm.machine import Machine
from vmm.ram import PAGE_SIZE, Ram

SAMPLES = 1024
"""Addresses of code that are wanted at least, where the run has so many instructions."""
FIRST_STEP = 64
"""Instructions between two, at first."""
VIRTUAL_MAX = 1 << 20
"""Virtual pages that are kept: a guest may map its RAM as often as it likes."""
TABLES_MAX = 1 << 16
"""Page tables that one walk reads: a guest may have them in a circle."""
CR0_PG, EFER_LMA = 1 << 31, 1 << 10
PRESENT, LARGE = 1 << 0, 1 << 7
FRAME = 0x000F_FFFF_FFFF_F000
TOP_SHIFT, PAGE_SHIFT, INDEX_BITS = 39, 12, 9
SIGN = 1 << 47

Words = npt.NDArray[np.uint64]


class Touched:
    """Notes, at marks and between them, what a golden run touches."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._hashes = hashing.page_hashes(subject.machine.ram.array)
        self._written = np.zeros(len(self._hashes), np.bool_)
        self._virtual: set[int] = set()
        self._places: list[int] = []
        self._step, self._at = FIRST_STEP, subject.machine.stops.instructions
        self._place = subject.machine.stops.at_instruction(self._at, self._sample)

    def _sample(self, ahead: int) -> None:
        """``ahead`` instructions before the number that was asked for."""
        stops = self._subject.machine.stops
        self._places.append(stops.address)
        if len(self._places) >= 2 * SAMPLES:
            del self._places[::2]
            self._step *= 2
        self._at = max(self._at, stops.instructions + ahead) + self._step
        self._place = stops.at_instruction(self._at, self._sample)

    def end(self) -> None:
        """No more samples."""
        self._subject.machine.stops.cancel(self._place)

    def note_pages(self) -> list[int]:
        """What was written since the last time, as numbers of pages of the mapping.

        What was put back in between is not found.
        """
        now = hashing.page_hashes(self._subject.machine.ram.array)
        new = (now != self._hashes).any(axis=1)
        self._hashes = now
        self._written |= new
        if len(self._virtual) < VIRTUAL_MAX:
            self._virtual |= virtual_pages(self._subject.machine, new)
        written: list[int] = np.flatnonzero(new).tolist()
        return written

    @property
    def pages(self) -> tuple[int, ...]:
        """Numbers of physical pages, ascending."""
        ram = self._subject.machine.ram
        offsets = (int(page) * PAGE_SIZE for page in np.flatnonzero(self._written))
        return tuple(ram.address(offset) // PAGE_SIZE for offset in offsets)

    @property
    def virtual(self) -> tuple[int, ...]:
        """Numbers of virtual pages, ascending."""
        return tuple(sorted(self._virtual))

    @property
    def executed(self) -> tuple[tuple[int, int], ...]:
        """Addresses and counts, by address."""
        return tuple(sorted(Counter(self._places).items()))


def virtual_pages(machine: Machine, wanted: npt.NDArray[np.bool_]) -> set[int]:
    """Numbers of the virtual pages that the page tables of this moment map to ``wanted``."""
    ram = machine.ram
    registers = Pc(machine).registers
    if not registers["cr0"] & CR0_PG:
        return {ram.address(int(page) * PAGE_SIZE) // PAGE_SIZE for page in np.flatnonzero(wanted)}
    if not registers["efer"] & EFER_LMA:
        return set()
    found: set[int] = set()
    for linear, physical, count in _leaves(ram, registers["cr3"] & FRAME):
        try:
            first = ram.offset(physical, count * PAGE_SIZE) // PAGE_SIZE
        except BadAddress:
            continue  # a device, or a mapping that ends beyond RAM
        start = (linear | -SIGN & ((1 << 64) - 1) if linear & SIGN else linear) // PAGE_SIZE
        found |= {start + int(page) for page in np.flatnonzero(wanted[first : first + count])}
    return found


def _leaves(ram: Ram, top: int) -> Iterator[tuple[int, int, int]]:
    """Linear address, physical address and number of pages of each mapping."""
    waiting = [(top, 0, TOP_SHIFT)]
    left = TABLES_MAX
    while waiting and left:
        table, linear, shift = waiting.pop()
        left -= 1
        try:
            entries: Words = np.frombuffer(ram.read(table, PAGE_SIZE), np.uint64)
        except BadAddress:
            continue  # a table outside of RAM: the processor would find nothing there either
        for index in np.flatnonzero(entries & np.uint64(PRESENT)):
            entry = int(entries[index])
            at = linear | int(index) << shift
            if shift == PAGE_SHIFT or (entry & LARGE and shift < TOP_SHIFT):
                size = 1 << shift
                yield at, entry & FRAME & ~(size - 1), size // PAGE_SIZE
            else:
                waiting.append((entry & FRAME, at, shift - INDEX_BITS))
