"""A split virtqueue on guest memory, for a guest that may be hostile.

Source: Virtual I/O Device (VIRTIO) version 1.2, section 2.7 (split virtqueues), with 2.7.7 and
2.7.10 (notification suppression by event index) and 2.7.5.3 (indirect descriptors).

The guest owns every byte of the rings, so every index, length, address and flag is checked where
it is used; what a driver must not do raises :class:`RingViolation`, with a name, out of this
module and is turned into DEVICE_NEEDS_RESET by the transport.  No loop runs longer than the queue
is long: the index of the available ring is read once per pass, because a hostile guest can aim a
device's own writes at the ring.

Nothing of the rings is kept between calls; the state is two free-running indices and where the
rings lie.  A buffer is two lists of ``(address, length)``, what the device may read and what it may
write, because most buffers have one entry and an object per descriptor would cost more than the
rest of the work.  A list of many is a :class:`Table`: descriptors as they came, looked at all at once.

Not modelled: packed rings, in-order use, notification data, queue reset (none is offered).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

from vmm.device import Memory
from vmm.errors import BadAddress
from vmm.state import State, u16, u64

QUEUE_SIZE_MAX = 1024
"""The longest queue: bounds a pass over a queue, and a chain, to about a millisecond of ours."""
CHAIN_MAX = QUEUE_SIZE_MAX
"""Descriptors in one chain, also where an indirect table could hold more."""
NO_VECTOR = 0xFFFF

DESCRIPTOR_SIZE = 16
DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1
RING_HEADER = 4
USED_ELEMENT_SIZE = 8

MANY = 12
"""Descriptors from which on looking at a table at once pays."""

_DESCRIPTOR = struct.Struct("<QIHH")
_SEGMENT = struct.Struct("<QI4x")
_READ_ON, _READ_END = bytes((DESC_NEXT,)), bytes((0,))
_WRITE_ON, _WRITE_END = bytes((DESC_NEXT | DESC_WRITE,)), bytes((DESC_WRITE,))
_U16 = struct.Struct("<H")
_USED_ELEMENT = struct.Struct("<II")

Segment = tuple[int, int]
"""Guest physical address and length of one descriptor."""


class Table:
    """Many segments: descriptors, of which only address and length count from here on."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // DESCRIPTOR_SIZE

    def __iter__(self) -> Iterator[Segment]:
        return _SEGMENT.iter_unpack(self.data)

    def __getitem__(self, index: int) -> Segment:
        """Of the last one too, which is -1."""
        address, length = _SEGMENT.unpack_from(self.data, DESCRIPTOR_SIZE * index)
        return address, length


Segments = list[Segment] | Table
Chain = tuple[int, Segments, Segments]
"""Head index, what the device reads, what it writes."""


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

    @property
    def usable(self) -> bool:
        return self.state.enabled and not self.state.broken

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

    # Buffers from the driver.

    def pending(self) -> int:
        """Buffers made available and not yet taken."""
        index: int
        (index,) = _U16.unpack(self._memory.view(self.state.driver + 2, 2))
        count = (index - self.state.next_avail) & 0xFFFF
        if count > self.state.size:
            raise RingViolation(Violation.AVAIL_JUMP)
        return count

    def take(self) -> Chain:
        """The next buffer; the caller has asked ``pending`` that there is one."""
        state = self.state
        slot = state.driver + RING_HEADER + 2 * (state.next_avail & (state.size - 1))
        (head,) = _U16.unpack(self._memory.view(slot, 2))
        state.next_avail = (state.next_avail + 1) & 0xFFFF
        return self._chain(head)

    def chains(self) -> Iterator[Chain]:
        """Every buffer there is now; afterwards the driver is asked to tell of the next one."""
        for _ in range(self.pending()):
            yield self.take()
        if self.state.event_idx:
            self._write_avail_event(self.state.next_avail)

    def put_back(self, count: int) -> None:
        """Untake the last ``count`` buffers."""
        self.state.next_avail = (self.state.next_avail - count) & 0xFFFF

    def want_notifications(self, wanted: bool) -> None:
        """Ask to be told of the next buffer, or (a hint) not to be told for now."""
        state = self.state
        if not state.event_idx:
            self._memory.write(state.device, _U16.pack(0 if wanted else USED_NO_NOTIFY))
        elif wanted:
            self._write_avail_event((state.next_avail + self.pending()) & 0xFFFF)

    # Buffers back to the driver.

    def push(self, head: int, written: int) -> None:
        """Give a buffer back, with so many bytes written; not seen before ``publish``."""
        state = self.state
        slot = state.used & (state.size - 1)
        self._memory.write(
            state.device + RING_HEADER + USED_ELEMENT_SIZE * slot, _USED_ELEMENT.pack(head, written)
        )
        state.used = (state.used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Let the driver see what was pushed; does it want an interrupt for that?"""
        self.show()
        wanted = self.wants_interrupt()
        self.settle()
        return wanted

    # The three steps of it, for a device that tells its driver later.

    def show(self) -> None:
        """Let the driver see what was pushed."""
        state = self.state
        if state.used != state.published:
            self._memory.write(state.device + 2, _U16.pack(state.used))
            state.published = state.used

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

    # Private.

    def _write_avail_event(self, index: int) -> None:
        state = self.state
        self._memory.write(state.device + RING_HEADER + USED_ELEMENT_SIZE * state.size, _U16.pack(index))

    def _chain(self, head: int) -> Chain:
        """Follow one chain, believing nothing."""
        state = self.state
        count = state.size
        if head >= count:
            raise RingViolation(Violation.HEAD_RANGE)
        at = state.desc + DESCRIPTOR_SIZE * head
        address, length, flags, index = _DESCRIPTOR.unpack(self._memory.view(at, DESCRIPTOR_SIZE))
        if not flags & (DESC_NEXT | DESC_INDIRECT) and length:
            segment = (address, length)
            return (head, [], [segment]) if flags & DESC_WRITE else (head, [segment], [])
        if flags & DESC_INDIRECT:
            count = self._indirect_count(length, flags)
            table = self._memory.view(address, length)
            if count >= MANY and (parts := _straight(bytes(table))):
                return (head, *parts)
            address, length, flags, index = _DESCRIPTOR.unpack_from(table)
        else:
            table = self._memory.view(state.desc, DESCRIPTOR_SIZE * count)
        readable: list[Segment] = []
        writable: list[Segment] = []
        for _ in range(count):
            if flags & DESC_INDIRECT:
                raise RingViolation(Violation.INDIRECT_NESTED)
            if not length:
                raise RingViolation(Violation.ZERO_LENGTH)
            if flags & DESC_WRITE:
                writable.append((address, length))
            elif writable:
                raise RingViolation(Violation.ORDER)
            else:
                readable.append((address, length))
            if not flags & DESC_NEXT:
                return head, readable, writable
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


def total(segments: Segments) -> int:
    """Bytes in all segments."""
    if len(segments) == 1:
        return segments[0][1]
    if isinstance(segments, Table):
        return sum(memoryview(segments.data).cast("I")[2::4].tolist())
    return sum([length for _, length in segments])


def gather(memory: Memory, segments: Segments) -> bytes | memoryview:
    """The bytes of all segments, without a copy where there is one; the caller bounds the total."""
    if len(segments) == 1:
        return memory.view(*segments[0])
    return b"".join([memory.view(address, length) for address, length in segments])


def scatter(memory: Memory, segments: Segments, data: bytes | memoryview, skip: int = 0) -> None:
    """Write ``data`` over the segments, from their byte ``skip`` on; what does not fit is dropped."""
    at = 0
    data = memoryview(data)  # pieces of it are not copies
    for address, length in segments:
        if skip >= length:
            skip -= length
            continue
        piece = data[at : at + length - skip]
        if not piece:
            return
        memory.write(address + skip, piece)
        at += len(piece)
        skip = 0


# Tables at once.  A slice with a step takes one byte of every descriptor.

_NEXT_LOW, _NEXT_HIGH = (bytes(index >> shift & 0xFF for index in range(1, CHAIN_MAX)) for shift in (0, 8))
"""The bytes of ``next`` where each descriptor is followed by its neighbour."""


def _straight(table: bytes) -> tuple[Segments, Segments] | None:
    """Both parts of a chain that goes through a whole table in order, as drivers lay it out.

    None is no verdict: to follow the chain tells what is different, and whether it is wrong.
    """
    kinds, count = table[12::16], len(table) // DESCRIPTOR_SIZE
    writable = kinds.lstrip(_READ_ON)
    if writable == _READ_END:
        writable = b""
    elif writable != _WRITE_ON * (len(writable) - 1) + _WRITE_END:
        return None
    if table[14:-16:16] != _NEXT_LOW[: count - 1] or table[15:-16:16] != _NEXT_HIGH[: count - 1]:
        return None
    if 0 in table[25:-16:16] or not table[8] or not table[-8]:  # lengths that may be 0
        return None
    at = DESCRIPTOR_SIZE * (count - len(writable))
    return _part(table[:at]), _part(table[at:])


def _part(table: bytes) -> Segments:
    return Table(table) if len(table) >= MANY * DESCRIPTOR_SIZE else list(_SEGMENT.iter_unpack(table))
