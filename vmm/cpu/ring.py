"""What a processor does for virtqueues (:class:`vmm.device.Rings`): a pass over a ring in few calls.

A network card's work on a frame is some twenty small reads and writes of its rings, which cost far more in
Python than they take.  Here the registers of the queue go into a block, one compiled function does all of it
(:mod:`vmm.cpu.ring_kernel`, :mod:`vmm.cpu.frames_kernel`), and the registers come back.  They do so also when
a signal handler raises as the compiled function returns: the driver has seen the rings by then.
"""

from __future__ import annotations

import ctypes
import struct
from operator import attrgetter
from typing import Any

from vmm.cpu import ring_block as words
from vmm.cpu.dma import ends
from vmm.device import NOTHING, UNREAD, RingRegisters
from vmm.ram import Ram

_WORD = ctypes.c_int64
# They take microseconds: less than it can take to get the interpreter's lock back.
_STEP = ctypes.PYFUNCTYPE(_WORD, _WORD)
_MERGE = ctypes.PYFUNCTYPE(_WORD, _WORD, ctypes.c_char_p)
# These wait for the kernel, which moves a frame through all of a network stack: others may run meanwhile.
_MOVE = ctypes.CFUNCTYPE(_WORD, _WORD, _WORD)
_registers = attrgetter(
    *("desc", "driver", "device", "size", "event_idx", "indirect", "told", "published", "used", "next_avail")
)
_ASKED = struct.Struct("=2q3Q3q32x7q")
"""From OPTIONS to HEAD; nothing has passed yet."""
_MOVED = struct.Struct("=10q")
"""From FRAMES to LEFT."""
_TAKEN = struct.Struct("=9qQI")
"""From USED to the first row."""
_SHOWN = struct.Struct("=4q")
"""From PUBLISHED to HAD_CODE."""


class Rings:
    """Of ``ram``, with the code pages of the control block at ``control``."""

    __slots__ = (
        "_address",
        "_block",
        "_finish",
        "_frame",
        "_merge",
        "_pinned",
        "_ram",
        "_receive",
        "_send",
        "_take",
        "rows",
    )

    def __init__(self, ram: Ram, callbacks: dict[str, int], control: int) -> None:
        self._ram = ram
        self._block = bytearray(words.BLOCK_SIZE)
        self._frame = bytearray(words.FRAME_ROOM)
        self._pinned = [ctypes.c_char.from_buffer(each) for each in (self._block, self._frame)]
        self._address, frame = map(ctypes.addressof, self._pinned)
        libc = ctypes.CDLL(None)
        functions = [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in (libc.read, libc.writev)]
        places = control, ram.host_address, *ends(ram), *functions, frame
        struct.pack_into("=8q", self._block, words.CONTROL, *places)
        self.rows = memoryview(self._block)[words.ROWS :]
        self._take: Any = _STEP(callbacks["ring_take"])
        self._finish: Any = _STEP(callbacks["ring_finish"])
        self._merge: Any = _MERGE(callbacks["ring_merge"])
        self._receive: Any = _MOVE(callbacks["ring_receive"])
        self._send: Any = _MOVE(callbacks["ring_send"])

    def take(
        self, queue: RingRegisters, left: int, head: int, written: int
    ) -> tuple[int, int, int, int, int, int, int, int]:
        _ASKED.pack_into(self._block, words.OPTIONS, 0, written, *_registers(queue), 0, left, head)
        self._take(self._address)
        taken = _TAKEN.unpack_from(self._block, words.USED)
        queue.used, queue.next_avail, had_code, left, head, readers, writers, size, room, at, length = taken
        if had_code:
            self._wrote(queue)
        return left, head, readers, writers, size, room, at, length

    def finish(self, queue: RingRegisters, head: int, written: int, ask: bool) -> int:
        options = words.ASK if ask else 0
        _ASKED.pack_into(self._block, words.OPTIONS, options, written, *_registers(queue), 0, 0, head)
        wanted: int = self._finish(self._address)
        shown = _SHOWN.unpack_from(self._block, words.PUBLISHED)
        queue.published, queue.used, queue.next_avail, had_code = shown
        if had_code:
            self._wrote(queue)
        return wanted

    def merge(self, queue: RingRegisters, frame: bytes, host_header: bool, mergeable: bool) -> int | None:
        options = (words.HOST_HEADER if host_header else 0) | (words.MERGEABLE if mergeable else 0)
        asked = options, len(frame), *_registers(queue), 0, 0, NOTHING
        _ASKED.pack_into(self._block, words.OPTIONS, *asked)
        wanted: int = self._merge(self._address, frame)
        if wanted == words.NOT_SO_SIMPLE:
            return None
        shown = _SHOWN.unpack_from(self._block, words.PUBLISHED)
        queue.published, queue.used, queue.next_avail, had_code = shown
        if had_code:
            self._wrote(queue)
        return wanted

    def receive(
        self, queue: RingRegisters, descriptor: int, mergeable: bool
    ) -> tuple[int, int, bool, bytes | None]:
        options = words.HOST_HEADER | (words.MERGEABLE if mergeable else 0)
        _ASKED.pack_into(self._block, words.OPTIONS, options, 0, *_registers(queue), 0, 0, NOTHING)
        try:
            wanted: int = self._receive(self._address, descriptor)
        finally:
            moved = _MOVED.unpack_from(self._block, words.FRAMES)
            frames, size, _, held, queue.told, queue.published, queue.used, queue.next_avail, had_code, _ = (
                moved
            )
            if had_code:
                self._wrote(queue)
        return frames, size, wanted != 0, bytes(self._frame[:held]) if held >= 0 else None

    def send(self, queue: RingRegisters, descriptor: int) -> tuple[int, int, int, int, bool]:
        _ASKED.pack_into(self._block, words.OPTIONS, 0, 0, *_registers(queue), 0, UNREAD, NOTHING)
        try:
            wanted: int = self._send(self._address, descriptor)
        finally:
            moved = _MOVED.unpack_from(self._block, words.FRAMES)
            frames, size, longest, _, _, queue.published, queue.used, queue.next_avail, had_code, left = moved
            if had_code:
                self._wrote(queue)
        if wanted == words.NOT_SO_SIMPLE:
            return frames, size, longest, left, False
        return frames, size, longest, 0, wanted != 0

    def _wrote(self, queue: RingRegisters) -> None:
        """The used ring shares a page with code, which is rare, so the engine is told of all of the ring."""
        if self._ram.on_write is not None:
            self._ram.on_write(queue.device, 4 + 8 * queue.size + 2)
