"""How a connection begins, begins again, or was not seen to begin."""

from __future__ import annotations

import pytest

from colo.compare.packet import FIN, SYN
from colo.compare.verdict import Reason
from tests.compare.frames import differences, released, tcp
from tests.compare.pairs import ISN, LINUX, MASK, Pair


@pytest.mark.parametrize("first", ["primary", "secondary"])
def test_the_same_ports_again(pair: Pair, first: str) -> None:
    """One of the two may be at the next connection already, while the other ends the last one."""
    fin = tcp(ISN + 1, ack=6, flags=FIN)
    syn = tcp(0x4000_0000, ack=1000, flags=SYN, options=LINUX)
    if first == "primary":
        assert pair.primary(fin, syn) == []
        assert released(pair.secondary(fin)) == [fin]
        assert released(pair.secondary(tcp(0x4000_0009, ack=1000, flags=SYN, options=LINUX))) == [syn]
    else:
        pair.secondary(fin, tcp(0x4000_0009, ack=1000, flags=SYN, options=LINUX))
        assert released(pair.primary(fin, syn)) == [fin, syn]
    mine = tcp(0x4000_0001, b"again", ack=1000)
    pair.primary(mine)
    assert released(pair.secondary(mine)) == [mine]
    assert pair.later(1e6) == []


def test_the_end_of_the_last_connection_says_nothing_about_the_next(pair: Pair) -> None:
    """The secondary's late words carry numbers of the connection before: they cover nothing."""
    pair.primary(tcp(ISN + 1, ack=6, flags=FIN))
    pair.secondary(tcp(ISN + 1, ack=6, flags=FIN))
    syn = tcp(0x4000_0000, ack=1000, flags=SYN)
    pair.primary(syn)
    assert released(pair.secondary(tcp(ISN + 2, ack=0x2000_0000))) == []
    assert released(pair.secondary(tcp(0x4000_0000, ack=1000, flags=SYN))) == [syn]


def test_more_new_connections_than_one_wait_for_a_checkpoint(pair: Pair) -> None:
    for n in range(1, 5):
        pair.primary(tcp(0x4000_0000 * n, ack=1000 * n, flags=SYN))
    assert pair.comparison.counts["diverged_syn_differs"] == 1
    assert len(released(pair.comparison.checkpoint())) == 4
    syn = tcp(0x1234, ack=7, flags=SYN)
    pair.primary(syn)
    assert released(pair.secondary(syn)) == [syn]


def test_a_connection_that_was_not_seen_to_begin(pair: Pair) -> None:
    pair = Pair()
    first, second = tcp(500, b"abc", ack=5), tcp(503, b"def", ack=5)
    pair.primary(first)
    assert released(pair.secondary(tcp(500, b"abcdef", ack=5))) == [first]
    assert released(pair.primary(second)) == [second]


def test_a_probe_that_was_seen_first_costs_one_checkpoint_at_most() -> None:
    """It stands one number before the stream: where the stream is becomes known by a checkpoint."""
    pair = Pair()
    probe, after = tcp(499, ack=5), tcp(500, ack=5)
    pair.primary(probe, after)
    pair.secondary(probe, after)
    pair.comparison.checkpoint()
    assert released(pair.primary(probe, after)) == [probe, after]
    mine = tcp(500, b"hello", ack=6)
    pair.primary(mine)
    assert released(pair.secondary(mine)) == [mine]


def test_what_comes_out_of_order_before_the_other_side_speaks_is_kept() -> None:
    pair = Pair()
    late, early = tcp(503, b"def", ack=5), tcp(500, b"abc", ack=5)
    pair.primary(late, early)
    assert sorted(released(pair.secondary(late, early))) == sorted([late, early])


def test_the_secondary_may_be_ahead_of_the_primary_s_syn() -> None:
    pair = Pair()
    syn, data = tcp(MASK - 1, ack=5, flags=SYN), tcp(MASK, b"data", ack=5)
    pair.secondary(tcp(77, ack=5, flags=SYN), data)
    assert released(pair.primary(syn, data)) == [syn, data]
    assert pair.comparison.tally.frames_kept == 0


def test_words_of_the_secondary_before_its_syn_are_of_a_connection_that_is_forgotten() -> None:
    pair = Pair()
    syn, mine = tcp(ISN, ack=1000, flags=SYN), tcp(ISN + 1, ack=5000)
    pair.primary(syn)
    said = pair.secondary(tcp(ISN + 1, ack=0x2000_0000))
    assert [each.reason for each in said] == [Reason.STALE]
    assert released(pair.secondary(syn)) == [syn]
    assert pair.primary(mine) == []
    assert released(pair.secondary(mine)) == [mine]


def test_the_secondary_s_syn_again_as_translated_is_the_same_one(pair: Pair) -> None:
    assert differences(pair.secondary(tcp(ISN, ack=5, flags=SYN, options=LINUX))) == []
    mine = tcp(ISN + 1, b"hello", ack=5)
    pair.primary(mine)
    assert released(pair.secondary(mine)) == [mine]


def test_bytes_in_a_syn_wait_for_a_checkpoint() -> None:
    pair = Pair()
    mine = tcp(ISN, b"early", ack=None, flags=SYN)
    assert differences(pair.primary(mine)) == [Reason.SYN_DIFFERS]
    assert released(pair.comparison.checkpoint()) == [mine]
