"""What the primary's guest is given, on its way to the secondary: QEMU's filter-mirror, for every input.

The machine's door (:mod:`vmm.inputs`) tells of each input that a device took, with the epoch in which it
did; frames, console bytes and events alike.  They go beside the checkpoints, as fast as the link takes
them, and are of use to a survivor only: without them a client finds out by its own time-out that its
request died with the primary.  So they may be dropped when the link does not keep up.
"""

from __future__ import annotations

import asyncio
from collections import deque

from colo.errors import PeerLost
from colo.messages import INPUTS_MAX, Inputs, Packet
from colo.node.replica import Totals
from colo.peer import Peer

KEPT = 4096
"""Inputs that wait for the link."""


class InputMirror:
    """``hear`` in the guest's thread, everything else in the loop's."""

    def __init__(self, totals: Totals) -> None:
        self.epoch = 0
        """Which epoch an input belongs to now; set in the pause, by the guest's thread."""
        self._totals = totals
        self._loop = asyncio.get_running_loop()
        self._peer: Peer | None = None
        self._waiting: deque[tuple[int, Packet]] = deque()
        self._due = False
        self._task: asyncio.Future[None] | None = None

    def attach(self, peer: Peer) -> None:
        self._peer = peer

    def hear(self, port: str, payload: bytes) -> None:
        """The guest was given something."""
        if len(self._waiting) >= KEPT:
            self._totals.inputs_dropped += 1
            return
        self._waiting.append((self.epoch, (port, payload)))
        if not self._due:
            self._due = True
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._send_all())

    async def _send_all(self) -> None:
        """``_due`` is lowered before the last look, so nothing can be left between the two."""
        while self._due:
            await self._send_waiting()
            self._due = False
            if self._waiting:
                self._due = True

    async def _send_waiting(self) -> None:
        assert self._peer is not None
        try:
            while packets := self._next():
                await self._peer.send(packets)
        except PeerLost:
            self._waiting.clear()  # the protocol's own task meets the same loss, and acts on it

    def _next(self) -> Inputs | None:
        """What waits of one epoch, as one message."""
        if not self._waiting:
            return None
        epoch = self._waiting[0][0]
        packets: list[Packet] = []
        while self._waiting and self._waiting[0][0] == epoch and len(packets) < INPUTS_MAX:
            packets.append(self._waiting.popleft()[1])
        return Inputs(epoch, packets)
