"""A TAP for a card that was made without offloads, such as that of a snapshot taken unplugged.

Such a card knows no virtio-net header (virtio 1.2, section 5.1.6), and a TAP always has one.  An
all-zero header says of a frame that nothing is left to do; the kernel is told to complete what it
sends to us in the same way.
"""

from __future__ import annotations

from vmm.backends.net import VNET_HEADER
from vmm.backends.tap import Tap

_NOTHING_LEFT = bytes(VNET_HEADER)


class WholeFrames:
    """``tap`` without its headers."""

    __slots__ = ("_tap",)
    offloads = False

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        tap.set_offloads(checksum=False, tso4=False, tso6=False)

    @property
    def dropped(self) -> int:
        return self._tap.dropped

    @property
    def pending_output(self) -> bool:
        return self._tap.pending_output

    def fileno(self) -> int:
        return self._tap.fileno()

    def receive(self) -> bytes | None:
        frame = self._tap.receive()
        return None if frame is None else frame[VNET_HEADER:]

    def transmit(self, frame: bytes | memoryview) -> None:
        self._tap.transmit(_NOTHING_LEFT + bytes(frame))

    def flush(self) -> None:
        self._tap.flush()

    def close(self) -> None:
        self._tap.close()
