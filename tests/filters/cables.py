"""Back ends whose far end a test holds, and frames that say where they come in an order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from vmm.backends.net import VNET_HEADER, Nowhere

MAC = bytes.fromhex("525400123456")
ARP = bytes.fromhex(
    "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000001 000000000000 0a000002"
)


def frame(number: int, size: int = 60) -> bytes:
    return bytes(14) + number.to_bytes(4, "big") + bytes(size - 18)


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[14:18], "big")


class Cable(Nowhere):
    """A back end that a test hears, and through which it speaks: a pipe carries the readiness."""

    __slots__ = ("_arriving", "_ends", "heard", "on_transmit")

    def __init__(self, offloads: bool = False) -> None:
        super().__init__(offloads)
        self.heard: list[bytes] = []
        self.on_transmit: Callable[[bytes], None] = self.heard.append
        self._arriving: deque[bytes] = deque()
        self._ends = os.pipe2(os.O_NONBLOCK)

    def arrive(self, *frames: bytes) -> None:
        for each in frames:
            os.write(self._ends[1], b"x")  # first: who finds the frame finds the byte too
            self._arriving.append(each)

    def fileno(self) -> int:
        return self._ends[0]

    def receive(self) -> bytes | None:
        if not self._arriving:
            return None
        os.read(self._ends[0], 1)
        return self._arriving.popleft()

    def transmit(self, frame: bytes | memoryview) -> None:
        self.on_transmit(bytes(frame))

    def close(self) -> None:
        if self._ends[0] >= 0:
            for end in self._ends:
                os.close(end)
            self._ends = (-1, -1)

    @property
    def numbers(self) -> list[int]:
        skip = VNET_HEADER if self.offloads else 0
        return [number_of(each[skip:]) for each in self.heard]
