"""A small TCP for the world's clients: active open, data both ways, in order, with retransmission.

RFC 9293, with the sections named below.  It is deterministic: its clock is the world's, its initial sequence
numbers come from the seed.  What a real client's kernel would do differently is on purpose as simple as the
standard allows, because clients here are instruments:

* every segment is acknowledged at once (3.8.6.3 allows to delay); what is out of order waits for the rest;
* retransmission goes back to the first byte that is not acknowledged, after ``RTO_S`` (RFC 6298's minimum in
  Linux), doubled each time, or at the third duplicate acknowledgement (RFC 5681, 3.2);
* a connection that is closed by both is forgotten (no TIME-WAIT: ports are not used again).

Not modelled: passive open, window scaling, time stamps, selective acknowledgements, congestion control,
urgent data, path MTU discovery.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from enum import Enum

from colo.compare.checksum import checksum, pseudo_sum
from colo.compare.seq import after
from colo.sim import packets
from colo.sim.packets import Ip

MSS = 1460
WINDOW = 65535
RTO_S, RTO_MAX_S = 0.2, 3.2
DUPLICATES = 3
EARLY_MAX = 64
"""Segments: more than a window of full ones."""
MODULUS = 1 << 32
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_HEADER = struct.Struct("!HHIIBBHHH")
MSS_OPTION = struct.pack("!BBH", 2, 4, MSS)


class State(Enum):
    """Section 3.3.2; LISTEN, SYN-RECEIVED and TIME-WAIT are not needed."""

    SYN_SENT = "syn-sent"
    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    CLOSE_WAIT = "close-wait"
    LAST_ACK = "last-ack"
    CLOSED = "closed"


class Segment:
    """One that came."""

    __slots__ = ("ack", "data", "flags", "port", "seq", "source_port", "window")

    def __init__(self, data: bytes) -> None:
        source_port, port, seq, ack, offset, flags, window, _, _ = _HEADER.unpack_from(data)
        self.source_port, self.port, self.seq, self.ack = source_port, port, seq, ack
        self.flags, self.window = flags, window
        self.data = data[(offset >> 4) * 4 :]

    @property
    def length(self) -> int:
        """In sequence space (3.4)."""
        return len(self.data) + bool(self.flags & SYN) + bool(self.flags & FIN)


def read_segment(ip: Ip) -> Segment | None:
    """None for what is damaged."""
    data = ip.payload
    if len(data) < _HEADER.size or not 20 <= (data[12] >> 4) * 4 <= len(data):
        return None
    if checksum(data, pseudo_sum(ip.source, ip.destination, packets.TCP, len(data))):
        return None
    return Segment(data)


def write_segment(
    ends: tuple[bytes, int, bytes, int], seq: int, ack: int, flags: int, data: bytes = b""
) -> bytes:
    """From an address and port to another; a SYN offers our maximum segment size."""
    source, source_port, destination, port = ends
    options = MSS_OPTION if flags & SYN else b""
    offset = (_HEADER.size + len(options)) // 4 << 4
    head = _HEADER.pack(source_port, port, seq, ack, offset, flags, WINDOW, 0, 0) + options
    start = pseudo_sum(source, destination, packets.TCP, len(head) + len(data))
    found = checksum(head + data, start)
    return head[:16] + found.to_bytes(2, "big") + head[18:] + data


def reset_for(ip: Ip, segment: Segment) -> bytes | None:
    """What a host says to a segment of no connection (3.5.2, group 1)."""
    if segment.flags & RST:
        return None
    ends = (ip.destination, segment.port, ip.source, segment.source_port)
    if segment.flags & ACK:
        return write_segment(ends, segment.ack, 0, RST)
    return write_segment(ends, 0, (segment.seq + segment.length) % MODULUS, RST | ACK)


class TcpConnection:
    """One connection; made by :meth:`colo.sim.host.Host.connect`."""

    def __init__(
        self,
        ends: tuple[bytes, int, bytes, int],
        iss: int,
        send: Callable[[bytes], None],
        closed: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """``iss`` is the initial sequence number; ``send`` is given segments."""
        self.ends = ends
        self.state = State.SYN_SENT
        self.retransmissions = 0
        self._loop, self._send_segment, self._forget = loop, send, closed
        self._una = self._next = iss
        """SND.UNA and SND.NXT."""
        self._window = 0
        """SND.WND."""
        self._rcv_next = 0
        self._out = bytearray()
        """From SND.UNA on, without SYN and FIN."""
        self._fin_wanted = self._fin_sent = False
        self._in = bytearray()
        self._early: dict[int, Segment] = {}
        """By sequence number, what came before what it follows."""
        self._eof = False
        self._failure: OSError | None = None
        self._changed = asyncio.Event()
        self._rto_s, self._timer = RTO_S, loop.call_later(0, lambda: None)
        self._duplicates = 0
        self._emit(SYN)
        self._next = (iss + 1) % MODULUS
        self._arm()

    # For an actor

    async def established(self) -> None:
        await self._until(lambda: self.state is not State.SYN_SENT)
        self._raise()

    async def send(self, data: bytes) -> None:
        """Hand over; it is sent as the peer's window allows, and again until it is acknowledged."""
        self._raise()
        if self._fin_wanted:
            raise BrokenPipeError("send after close")
        self._out += data
        self._output()

    async def receive(self) -> bytes:
        """What came, at least a byte; b"" at the end of the stream."""
        await self._until(lambda: self._in or self._eof)
        data = bytes(self._in)
        self._in.clear()
        return data

    async def read_until(self, separator: bytes) -> bytes:
        """Up to and including ``separator``; ConnectionResetError when the stream ends before."""
        await self._until(lambda: separator in self._in or self._eof)
        end = self._in.find(separator)
        if end < 0:
            raise ConnectionResetError(f"the stream ended before {separator!r}: {bytes(self._in)!r}")
        return self._take(end + len(separator))

    async def read_exactly(self, count: int) -> bytes:
        await self._until(lambda: len(self._in) >= count or self._eof)
        if len(self._in) < count:
            raise ConnectionResetError(f"the stream ended after {len(self._in)} of {count} bytes")
        return self._take(count)

    def close(self) -> None:
        """After what was sent; what comes until the peer closes can still be received."""
        self._fin_wanted = True
        if self.state is State.SYN_SENT:
            self._end(None)
        else:
            self._output()

    def abort(self) -> None:
        """At once, with a reset."""
        if self.state is not State.CLOSED:
            self._emit(RST | ACK)
            self._end(ConnectionAbortedError("aborted here"))

    def _take(self, count: int) -> bytes:
        data = bytes(self._in[:count])
        del self._in[:count]
        return data

    async def _until(self, ready: Callable[[], object]) -> None:
        while not ready():
            self._raise()
            self._changed.clear()
            await self._changed.wait()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    # Output (3.8.6)

    def _emit(self, flags: int, data: bytes = b"", seq: int | None = None) -> None:
        ack = self._rcv_next if flags & ACK else 0
        self._send_segment(write_segment(self.ends, self._next if seq is None else seq, ack, flags, data))

    @property
    def _flying(self) -> int:
        return (self._next - self._una) % MODULUS

    def _output(self) -> None:
        """What the window allows; a closed one is probed with a byte by the timer."""
        if self.state not in (State.ESTABLISHED, State.CLOSE_WAIT):
            return
        while (flying := self._flying) < len(self._out) and flying < self._window:
            data = bytes(self._out[flying : flying + min(MSS, self._window - flying)])
            self._emit(ACK | PSH, data)
            self._next = (self._next + len(data)) % MODULUS
        if self._fin_wanted and not self._fin_sent and self._flying == len(self._out):
            self._emit(ACK | FIN)
            self._next = (self._next + 1) % MODULUS
            self._fin_sent = True
            self.state = State.FIN_WAIT_1 if self.state is State.ESTABLISHED else State.LAST_ACK
        self._arm()

    def _arm(self) -> None:
        self._timer.cancel()
        if self.state is not State.CLOSED and (self._flying or self._out):
            self._timer = self._loop.call_later(self._rto_s, self._late)

    def _late(self) -> None:
        """Nothing was acknowledged for a while (3.8.1)."""
        self._rto_s = min(2 * self._rto_s, RTO_MAX_S)
        self._again()
        self._arm()

    def _again(self) -> None:
        """The first segment that is not acknowledged; a byte when the window is shut (3.8.6.1)."""
        self.retransmissions += 1
        if self.state is State.SYN_SENT:
            self._emit(SYN, seq=self._una)
        elif self._out:
            data = bytes(self._out[: min(MSS, max(self._window, 1))])
            self._emit(ACK | PSH, data, self._una)
            if self._flying < len(data):
                self._next = (self._una + len(data)) % MODULUS
        elif self._fin_sent:
            self._emit(ACK | FIN, seq=self._una)

    # Input (3.10.7)

    def segment(self, segment: Segment) -> None:
        if self.state is State.SYN_SENT:
            self._in_syn_sent(segment)
        elif self.state is not State.CLOSED:
            self._in_others(segment)
        self._changed.set()

    def _in_syn_sent(self, segment: Segment) -> None:
        """3.10.7.3"""
        acceptable = bool(segment.flags & ACK) and segment.ack == self._next
        if segment.flags & ACK and not acceptable:
            if not segment.flags & RST:
                self._emit(RST, seq=segment.ack)
            return
        if segment.flags & RST:
            if acceptable:
                self._end(ConnectionRefusedError("the peer refused the connection"))
            return
        if not (segment.flags & SYN and acceptable):
            return
        self._rcv_next = (segment.seq + 1) % MODULUS
        self._una, self._window, self._rto_s = segment.ack, segment.window, RTO_S
        self.state = State.ESTABLISHED
        self._emit(ACK)
        self._output()

    def _in_others(self, segment: Segment) -> None:
        """3.10.7.4"""
        if segment.flags & RST:
            if segment.seq == self._rcv_next:
                self._end(ConnectionResetError("the peer reset the connection"))
            return
        if not segment.flags & ACK or segment.flags & SYN:
            self._emit(ACK)  # a challenge, RFC 5961
            return
        self._acknowledged(segment)
        if segment.length and self.state is not State.CLOSED:
            self._take_data(segment)

    def _acknowledged(self, segment: Segment) -> None:
        advance = (segment.ack - self._una) % MODULUS
        if 0 < advance <= self._flying:
            fin = advance == len(self._out) + 1 and self._fin_sent
            del self._out[: advance - fin]
            self._una, self._rto_s, self._duplicates = segment.ack, RTO_S, 0
            if fin:
                self._fin_acknowledged()
        elif advance == 0 and self._flying and not segment.length and segment.window == self._window:
            self._duplicates += 1
            if self._duplicates == DUPLICATES:
                self._again()
        if not after(self._una, segment.ack):
            self._window = segment.window
        self._output()
        self._arm()

    def _fin_acknowledged(self) -> None:
        if self.state is State.LAST_ACK or (self.state is State.FIN_WAIT_1 and self._eof):
            self._end(None)
        elif self.state is State.FIN_WAIT_1:
            self.state = State.FIN_WAIT_2

    def _take_data(self, segment: Segment) -> None:
        """What comes next, and then what came too early; it is all within the window."""
        if (segment.seq - self._rcv_next) % MODULUS < WINDOW and len(self._early) < EARLY_MAX:
            self._early.setdefault(segment.seq, segment)
        self._take_in_order(segment)
        while (follows := self._early.pop(self._rcv_next, None)) is not None and not self._eof:
            self._take_in_order(follows)
        self._early = {seq: each for seq, each in self._early.items() if not after(self._rcv_next, seq)}
        self._emit(ACK)

    def _take_in_order(self, segment: Segment) -> None:
        """Of what came before, the rest."""
        known = (self._rcv_next - segment.seq) % MODULUS
        if known > len(segment.data) or self._eof:
            return
        fresh = segment.data[known:]
        self._in += fresh
        self._rcv_next = (self._rcv_next + len(fresh)) % MODULUS
        if segment.flags & FIN:
            self._rcv_next = (self._rcv_next + 1) % MODULUS
            self._peer_closed()

    def _peer_closed(self) -> None:
        self._eof = True
        if self.state is State.ESTABLISHED:
            self.state = State.CLOSE_WAIT
        elif self.state is State.FIN_WAIT_2:
            self._loop.call_soon(self._end, None)  # after the acknowledgement

    def _end(self, failure: OSError | None) -> None:
        self.state, self._failure = State.CLOSED, self._failure or failure
        self._eof = True
        self._timer.cancel()
        self._changed.set()
        self._forget()
