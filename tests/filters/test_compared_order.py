"""Any order of two guests' words, cuts and commits: nothing is lost, reordered, or said twice or too early.

Two guests send what they like on a few connections, as datagrams and on the console, alike or not.  A model
that knows nothing of how frames are compared keeps what the secondary said since the last cut, and is asked
at every frame that goes before a commit whether the secondary could go on from there.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from colo.compare.packet import SYN, parse
from colo.compare.verdict import Settings
from tests.compare.frames import tcp, udp
from tests.compare.test_tcp_streams import Oracle
from tests.filters.gates import NETS, Gated

CONNECTIONS = 4
TEXT = random.Random(1).randbytes(4000)
FIRST = 0xFFFF_FF00
"""So that numbers wrap."""


@dataclass
class Side:
    """How far one guest is: bytes sent and acknowledged by connection (-1: no SYN yet), console bytes."""

    top: list[int] = field(default_factory=lambda: [-1] * CONNECTIONS)
    ack: list[int] = field(default_factory=lambda: [5] * CONNECTIONS)
    line: int = 0

    def copy(self) -> Side:
        return Side(self.top[:], self.ack[:], self.line)


@dataclass
class Heard:
    """What the secondary could go on from: what it was made at the cut, and what it said since."""

    oracles: list[Oracle]
    begun: set[int]
    datagrams: Counter[tuple[str, bytes]]
    line: bytearray


def port_of(connection: int) -> str:
    return NETS[connection % len(NETS)]


class Policies(RuleBasedStateMachine):
    limits: ClassVar[dict[str, int]] = {}
    settings = Settings()

    def __init__(self) -> None:
        super().__init__()
        self.gated = Gated(settings=self.settings, **self.limits)
        self.gated.hold.gate = self.gated.gate
        self.gated.watch = self.goes_early
        self.sides = [Side(), Side()]
        self.offered: list[tuple[str, bytes]] = []
        self.is_open = False
        self.asked = 0
        self.frames = 0
        self.segments: list[list[bytes]] = [[] for _ in range(CONNECTIONS)]
        self.console = [bytearray(), bytearray()]  # all that the primary said, and what the world heard
        self.hear_anew()

    # The model

    def hear_anew(self) -> None:
        """A cut: from here on the secondary is what the primary is."""
        self.sides[1] = self.sides[0].copy()
        primary = self.sides[0]
        oracles = [Oracle((FIRST + 1) & 0xFFFF_FFFF) for _ in range(CONNECTIONS)]
        for n, oracle in enumerate(oracles):
            oracle.offset = max(primary.top[n], 0)
            oracle.bytes_said = {at: {TEXT[at]} for at in range(oracle.offset)}
            oracle.acked = primary.ack[n] if primary.top[n] >= 0 else None
        begun = {n for n in range(CONNECTIONS) if primary.top[n] >= 0}
        self.heard = Heard(oracles, begun, Counter(), self.console[0][:])

    def goes_early(self, port: str, frame: bytes) -> None:
        assert self.is_open, "between a cut and its commit nobody may speak"
        if port == "com1":
            at = sum(len(data) for name, data in self.gated.world if name == "com1")
            assert self.heard.line[at : at + len(frame)] == frame
        elif parse(frame).kind.name == "UDP":
            self.heard.datagrams[port, frame[34:]] -= 1
            assert min(self.heard.datagrams.values()) >= 0, "the secondary did not send this"
        else:
            n = int.from_bytes(frame[36:38], "big")
            if parse(frame).flags & SYN:
                assert n in self.heard.begun
            else:
                assert self.heard.oracles[n].allows(frame)

    def speak(self, side: int, port: str, frame: bytes) -> None:
        if side:
            self.gated.secondary(frame, port=port)
            return
        self.offered.append((port, frame))
        if port == "com1":
            self.console[0] += frame
        self.gated.primary(frame, port=port)

    # The guests

    def serial(self) -> int:
        """No two frames are the same; what is different in them is not compared."""
        self.frames += 1
        return self.frames & 0xFFFF

    def segment(self, n: int, at: int, payload: bytes, ack: int, flags: int = 0) -> bytes:
        return tcp(FIRST + at, payload, ack=ack, flags=flags, ports=(80, n), ident=self.serial())

    @rule(
        side=st.integers(0, 1),
        n=st.integers(0, CONNECTIONS - 1),
        size=st.integers(1, 60),
        wrong=st.integers(0, 9),
    )
    def send(self, side: int, n: int, size: int, wrong: int) -> None:
        """The next segment of a connection; now and then the secondary's has another byte."""
        me = self.sides[side]
        if me.top[n] < 0:
            me.top[n] = 0
            frame = self.segment(n, 0, b"", me.ack[n], SYN)
            if side:
                self.heard.begun.add(n)
                self.heard.oracles[n].acked = me.ack[n]
            self.speak(side, port_of(n), frame)
            return
        payload = TEXT[me.top[n] : me.top[n] + size]
        if side and not wrong:
            payload = bytes((payload[0] ^ 1,)) + payload[1:]
        frame = self.segment(n, 1 + me.top[n], payload, me.ack[n])
        if not side:
            self.segments[n].append(frame)
        me.top[n] += size
        if side:
            self.heard.oracles[n].hear(frame)
        self.speak(side, port_of(n), frame)

    @rule(side=st.integers(0, 1), n=st.integers(0, CONNECTIONS - 1), more=st.integers(0, 40))
    def acknowledge(self, side: int, n: int, more: int) -> None:
        me = self.sides[side]
        if me.top[n] >= 0:
            me.ack[n] += more
            frame = self.segment(n, 1 + me.top[n], b"", me.ack[n])
            if side:
                self.heard.oracles[n].hear(frame)
            self.speak(side, port_of(n), frame)

    @rule(side=st.integers(0, 1), n=st.integers(0, CONNECTIONS - 1), data=st.data())
    def repeat(self, side: int, n: int, data: st.DataObject) -> None:
        me = self.sides[side]
        if me.top[n] > 0:
            a = data.draw(st.integers(0, me.top[n] - 1))
            b = data.draw(st.integers(a + 1, me.top[n]))
            frame = self.segment(n, 1 + a, TEXT[a:b], me.ack[n])
            if side:
                self.heard.oracles[n].hear(frame)
            self.speak(side, port_of(n), frame)

    @rule(side=st.integers(0, 1), port=st.sampled_from(NETS), what=st.integers(0, 3), other=st.integers(0, 1))
    def datagram(self, side: int, port: str, what: int, other: int) -> None:
        frame = udp(bytes((what,)), ports=(53, other), ident=self.serial())
        if side:
            self.heard.datagrams[port, frame[34:]] += 1
        self.speak(side, port, frame)

    @rule(side=st.integers(0, 1), size=st.integers(1, 30), wrong=st.integers(0, 9))
    def print(self, side: int, size: int, wrong: int) -> None:
        me = self.sides[side]
        text = TEXT[me.line : me.line + size]
        if side and not wrong:
            text = text[:-1] + bytes((text[-1] ^ 1,))
        me.line += size
        if side:
            self.heard.line += text
        self.speak(side, "com1", text)

    @rule(first=st.integers(0, 1), n=st.integers(0, CONNECTIONS - 1), size=st.integers(1, 60))
    def answer(self, first: int, n: int, size: int) -> None:
        """Both get the same request, and say the same as far as they are the same."""
        for side in (first, 1 - first):
            self.acknowledge(side, n, 7)
            self.send(side, n, size, 1)
            self.datagram(side, port_of(n), size % 4, 0)
            self.print(side, size % 30 + 1, 1)

    # The pair

    @initialize(formed=st.booleans())
    def form(self, formed: bool) -> None:
        if formed:
            self.checkpoint()

    @rule(ms=st.sampled_from([0.0, 1.0, 25.0, 600.0]))
    def wait(self, ms: float) -> None:
        self.gated.later(ms)

    @rule()
    def cut(self) -> None:
        """A checkpoint, or the next one before the last was committed."""
        self.is_open = False
        self.gated.cut()
        self.hear_anew()
        self.asked = len(self.gated.asked)
        assert self.gated.gate.held_frames == 0

    @precondition(lambda self: not self.is_open and self.gated.epoch)
    @rule()
    def commit(self) -> None:
        self.is_open = True
        self.gated.commit()

    @rule()
    def checkpoint(self) -> None:
        self.cut()
        self.commit()

    # What is always so

    @invariant()
    def the_world_heard_each_frame_once_at_most(self) -> None:
        self.console[1][:] = b"".join(frame for port, frame in self.gated.world if port == "com1")
        assert self.console[0].startswith(self.console[1])
        cards = Counter(each for each in self.gated.world if each[0] != "com1")
        assert cards <= Counter(each for each in self.offered if each[0] != "com1")

    @invariant()
    def segments_of_a_connection_go_in_order(self) -> None:
        """Repetitions may overtake what waits; new segments do not."""
        for frames in self.segments:
            heard = [frame for _, frame in self.gated.world if frame in set(frames)]
            assert heard == frames[: len(heard)]

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        account, gate, hold = self.gated.gate.account, self.gated.gate, self.gated.hold
        assert account.taken == account.said + account.handed_over + gate.held_frames
        assert hold.dropped == account.lost == 0
        assert len(self.gated.asked) - self.asked <= 1, "one request for each checkpoint"

    def teardown(self) -> None:
        if not self.gated.epoch or self.is_open:
            self.cut()
        self.commit()
        self.cut()
        self.commit()
        assert bytes(self.console[0]) == b"".join(data for port, data in self.gated.world if port == "com1")
        cards = [each for each in self.gated.world if each[0] != "com1"]
        assert Counter(cards) == Counter(each for each in self.offered if each[0] != "com1")


class Crowded(Policies):
    """With limits that are met all the time."""

    limits: ClassVar = {"frames_max": 6, "bytes_max": 600}
    settings = Settings(queue_max=3, frames_max=8, bytes_max=900, connections_max=1)


TestPolicies = Policies.TestCase
TestCrowded = Crowded.TestCase
