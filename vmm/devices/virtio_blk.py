"""The virtio block device: one queue, every request answered within its notification.

Source: VIRTIO version 1.2, section 5.2.

A request is read and written whole: the header is the first 16 bytes that the device may read, the
status the last byte that it may write, however the driver has cut them up (2.7.4).  A request that
the medium cannot fulfil, or that a broken back end does not, ends in VIRTIO_BLK_S_IOERR; one
without room for header and status breaks the ring.

Not modelled: DISCARD and WRITE_ZEROES (an image under an overlay has no way to give blocks back),
several queues, topology, a write-back switch (writes are held by the back end until FLUSH),
zoned and secure-erase commands.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated

from vmm.device import Line, Memory
from vmm.devices.block import SECTOR_BYTES, BlockBackend
from vmm.devices.virtio_buffer import DESCRIPTOR_SIZE, Segments, Table, gather, scatter
from vmm.devices.virtio_pci import VirtioPci, VirtioState
from vmm.devices.virtio_queue import QueueState, RingViolation, Violation
from vmm.errors import BackendError, ConfigError
from vmm.state import field, length, u64

DEVICE_TYPE = 2
CLASS_STORAGE = 0x01_00_00
QUEUE_SIZES = (512,)
"""So long that a megabyte of pages from anywhere is one request."""

F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH = 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 9

T_IN, T_OUT, T_FLUSH, T_GET_ID = 0, 1, 4, 8
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
HEADER_SIZE = 16
ID_SIZE = 20

SEGMENT_MAX = 1 << 14
SEGMENTS_MAX = 510
"""With header and status, a request of a driver that keeps to these has 512 descriptors."""
REQUEST_MAX = HEADER_SIZE + SEGMENT_MAX * SEGMENTS_MAX
"""Bytes of a request: what one notification may make us copy at once, about 8 MiB."""

_HEADER = struct.Struct("<IxxxxQ")
_CONFIG = struct.Struct("<QIIHBBI")


def _queues() -> list[QueueState]:
    return [QueueState(size=size) for size in QUEUE_SIZES]


class VirtioBlkState(VirtioState):
    """Nothing but counters: no request is ever in flight."""

    queues: Annotated[list[QueueState], length(1)] = field(default_factory=_queues)
    reads: u64 = 0
    writes: u64 = 0
    flushes: u64 = 0
    sectors_read: u64 = 0
    sectors_written: u64 = 0
    errors: u64 = 0


class VirtioBlk(VirtioPci):
    """One disk.  ``serial`` is what GET_ID answers, at most 20 ASCII characters."""

    __slots__ = ("_backend", "_serial")

    state: VirtioBlkState

    def __init__(
        self,
        backend: BlockBackend,
        memory: Memory,
        irq: Line | None,
        msi: Callable[[int, int], None],
        serial: str = "",
    ) -> None:
        features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (F_RO if backend.read_only else 0)
        super().__init__(DEVICE_TYPE, CLASS_STORAGE, features, QUEUE_SIZES, _CONFIG.size, memory, irq, msi)
        self._backend = backend
        if not serial.isascii() or len(serial) > ID_SIZE:
            raise ConfigError(f"disk serial {serial!r}: expected at most {ID_SIZE} ASCII characters")
        self._serial = serial.encode("ascii").ljust(ID_SIZE, b"\0")
        self.reset()

    # What the transport asks.

    def _fresh(self) -> VirtioBlkState:
        return VirtioBlkState(config=bytes(self._power_on))

    def _device_config(self) -> bytes:
        """Capacity, limits, an absent geometry, the block size."""
        return _CONFIG.pack(self._backend.sectors, SEGMENT_MAX, SEGMENTS_MAX, 0, 0, 0, SECTOR_BYTES)

    def _notified(self, index: int) -> bool:
        return self.queues[index].serve(self._request)

    def _request(self, readable: Segments, size: int, writable: Segments, room: int) -> int:
        if size < HEADER_SIZE or room < 1:
            raise RingViolation(Violation.BUFFER_LAYOUT)
        status, written = self._serve(readable, size, writable, room - 1)
        if status == S_IOERR:
            self.state.errors += 1
        address, length = writable[-1]
        self._memory.write(address + length - 1, bytes((status,)))
        # The used length counts from the start of the buffer (2.7.8.2): the status only if it follows.
        return room if written == room - 1 else written

    # Private.

    def _serve(self, readable: Segments, size: int, writable: Segments, room: int) -> tuple[int, int]:
        """Status, and how many of the ``room`` bytes before it were written."""
        if size > REQUEST_MAX or room > REQUEST_MAX:
            return S_IOERR, 0
        memory, (address, length) = self._memory, readable[0]
        cut = length < HEADER_SIZE
        kind, sector = _HEADER.unpack_from(gather(memory, readable) if cut else memory.view(address, length))
        try:
            if kind == T_IN:
                return self._read(sector, writable, room)
            if kind == T_OUT:
                return self._write(sector, readable, size - HEADER_SIZE), 0
            if kind == T_FLUSH:
                self.state.flushes += 1
                self._backend.flush()
                return S_OK, 0
            if kind == T_GET_ID:
                answer = self._serial[:room]
                scatter(memory, writable, answer)
                return S_OK, len(answer)
        except BackendError:
            return S_IOERR, 0
        return S_UNSUPP, 0

    def _read(self, sector: int, writable: Segments, room: int) -> tuple[int, int]:
        if not self._inside(sector, room):
            return S_IOERR, 0
        memory, count = self._memory, room // SECTOR_BYTES
        if isinstance(writable, Table) and writable[-1][1] == 1:  # the status lies apart, as drivers have it
            pieces = memory.pieces(writable.data[:-DESCRIPTOR_SIZE])
            try:
                self._backend.read_into(sector, pieces)
            finally:
                pieces.written()
        else:
            scatter(memory, writable, self._backend.read(sector, count))
        self.state.reads += 1
        self.state.sectors_read += count
        return S_OK, room

    def _write(self, sector: int, readable: Segments, size: int) -> int:
        if self._backend.read_only or not self._inside(sector, size):
            return S_IOERR
        memory, backend = self._memory, self._backend
        if readable[0][1] != HEADER_SIZE:
            backend.write(sector, memoryview(gather(memory, readable))[HEADER_SIZE:])
        elif isinstance(readable, Table):
            backend.write_from(sector, memory.pieces(readable.data[DESCRIPTOR_SIZE:]))
        else:
            backend.write(sector, gather(memory, readable[1:]))
        self.state.writes += 1
        self.state.sectors_written += size // SECTOR_BYTES
        return S_OK

    def _inside(self, sector: int, size: int) -> bool:
        """Is this a whole number of sectors, at least one, all of them on the medium?"""
        count, odd = divmod(size, SECTOR_BYTES)
        return count > 0 and not odd and sector + count <= self._backend.sectors
