"""The path between two nodes' hosts: ordered, reliable streams of bytes, with time and faults.

A :class:`Wire` joins two hosts; each connection over it has a :class:`Lane` in each direction, in which
pieces keep their order, as TCP and Unix streams do.  A piece leaves when the lane's rate allows and arrives
``delay_ns`` later.

What link faults do to a stream (:mod:`colo.sim.impair`): a *drop* is a retransmission, ``RTO_NS`` late
(Linux's TCP_RTO_MIN); a *partition* lets nothing pass and loses nothing, what was sent arrives when it
ends; *half-open* lets nothing pass and never will; *corrupt* is damage that TCP's checksum did not find.
Duplicates and reordering are TCP's business, and do nothing.

Not modelled: congestion control, windows (a bound on what is unread is the reader's), connections that
share one bandwidth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from colo.sim.agenda import LOOKAHEAD_NS, Agenda
from colo.sim.impair import FROM, TO, Impairments, damaged

RTO_NS = 200_000_000
Deliver = Callable[[bytes], None]


class _Piece(NamedTuple):
    data: bytes
    deliver: Deliver
    left: Callable[[], None] | None


class Wire:
    """Between two hosts; faults see its second end as the target."""

    def __init__(self, agenda: Agenda, delay_ns: int, bytes_per_s: int) -> None:
        """``bytes_per_s`` 0: as fast as can be."""
        self.agenda = agenda
        self.delay_ns = max(delay_ns, LOOKAHEAD_NS)
        self.rate = bytes_per_s
        self.impairments = Impairments()
        self.lanes: list[Lane] = []

    def lane(self, direction: str) -> Lane:
        made = Lane(self, direction)
        self.lanes.append(made)
        return made

    def both(self) -> tuple[Lane, Lane]:
        """Lanes of one more connection: towards the second end, and back."""
        return self.lane(TO), self.lane(FROM)

    def looked_at(self) -> None:
        """A fault began or ended: what waits may pass now."""
        for lane in self.lanes:
            lane.move()

    def cut(self) -> None:
        """What is on its way is lost."""
        for lane in self.lanes:
            lane.lose()


class Lane:
    """One direction of one connection."""

    def __init__(self, wire: Wire, direction: str) -> None:
        self._wire = wire
        self._direction = direction
        self._waiting: deque[_Piece] = deque()
        self._free_ns = self._last_ns = 0
        self._generation = 0

    def send(self, data: bytes, deliver: Deliver, left: Callable[[], None] | None = None) -> None:
        """``deliver`` is given the bytes when they arrive; ``left`` is called when they are on their way."""
        self._waiting.append(_Piece(data, deliver, left))
        self.move()

    def move(self) -> None:
        wire, now_ns = self._wire, self._wire.agenda.now_ns
        while self._waiting and not wire.impairments.blocked(self._direction, now_ns):
            self._depart(self._waiting.popleft(), now_ns)

    def _depart(self, piece: _Piece, now_ns: int) -> None:
        wire = self._wire
        fate = wire.impairments.fate(self._direction, now_ns)
        narrow = wire.impairments.bytes_per_s(self._direction, now_ns)
        rate = min(filter(None, (wire.rate, narrow)), default=0)
        takes_ns = len(piece.data) * 1_000_000_000 // rate if rate else 0
        self._free_ns = max(self._free_ns, now_ns) + takes_ns
        late_ns = fate.late_ns + (RTO_NS if fate.lost else 0)
        self._last_ns = max(self._last_ns, self._free_ns + wire.delay_ns + late_ns)
        generation, data = self._generation, damaged(piece.data, fate.flips)

        def arrive() -> None:
            if generation == self._generation:
                piece.deliver(data)

        wire.agenda.at(self._last_ns, arrive)
        if piece.left is not None:
            if takes_ns:
                wire.agenda.at(self._free_ns, piece.left)
            else:
                piece.left()

    def lose(self) -> None:
        """What was sent and has not arrived never will."""
        self._generation += 1
        self._waiting.clear()
