"""``filter-buffer``: frames wait, until a commit or until an interval of virtual time ends.

Follows QEMU's ``net/filter-buffer.c`` and COLO-Frame v10's patches 32 to 34: interval 0 is release on
demand.  As there, an interval is one of a fixed series that begins when the filter does: a frame waits
for the end of the interval in which it came, not for a whole one.

:class:`HoldBuffer` keeps nothing itself; the machine's :class:`~colo.filters.hold.OutputHold` does, with
the output of all other cards and the console, in one order.  While there is no pair nobody commits
anything, and it lets every frame pass.

:class:`IntervalBuffer` needs somebody to look at the time.  Virtual time moves only while the guest runs,
so that is the guest's thread: whenever it moves a frame, and when the card's bell
(:mod:`colo.filters.bell`) wakes it after the interval's length of host time.  It is never early;
it is late by what the guest is away from its loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from colo.filters.chain import Filter, FilterSpec, Frame, Queue
from colo.filters.hold import HARD_BYTES, HARD_FRAMES, OutputHold
from vmm.clock import NEVER_NS

INWARD = ":in"
"""Behind a card's name: the port under which frames *to* the guest are held."""

Onward = Callable[[Filter, Queue, bytes], None]
"""Passes a frame on to what stands behind a filter."""


class HoldBuffer(Filter):
    """Frames of one card in the machine's hold."""

    __slots__ = ("_onward", "_port", "hold")

    def __init__(self, spec: FilterSpec, port: str, hold: OutputHold, onward: Onward) -> None:
        super().__init__(spec)
        self.hold = hold
        self._onward = onward
        self._port = port
        if self.on:
            self._connect()

    @property
    def holding(self) -> bool:
        """Taking it out of the way would let out what no commit covers."""
        return self.on and self.hold.active

    def keeps(self, frame: Frame, queue: Queue) -> bool:
        if not self.hold.active:
            return False
        if not self.hold.hold(self._port if queue is Queue.RX else self._port + INWARD, frame):
            self.dropped += 1
        return True

    def switch(self, on: bool) -> None:
        """A card has one buffer of this kind at a time that is on."""
        super().switch(on)
        if on:
            self._connect()
        else:
            self._disconnect()

    def close(self) -> None:
        if self.on:
            self._disconnect()

    def _connect(self) -> None:
        if self.spec.sees(Queue.RX):
            self.hold.connect(self._port, partial(self._onward, self, Queue.RX))
        if self.spec.sees(Queue.TX):
            self.hold.connect(self._port + INWARD, partial(self._onward, self, Queue.TX), inward=True)

    def _disconnect(self) -> None:
        for port in (self._port, self._port + INWARD):
            self.hold.disconnect(port)


class IntervalBuffer(Filter):
    """Frames that leave at the end of each interval."""

    __slots__ = ("_bytes", "_due_ns", "_interval_ns", "_lock", "_onward", "_queue")
    ticks = True

    def __init__(self, spec: FilterSpec, onward: Onward, now_ns: int) -> None:
        super().__init__(spec)
        self._interval_ns = spec.interval_us * 1000
        self._due_ns = now_ns + self._interval_ns
        self._onward = onward
        self._queue: deque[tuple[Queue, bytes]] = deque()
        self._bytes = 0
        # A buffer nearer to the back end than a HoldBuffer gets its frames from the releasing thread.
        self._lock = threading.Lock()

    def keeps(self, frame: Frame, queue: Queue) -> bool:
        with self._lock:
            if self._bytes + len(frame) > HARD_BYTES or len(self._queue) >= HARD_FRAMES:
                self.dropped += 1
            else:
                self._queue.append((queue, bytes(frame)))
                self._bytes += len(frame)
        return True

    def tick(self, now_ns: int) -> int:
        if now_ns >= self._due_ns:
            past = (now_ns - self._due_ns) // self._interval_ns
            self._due_ns += (past + 1) * self._interval_ns
            self.let_go()
        return self._due_ns if self._queue else NEVER_NS

    def let_go(self) -> None:
        with self._lock:
            waiting, self._queue = self._queue, deque()
            self._bytes = 0
        for queue, frame in waiting:
            self._onward(self, queue, frame)
