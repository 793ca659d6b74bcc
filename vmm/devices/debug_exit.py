"""A port that ends the run: what test kernels write to when they are done.

Source: the ISA debug exit device of QEMU (``-device isa-debug-exit``, usually at 0xF4): writing
``v`` ends the emulator with status ``v << 1 | 1``, so that status 0 stays the emulator's own.

The device keeps nothing: what "end" means is up to whoever listens.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.state import State

PORT_COUNT = 4


class DebugExitState(State):
    """No registers."""


class DebugExit:
    """``exit`` gets the process status that the guest asks for."""

    __slots__ = ("_exit", "state")

    def __init__(self, exit: Callable[[int], None]) -> None:  # the name that the board uses
        self.state = DebugExitState()
        self._exit = exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if 0 <= offset < PORT_COUNT:
            self._exit(value << 1 | 1)

    def reset(self) -> None:
        self.state = DebugExitState()

    def restored(self) -> None:
        """No lines and no alarms."""
