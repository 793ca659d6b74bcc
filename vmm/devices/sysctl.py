"""The three control ports of the PC chip set: 0x61, 0x92 and 0xCF9.

Source: Intel 82371SB (PIIX3) data sheet, registers NMISC "NMI Status and Control" (0x61),
"Port 92" (0x92) and RC "Reset Control" (0xCF9).

Not modelled: a speaker (its bit is stored), NMI sources (SERR# and IOCHK# never come, so bits 6
and 7 of port 0x61 read 0), the time that a reset takes.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.device import Clock
from vmm.devices.isa import read_bytes, write_bytes
from vmm.devices.pit import Pit
from vmm.state import State, u8

GATE2 = 0x01
SPEAKER_DATA = 0x02
PORT_B_WRITABLE = 0x0F  # bits 2 and 3 mask the NMI sources
REFRESH_TOGGLE = 0x10
OUTPUT2 = 0x20
REFRESH_NS = 15_085
"""Counter 1 of the PC's timer divides by 18: one memory refresh cycle each 15.085 us."""

FAST_RESET = 0x01
FAST_A20 = 0x02

RESET_SYSTEM = 0x02  # SRST: hard rather than soft; the machine here knows one kind
RESET_CPU = 0x04  # RCPU: a reset begins when this bit rises
RESET_WRITABLE = RESET_SYSTEM | RESET_CPU


class SystemControlBState(State):
    control: u8 = 0


class SystemControlB:
    """Port 0x61: counter 2 of the timer and the refresh clock that old software times itself by."""

    __slots__ = ("_clock", "_pit", "state")

    def __init__(self, pit: Pit, clock: Clock) -> None:
        self.state = SystemControlBState()
        self._pit = pit
        self._clock = clock

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        if offset != 0:
            return 0xFF
        value = self.state.control
        if self._clock.now_ns // REFRESH_NS & 1:
            value |= REFRESH_TOGGLE
        if self._pit.output2():
            value |= OUTPUT2
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
        elif offset == 0:
            self.state.control = value & PORT_B_WRITABLE
            self.restored()

    def reset(self) -> None:
        self.state = SystemControlBState()
        self.restored()

    def restored(self) -> None:
        self._pit.set_gate2(bool(self.state.control & GATE2))


class SystemControlAState(State):
    control: u8 = 0


class SystemControlA:
    """Port 0x92: the fast ways to reset the processor and to open address line 20.

    ``set_a20`` gets this port's wish; the keyboard controller has one too, and the board ORs them.
    """

    __slots__ = ("_reset", "_set_a20", "state")

    def __init__(self, reset: Callable[[], None], set_a20: Callable[[bool], None]) -> None:
        self.state = SystemControlAState()
        self._reset = reset
        self._set_a20 = set_a20

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        return self.state.control if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
        elif offset == 0:
            rises = value & ~self.state.control & FAST_RESET
            self.state.control = value & (FAST_A20 | FAST_RESET)
            self.restored()
            if rises:
                self._reset()

    def reset(self) -> None:
        self.state = SystemControlAState()
        self.restored()

    def restored(self) -> None:
        self._set_a20(bool(self.state.control & FAST_A20))


class ResetControlState(State):
    control: u8 = 0


class ResetControl:
    """Port 0xCF9."""

    __slots__ = ("_reset", "state")

    def __init__(self, reset: Callable[[], None]) -> None:
        self.state = ResetControlState()
        self._reset = reset

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        return self.state.control if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
        elif offset == 0:
            rises = value & ~self.state.control & RESET_CPU
            self.state.control = value & RESET_WRITABLE
            if rises:
                self._reset()

    def reset(self) -> None:
        self.state = ResetControlState()

    def restored(self) -> None:
        """No lines and no alarms: a reset is a moment, not a level."""
