"""Datagrams, fragments and frames that are nothing special."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.compare.comparison import Comparison, Settings
from colo.compare.verdict import Reason
from tests.compare import frames
from tests.compare.frames import CLIENT6, GUEST6, differences, fragments, fragments6, released

SIX = {"source": GUEST6, "destination": CLIENT6}
NEIGHBOUR = struct.pack("!BBHI", 135, 0, 0, 0) + bytes(16)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison()


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (frames.udp(b"x", ident=1, ttl=9, tos=4, check=7), frames.udp(b"x", ident=2)),
        (frames.udp(b"x", ident=1, **SIX), frames.udp(b"x", ident=2, ttl=1, **SIX)),
        (frames.udp(b"x", vlans=[5]), frames.udp(b"x", vlans=[0x6005])),
        (frames.echo(1, 2, ident=5), frames.echo(1, 2, ident=6)),
        (frames.ip(58, NEIGHBOUR, **SIX), frames.ip(58, NEIGHBOUR, **SIX)),
        (frames.ip(47, b"gre", ident=1), frames.ip(47, b"gre", ident=2)),
        (frames.arp(to=255), frames.arp(to=1)),
        (frames.ethernet(0x88CC, b"lldp"), frames.ethernet(0x88CC, b"lldp")),
    ],
)
def test_equal_content_is_released(comparison: Comparison, mine: bytes, its: bytes) -> None:
    assert comparison.feed_primary(mine, 0.0) == []
    assert released(comparison.feed_secondary(its, 0.0)) == [mine]
    comparison.feed_secondary(its, 0.0)
    assert released(comparison.feed_primary(mine, 0.0)) == [mine]
    assert comparison.tally.frames_kept == comparison.tally.bytes_kept == 0


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (frames.udp(b"x"), frames.udp(b"y")),
        (frames.udp(b"x"), frames.udp(b"xx")),
        (frames.udp(b"x"), frames.udp(b"x", options=b"\x94\4\0\0")),
        (frames.echo(1, 2), frames.echo(1, 3)),
        (frames.echo(1, 2, b"a"), frames.echo(1, 2, b"b")),
        (frames.ip(58, NEIGHBOUR, **SIX), frames.ip(58, NEIGHBOUR[:-1] + b"\1", **SIX)),
        (frames.ip(47, b"gre"), frames.ip(47, b"grf")),
        (frames.arp(1), frames.arp(2)),
        (frames.ethernet(0x88CC, b"lldp"), frames.ethernet(0x88CC, b"lldq")),
    ],
)
def test_other_content_is_a_difference_at_once(comparison: Comparison, mine: bytes, its: bytes) -> None:
    comparison.feed_primary(mine, 0.0)
    assert differences(comparison.feed_secondary(its, 0.0)) == [Reason.CONTENT]
    assert released(comparison.checkpoint()) == [mine]


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (frames.udp(b"x"), frames.udp(b"x", ports=(53, 4))),
        (frames.echo(1, 2), frames.echo(2, 2)),
        (frames.arp(), frames.arp(target="10.77.0.9")),
        (frames.udp(b"x"), frames.udp(b"x", vlans=[1])),
    ],
)
def test_other_conversations_do_not_answer_for_each_other(
    comparison: Comparison, mine: bytes, its: bytes
) -> None:
    assert comparison.feed_primary(mine, 0.0) == []
    said = comparison.feed_secondary(its, 0.0)
    assert released(said) == []
    assert differences(said) == []
    assert differences(comparison.tick(20.0)) == [Reason.LATE_CONTENT]
    assert differences(comparison.tick(500.0)) == [Reason.SECONDARY_ALONE]


def test_each_datagram_of_the_secondary_answers_for_one(comparison: Comparison) -> None:
    mine = frames.udp(b"twice")
    comparison.feed_secondary(mine, 0.0)
    assert released(comparison.feed_primary(mine, 0.0)) == [mine]
    assert comparison.feed_primary(mine, 0.0) == []


def test_the_secondary_s_order_may_be_another(comparison: Comparison) -> None:
    for n in range(3):
        comparison.feed_secondary(frames.udp(b"%d" % n), 0.0)
    for n in (2, 0, 1):
        assert released(comparison.feed_primary(frames.udp(b"%d" % n), 0.0)) == [frames.udp(b"%d" % n)]


def test_how_a_card_is_to_cut_a_datagram_is_content() -> None:
    comparison = Comparison(Settings(vnet=True))
    plain, cut = (struct.pack("<BBHHHHH", 0, *fields, 0, 0, 0) for fields in ((0, 0, 0), (5, 42, 100)))
    comparison.feed_primary(plain + frames.udp(bytes(300)), 0.0)
    assert differences(comparison.feed_secondary(cut + frames.udp(bytes(300)), 0.0)) == [Reason.CONTENT]


@given(
    st.binary(min_size=9, max_size=3000),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2**32),
    st.booleans(),
)
@settings(max_examples=150)
def test_fragments_are_compared_as_the_datagram_that_they_are(
    payload: bytes, one: int, other: int, seed: int, six: bool
) -> None:
    """In any pieces and any order, some of them twice; released are all frames that came."""
    comparison = Comparison()
    order = random.Random(seed)
    whole, cut = (frames.udp(payload, **SIX), fragments6) if six else (frames.udp(payload), fragments)
    mine, its = cut(whole, 64 + 8 * one, 1), cut(whole, 64 + 8 * other, 2)
    for pieces in (mine, its):
        again = order.choice(pieces)
        order.shuffle(pieces)
        if len(pieces) > 1:
            pieces.insert(order.randrange(len(pieces)), again)
    said = [each for frame in mine for each in comparison.feed_primary(frame, 0.0)]
    assert released(said) == []
    said += [each for frame in its for each in comparison.feed_secondary(frame, 0.0)]
    # What repeats a fragment behind the last one begins a datagram that stays incomplete.
    said += comparison.checkpoint()
    assert differences(said) == []
    assert sorted(released(said)) == sorted(mine)
    assert comparison.counts["matched"] >= 2
    assert comparison.tally.frames_kept == comparison.tally.bytes_kept == 0


def test_a_segment_in_fragments_is_part_of_its_stream(comparison: Comparison) -> None:
    whole = frames.tcp(500, bytes(range(200)), ack=5)
    pieces = fragments(whole, 64)
    for piece in pieces:
        assert comparison.feed_primary(piece, 0.0) == []
    assert released(comparison.feed_secondary(whole, 0.0)) == pieces


def test_a_changed_byte_in_a_fragment_is_found(comparison: Comparison) -> None:
    mine = fragments(frames.udp(bytes(200)), 64)
    its = fragments(frames.udp(bytes(100) + b"x" + bytes(99)), 64)
    for frame in mine:
        comparison.feed_primary(frame, 0.0)
    said = [each for frame in its for each in comparison.feed_secondary(frame, 0.0)]
    assert differences(said) == [Reason.CONTENT]


def test_fragments_that_overlap_wait_for_a_checkpoint(comparison: Comparison) -> None:
    first, second, _ = fragments(frames.udp(bytes(160)), 64)
    forged = first[:20] + b"\x20\x01" + first[22:]
    said = [each for frame in (first, forged, second) for each in comparison.feed_primary(frame, 0.0)]
    assert differences(said) == [Reason.FRAGMENTS]
    assert sorted(released(comparison.checkpoint())) == sorted([first, forged, second])


def test_a_datagram_that_stays_incomplete_is_late(comparison: Comparison) -> None:
    first = fragments(frames.udp(bytes(160)), 64)[0]
    comparison.feed_primary(first, 0.0)
    comparison.feed_secondary(first, 0.0)
    assert comparison.held_age_ms(19.0) == 19.0
    assert differences(comparison.tick(20.0)) == [Reason.FRAGMENTS]
    assert released(comparison.checkpoint()) == [first]
