"""What a device is told and what it promises: the whole contract.

A chip is told offsets, a line and a sink, nothing else.  It does not know its address, the
machine, the engine, asyncio or replication.  Everything the guest could notice lives in
``state``; everything else is wiring, passed to the constructor and never rebound, and the class
says ``__slots__ = ("state", ...wiring)`` so that a stray attribute cannot exist.

Promises (tested for every device by ``tests/devices/promises.py``):

* ``reset()`` leaves ``state`` equal to a freshly made one and drives every line accordingly.
* ``restored()`` is called after ``state`` was replaced whole: re-drive lines, re-arm timers.
  Doing it twice is doing it once, and a restored twin answers every further access, and drives
  its lines, exactly like the original.
* ``read`` returns a value of ``size`` bytes for any offset and size and never raises because of
  the guest; unknown registers read as the data sheet says, or all ones, and writes are ignored.
* Nothing depends on host time, host randomness, thread timing or the order of a set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Line(Protocol):
    """One wire.  Setting the level that it already has must have no effect."""

    def set(self, level: bool) -> None: ...


class Timer(Protocol):
    """One alarm of one device.  It has at most one deadline."""

    def arm(self, at_ns: int) -> None:
        """Fire at virtual time ``at_ns``, in place of any earlier deadline."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Virtual time: the only clock that a device may see."""

    @property
    def now_ns(self) -> int: ...

    def timer(self, name: str, fire: Callable[[], None]) -> Timer:
        """A new timer; timers due at one instant fire in the order in which they were made."""


class Pieces(Protocol):
    """Pieces of guest memory, in their order one stretch of bytes, which a back end fills or takes.

    ``skip`` is how many of its bytes are done already.
    """

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read_file(self, fd: int, at: int, skip: int = 0) -> int:
        """Fill it from offset ``at`` of a file on, or begin to; how many bytes came: 0 at the file's end."""

    def write_file(self, fd: int, at: int, skip: int = 0) -> int:
        """Write it to a file at offset ``at``, or begin to; how many bytes went."""

    def views(self, skip: int = 0) -> Iterator[memoryview]:
        """The pieces themselves."""

    def written(self) -> None:
        """To be said by the bus master when somebody may have filled it."""


class RingRegisters(Protocol):
    """Of a split virtqueue (VIRTIO 1.2, 2.7): where it lies, and how far the device is in it."""

    size: int
    event_idx: bool
    indirect: bool
    desc: int
    driver: int
    device: int
    next_avail: int
    used: int
    published: int
    told: int


UNREAD = -1
"""How many buffers are left, before the ring was asked."""
NOTHING = -1
"""The head of no buffer."""


class Rings(Protocol):
    """Split virtqueues in compiled code: what :class:`vmm.devices.virtio_queue.VirtQueue` says, in few calls.

    A rule that the driver broke is ``-1 - kind``, in place of what would have been the answer.
    """

    @property
    def rows(self) -> memoryview:
        """The descriptors of the buffer that was taken last, until the next call."""

    def take(
        self, queue: RingRegisters, left: int, head: int, written: int
    ) -> tuple[int, int, int, int, int, int, int, int]:
        """Give ``head`` back, then take a buffer.

        How many more there are, its head, how many of its rows are to be read and how many to be written,
        their bytes in all, and address and length of the first row.  No rows: there is no buffer.
        """

    def finish(self, queue: RingRegisters, head: int, written: int, ask: bool) -> int:
        """Give ``head`` back and show it; 1: the driver wants an interrupt."""

    def merge(self, queue: RingRegisters, frame: bytes, host_header: bool, mergeable: bool) -> int | None:
        """Take buffers for a frame of a network, fill them and show them; 1: the driver wants an interrupt.

        None: it is not as simple as that, and nothing was done.
        """

    # Frames that begin with a header, each of them a read(2) or writev(2) of a descriptor of the host.

    def receive(
        self, queue: RingRegisters, descriptor: int, mergeable: bool
    ) -> tuple[int, int, bool, bytes | None]:
        """As many as there are and find room: the same as ``merge`` for each.

        How many and their bytes without headers, whether the driver wants an interrupt for any of them, and
        what was read last, if that is not a frame for which it is so simple.
        """

    def send(self, queue: RingRegisters, descriptor: int) -> tuple[int, int, int, int, bool]:
        """Send the buffers that there are, give them back, ask for the next, and show them.

        How many, their bytes and those of the longest without headers, how many are left because it is not
        as simple as that (0: none), and whether the driver wants an interrupt.  Where some are left, nothing
        was shown.
        """


class Memory(Protocol):
    """Guest physical memory as a bus master sees it.  Anything outside RAM raises BadAddress.

    For large transfers a ``table`` names one or more pieces of it with 16 bytes each: 8 of the address, 4
    of the length, which is not 0, and 4 that mean nothing here.
    """

    @property
    def rings(self) -> Rings | None:
        """What can be done with virtqueues at once, where there is a processor."""

    def read(self, address: int, length: int) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None: ...

    def view(self, address: int, length: int) -> memoryview:
        """A read-only window on RAM, valid until the guest runs again."""

    def pieces(self, table: bytes) -> Pieces:
        """What ``table`` names, valid until the guest runs again."""


class Device(Protocol):
    """A device owns its registers and nothing else."""

    state: Any  # its own State subclass; Any, because an attribute of a Protocol is invariant

    def reset(self) -> None: ...

    def restored(self) -> None: ...


class IoDevice(Device, Protocol):
    """A device with registers at offsets from a base that the board chooses."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


def all_ones(size: int) -> int:
    """What an unanswered read of ``size`` bytes gives."""
    return (1 << (8 * size)) - 1
