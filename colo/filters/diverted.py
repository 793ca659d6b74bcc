"""What the guest of a running secondary says: kept in order until the primary was told, said to nobody else.

A secondary's cards and console are mute.  Under policy ``colo`` its guest runs, and what it says is wanted
for comparison (:mod:`colo.filters.compared`): QEMU's filter-redirector, for every port of the machine.
Frames of cards come as their translator leaves them, in the sequence numbers that clients know.

    sayings = Sayings([*nets, *consoles])
    sayings.begin()                        # an epoch is installed, its guest runs from here on
    while packets := sayings.take(limit): ...

For the guest's thread.  A node that takes over stops being mute, and nothing is diverted any more; what was
not told by then was a secondary's and is forgotten.

**Limits.**  ``FRAMES_MAX`` and ``BYTES_MAX`` wait for a link that does not keep up; beyond them what comes is
lost and counted.  To the primary it looks as if it had not been said, which costs a checkpoint and nothing
else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from colo.filters.console import HeldConsole
from colo.filters.net import FilteredNet
from colo.messages import INPUTS_MAX, Packet

FRAMES_MAX = 4096
BYTES_MAX = 8 << 20
"""A client's largest receive window (6 MiB, Linux's tcp_rmem), which a guest fills without being answered."""


class Sayings:
    """What the guest behind ``speakers`` said since :meth:`begin` and nobody has taken."""

    __slots__ = ("_begins", "_bytes", "_packets", "_speakers", "heard", "lost")

    def __init__(
        self, speakers: Sequence[FilteredNet | HeldConsole], begins_to_wait: Callable[[], None] = lambda: None
    ) -> None:
        """``begins_to_wait`` is told whenever there is something to take where there was nothing."""
        self.heard = self.lost = 0
        self._begins = begins_to_wait
        self._speakers = speakers
        self._packets: deque[Packet] = deque()
        self._bytes = 0

    def begin(self) -> None:
        """The machine is another from here on: what it said before is void."""
        self._forget()
        for speaker in self._speakers:
            speaker.diverted = self.hear

    def end(self) -> None:
        """The guest stands still, or serves."""
        for speaker in self._speakers:
            speaker.diverted = None
        self._forget()

    def hear(self, port: str, frame: bytes) -> None:
        if len(self._packets) >= FRAMES_MAX or self._bytes + len(frame) > BYTES_MAX:
            self.lost += 1
            return
        self.heard += 1
        self._packets.append((port, frame))
        self._bytes += len(frame)
        if len(self._packets) == 1:
            self._begins()

    def take(self, bytes_max: int, packets_max: int = INPUTS_MAX) -> list[Packet]:
        """The oldest, in order, as many as fit a message; at least one if there is any."""
        taken: list[Packet] = []
        size = 0
        while self._packets and len(taken) < packets_max:
            size += len(self._packets[0][1])
            if taken and size > bytes_max:
                break
            taken.append(self._packets.popleft())
            self._bytes -= len(taken[-1][1])
        return taken

    @property
    def waiting(self) -> int:
        return len(self._packets)

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    def _forget(self) -> None:
        self._packets.clear()
        self._bytes = 0
