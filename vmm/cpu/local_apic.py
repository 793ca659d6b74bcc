"""Where compiled code finds the registers of the local APIC (:mod:`vmm.cpu.apic_kernel`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

from vmm.cpu.control import ControlBlock

# It takes less than it can take to get the interpreter's lock back.
_ACCEPT = ctypes.PYFUNCTYPE(None, *[ctypes.c_int64] * 3)


class LocalApic:
    """The processor's side of :class:`vmm.devices.lapic.Lapic`."""

    __slots__ = ("_ask", "_block", "_filtered", "_shared", "accept")

    def __init__(self, block: ControlBlock, callbacks: dict[str, int]) -> None:
        self._block = block
        self.accept: Callable[[int, bool], None] = partial(_ACCEPT(callbacks["accept"]), block.address)
        """A fixed interrupt comes; and does it want an EOI?"""
        self._shared: tuple[object, ...] = ()
        self._ask = True
        self._filtered = False

    def share(self, isr: bytearray, tmr: bytearray, irr: bytearray) -> None:
        """Where the registers are from now on; while they are shared they cannot change their size."""
        shared = [(ctypes.c_char * len(vectors)).from_buffer(vectors) for vectors in (isr, tmr, irr)]
        for word, vectors in zip(("APIC_ISR", "APIC_TMR", "APIC_IRR"), shared, strict=True):
            self._block[word] = ctypes.addressof(vectors)
        self._shared = tuple(shared)

    def depends(self, tpr: int, ask: bool) -> None:
        """The task priority; and whether the chip has to be asked for every vector."""
        self._block["APIC_TPR"], self._ask = tpr, ask
        self._decide()

    def filter(self, filtered: bool) -> None:
        """Somebody wants to see every vector first."""
        self._filtered = filtered
        self._decide()

    def _decide(self) -> None:
        self._block["APIC_ALONE"] = not (self._ask or self._filtered)
