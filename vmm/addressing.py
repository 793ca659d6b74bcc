"""RAM as an outsider reaches it: by physical or by virtual address, in pieces that lie in one page each.

Virtual addresses are linear ones, translated by the page tables as they are now (:mod:`vmm.cpu.paging`).
"""

from __future__ import annotations

from collections.abc import Sequence

from vmm.cpu import paging
from vmm.cpu.cpu import Cpu
from vmm.cpu.register_file import RegisterFile
from vmm.errors import BadAddress
from vmm.ram import PAGE_SIZE, Ram

Places = Sequence[tuple[int, int]]
"""Physical address and length of each piece."""


class Memory:
    """The RAM of one processor."""

    __slots__ = ("_registers", "ram")

    def __init__(self, cpu: Cpu, ram: Ram) -> None:
        self._registers = RegisterFile(cpu)
        self.ram = ram

    def translate(self, address: int) -> int | None:
        """Physical address of a linear one, or None where nothing is mapped."""
        cr0, cr3, cr4, efer = (self._registers[name] for name in ("cr0", "cr3", "cr4", "efer"))
        return paging.translate(self._read, cr0, cr3, cr4, efer, address)

    def _read(self, address: int, length: int) -> bytes:
        try:
            return self.ram.read(address, length)
        except BadAddress:
            return b"\xff" * length

    def places(self, address: int, size: int, *, virtual: bool) -> Places:
        """Where these bytes lie; BadAddress when some are not mapped or not RAM."""
        found, done = [], 0
        while done < size:
            at = address + done
            length = min(size - done, PAGE_SIZE - at % PAGE_SIZE)
            physical = self.translate(at) if virtual else at
            if physical is None:
                raise BadAddress(at, length)
            self.ram.offset(physical, length)
            found.append((physical, length))
            done += length
        return found

    def mapped(self, address: int, size: int) -> int:
        """How many of ``size`` bytes from linear ``address`` on are mapped: all, or those of its page."""
        in_page = PAGE_SIZE - address % PAGE_SIZE
        return size if size <= in_page or self.translate(address + in_page) is not None else in_page

    def read(self, places: Places) -> bytes:
        """What they hold."""
        return b"".join(self.ram.read(address, length) for address, length in places)

    def write(self, places: Places, data: bytes) -> None:
        """Fill them with ``data``."""
        done = 0
        for address, length in places:
            self.ram.write(address, data[done : done + length])
            done += length
