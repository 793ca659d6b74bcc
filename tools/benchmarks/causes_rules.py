"""In what two machines' frames differ, and what is left of it under one rule after the other.  No I/O.

First each frame of the primary gets its *counterpart*: the secondary's frame that says the same thing,
whatever its numbers are.  In one conversation that is, for TCP, the frame at the same distance from its
machine's own initial sequence number with as many bytes (if there is none: with other bytes), or the
acknowledgement of as much; for others, the same content, or the next in order.  A frame without one is
``missing`` (of the primary) or ``extra`` (of the secondary).  Counterparts are then compared field by field,
and :data:`RULES` say which of the differences still count.  *Order* is counted as the fewest frames that
would have to be moved.

The last rules, which compare streams, are those of :mod:`colo.compare` itself: :func:`replayed` feeds it both
machines' frames as they came.

Not looked at: the virtio header in front, which no wire sees.  With checksums left to the card the field of a
checksum holds a sum of addresses and says nothing; it differs only where a guest summed by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from colo.compare.comparison import open_comparison
from colo.compare.other import content
from colo.compare.packet import ACK, FIN, RST, SYN, TCP, VNET_HEADER, Packet, describe, parse
from colo.compare.seq import MASK
from colo.compare.tcp_options import options
from colo.compare.verdict import Diverged, Reason, Release, Settings
from colo.filters.compared import SETTINGS as GATE_SETTINGS

SETTINGS = msgspec.structs.replace(GATE_SETTINGS, vnet=True)
CHECKPOINT_MS = 10.0
"""From a difference to the commit that ends it: what comes meanwhile costs no other checkpoint."""
TICK_MS = 4.0
NEVER_MS = float("inf")
CHECKSUMS = ("ip.check", "tcp.check")
CONTROL = SYN | FIN | RST
IPV4_FIELDS = (("ip.tos", 1, 2), ("length", 2, 4), ("ip.id", 4, 6), ("ip.flags", 6, 8), ("ip.ttl", 8, 9),
               ("ip.check", 10, 12), ("ip.options", 20, None))  # fmt: skip


class Rules(NamedTuple):
    """What is ignored."""

    name: str
    ignored: frozenset[str]
    order_between: bool = False
    """The order counts between conversations, too."""
    rewritten: bool = False
    """The secondary's frames are taken as its rewriter leaves them."""


_PATH = frozenset({"ip.id", "ip.tos", "ip.ttl", "ip.check", "tcp.check"})
_STAMPS = _PATH | {"tcp.tsval", "tcp.tsecr"}
RULES = (
    Rules("0 whole frames, in order", frozenset(), order_between=True),
    Rules("1 + each conversation by itself", frozenset()),
    Rules("2 + no IP id, TTL, ToS, checksums", _PATH),
    Rules("3 + no time stamps", _STAMPS),
    Rules("4 + sequence numbers rewritten", _STAMPS | {"tcp.isn"}, rewritten=True),
)


def without(number: int) -> Rules:
    """The last of :data:`RULES`, as if rule ``number`` alone had never been made."""
    last, made, before = RULES[-1], RULES[number], RULES[number - 1]
    return Rules(
        f"without {number}",
        last.ignored - (made.ignored - before.ignored),
        order_between=before.order_between and not made.order_between,
        rewritten=not (made.rewritten and not before.rewritten),
    )


STREAMS = {"strict": "5 + streams, not segments (strict)", "qemu": "  QEMU's rules (qemu)"}


@dataclass(slots=True)
class Said:
    """A frame, and what it is beside its numbers."""

    at_ms: float
    packet: Packet
    shown: Packet
    """As its machine's rewriter leaves it."""
    index: int = 0
    """In the order of its machine."""
    conversation: Hashable = None
    place: Hashable = None
    """Of a counterpart, in the conversation."""
    rough: Hashable = None
    """If no frame has the same place."""


@dataclass(slots=True)
class Pair:
    """Counterparts, or one that has none."""

    ours: Said | None
    theirs: Said | None
    order: bool = False
    order_between: bool = False
    fields: tuple[str, ...] = ()
    fields_rewritten: tuple[str, ...] = ()

    def first(self, rules: Rules) -> str | None:
        """The first difference that counts; in the order of the frame, time last."""
        if self.ours is None or self.theirs is None:
            return "extra" if self.ours is None else "missing"
        if self.order_between if rules.order_between else self.order:
            return "order"
        found = self.fields_rewritten if rules.rewritten else self.fields
        causes = [name for name in found if name not in CHECKSUMS] or found  # they follow from the rest
        return next((name for name in causes if name not in rules.ignored), None)

    @property
    def said(self) -> Said:
        said = self.ours or self.theirs
        assert said is not None
        return said


@dataclass
class Outcome:
    """What one set of rules leaves."""

    rules: str
    frames: int
    differ: int
    conversations: int
    conversations_differ: int
    checkpoints: int
    first: Counter[str] = field(default_factory=Counter)
    """By the first difference of a frame; under the last rules, divergences by their cause."""


def placed(frames: Iterable[tuple[float, bytes, bytes]]) -> list[Said]:
    """A machine's frames, in its order: when, as said, and as its rewriter left them (empty: the same)."""
    initial: dict[bytes, int] = {}
    life: Counter[bytes] = Counter()
    found: list[Said] = []
    for at_ms, frame, shown in frames:
        packet = parse(frame, VNET_HEADER)
        said = Said(at_ms, packet, parse(shown, VNET_HEADER) if shown else packet, len(found))
        key = packet.key
        if packet.kind is TCP:
            if packet.flags & SYN and initial.get(key) != packet.seq:
                life[key] += key in initial
                initial[key] = packet.seq
            _place_segment(said, (packet.seq - initial.get(key, 0)) & MASK)
        else:
            said.place, said.rough = content(packet), "next"
        said.conversation = (int(packet.kind), key, life[key])
        found.append(said)
    return found


def _place_segment(said: Said, at: int) -> None:
    packet = said.packet
    length, control = packet.end - packet.start, packet.flags & CONTROL
    if length or control:
        said.place, said.rough = (at, length, control), (at, bool(length), control)
    else:
        said.place = said.rough = ("ack", at, packet.ack)


def paired(
    ours: Sequence[Said], theirs: Sequence[Said], end_ms: float = NEVER_MS, settings: Settings = SETTINGS
) -> list[Pair]:
    """Every frame once, with its counterpart, and with all in which the two differ.

    What had still time for its counterpart at ``end_ms``, when a checkpoint came, is left out.
    """
    pairs, ours_left, theirs_left = _matched(ours, theirs, "place")
    more, ours_left, theirs_left = _matched(ours_left, theirs_left, "rough")
    pairs += more
    pairs.sort(key=lambda pair: pair.said.index)
    _note_order(pairs)
    for pair in pairs:
        assert pair.ours is not None
        assert pair.theirs is not None
        late = ("late",) if is_late(pair.ours, pair.theirs, settings) else ()
        pair.fields = (*differences(pair.ours.packet, pair.theirs.packet), *late)
        pair.fields_rewritten = (*differences(pair.ours.packet, pair.theirs.shown), *late)
    pairs += [Pair(said, None) for said in ours_left if end_ms - said.at_ms > limit_ms(said, settings)]
    pairs += [Pair(None, said) for said in theirs_left if end_ms - said.at_ms > settings.alone_ms]
    return pairs


def _matched(
    ours: Sequence[Said], theirs: Sequence[Said], by: str
) -> tuple[list[Pair], list[Said], list[Said]]:
    """The n-th of ours at a place with the n-th of theirs there; and who is left."""
    there: defaultdict[Hashable, deque[Said]] = defaultdict(deque)
    for said in theirs:
        there[said.conversation, getattr(said, by)].append(said)
    pairs: list[Pair] = []
    left: list[Said] = []
    for said in ours:
        queue = there[said.conversation, getattr(said, by)]
        if queue:
            pairs.append(Pair(said, queue.popleft()))
        else:
            left.append(said)
    rest = [said for queue in there.values() for said in queue]
    return pairs, left, sorted(rest, key=lambda said: said.index)


def _note_order(pairs: Sequence[Pair]) -> None:
    """``pairs`` are in our order: which are elsewhere in theirs?"""
    groups: defaultdict[Hashable, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.said.conversation].append(pair)
    for group in groups.values():
        for at in displaced([_their_index(pair) for pair in group]):
            group[at].order = True
    for at in displaced([_their_index(pair) for pair in pairs]):
        pairs[at].order_between = True


def _their_index(pair: Pair) -> int:
    assert pair.theirs is not None
    return pair.theirs.index


def displaced(numbers: Sequence[int]) -> list[int]:
    """Where the numbers stand that are not in a longest rising part; they are all different."""
    ends: list[int] = []  # the smallest end of a rising part of each length
    ends_at: list[int] = []
    before: list[int] = []
    for at, number in enumerate(numbers):
        length = bisect_left(ends, number)
        before.append(ends_at[length - 1] if length else -1)
        ends[length : length + 1] = [number]
        ends_at[length : length + 1] = [at]
    at = ends_at[-1] if ends_at else -1
    kept: set[int] = set()
    while at >= 0:
        kept.add(at)
        at = before[at]
    return [at for at in range(len(numbers)) if at not in kept]


def is_late(ours: Said, theirs: Said, settings: Settings = SETTINGS) -> bool:
    """Did ours wait for theirs longer than a frame may?"""
    return theirs.at_ms - ours.at_ms > limit_ms(ours, settings)


def limit_ms(said: Said, settings: Settings = SETTINGS) -> float:
    """How long a frame of the primary may wait."""
    packet = said.packet
    bare = packet.kind is TCP and packet.end == packet.start and not packet.flags & CONTROL
    return settings.ack_wait_ms if bare else settings.wait_ms


def differences(left: Packet, right: Packet) -> list[str]:
    """The fields in which two frames differ, in their order in a frame."""
    if left.frame[left.l2 :] == right.frame[right.l2 :]:
        return []
    if left.kind is not right.kind:
        return ["kind"]
    found = ["ethernet"] if left.frame[left.l2 : left.l3] != right.frame[right.l2 : right.l3] else []
    if left.l4:
        found += _ip_differences(left, right)
    if left.kind is TCP:
        found += _tcp_differences(left, right)
    elif left.l4 and left.frame[left.l4 : left.start] != right.frame[right.l4 : right.start]:
        found.append("header")
    if left.payload != right.payload and "length" not in found:
        found.append("payload")
    return found or ["padding"]


def _ip_differences(left: Packet, right: Packet) -> list[str]:
    ours, theirs = left.frame[left.l3 : left.l4], right.frame[right.l3 : right.l4]
    if ours[0] >> 4 == 4:
        return [name for name, begin, end in IPV4_FIELDS if ours[begin:end] != theirs[begin:end]]
    found = ["length"] if ours[4:6] != theirs[4:6] else []
    return found + (["ip.header"] if ours[:4] + ours[6:] != theirs[:4] + theirs[6:] else [])


def _tcp_differences(left: Packet, right: Packet) -> list[str]:
    found: list[str] = []
    if left.seq != right.seq:
        found.append("tcp.isn" if left.flags & SYN else "tcp.seq")
    if left.ack != right.ack and left.flags & ACK:
        found.append("tcp.ack")
    found += [f"tcp.{name}" for name in ("flags", "window") if getattr(left, name) != getattr(right, name)]
    if _at(left, left.l4 + 16, 4) != _at(right, right.l4 + 16, 4):
        found.append("tcp.check")
    ours, theirs = options(left).timestamps_at, options(right).timestamps_at
    if ours and theirs:
        found += ["tcp.tsval"] if _at(left, ours, 4) != _at(right, theirs, 4) else []
        found += ["tcp.tsecr"] if _at(left, ours + 4, 4) != _at(right, theirs + 4, 4) else []
    if _options_but_stamps(left, ours) != _options_but_stamps(right, theirs):
        found.append("tcp.options")
    return found


def _at(packet: Packet, at: int, length: int) -> bytes:
    return packet.frame[at : at + length]


def _options_but_stamps(packet: Packet, stamps: int) -> bytes:
    every = packet.frame[packet.l4 + 20 : packet.start]
    at = stamps - packet.l4 - 20
    return every[:at] + every[at + 8 :] if stamps else every


def judged(pairs: Sequence[Pair], rules: Rules) -> Outcome:
    """What is left under ``rules``, which compare frames."""
    causes = [(pair.said.at_ms, pair.said.conversation, cause)
              for pair in pairs if (cause := pair.first(rules)) is not None]  # fmt: skip
    return Outcome(
        rules.name,
        len(pairs),
        len(causes),
        len({pair.said.conversation for pair in pairs}),
        len({conversation for _, conversation, _ in causes}),
        checkpoints(sorted(at_ms for at_ms, _, _ in causes)),
        Counter(cause for _, _, cause in causes),
    )


def checkpoints(times_ms: Iterable[float]) -> int:
    """How many would end the differences found at these times: one ends all that come before its commit."""
    count, committed_ms = 0, float("-inf")
    for at_ms in times_ms:
        if at_ms >= committed_ms:
            count, committed_ms = count + 1, at_ms + CHECKPOINT_MS
    return count


def replayed(mode: str, ours: Sequence[Said], theirs: Sequence[Said], end_ms: float) -> Outcome:
    """What :mod:`colo.compare` leaves, with a checkpoint ``CHECKPOINT_MS`` after each first divergence."""
    comparison = open_comparison(mode, SETTINGS)
    events = sorted(
        [(said.at_ms, True, said.packet.frame) for said in ours]
        + [(said.at_ms, False, said.shown.frame) for said in theirs],
        key=lambda event: event[0],
    )
    names = {describe(said.packet) for said in ours}
    outcome = Outcome(STREAMS[mode], len(ours), 0, len(names), 0, 0)
    differing: set[str] = set()
    due_ms = None
    begin_ms = events[0][0] if events else end_ms
    for now_ms, primary, frame in sorted([*events, *_ticks(begin_ms, end_ms)], key=lambda event: event[0]):
        if due_ms is not None and now_ms >= due_ms:
            due_ms = None
            outcome.differ += _released(comparison.checkpoint())
        if not frame:
            decisions = comparison.tick(now_ms)
        elif primary:
            decisions = comparison.feed_primary(frame, now_ms)
        else:
            decisions = comparison.feed_secondary(frame, now_ms)
        for decision in decisions:
            if isinstance(decision, Diverged):
                outcome.first[decision.reason.name.lower()] += 1
                differing.add(decision.connection)
                if due_ms is None:
                    due_ms, outcome.checkpoints = now_ms + CHECKPOINT_MS, outcome.checkpoints + 1
    if due_ms is not None:
        outcome.differ += _released(comparison.checkpoint())
    outcome.conversations_differ = len(differing)
    return outcome


def _released(decisions: Iterable[object]) -> int:
    """Frames of the primary that waited for this checkpoint."""
    return sum(isinstance(each, Release) and each.reason is Reason.CHECKPOINT for each in decisions)


def _ticks(begin_ms: float, end_ms: float) -> list[tuple[float, bool, bytes]]:
    return [(begin_ms + n * TICK_MS, False, b"") for n in range(int((end_ms - begin_ms) / TICK_MS))]
