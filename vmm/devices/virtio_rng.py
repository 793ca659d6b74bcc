"""The virtio entropy device, seeded: what it gives is decided when the machine is made.

Source: VIRTIO version 1.2, section 5.4; BLAKE2b of RFC 7693, keyed, in counter mode.

Two machines with one seed give their guests one stream, which replay and lock-step need.  The
stream is as unpredictable as the seed to anybody who does not know it.  A caller who wants fresh
randomness draws a seed from the host and logs it; the device itself never does.

Not modelled: the leak queue of version 1.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated

from vmm.device import Line, Memory
from vmm.devices.virtio_buffer import Segments, scatter
from vmm.devices.virtio_pci import VirtioPci, VirtioState
from vmm.devices.virtio_queue import QueueState, RingViolation, Violation
from vmm.state import field, length, u64

DEVICE_TYPE = 4
CLASS_OTHER = 0xFF_00_00
QUEUE_SIZES = (64,)
BLOCK_SIZE = hashlib.blake2b.MAX_DIGEST_SIZE
REQUEST_MAX = 4096
"""Bytes given for one buffer; a driver that wanted more asks again (5.4.6.1 lets us give less)."""


def _queues() -> list[QueueState]:
    return [QueueState(size=size) for size in QUEUE_SIZES]


class VirtioRngState(VirtioState):
    """Where in the stream we are; what is left of a block after a request is thrown away."""

    queues: Annotated[list[QueueState], length(1)] = field(default_factory=_queues)
    blocks: u64 = 0


class VirtioRng(VirtioPci):
    """A source of bytes that depend on ``seed`` and on how many were taken before."""

    __slots__ = ("_key",)

    state: VirtioRngState

    def __init__(
        self, seed: bytes, memory: Memory, irq: Line | None, msi: Callable[[int, int], None]
    ) -> None:
        super().__init__(DEVICE_TYPE, CLASS_OTHER, 0, QUEUE_SIZES, 0, memory, irq, msi)
        self._key = hashlib.blake2b(seed).digest()
        self.reset()

    def _fresh(self) -> VirtioRngState:
        return VirtioRngState(config=bytes(self._power_on))

    def _notified(self, index: int) -> bool:
        return self.queues[index].serve(self._request)

    def _request(self, _readable: Segments, _size: int, writable: Segments, room: int) -> int:
        if not writable:
            raise RingViolation(Violation.BUFFER_LAYOUT)
        data = self._stream(min(room, REQUEST_MAX))
        scatter(self._memory, writable, data)
        return len(data)

    def _stream(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        first = self.state.blocks
        self.state.blocks = last = first + -(-size // BLOCK_SIZE)
        blocks = [
            hashlib.blake2b(number.to_bytes(8, "little"), key=self._key).digest()
            for number in range(first, last)
        ]
        return b"".join(blocks)[:size]
