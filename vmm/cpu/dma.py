"""What a processor does for large transfers of bus masters (:mod:`vmm.dma`): two loops in compiled code.

One does for every row of a table what :meth:`vmm.ram.Ram.offset` does, the other looks for translated
code in many pieces, so that :meth:`vmm.cpu.cpu.Cpu.invalidate` is called only where there is some.
"""

from __future__ import annotations

import ctypes
from typing import Any

from vmm.dma import ROW, Vectors
from vmm.errors import BadAddress
from vmm.ram import HIGH_BASE, Ram

_WORD, _POINTER = ctypes.c_int64, ctypes.c_void_p
# They take microseconds: less than it can take to get the interpreter's lock back.
_LIST = ctypes.PYFUNCTYPE(_WORD, _POINTER, _WORD, _WORD, *[_WORD] * 4)
_HAS_CODE = ctypes.PYFUNCTYPE(_WORD, *[_WORD] * 4)


def ends(ram: Ram) -> tuple[int, int, int]:
    """Where its low part ends, and its high part begins and ends."""
    low, *high = ram.regions
    return low[2], HIGH_BASE, HIGH_BASE + (high[0][2] if high else 0)


class Dma:
    """For ``ram``, and the code pages of the control block at ``control``."""

    __slots__ = ("_control", "_ends", "_has_code", "_host", "_list")

    def __init__(self, ram: Ram, callbacks: dict[str, int], control: int) -> None:
        self._host = ram.host_address
        self._ends = ends(ram)
        self._control = control
        self._list: Any = _LIST(callbacks["list_pieces"])
        self._has_code: Any = _HAS_CODE(callbacks["has_code"])

    def listed(self, table: bytes, vectors: Vectors) -> int:
        size: int = self._list(table, vectors.count, vectors.address, self._host, *self._ends)
        if size < 0:
            raise BadAddress(*ROW.unpack_from(table, ROW.size * (-1 - size)))
        return size

    def has_code(self, vectors: Vectors) -> bool:
        return bool(self._has_code(self._control, vectors.address, vectors.count, self._host))
