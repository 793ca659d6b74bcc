"""What every chip on the 8-bit side of the bus shares: wide accesses and ports that sit apart.

Source: IEEE P996 (ISA), byte steering.  A 16-bit or wider access to an 8-bit device is run by the
bus controller as one byte cycle per address, lowest address first.
"""

from __future__ import annotations

from typing import Any, Protocol

from vmm.device import IoDevice


class BytePorts(Protocol):
    """The part of a chip that a byte cycle needs."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


def read_bytes(chip: BytePorts, offset: int, size: int) -> int:
    """A wide read as byte cycles."""
    value = 0
    for index in range(size):
        value |= chip.read(offset + index, 1) << (8 * index)
    return value


def write_bytes(chip: BytePorts, offset: int, size: int, value: int) -> None:
    """A wide write as byte cycles."""
    for index in range(size):
        chip.write(offset + index, 1, value >> (8 * index) & 0xFF)


class View:
    """``count`` ports of a chip that the board decodes apart: offset 0 here is ``first`` there.

    A view has no state: it shows the chip's.
    """

    __slots__ = ("_chip", "_count", "_first")

    def __init__(self, chip: IoDevice, first: int, count: int) -> None:
        self._chip = chip
        self._first = first
        self._count = count

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        if 0 <= offset < self._count:
            return self._chip.read(self._first + offset, 1)
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
        elif 0 <= offset < self._count:
            self._chip.write(self._first + offset, 1, value)

    @property
    def state(self) -> Any:
        return self._chip.state

    @state.setter
    def state(self, state: Any) -> None:
        self._chip.state = state

    def reset(self) -> None:
        self._chip.reset()

    def restored(self) -> None:
        self._chip.restored()
