"""Exact stops, as Python asks for them: the words of :mod:`vmm.cpu.exact`.

Places are a charge for instructions, a virtual time, and addresses with a number of executions.  When the
next block holds one, :meth:`vmm.cpu.cpu.Cpu.run` returns Stop.PLACE before it, and :meth:`Parts.take_place`
says how many of its instructions come first; :meth:`Parts.want` and another run execute them.

While :attr:`Parts.inside`, the processor stands inside a block that is charged whole.  Nothing may happen to
the machine there that does not happen to it between two instructions: no alarm, no interrupt, no input.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

from vmm.clock import NEVER_NS
from vmm.cpu import control, layout, library
from vmm.cpu.engine import Engine

_U64 = (1 << 64) - 1
_REST = control.index("REST")


class Parts:
    """Places to stop at, and the block that the processor is inside of, if any."""

    __slots__ = ("_block", "_cflags", "_code_base", "_engine", "_rip", "_stuck", "_watches")

    def __init__(self, engine: Engine, rip: ctypes.c_uint64) -> None:
        self._engine = engine
        self._block = engine.block
        self._rip = rip
        self._cflags = ctypes.c_uint32.from_address(engine.cpu + layout.CPU_CFLAGS_NEXT)
        self._code_base = ctypes.c_uint64.from_address(engine.env + layout.CS + layout.SEGMENT_BASE)
        self._watches = np.zeros((0, control.WATCH_WORDS), np.int64)
        self._stuck = np.zeros((0, control.STUCK_WORDS), np.int64)

    # Where the processor is

    @property
    def instructions(self) -> int:
        """Instructions that the clock was charged for and that are not ahead, since this machine was made."""
        block = self._block
        return (block.now_ns - block["NOT_CODE"]) // block["COST_INSTRUCTION"] - block["REST"]

    @property
    def inside(self) -> bool:
        """Between two instructions of one block, and not between two blocks?"""
        return self._block.words[_REST] != 0

    def begins_ns(self, ahead: int) -> int:
        """When the instruction begins that so many others come before, of the block at hand."""
        block = self._block
        return block.now_ns + (ahead - block["REST"]) * block["COST_INSTRUCTION"]

    def take_place(self) -> tuple[int, int | None] | None:
        """After Stop.PLACE, once: instructions before the place, and the watched address if it is one."""
        block = self._block
        if block["REASON"] != control.STOPPED_PLACE:
            return None
        block["REASON"] = control.STOPPED_HALT
        row = block["FOUND"]
        if row == 0:
            return block["INDEX"], None
        number = (row - self._watches.ctypes.data) // self._watches.strides[0]
        return block["INDEX"], int(self._watches[number, 0]) & _U64

    @property
    def address(self) -> int:
        """Linear address of the next instruction."""
        return (self._rip.value + self._code_base.value) & _U64

    # Where it is to stop

    def stop_at(self, instruction: int | None, time_ns: int) -> None:
        """Before the instruction with this number, as :attr:`instructions` counts; and at ``time_ns``."""
        block = self._block
        charge = NEVER_NS if instruction is None else min(instruction * block["COST_INSTRUCTION"], NEVER_NS)
        block["STOP_AT"], block["STOP_AT_NS"] = charge, time_ns
        block["EXACT"] = int(min(charge, time_ns) < NEVER_NS)
        block.look_now()

    def watch(self, addresses: Mapping[int, int]) -> None:
        """Before the instruction at each linear address, when it is executed for so many times more."""
        old = set(self._watches[:, 0].tolist())
        rows = [(_signed(address), hits) for address, hits in sorted(addresses.items())]
        self._watches = np.array(rows, np.int64).reshape(-1, control.WATCH_WORDS)
        self._block["WATCHES"], self._block["WATCH_COUNT"] = self._watches.ctypes.data, len(rows)
        if {address for address, _ in rows} - old:
            self._retranslate()

    def watched(self) -> dict[int, int]:
        """How many executions each watched address has left."""
        return {address & _U64: hits for address, hits in self._watches.tolist()}

    def want(self, instructions: int) -> None:
        """The next run executes so many instructions of the block at hand, and stops."""
        self._block["SEGMENT"] = instructions
        if not self.inside:
            self._block["EXACT"] = 1
            self._block["PART_AT"] = _signed(self.address)
            self._block.look_now()

    def want_nothing(self) -> None:
        """What was wanted did not begin: an interrupt or an alarm came first."""
        self._block["SEGMENT"] = 0

    def leave_block(self) -> None:
        """What comes next is an ordinary block, charged anew: the guest was changed."""
        self._block["REST"] = self._block["QUIET"] = 0

    # Called by the processor

    def resume(self) -> None:
        """The next block is the rest of the one that the processor is inside of."""
        block = self._block
        block["PART_AT"] = _signed(self.address)
        block["PART"] = block["REST"]
        block["STAGE"], block["EXACT"] = control.RESUME, 1
        self._cflags.value = layout.TB_CFLAGS_DEFAULT | block["REST"]

    def drop(self) -> None:
        """A run ended in the middle of a part: the guest halted, or somebody raised an exception."""
        block = self._block
        block["STAGE"] = block["REST"] = block["QUIET"] = 0
        block["EXACT"] = int(min(block["STOP_AT"], block["STOP_AT_NS"]) < NEVER_NS)
        self._cflags.value = layout.NO_CFLAGS

    # Bits that are stuck

    def stick(self, cells: list[tuple[int, int, int, int, int]]) -> None:
        """These words have stuck bits from now on, and no others (vmm.cpu.stuck)."""
        self._stuck = np.array(cells, np.uint64).view(np.int64).reshape(-1, control.STUCK_WORDS)
        self._block["STUCK"], self._block["STUCK_COUNT"] = self._stuck.ctypes.data, len(cells)
        wanted = 0 if cells else self._engine.patching
        if self._block["PATCHING"] != wanted:
            self._block["PATCHING"] = wanted
            self._retranslate()

    def _retranslate(self) -> None:
        """Prologues that are patched pass by what is asked for in :meth:`watch` and :meth:`stick`."""
        self._engine.library.ctl(self._engine.uc, library.UC_CTL_TB_FLUSH)


def _signed(address: int) -> int:
    return address - (1 << 64) if address >> 63 else address
