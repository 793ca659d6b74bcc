"""A split virtqueue on guest memory, for a guest that may be hostile.

Source: Virtual I/O Device (VIRTIO) version 1.2, section 2.7 (split virtqueues), with 2.7.7 and
2.7.10 (notification suppression by event index) and 2.7.5.3 (indirect descriptors).

The guest owns every byte of the rings, so every index, length, address and flag is checked where
it is used; what a driver must not do raises :class:`RingViolation`, with a name, out of this
module and is turned into DEVICE_NEEDS_RESET by the transport.  No loop runs longer than the queue
is long: the index of the available ring is read once per pass, because a hostile guest can aim a
device's own writes at the ring.

Nothing of the rings is kept between calls; the state is a few free-running indices and where the
rings lie.

Taking a buffer and giving it back, which every packet needs, is done by the memory's ``rings`` where it has
some (:class:`vmm.device.Rings`).  What stands here does the same in Python, and says what is right.

Not modelled: packed rings, in-order use, notification data, queue reset (none is offered).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from vmm.device import NOTHING, UNREAD, Memory
from vmm.devices.virtio_buffer import DESCRIPTOR_SIZE, Segments, parts, total
from vmm.errors import BadAddress
from vmm.state import State, u16, u64

QUEUE_SIZE_MAX = 1024
"""The longest queue: bounds a pass over a queue, and a chain, to about a millisecond of ours."""
CHAIN_MAX = QUEUE_SIZE_MAX
"""Descriptors in one chain, also where an indirect table could hold more."""
NO_VECTOR = 0xFFFF

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1
RING_HEADER = 4
USED_ELEMENT_SIZE = 8

_DESCRIPTOR = struct.Struct("<QIHH")
_U16 = struct.Struct("<H")
_USED_ELEMENT = struct.Struct("<II")

Buffer = tuple[int, int, Segments, int, Segments, int]
"""How many more there are, the head's index, what the device reads, its bytes, what it writes, its bytes."""
Work = Callable[[Segments, int, Segments, int], int]
"""Serves one buffer: what it may read, its bytes, what it may write, its bytes; how many bytes it wrote."""


class Violation(IntEnum):
    """What a driver must not do; the values are indices of the counters in the device's state."""

    QUEUE_SIZE = 0
    """Not a power of two, 0, or longer than offered (2.7)."""
    RING_ADDRESS = 1
    """A ring is not aligned as 2.7 requires, or not in RAM."""
    AVAIL_JUMP = 2
    """More buffers made available than the queue has places (2.7.13)."""
    HEAD_RANGE = 3
    """An available ring entry beyond the descriptor table."""
    NEXT_RANGE = 4
    """A ``next`` beyond the descriptor table (2.7.5)."""
    CHAIN_LENGTH = 5
    """A chain with more descriptors than its table, which is to say a loop, or than CHAIN_MAX."""
    ORDER = 6
    """A descriptor to read after one to write (2.7.4.2)."""
    ZERO_LENGTH = 7
    """An empty descriptor."""
    OUTSIDE_RAM = 8
    """A descriptor that is not wholly in RAM."""
    INDIRECT_NOT_OFFERED = 9
    """An indirect descriptor without the feature (2.7.5.3.1)."""
    INDIRECT_NESTED = 10
    """Indirect inside a table, or together with ``next`` (2.7.5.3.1)."""
    INDIRECT_SIZE = 11
    """A table that is not a positive multiple of 16 bytes, or longer than CHAIN_MAX entries."""
    BUFFER_LAYOUT = 12
    """A buffer without the room or the header that the device type requires."""


class RingViolation(Exception):
    """The driver broke the rules; caught by the transport, never seen outside a device."""

    def __init__(self, kind: Violation) -> None:
        super().__init__(kind.name)
        self.kind = kind


class QueueState(State):
    """The registers of one queue and the device's place in its rings."""

    size: u16 = 0
    vector: u16 = NO_VECTOR
    enabled: bool = False
    broken: bool = False
    event_idx: bool = False
    indirect: bool = False
    desc: u64 = 0
    driver: u64 = 0
    device: u64 = 0
    next_avail: u16 = 0
    """The next entry of the available ring that is to be taken."""
    used: u16 = 0
    """The next entry of the used ring that is to be written."""
    published: u16 = 0
    """How far the driver can see."""
    told: u16 = 0
    """How far it was decided whether the driver is to have an interrupt."""


class VirtQueue:
    """The device side of one split virtqueue of at most ``size_max`` entries."""

    __slots__ = ("_memory", "size_max", "state")

    def __init__(self, memory: Memory, size_max: int) -> None:
        assert 0 < size_max <= QUEUE_SIZE_MAX, size_max
        assert size_max & (size_max - 1) == 0, size_max
        self._memory = memory
        self.size_max = size_max
        self.state = QueueState(size=size_max)

    def enable(self) -> None:
        """The driver says that the registers are right: look before believing it."""
        state = self.state
        size = state.size
        if not 0 < size <= self.size_max or size & (size - 1):
            raise RingViolation(Violation.QUEUE_SIZE)
        if state.desc % 16 or state.driver % 2 or state.device % 4:
            raise RingViolation(Violation.RING_ADDRESS)
        try:
            self._memory.view(state.desc, DESCRIPTOR_SIZE * size)
            self._memory.view(state.driver, RING_HEADER + 2 * size + 2)
            self._memory.view(state.device, RING_HEADER + USED_ELEMENT_SIZE * size + 2)
        except BadAddress:
            raise RingViolation(Violation.RING_ADDRESS) from None
        state.enabled = True

    # A pass over the queue.

    def serve(self, work: Work, *, left: int = UNREAD, settle: bool = True) -> bool:
        """Let ``work`` have every buffer there is now; does the driver want an interrupt for that?

        Afterwards the driver is asked to tell of the next one.  ``left``: of a pass that others began.
        """
        head, written = NOTHING, 0
        buffer = self.take(left)
        while buffer is not None:
            left, head, readable, size, writable, room = buffer
            written = work(readable, size, writable, room)
            buffer = self.take(left, head, written) if left else None
        return self.finish(head, written, ask=True, settle=settle)

    def take(self, left: int = UNREAD, head: int = NOTHING, written: int = 0) -> Buffer | None:
        """Give buffer ``head`` back, of which so many bytes were written, and take the next of ``left``.

        None: there is none.  The driver sees nothing of this before ``finish``.
        """
        rings = self._memory.rings
        if rings is None:
            return self._take(left, head, written)
        left, head, readers, writers, size, room, address, length = rings.take(
            self.state, left, head, written
        )
        if left < 0:
            raise RingViolation(Violation(-1 - left))
        if readers + writers > 1:
            readable, writable = parts(rings.rows, readers, writers)
            return left, head, readable, size, writable, room
        if readers:
            return left, head, [(address, length)], size, [], 0
        return (left, head, [], 0, [(address, length)], room) if writers else None

    def finish(
        self, head: int = NOTHING, written: int = 0, *, ask: bool = False, settle: bool = True
    ) -> bool:
        """Give buffer ``head`` back and let the driver see all that was; does it want an interrupt for that?

        ``ask`` it to tell of the next buffer.  Without ``settle`` it may be asked again what it wants.
        """
        state = self.state
        rings = self._memory.rings
        if rings is None:
            wanted = int(self._finish(head, written, ask))
        else:
            wanted = rings.finish(state, head, written, ask)
            if wanted < 0:
                raise RingViolation(Violation(-1 - wanted))
        if settle:
            state.told = state.published
        return wanted != 0

    def merge(self, frame: bytes, host_header: bool, mergeable: bool) -> bool | None:
        """Fill buffers with a frame at once (5.1.6.4), and show them; does the driver want an interrupt?

        None: nothing was done, since nobody can or it is not as simple as that.
        """
        rings, state = self._memory.rings, self.state
        wanted = rings.merge(state, frame, host_header, mergeable) if rings is not None else None
        if wanted is None:
            return None
        if wanted < 0:
            raise RingViolation(Violation(-1 - wanted))
        state.told = state.published
        return wanted != 0

    # The steps of it, for a device that does them in another order.

    def pending(self) -> int:
        """Buffers made available and not yet taken."""
        index: int
        (index,) = _U16.unpack(self._memory.view(self.state.driver + 2, 2))
        count = (index - self.state.next_avail) & 0xFFFF
        if count > self.state.size:
            raise RingViolation(Violation.AVAIL_JUMP)
        return count

    def put_back(self, count: int) -> None:
        """Untake the last ``count`` buffers."""
        self.state.next_avail = (self.state.next_avail - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Give a buffer back."""
        state = self.state
        slot = state.used & (state.size - 1)
        self._memory.write(
            state.device + RING_HEADER + USED_ELEMENT_SIZE * slot, _USED_ELEMENT.pack(head, written)
        )
        state.used = (state.used + 1) & 0xFFFF

    def want_notifications(self, wanted: bool) -> None:
        """Ask to be told of the next buffer, or (a hint) not to be told for now."""
        state = self.state
        if not state.event_idx:
            self._memory.write(state.device, _U16.pack(0 if wanted else USED_NO_NOTIFY))
        elif wanted:
            self._write_avail_event((state.next_avail + self.pending()) & 0xFFFF)

    def wants_interrupt(self) -> bool:
        """Does the driver, by what its ring says now, want one for what it can see (2.7.7, 2.7.10)?"""
        state = self.state
        if state.published == state.told:
            return False
        if not state.event_idx:
            return not self._memory.view(state.driver, 1)[0] & AVAIL_NO_INTERRUPT
        used_event: int
        (used_event,) = _U16.unpack(self._memory.view(state.driver + RING_HEADER + 2 * state.size, 2))
        return (state.published - used_event - 1) & 0xFFFF < (state.published - state.told) & 0xFFFF

    def settle(self) -> None:
        """The driver has its interrupt, or wants none."""
        self.state.told = self.state.published

    @property
    def untold(self) -> int:
        """Buffers that the driver can see and for which it may still want an interrupt."""
        return (self.state.published - self.state.told) & 0xFFFF

    # Private: what ``rings`` do.

    def _take(self, left: int, head: int, written: int) -> Buffer | None:
        if head != NOTHING:
            self.push(head, written)
        if left == UNREAD:
            left = self.pending()
            if not left:
                return None
        state = self.state
        slot = state.driver + RING_HEADER + 2 * (state.next_avail & (state.size - 1))
        (head,) = _U16.unpack(self._memory.view(slot, 2))
        state.next_avail = (state.next_avail + 1) & 0xFFFF
        rows, readers = self._chain(head)
        readable, writable = parts(rows, readers, len(rows) // DESCRIPTOR_SIZE - readers)
        return left - 1, head, readable, total(readable), writable, total(writable)

    def _finish(self, head: int, written: int, ask: bool) -> bool:
        state = self.state
        if head != NOTHING:
            self.push(head, written)
        if ask and state.event_idx:
            self._write_avail_event(state.next_avail)
        if state.used != state.published:
            self._memory.write(state.device + 2, _U16.pack(state.used))
            state.published = state.used
        return self.wants_interrupt()

    def _write_avail_event(self, index: int) -> None:
        state = self.state
        self._memory.write(state.device + RING_HEADER + USED_ELEMENT_SIZE * state.size, _U16.pack(index))

    def _chain(self, head: int) -> tuple[bytes, int]:
        """The descriptors of one chain, believing nothing, and how many of them are to be read."""
        count = self.state.size
        if head >= count:
            raise RingViolation(Violation.HEAD_RANGE)
        table = self._memory.view(self.state.desc, DESCRIPTOR_SIZE * count)
        address, length, flags, index = _DESCRIPTOR.unpack_from(table, DESCRIPTOR_SIZE * head)
        if flags & DESC_INDIRECT:
            count = self._indirect_count(length, flags)
            table = self._memory.view(address, length)
            address, length, flags, index = _DESCRIPTOR.unpack_from(table)
        rows = bytearray()
        readers = 0
        for number in range(min(count, CHAIN_MAX)):
            if flags & DESC_INDIRECT:
                raise RingViolation(Violation.INDIRECT_NESTED)
            if not length:
                raise RingViolation(Violation.ZERO_LENGTH)
            if not flags & DESC_WRITE:
                if readers != number:
                    raise RingViolation(Violation.ORDER)
                readers += 1
            rows += _DESCRIPTOR.pack(address, length, flags, index)
            if not flags & DESC_NEXT:
                return bytes(rows), readers
            if index >= count:
                raise RingViolation(Violation.NEXT_RANGE)
            address, length, flags, index = _DESCRIPTOR.unpack_from(table, DESCRIPTOR_SIZE * index)
        raise RingViolation(Violation.CHAIN_LENGTH)

    def _indirect_count(self, length: int, flags: int) -> int:
        """Entries of an indirect table of ``length`` bytes."""
        if not self.state.indirect:
            raise RingViolation(Violation.INDIRECT_NOT_OFFERED)
        if flags & DESC_NEXT:
            raise RingViolation(Violation.INDIRECT_NESTED)
        if not length or length % DESCRIPTOR_SIZE or length > DESCRIPTOR_SIZE * CHAIN_MAX:
            raise RingViolation(Violation.INDIRECT_SIZE)
        return length // DESCRIPTOR_SIZE
