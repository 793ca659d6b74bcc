"""Faults of the guest's time: its time stamp counter against virtual time (SDM vol. 3 17.17).

Devices keep virtual time.  A deadline of the local APIC's timer that is given as a TSC value is converted
with the counter as it is when it is written: drift during the wait moves it by no more than that drift.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from vmm.clock import Timer

if TYPE_CHECKING:
    from vmm.machine import Machine


class GuestClock:
    """The time stamp counter of one machine."""

    __slots__ = ("_end", "_machine")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._end: Timer | None = None

    def jump(self, by_ns: int) -> None:
        """Forward or back, once."""
        cell = ctypes.c_int64.from_address(self._machine.cpu.tsc_offset_address)
        cell.value += by_ns

    def drift(self, ppm: int, for_ns: int) -> None:
        """From now on ``ppm`` millionths faster than virtual time; for so long, or until another drift."""
        clock, block = self._machine.clock, self._machine.cpu.block
        self.jump(self._machine.cpu.drift_ns)
        block["DRIFT_FROM"], block["DRIFT_PPM"] = clock.now_ns, ppm
        if self._end is None:
            self._end = clock.timer("drift ends", lambda: self.drift(0, 0))
        if for_ns:
            self._end.arm(clock.now_ns + for_ns)
        else:
            self._end.cancel()
