"""A client, a pair of guests with the comparison between them, and a network that loses and reorders.

Everything happens in steps of one millisecond and follows from a seed.  Each guest has a clock, a card whose
ring it empties when it has time, and initial numbers of its own.  A checkpoint copies the primary's TCP with
its ring and its clock.  After ``fail`` the primary is gone and the secondary alone, until it is protected
again: then it is a primary whose clients may know another machine's numbers.

Checked on the way: everything that an endpoint complains of, and, for each frame that the survivor says,
that it follows on from what the client had: no time stamp before one that the client took or may still
get, no number outside what the client can make sense of.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

from colo.compare.comparison import Comparison
from colo.compare.comparison import Settings as Limits
from colo.compare.packet import ACK, RST, SYN
from colo.compare.verdict import Decision, Diverged, Release
from colo.rewrite.rewriter import Rewriter
from tests.compare.frames import CLIENT, GUEST
from tests.rewrite.ends import MASK, read
from tests.rewrite.oracle import SOUND, WINDOW, Tcp, ahead

BANNER = b"ready when you are"
CALM_MS = 200
"""Nothing is under way any more: more than any frame of the network takes."""
LIMITS = Limits(wait_ms=60.0, ack_wait_ms=120.0, alone_ms=200.0)
ALONE_MS = 150
"""From a failover until a new secondary has everything."""


class Answering:
    """Says a banner, then every byte turned; closes when its peer did."""

    def __init__(self) -> None:
        self.said, self.got, self.done = bytearray(), bytearray(), False

    def opened(self) -> None:
        self.said += BANNER

    def heard(self, data: bytes, end: bool) -> None:
        self.got += data
        self.said += bytes(each ^ 0x5A for each in data)
        self.done |= end


class Asking:
    """Says its script, closes when all of it was answered."""

    def __init__(self, script: bytes) -> None:
        self.script, self.got, self.done = script, bytearray(), False
        self.said = bytearray()

    def opened(self) -> None:
        self.said += self.script

    def heard(self, data: bytes, end: bool) -> None:
        self.got += data
        self.done |= end or len(self.got) >= len(BANNER) + len(self.script)


@dataclass
class Plan:
    """One run."""

    seed: int
    fails: tuple[int, ...] = ()
    """In words of the client and of the pair, counted from the beginning.  A survivor is protected again."""
    guest_opens: bool = False
    both_open: bool = False
    stamps: bool = True
    loss: float = 0.05
    delay_ms: int = 12
    checkpoint: float = 0.002
    """Chance, in each millisecond, of one that nothing asks for."""
    size: int = 2500
    limit_ms: int = 60_000
    rounds: int = 2
    """Connections between the same ports, one after the other."""
    clocks: tuple[int, int] = (0, 0)
    skew_ms: int = 200
    numbers: tuple[int, int, int] | None = None
    """Initial, of primary, secondary, client; else any."""


class Guest:
    def __init__(self, world: World, name: str, clock: int) -> None:
        self.world, self.rng = world, random.Random(f"{world.plan.seed} {name}")
        self.base, self.behind = clock, 0
        self.tcp = Tcp((GUEST, CLIENT), (80, 40000), self.rng, stamps=world.plan.stamps)
        self.ring: list[tuple[int, bytes]] = []
        self._wire()

    def _wire(self) -> None:
        self.tcp.rng = self.rng
        self.tcp.clock = lambda: self.base + self.world.now - self.behind

    def become(self, other: Guest) -> None:
        """What a checkpoint does."""
        other.tcp.clock = lambda: 0  # not part of it
        self.tcp = copy.deepcopy(other.tcp)
        self.base, self.behind = other.base, other.behind
        self.tcp.trusted_ms = float("inf")
        self.ring = list(other.ring)
        self._wire()
        other._wire()

    def isn(self, place: int) -> int:
        fixed = self.world.plan.numbers
        base = fixed[place] if fixed is not None else self.rng.randrange(1 << 32)
        return (base + self.world.round * 0x0900_0000) & MASK if fixed is not None else base

    def put(self, frame: bytes) -> None:
        due = self.world.now + self.rng.randrange(4)
        self.ring.append((max(due, self.ring[-1][0] if self.ring else 0), frame))

    def run(self, place: int) -> list[bytes]:
        self.tcp.now = self.world.now
        while self.ring and self.ring[0][0] <= self.world.now:
            self.tcp.receive(self.ring.pop(0)[1], self.isn(place))
        if self.rng.random() < 0.5:
            self.tcp.tick()
        out, self.tcp.out = self.tcp.out, []
        return out


class World:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.now = self.words = self.round = 0
        self.rewriter = Rewriter()
        self.front: Rewriter | None = None  # of a primary that was a secondary
        self.comparison = Comparison(LIMITS)
        self.alone_until: int | None = None
        self.primary: Guest | None = Guest(self, "primary", plan.clocks[0])
        self.secondary = Guest(self, "secondary", plan.clocks[1])
        self.client = Tcp(
            (CLIENT, GUEST), (40000, 80), random.Random(f"{plan.seed} client"), stamps=plan.stamps
        )
        self.client.clock = lambda: 123_456 + self.now
        self.wire: list[tuple[int, int, str, bytes]] = []
        self.client_isn = self.spoken = 0
        self.fails = list(plan.fails)
        self.checkpoints = 0
        self.wrong: list[str] = []
        self.last_ms = 0

    # One run

    def play(self) -> None:
        """All rounds; AssertionError says what went wrong in which plan."""
        for number in range(self.plan.rounds):
            self.round = number
            self._open()
            ends = self.client.app, self._speaker().tcp.app
            while not self._is_over():
                assert self.now - self.last_ms < self.plan.limit_ms, f"{self.plan}: stuck"
                self._step()
            self._judge(*ends)
            for _ in range(CALM_MS):
                self._step()
            self.last_ms = self.now

    def _speaker(self) -> Guest:
        return self.primary or self.secondary

    def _guests(self) -> list[Guest]:
        return [each for each in (self.primary, self.secondary) if each is not None]

    def _open(self) -> None:
        plan, script = self.plan, random.Random(self.plan.seed + self.round).randbytes(self.plan.size)
        number = plan.numbers[2] + self.round * 0x0900_0000 if plan.numbers else self.rng.randrange(1 << 32)
        if plan.guest_opens or plan.both_open:
            if plan.both_open:
                self.client.connect(Answering(), number & MASK)
            else:
                self.client.listen(Answering())
            self.client_isn = number & MASK
            for place, guest in enumerate(self._guests(), 2 - len(self._guests())):
                guest.tcp.now = self.now
                guest.tcp.connect(Asking(script), guest.isn(place))
        else:
            self.client_isn = number & MASK
            for guest in self._guests():
                guest.tcp.listen(Answering())
            self.client.now = self.now
            self.client.connect(Asking(script), number & MASK)

    def _is_over(self) -> bool:
        return self.client.finished and self._speaker().tcp.finished

    def _judge(self, client: object, guest: object) -> None:
        guest = self._speaker().tcp.app  # a checkpoint or a failover made it another one
        for asking, answering in ((client, guest), (guest, client)):
            if isinstance(asking, Asking):
                assert isinstance(answering, Answering)
                assert answering.got == asking.script, f"{self.plan}: the question was heard wrong"
                wanted = BANNER + bytes(each ^ 0x5A for each in asking.script)
                assert asking.got == wanted, f"{self.plan}: the answer was heard wrong"
        wrong = [*self.wrong, *self.client.complaints, *self.secondary.tcp.complaints]
        if self.primary is not None:
            wrong += self.primary.tcp.complaints
        assert wrong == [], f"{self.plan}: {wrong}"

    # One millisecond

    def _step(self) -> None:
        self.now += 1
        self._drift()
        if self.alone_until is not None and self.now >= self.alone_until:
            self._protect()
        arrived = [each for each in self.wire if each[0] <= self.now]
        self.wire = [each for each in self.wire if each[0] > self.now]
        for _, _, sender, frame in sorted(arrived, key=lambda each: each[:2]):
            if sender == "client":
                self._to_pair(frame)
            else:
                self._to_client(frame, sender)
        self._run_guests()
        self.client.now = self.now
        self.client.tick()
        out, self.client.out = self.client.out, []
        for frame in out:
            self._send(frame, "client")

    def _to_client(self, frame: bytes, sender: str) -> None:
        before = len(self.client.complaints)
        self.client.now = self.now
        self.client.receive(frame, self.client_isn)
        if sender == "primary" and self.primary is None and not self._knows(read(frame).seq):
            del self.client.complaints[before:]  # the last word of the dead, after the survivor's first

    def _drift(self) -> None:
        """The guests' clocks, apart by up to ``skew_ms``; neither goes back."""
        for guest in self._guests():
            if self.rng.random() < 0.3:
                guest.behind = min(guest.behind + 1, self.plan.skew_ms)
            elif self.rng.random() < 0.02:
                guest.behind = max(guest.behind - self.rng.randrange(60), 0)

    def _send(self, frame: bytes, sender: str) -> None:
        if self.rng.random() >= self.plan.loss:
            due = self.now + 1 + self.rng.randrange(self.plan.delay_ms)
            self.words += 1
            self.wire.append((due, self.words, sender, frame))

    def _to_pair(self, frame: bytes) -> None:
        if self.primary is not None:
            self.primary.put(frame if self.front is None else self.front.inward(frame, self.now))
        self.secondary.put(self.rewriter.inward(frame, self.now))
        self._word()

    def _word(self) -> None:
        """Something was said: the moment at which a primary may die."""
        self.spoken += 1
        if self.primary is not None and self.fails and self.spoken >= self.fails[0]:
            self.fails.pop(0)
            self.fail()

    def _run_guests(self) -> None:
        said = self.primary.run(0) if self.primary is not None else []
        epoch = self.checkpoints
        for frame in said:
            if self.primary is None:
                break
            if self.front is not None:
                frame = self.front.outward(frame, self.now)
            if epoch == self.checkpoints:
                self._decide(self.comparison.feed_primary(frame, self.now))
            else:  # part of what the checkpoint captured
                self._send(frame, "primary")
            self._word()
        said, epoch = self.secondary.run(1), self.checkpoints
        for frame in said:
            if epoch != self.checkpoints:  # of the guest before the checkpoint
                break
            shown = self.rewriter.outward(frame, self.now)
            if self.primary is not None:
                self._decide(self.comparison.feed_secondary(shown, self.now))
            else:
                self._survivor_says(shown)
            self._word()
        self.rewriter.tick(self.now)
        if self.primary is not None:
            self._decide(self.comparison.tick(self.now))
        if self.primary is not None and self.rng.random() < self.plan.checkpoint:
            self._checkpoint()

    def _decide(self, decisions: list[Decision]) -> None:
        for each in decisions:
            if isinstance(each, Release):
                self._send(each.frame, "primary")
        if self.primary is not None and any(isinstance(each, Diverged) for each in decisions):
            self._checkpoint()

    def _checkpoint(self) -> None:
        assert self.primary is not None
        self.checkpoints += 1
        complaints = self.secondary.tcp.complaints
        self.secondary.become(self.primary)
        self.wrong += complaints
        self.secondary.tcp.complaints = []
        self.rewriter.reset(self.front.translations() if self.front is not None else ())
        self._decide(self.comparison.checkpoint())

    def fail(self) -> None:
        self.primary = self.front = None
        self.rewriter.take_over(self.now)
        self.alone_until = self.now + ALONE_MS if self.fails else None

    def _protect(self) -> None:
        """The survivor gets a secondary."""
        self.primary, self.front, self.alone_until = self.secondary, self.rewriter, None
        self.secondary = Guest(self, f"{self.now}", 0)
        self.rewriter, self.comparison = Rewriter(), Comparison(LIMITS)
        self._checkpoint()

    def _survivor_says(self, frame: bytes) -> None:
        got, client = read(frame), self.client
        assert got.flags & (ACK | SYN | RST)
        if client.state == "OPEN" and not got.flags & (SYN | RST):
            if not self._knows(got.seq) or ahead(got.ack, client.nxt) > 0:
                self.wrong.append(f"{got.seq} said to a client that expects {client.rcv}")
            had = [stamp for stamp in self._had() if got.stamps and ahead(got.stamps[0], stamp) < 0]
            if had:
                self.wrong.append(f"time stamp of {got} after {had}")
        self._send(frame, "secondary")

    def _had(self) -> list[int]:
        """Time stamps that the client took, or will get from the primary that died."""
        reads = [read(frame) for _, _, sender, frame in self.wire if sender == "primary"]
        stamps = [each.stamps[0] for each in reads if each.stamps and self._knows(each.seq)]
        return stamps + ([self.client.recent] if self.client.recent is not None else [])

    def _knows(self, seq: int) -> bool:
        """Is this a number that the client can place?"""
        return -SOUND < ahead(seq, self.client.rcv) <= WINDOW
