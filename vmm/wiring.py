"""Wires between chips: what the board's traces do.

Wires have no state of their own that survives a restore: a device drives its line again from its
registers, and a wire only remembers who pulls it so that several can share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmm.device import Line


class Fan:
    """One driver, several receivers: an ISA request goes to both interrupt controllers."""

    __slots__ = ("_lines",)

    def __init__(self, *lines: Line) -> None:
        self._lines = lines

    def set(self, level: bool) -> None:
        for line in self._lines:
            line.set(level)


class _Input:
    __slots__ = ("_bus", "_index")

    def __init__(self, bus: WiredOr, index: int) -> None:
        self._bus = bus
        self._index = index

    def set(self, level: bool) -> None:
        self._bus.drive(self._index, level)


class WiredOr:
    """Several drivers, one receiver: high while any input is (PCI interrupt lines)."""

    __slots__ = ("_levels", "_line")

    def __init__(self, line: Line) -> None:
        self._line = line
        self._levels: list[bool] = []

    def input(self) -> Line:
        """A new driver's end."""
        self._levels.append(False)
        return _Input(self, len(self._levels) - 1)

    def drive(self, index: int, level: bool) -> None:
        if self._levels[index] != level:
            self._levels[index] = level
            self._line.set(any(self._levels))

    def release(self) -> None:
        """Forget who pulls, before every driver says so again; the receiver keeps its level."""
        self._levels = [False] * len(self._levels)


class Gate:
    """A signal that is on while any of several ports wants it (A20)."""

    __slots__ = ("_set", "_wishes")

    def __init__(self, ports: Sequence[str], apply: Callable[[bool], None]) -> None:
        self._wishes = dict.fromkeys(ports, False)
        self._set = apply

    def wish(self, port: str) -> Callable[[bool], None]:
        """What ``port`` calls to say what it wants."""

        def say(level: bool) -> None:
            before = any(self._wishes.values())
            self._wishes[port] = level
            after = any(self._wishes.values())
            if before != after:
                self._set(after)

        return say
