"""A small TCP, independent of what it tests: RFC 9293, with RFC 7323 (time stamps, PAWS) and RFC 2018 (SACK).

One endpoint of one connection at a time; the same ports may be used again.  It says what is wrong with a
segment in ``complaints``: what no peer may send, whatever the network did to it on the way.  An old
duplicate is not wrong.  Not modelled: congestion control, window scale, delayed FIN states (an endpoint
that has sent and received both FINs answers with what it acknowledged until it opens again).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from colo.compare.packet import ACK, FIN, RST, SYN
from tests.compare.frames import tcp
from tests.rewrite.ends import MASK, Read, option, read

MSS, WINDOW, RTO_MS, SOUND = 300, 4000, 250, 1 << 24
RING_MS = 10
"""A frame stays in a card's ring no longer."""


def ahead(seq: int, of: int) -> int:
    """How far, the short way."""
    return ((seq - of + (1 << 31)) & MASK) - (1 << 31)


class App(Protocol):
    """What an endpoint talks for.  ``said`` grows; ``done``: it will not grow any more."""

    said: bytearray
    done: bool

    def opened(self) -> None: ...
    def heard(self, data: bytes, end: bool) -> None: ...


class Tcp:
    def __init__(
        self, hosts: tuple[str, str], ports: tuple[int, int], rng: random.Random, *, stamps: bool = True
    ) -> None:
        self.hosts, self.ports, self.rng, self.stamps = hosts, ports, rng, stamps
        self.clock: Callable[[], int] = lambda: 0
        self.state, self.passive = "CLOSED", False
        self.now = 0
        self.complaints: list[str] = []
        self.out: list[bytes] = []
        self.app: App | None = None
        self._clear()

    def _clear(self) -> None:
        self.iss = self.una = self.nxt = self.irs = self.rcv = self.last_ack = 0
        self.window = WINDOW
        self.recent: int | None = None
        self.stamping = self.stamps
        self.first_stamp: int | None = None
        self.last_stamp = 0
        self.trusted_ms = 0.0
        self.later: dict[int, bytes] = {}
        self.fin_at: int | None = None
        self.sacked: set[int] = set()  # first numbers of segments
        self.flight: list[tuple[int, bytes, int]] = []  # number, bytes, flags
        self.rto_at: int | None = None
        self.ack_due = False
        self.fin_sent = False

    # Opening

    def listen(self, app: App) -> None:
        self._clear()
        self.state, self.app, self.passive = "LISTEN", app, True

    def connect(self, app: App, isn: int) -> None:
        self._clear()
        self.state, self.app, self.passive = "SYN_SENT", app, False
        self._begin(isn)

    def _begin(self, isn: int) -> None:
        self.iss = self.una = isn
        self.nxt = (isn + 1) & MASK
        self.flight = [(isn, b"", SYN)]
        self._transmit(*self.flight[0])

    # Sending

    def _transmit(self, seq: int, data: bytes, flags: int) -> None:
        ack = None if self.state == "SYN_SENT" else self.rcv
        self._frame(seq, data, ack, flags)
        self.rto_at = self.now + RTO_MS

    def _frame(self, seq: int, data: bytes, ack: int | None, flags: int) -> None:
        stamps = None
        if self.stamping and not flags & RST:
            self.last_stamp = self.clock() & MASK
            self.trusted_ms = min(self.trusted_ms, self.now + RING_MS)
            if self.first_stamp is None:
                self.first_stamp = self.last_stamp
            stamps = self.last_stamp, (self.recent or 0) if ack is not None else 0
        blocks = self._blocks() if self.later and not flags else None
        if ack is not None:
            self.last_ack, self.ack_due = ack, False
        self.out.append(
            tcp(
                seq, data, ack=ack, flags=flags, options=option(stamps, blocks), window=WINDOW,
                ports=self.ports, source=self.hosts[0], destination=self.hosts[1],
            )
        )  # fmt: skip

    def _blocks(self) -> list[tuple[int, int]]:
        made: list[tuple[int, int]] = []
        for seq in sorted(self.later, key=lambda each: ahead(each, self.rcv)):
            end = (seq + len(self.later[seq])) & MASK
            if made and made[-1][1] == seq:
                made[-1] = (made[-1][0], end)
            else:
                made.append((seq, end))
        return made[:3]

    def _acknowledge(self) -> None:
        self._frame(self.nxt, b"", self.rcv, 0)

    def tick(self) -> None:
        """New bytes, what must be said again, and an acknowledgement that waited."""
        if self.state == "OPEN":
            self._send_new()
        if self.rto_at is not None and self.now >= self.rto_at and self.flight:
            lost = next((each for each in self.flight if each[0] not in self.sacked), self.flight[0])
            self.sacked.clear()
            self._transmit(*lost)
        if self.ack_due:
            self._acknowledge()

    def _send_new(self) -> None:
        assert self.app is not None
        while (sent := ahead(self.nxt, self.iss) - 1) < len(self.app.said):
            room = self.window - ahead(self.nxt, self.una)
            size = min(self.rng.randrange(1, MSS), room, len(self.app.said) - sent)
            if size <= 0:
                return
            self._queue(bytes(self.app.said[sent : sent + size]), 0)
        if self.app.done and not self.fin_sent:
            self.fin_sent = True
            self._queue(b"", FIN)

    def _queue(self, data: bytes, flags: int) -> None:
        self.flight.append((self.nxt, data, flags))
        seq, self.nxt = self.nxt, (self.nxt + len(data) + bool(flags & FIN)) & MASK
        self._transmit(seq, data, flags)

    # Receiving

    def receive(self, frame: bytes, isn: int) -> None:
        """``isn`` is for the case that this opens a connection."""
        got = read(frame)
        if self.state == "LISTEN" or (
            self.finished and got.flags & (SYN | ACK) == SYN and self.state != "CLOSED"
        ):
            self._listen(got, isn)
        elif self.state == "CLOSED":
            self._refuse(got)
        elif self.state == "SYN_SENT":
            self._syn_sent(got)
        else:
            self._synchronized(got)

    def _refuse(self, got: Read) -> None:
        if got.flags & RST:
            return
        if got.flags & ACK:
            self._frame(got.ack, b"", None, RST)
        else:
            self._frame(0, b"", (got.seq + len(got.payload) + bool(got.flags & SYN)) & MASK, RST)

    def _listen(self, got: Read, isn: int) -> None:
        if got.flags & (RST | ACK):
            self._refuse(got)
        elif got.flags & SYN:
            app = self.app
            self._clear()
            self.app, self.state = app, "SYN_RCVD"
            self._take_syn(got)
            self._begin(isn)

    def _take_syn(self, got: Read) -> None:
        self.irs, self.rcv = got.seq, (got.seq + 1) & MASK
        self.recent = got.stamps[0] if got.stamps else None
        self.stamping = got.stamps is not None

    def _syn_sent(self, got: Read) -> None:
        if got.flags & ACK and got.ack != self.nxt:
            if got.flags & (SYN | RST):  # else of a connection that only the peer has (section 3.5.1)
                self.complaints.append(f"SYN-SENT: {got.ack} acknowledged, not {self.nxt}")
            self._refuse(got)
            return
        if got.flags & RST:
            if got.flags & ACK:
                self._reset()
            return
        if got.flags & SYN:
            self._take_syn(got)
            if got.flags & ACK:
                self._check_echo(got)
                self._acknowledged(got)
                self._established()
                self._acknowledge()
            else:
                self.state = "SYN_RCVD"
                self._transmit(*self.flight[0])

    def _established(self) -> None:
        assert self.app is not None
        self.state = "OPEN"
        self.app.opened()

    def _reset(self) -> None:
        if self.state == "SYN_RCVD" and self.passive:
            assert self.app is not None
            self.listen(self.app)
        else:
            self.complaints.append(f"{self.state}: reset")
            self.state, self.flight, self.rto_at = "CLOSED", [], None

    def _is_acceptable(self, got: Read) -> bool:
        length = len(got.payload) + bool(got.flags & SYN) + bool(got.flags & FIN)
        first, last = ahead(got.seq, self.rcv), ahead(got.seq + max(length - 1, 0), self.rcv)
        if 0 <= first < WINDOW or (length and 0 <= last < WINDOW):
            return True
        if not -SOUND < first < 0 and not got.flags & SYN:  # a SYN that is not known is only challenged
            self.complaints.append(f"{self.state}: segment at {got.seq}, {self.rcv} expected")
        return False

    def _is_old(self, got: Read) -> bool:
        """PAWS."""
        if not got.stamps or not self.stamping or self.recent is None or got.flags & RST:
            return False
        return ahead(got.stamps[0], self.recent) < 0

    def _synchronized(self, got: Read) -> None:
        if self._is_old(got):
            self._acknowledge()
            return
        if not self._is_acceptable(got):
            if not got.flags & RST:
                self._acknowledge()
            return
        if got.flags & RST:
            if got.seq == self.rcv:
                self._reset()
            else:
                self._acknowledge()
            return
        if got.flags & SYN:
            self._simultaneous(got)
            return
        if got.stamps and self.stamping and ahead(got.seq, self.last_ack) <= 0:
            self.recent = got.stamps[0]
        if got.flags & ACK and self._take_ack(got):
            self._take_bytes(got)

    def _simultaneous(self, got: Read) -> None:
        """The peer's SYN again, or its SYN-ACK where both have opened."""
        if self.state == "SYN_RCVD" and got.flags & ACK and got.ack == self.nxt:
            self._acknowledged(got)
            self._established()
        self._acknowledge()

    def _take_ack(self, got: Read) -> bool:
        if self.state == "SYN_RCVD":
            if got.ack != self.nxt:
                self.complaints.append(f"SYN-RECEIVED: {got.ack} acknowledged, not {self.nxt}")
                self._refuse(got)
                return False
            self._check_echo(got)
            self._acknowledged(got)
            self._established()
            return True
        if ahead(got.ack, self.nxt) > 0 or ahead(got.ack, self.una) < -SOUND:
            self.complaints.append(f"{got.ack} acknowledged, sent were {self.una} to {self.nxt}")
            self._acknowledge()
            return False
        self._check_echo(got)
        self._acknowledged(got)
        return True

    def _check_echo(self, got: Read) -> None:
        """Only of what was sent; of a restored one that is known once it has spoken.

        When a survivor's clock had to be raised, one on the way may seem older than the connection.
        """
        if not (got.stamps and self.stamping and got.stamps[1] and self.first_stamp is not None):
            return
        late = ahead(got.stamps[1], self.last_stamp) > 0 and self.now >= self.trusted_ms
        early = ahead(got.stamps[1], self.first_stamp) < 0 and self.state != "OPEN"
        if late or early:
            self.complaints.append(f"echo {got.stamps[1]} of {self.first_stamp} to {self.last_stamp}")

    def _acknowledged(self, got: Read) -> None:
        for left, right in got.blocks:
            if not 0 <= ahead(left, self.una) < ahead(right, self.una) <= ahead(self.nxt, self.una):
                if ahead(right, self.una) > 0:  # else an old one
                    self.complaints.append(f"block {left} to {right}, sent were {self.una} to {self.nxt}")
                continue
            for seq, data, _ in self.flight:
                if ahead(seq, left) >= 0 and ahead(seq + len(data), right) <= 0 and data:
                    self.sacked.add(seq)
        if ahead(got.ack, self.una) > 0:
            self.una = got.ack
            self.flight = [
                each for each in self.flight if ahead(each[0] + max(len(each[1]), 1), self.una) > 0
            ]
            self.rto_at = self.now + RTO_MS if self.flight else None

    def _take_bytes(self, got: Read) -> None:
        data, seq = got.payload, got.seq
        if got.flags & FIN:
            self.fin_at = (seq + len(data)) & MASK
        skip = ahead(self.rcv, seq)
        if data and skip < len(data):
            if skip > 0:
                data, seq = data[skip:], self.rcv
            if len(data) > len(self.later.get(seq, b"")):
                self.later[seq] = data
        self._deliver()
        if got.payload or got.flags & FIN:
            if self.rng.random() < 0.5 or self.later:
                self._acknowledge()
            else:
                self.ack_due = True

    def _deliver(self) -> None:
        assert self.app is not None
        for seq in sorted(self.later, key=lambda each: ahead(each, self.rcv)):
            skip = ahead(self.rcv, seq)
            if skip < 0:
                break
            data = self.later.pop(seq)[skip:]
            self.rcv = (self.rcv + len(data)) & MASK
            if data:
                self.app.heard(data, False)
        if self.fin_at == self.rcv:
            self.rcv = (self.rcv + 1) & MASK
            self.app.heard(b"", True)

    @property
    def finished(self) -> bool:
        """Both ends are closed, as far as this one knows."""
        ended = self.fin_at is not None and ahead(self.rcv, self.fin_at) > 0
        return self.state == "CLOSED" or (ended and self.fin_sent and not self.flight)
