"""Properties of whole streams, held to an oracle that knows nothing of how they are compared.

The oracle keeps every byte and acknowledgement that the secondary sent since the last checkpoint, and at
each release asks whether a client that got this frame could go on with that secondary.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from colo.compare.comparison import Comparison
from colo.compare.packet import FIN, SYN, parse
from colo.compare.seq import MASK, distance
from colo.compare.verdict import Decision, Diverged, Drop, Release
from tests.compare.frames import tcp

STARTS = st.sampled_from([0, 1, 1000, 0x7FFF_FFF0, 0x8000_0000, 0xFFFF_FF00, 0xFFFF_FFF8, MASK])
LONGEST = 400


@dataclass
class Oracle:
    """What the secondary could go on from."""

    base: int
    bytes_said: dict[int, set[int]] = field(default_factory=dict)  # by distance from base
    acked: int | None = None
    fins: set[int] = field(default_factory=set)
    offset: int = 0  # bytes before this are shared by a checkpoint

    def hear(self, frame: bytes) -> None:
        packet = parse(frame)
        at = distance(self.base, packet.seq)
        for n, byte in enumerate(packet.payload):
            self.bytes_said.setdefault(at + n, set()).add(byte)
        if self.acked is None or distance(self.acked, packet.ack) > 0:
            self.acked = packet.ack
        if packet.flags & FIN:
            self.fins.add(at + len(packet.payload))

    def front(self) -> int:
        at = self.offset
        while at in self.bytes_said:
            at += 1
        return at

    def allows(self, frame: bytes) -> bool:
        packet = parse(frame)
        at, payload = distance(self.base, packet.seq), packet.payload
        front = self.front()
        if front in self.fins and not payload:
            front += 1  # the FIN has a number of its own
        if at + len(payload) > front or self.acked is None or distance(self.acked, packet.ack) > 0:
            return False
        if packet.flags & FIN and at + len(payload) not in self.fins:
            return False
        return all(
            byte in self.bytes_said[at + n] for n, byte in enumerate(payload) if at + n in self.bytes_said
        )


@dataclass
class Run:
    """A comparison with its oracle; every frame is accounted for."""

    start: int
    comparison: Comparison = field(default_factory=Comparison)
    said: list[bytes] = field(default_factory=list)  # of the primary
    released: list[bytes] = field(default_factory=list)
    dropped: int = 0
    heard: int = 0
    diverged: list[Diverged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.oracle = Oracle((self.start + 1) & MASK)

    def open(self) -> None:
        syn = tcp(self.start, ack=5, flags=SYN)
        self.primary(syn)
        self.oracle.acked = 5
        self.note(self.comparison.feed_secondary(syn, 0.0))
        self.heard += 1
        assert self.released == [syn]

    def primary(self, frame: bytes) -> None:
        self.said.append(frame)
        self.note(self.comparison.feed_primary(frame, 0.0))

    def secondary(self, frame: bytes) -> None:
        self.heard += 1
        self.oracle.hear(frame)
        self.note(self.comparison.feed_secondary(frame, 0.0))

    def note(self, decisions: list[Decision]) -> None:
        for each in decisions:
            if isinstance(each, Release):
                if not parse(each.frame).flags & SYN:
                    assert self.oracle.allows(each.frame)
                self.released.append(each.frame)
            elif isinstance(each, Drop):
                self.dropped += 1
            else:
                self.diverged.append(each)

    def new_bytes_released(self) -> list[int]:
        """Ends of released segments that brought a client anything new, in order of release."""
        ends: list[int] = []
        for frame in self.released:
            packet = parse(frame)
            end = distance(self.oracle.base, packet.seq) + len(packet.payload)
            if packet.payload and (not ends or end > ends[-1]):
                ends.append(end)
        return ends


@st.composite
def cuts(draw: st.DrawFn, length: int, *, repeats: bool = True) -> list[tuple[int, int]]:
    """[0, length) in segments, some of it more than once."""
    places = sorted(draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=12)) - {length})
    edges = [0, *places, length]
    pieces = [(a, b) for a, b in itertools.pairwise(edges) if a < b]
    if repeats:
        spots = st.tuples(st.integers(0, length - 1), st.integers(1, length))
        pieces += [(a, min(a + n, length)) for a, n in draw(st.lists(spots, max_size=5))]
    return pieces


def segments(
    run: Run, data: bytes, pieces: list[tuple[int, int]], acks: tuple[int, int], end: bool, seed: int
) -> list[bytes]:
    """``pieces`` of ``data`` as frames whose acknowledgements grow from one of ``acks`` to the other."""
    rng = random.Random(seed)
    made = []
    for n, (a, b) in enumerate(pieces):
        ack = acks[0] + (acks[1] - acks[0]) * n // max(len(pieces) - 1, 1)
        fin = FIN if end and b == len(data) else 0
        made.append(tcp(run.start + 1 + a, data[a:b], ack=ack, flags=fin))
    if rng.random() < 0.5:
        made.append(tcp(run.start + 1 + len(data) + end, ack=acks[1]))
    return made


def interleave(run: Run, mine: list[bytes], its: list[bytes], order: random.Random) -> None:
    queues = [list(mine), list(its)]
    while queues[0] or queues[1]:
        side = order.randrange(2)
        side = side if queues[side] else 1 - side
        (run.primary, run.secondary)[side](queues[side].pop(0))


@given(st.data(), STARTS, st.binary(min_size=1, max_size=LONGEST), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=400)
def test_the_same_stream_is_the_same_however_it_is_cut_ordered_and_repeated(
    draw: st.DataObject, start: int, data: bytes, end: bool, seed: int
) -> None:
    run = Run(start)
    run.open()
    order = random.Random(seed)
    mine = segments(run, data, draw.draw(cuts(len(data))), (5, 900), end, seed)
    its = segments(run, data, draw.draw(cuts(len(data))), (5, 900), end, seed + 1)
    for each in (mine, its):
        if order.random() < 0.7:
            order.shuffle(each)
    its.append(tcp(start + 1 + len(data) + end, ack=900))  # both got everything in the end
    interleave(run, mine, its, order)
    assert not run.diverged
    assert sorted(run.released) == sorted(run.said)
    assert run.dropped == run.heard
    assert run.comparison.tally.frames_kept == run.comparison.tally.bytes_kept == 0


@given(st.data(), STARTS, st.binary(min_size=1, max_size=LONGEST), st.integers(0, 2**32))
@settings(max_examples=200)
def test_what_is_said_in_order_is_released_in_order(
    draw: st.DataObject, start: int, data: bytes, seed: int
) -> None:
    run = Run(start)
    run.open()
    mine = segments(run, data, draw.draw(cuts(len(data), repeats=False)), (5, 900), True, seed)
    its = segments(run, data, draw.draw(cuts(len(data))), (900, 900), True, seed + 1)
    random.Random(seed).shuffle(its)
    interleave(run, mine, its, random.Random(seed))
    with_bytes = [frame for frame in run.said if parse(frame).payload]
    assert [frame for frame in run.released if parse(frame).payload] == with_bytes


@given(
    st.data(),
    STARTS,
    st.binary(min_size=1, max_size=LONGEST),
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=400)
def test_a_changed_byte_is_found_before_it_or_anything_behind_it_is_released(
    draw: st.DataObject, start: int, data: bytes, seed: int, primary: bool, shuffled: bool
) -> None:
    """Sent once by each, in any cut and, where ``shuffled``, any order."""
    run = Run(start)
    run.open()
    order = random.Random(seed)
    wrong = draw.draw(st.integers(0, len(data) - 1))
    changed = data[:wrong] + bytes((data[wrong] ^ draw.draw(st.integers(1, 255)),)) + data[wrong + 1 :]
    texts = (changed, data) if primary else (data, changed)
    sides = [
        segments(run, text, draw.draw(cuts(len(data), repeats=False)), (5, 5), True, seed) for text in texts
    ]
    for each in sides:
        if shuffled:
            order.shuffle(each)
    interleave(run, *sides, order)
    assert len(run.diverged) == 1
    assert all(end <= wrong for end in run.new_bytes_released())
    rest = [each.frame for each in run.comparison.checkpoint() if isinstance(each, Release)]
    assert sorted(run.released + rest) == sorted(run.said)


@given(st.data(), STARTS, st.binary(min_size=1, max_size=LONGEST), st.integers(0, 2**32), st.booleans())
@settings(max_examples=300)
def test_a_changed_byte_of_any_one_segment_is_found_among_repetitions(
    draw: st.DataObject, start: int, data: bytes, seed: int, primary: bool
) -> None:
    """The damaged segment of the primary never leaves before a checkpoint."""
    run = Run(start)
    run.open()
    order = random.Random(seed)
    sides = [segments(run, data, draw.draw(cuts(len(data))), (5, 5), False, seed) for _ in range(2)]
    damaged_side = sides[0] if primary else sides[1]
    at = draw.draw(st.integers(0, len(damaged_side) - 1))
    packet = parse(damaged_side[at])
    if not packet.payload:
        return
    place = packet.start + draw.draw(st.integers(0, len(packet.payload) - 1))
    frame = bytearray(damaged_side[at])
    frame[place] ^= draw.draw(st.integers(1, 255))
    damaged_side[at] = bytes(frame)
    for each in sides:
        order.shuffle(each)
    interleave(run, *sides, order)
    assert len(run.diverged) == 1
    if primary:
        assert bytes(frame) not in run.released


@given(STARTS, st.lists(st.sampled_from("pPsSrRaAkc"), max_size=60), st.integers(0, 2**32), st.booleans())
@settings(max_examples=500)
def test_nothing_passes_the_secondary_s_continuation_point_across_checkpoints(
    start: int, script: list[str], seed: int, seen_from_the_start: bool
) -> None:
    """Two hosts send, repeat and acknowledge as they like, with a checkpoint now and then (c)."""
    run = Run(start)
    rng = random.Random(seed)
    text = bytes(rng.randrange(256) for _ in range(4000))
    if seen_from_the_start:
        run.open()
    top, ack = [0, 0], [5, 5]
    for step in script:
        side = int(step.isupper())
        send = (run.primary, run.secondary)[side]
        match step.lower():
            case "p" | "s":
                side = int(step.lower() == "s")
                size = rng.randrange(1, 60)
                (run.primary, run.secondary)[side](
                    tcp(start + 1 + top[side], text[top[side] : top[side] + size], ack=ack[side])
                )
                top[side] += size
            case "r" if top[side]:
                a = rng.randrange(top[side])
                b = rng.randrange(a, top[side]) + 1
                send(tcp(start + 1 + a, text[a:b], ack=ack[side]))
            case "a":
                ack[side] += rng.randrange(1, 50)
                send(tcp(start + 1 + top[side], ack=ack[side]))
            case "k":
                run.note(run.comparison.tick(0.0))
            case "c":
                # Releases come first: the secondary is the primary from here on.
                run.oracle.acked, run.oracle.offset = ack[0], top[0]
                run.oracle.bytes_said = {n: {text[n]} for n in range(top[0])}
                run.note(run.comparison.checkpoint())
                top[1], ack[1] = top[0], ack[0]
    if not run.diverged:
        run.oracle.bytes_said |= {n: {text[n]} for n in range(top[0])}
        run.oracle.acked, run.oracle.offset = max(ack), top[0]
    run.note(run.comparison.checkpoint())
    assert sorted(run.released) == sorted(run.said)


@given(st.integers(0, MASK), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_stream_goes_on_for_longer_than_the_numbers_do(start: int, steps: int, seed: int) -> None:
    """Segments of 60,000 bytes at strides of nearly a window: positions grow, numbers wrap several times."""
    comparison = Comparison()
    rng = random.Random(seed)
    at = start
    for _ in range(steps):
        frame = tcp(at, rng.randbytes(50), ack=at)
        sent = [comparison.feed_primary, comparison.feed_secondary]
        rng.shuffle(sent)
        decisions = [each for feed in sent for each in feed(frame, 0.0)]
        assert [each.frame for each in decisions if isinstance(each, Release)] == [frame]
        at += 50
        # A checkpoint after a part that nobody compared, as if other frames had been sent.
        at += rng.randrange(1 << 29)
        comparison.feed_primary(tcp(at - 1, b"x", ack=at), 0.0)
        comparison.checkpoint()
