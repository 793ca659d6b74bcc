"""Ethernet in the world: cards, cables and switches that carry frames in virtual time, well or badly.

A *cable* joins a card (or a client's host) to a port of a *switch*.  Each of its directions has a delay, a
rate and a bounded queue (tail drop), and is subject to link faults (:mod:`colo.sim.impair`), of which ``to``
means towards the card.  A *switch* learns where addresses are, or floods like the bridge of a pair
(:mod:`colo.network.links`), which never learns, so that a standing-by node hears what the primary hears.

Frames are whole Ethernet frames without FCS: a damaged frame arrives damaged, as if the damage had happened
in a switch's memory; IP's and TCP's checksums are there to find it.

Not modelled: collisions, pause frames, spanning trees (do not build loops), VLANs.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from colo.faults.delay import Delay
from colo.sim.agenda import LOOKAHEAD_NS, Agenda
from colo.sim.impair import FROM, TO, Impairments, damaged
from colo.sim.station import Station
from vmm.backends.net import is_frame

CARD_QUEUE = 500
"""Frames, as a TAP keeps (txqueuelen)."""
QUEUE_BYTES = 1 << 20
"""Of one direction of a cable; what finds it full is lost."""
REORDER_WAIT_NS = 50_000_000
"""A frame that was to be overtaken goes on after this time if nobody came."""
GROUP = 0x01
"""First octet of a group address (IEEE 802, section 8.2.2)."""
Tell = Callable[[str, str, bytes], None]
"""Who, what, and which frame."""


class Attached(Protocol):
    """What is at the end of a cable."""

    def arrive(self, frame: bytes) -> None: ...


class Card:
    """A machine's card as a back end (:class:`vmm.backends.net.NetBackend`).

    Its descriptor is an eventfd that is readable while frames wait, because a node may have its machine poll
    it.  Frames come between two runs only, so what is found there does not depend on the host.
    """

    offloads = False
    pending_output = False

    def __init__(self, arrived: Callable[[], None], alive: Callable[[], bool]) -> None:
        self.cable: Cable | None = None
        self.station: Station | None = None
        """Where several machines are on one segment."""
        self.dropped = 0
        self._arrived, self._alive = arrived, alive
        self._queue: deque[bytes] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._event

    @property
    def waiting(self) -> int:
        """Frames that nobody has fetched."""
        return len(self._queue)

    def receive(self) -> bytes | None:
        if not self._queue:
            return None
        frame = self._queue.popleft()
        if not self._queue:
            os.eventfd_read(self._event)
        return frame

    def transmit(self, frame: bytes | memoryview) -> None:
        if self.cable is None or not self._alive() or not is_frame(len(frame)):
            self.dropped += 1
        elif self.station is not None:
            self.cable.send(FROM, self.station.outward(bytes(frame)))
        else:
            self.cable.send(FROM, bytes(frame))

    def flush(self) -> None:
        """Nothing is kept back."""

    def after_fork(self) -> None:
        """In a child of ``os.fork()``: a descriptor of its own behind the same number."""
        if self._event >= 0:
            mine = os.eventfd(min(len(self._queue), 1), os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            os.dup2(mine, self._event, inheritable=False)
            os.close(mine)

    def close(self) -> None:
        self.cable = None
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)

    def arrive(self, frame: bytes) -> None:
        if len(self._queue) >= CARD_QUEUE or self._event < 0:
            self.dropped += 1
            return
        if not self._queue:
            os.eventfd_write(self._event, 1)
        self._queue.append(frame if self.station is None else self.station.inward(frame))
        self._arrived()


class Cable:
    """``name`` is what a fault calls it."""

    def __init__(
        self,
        name: str,
        agenda: Agenda,
        tell: Tell,
        end: Attached,
        *,
        delay: Delay,
        bytes_per_s: int,
        draw: Callable[[Delay], int],
    ) -> None:
        self.name = name
        self.end = end
        self.impairments = Impairments()
        self._agenda, self._tell = agenda, tell
        self._delay, self._draw, self._rate = delay, draw, bytes_per_s
        self._port: Callable[[bytes], None] = lambda frame: None
        self._free_ns = {TO: 0, FROM: 0}
        self._held: dict[str, list[_Held]] = {TO: [], FROM: []}

    def plug(self, port: Callable[[bytes], None]) -> None:
        """Into a switch."""
        self._port = port

    def looked_at(self) -> None:
        """A fault began or ended; frames do not wait for that."""

    def send(self, direction: str, frame: bytes) -> None:
        """Into the end that this direction begins at."""
        now_ns = self._agenda.now_ns
        fate = self.impairments.fate(direction, now_ns)
        narrow = self.impairments.bytes_per_s(direction, now_ns)
        rate = min(filter(None, (self._rate, narrow)), default=0)
        free_ns = max(self._free_ns[direction], now_ns)
        if rate and (free_ns - now_ns) * rate > QUEUE_BYTES * 1_000_000_000:
            fate.lost = fate.lost or "queue full"
        if fate.lost:
            self._tell(f"{self.name}.{direction}", f"loses({fate.lost})", frame)
            return
        self._free_ns[direction] = free_ns + (len(frame) * 1_000_000_000 // rate if rate else 0)
        frame = damaged(frame, fate.flips)
        if fate.overtaken:
            self._hold_back(direction, frame, fate.overtaken)
            return
        for _ in range(fate.copies):
            self._depart(direction, frame, fate.late_ns)
        self._let_pass(direction)

    def _depart(self, direction: str, frame: bytes, late_ns: int) -> None:
        takes_ns = max(self._draw(self._delay), LOOKAHEAD_NS)
        at_ns = self._free_ns[direction] + takes_ns + late_ns
        self._agenda.at(at_ns, lambda: self._deliver(direction, frame))

    def _deliver(self, direction: str, frame: bytes) -> None:
        self._tell(f"{self.name}.{direction}", "carries", frame)
        if direction == TO:
            self.end.arrive(frame)
        else:
            self._port(frame)

    def _hold_back(self, direction: str, frame: bytes, passing: int) -> None:
        held = _Held(frame, passing)
        self._held[direction].append(held)

        def give_up() -> None:
            if held in self._held[direction]:
                self._held[direction].remove(held)
                self._depart(direction, frame, 0)

        self._agenda.at(self._agenda.now_ns + REORDER_WAIT_NS, give_up)

    def _let_pass(self, direction: str) -> None:
        """One more has overtaken those that wait for that."""
        for held in self._held[direction]:
            held.passing -= 1
        gone = [held for held in self._held[direction] if held.passing <= 0]
        self._held[direction] = [held for held in self._held[direction] if held.passing > 0]
        for held in gone:
            self._depart(direction, held.frame, 1)


@dataclass(eq=False)
class _Held:
    """A frame that is to be overtaken by so many more."""

    frame: bytes
    passing: int


class Sends(Protocol):
    """A port's cable: the switch's end of it."""

    def send(self, direction: str, frame: bytes) -> None: ...

    def plug(self, port: Callable[[bytes], None]) -> None: ...


class FarEnd:
    """The other end of a cable between two switches, as a port of the second one."""

    def __init__(self, switch: Switch) -> None:
        self.cable: Cable | None = None
        self._port: Callable[[bytes], None] = lambda frame: None
        switch.plug(self)

    def plug(self, port: Callable[[bytes], None]) -> None:
        self._port = port

    def send(self, direction: str, frame: bytes) -> None:
        """From the second switch to the first."""
        if self.cable is not None:
            self.cable.send(FROM, frame)

    def arrive(self, frame: bytes) -> None:
        self._port(frame)


class Switch:
    """Ports in the order in which they were plugged; one that was unplugged stays free."""

    def __init__(self, learns: bool) -> None:
        self._learns = learns
        self._cables: list[Sends | None] = []
        self._where: dict[bytes, int] = {}

    def plug(self, cable: Sends) -> None:
        number = len(self._cables)
        self._cables.append(cable)
        cable.plug(lambda frame: self.forward(number, frame))

    def has(self, cable: Sends) -> bool:
        return cable in self._cables

    def unplug(self, cable: Sends) -> None:
        number = self._cables.index(cable)
        cable.plug(lambda frame: None)
        self._where = {mac: port for mac, port in self._where.items() if port != number}
        self._cables[number] = None

    def forward(self, port: int, frame: bytes) -> None:
        destination, source = frame[:6], frame[6:12]
        if self._learns and not source[0] & GROUP:
            self._where[source] = port
        known = None if destination[0] & GROUP else self._where.get(destination)
        for number, cable in enumerate(self._cables):
            if cable is not None and number != port and known in (None, number):
                cable.send(TO, frame)
