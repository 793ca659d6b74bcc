"""The rules of TCP one by one: what is released, what waits and what is a difference."""

from __future__ import annotations

import pytest

from colo.compare.packet import ACK, FIN, PSH, RST, SYN
from colo.compare.verdict import Diverged, Reason
from tests.compare.frames import CLIENT6, GUEST6, differences, dropped, released, tcp
from tests.compare.pairs import ISN, LINUX, Pair


def test_equal_segments_release_the_primary_s_and_drop_the_secondary_s(pair: Pair) -> None:
    mine, its = tcp(ISN + 1, b"hello", ack=5), tcp(ISN + 1, b"hello", ack=5, window=7, tos=4, ident=9, ttl=3)
    assert pair.primary(mine) == []
    said = pair.secondary(its)
    assert released(said) == [mine]
    assert dropped(said) == [its]


def test_the_secondary_may_be_first(pair: Pair) -> None:
    assert released(pair.secondary(tcp(ISN + 1, b"hello", ack=5))) == []
    assert released(pair.primary(tcp(ISN + 1, b"hel", ack=5))) == [tcp(ISN + 1, b"hel", ack=5)]
    assert released(pair.primary(tcp(ISN + 4, b"lo", ack=5))) == [tcp(ISN + 4, b"lo", ack=5)]


def test_a_segment_waits_for_the_last_of_its_bytes(pair: Pair) -> None:
    mine = tcp(ISN + 1, b"hello", ack=5)
    pair.primary(mine)
    assert released(pair.secondary(tcp(ISN + 1, b"hell", ack=5))) == []
    assert released(pair.secondary(tcp(ISN + 5, b"o", ack=5))) == [mine]


def test_a_segment_waits_for_the_secondary_s_acknowledgement(pair: Pair) -> None:
    """The client forgets what is acknowledged; the secondary must have it."""
    mine = tcp(ISN + 1, b"hello", ack=100)
    pair.primary(mine)
    assert released(pair.secondary(tcp(ISN + 1, b"hello", ack=99))) == []
    assert released(pair.secondary(tcp(ISN + 6, ack=100))) == [mine]


def test_a_pure_acknowledgement_waits_for_as_much_of_the_secondary(pair: Pair) -> None:
    mine = tcp(ISN + 1, ack=50)
    assert pair.primary(mine) == []
    assert released(pair.secondary(tcp(ISN + 1, ack=51))) == [mine]
    update = tcp(ISN + 1, ack=51, window=9)
    assert released(pair.primary(update)) == [update]


def test_a_pure_acknowledgement_does_not_overtake_bytes(pair: Pair) -> None:
    """Its number would be ahead of the secondary's, whose windows the client would then ignore."""
    data, mine = tcp(ISN + 1, b"held", ack=5), tcp(ISN + 5, ack=50)
    assert pair.primary(data, mine) == []
    assert released(pair.secondary(tcp(ISN + 1, ack=51))) == []
    assert released(pair.secondary(tcp(ISN + 1, b"held", ack=51))) == [data, mine]


def test_acknowledgements_after_the_end(pair: Pair) -> None:
    fin, mine = tcp(ISN + 1, ack=5, flags=FIN), tcp(ISN + 2, ack=9)
    pair.primary(fin, mine)
    assert released(pair.secondary(tcp(ISN + 1, ack=9))) == []
    assert released(pair.secondary(fin)) == [fin, mine]
    pair.comparison.checkpoint()
    late = tcp(ISN + 2, ack=20)
    pair.primary(late)
    assert released(pair.secondary(late)) == [late]


def test_a_retransmission_may_overtake_bytes_that_wait(pair: Pair) -> None:
    first = tcp(ISN + 1, b"first", ack=5)
    pair.secondary(first)
    assert released(pair.primary(first)) == [first]
    assert pair.primary(tcp(ISN + 6, b"second", ack=5)) == []
    said = pair.primary(tcp(ISN + 2, b"irst", ack=5))
    assert [each.reason for each in said] == [Reason.RETRANSMITTED]


def test_a_retransmission_with_other_bytes_is_found(pair: Pair) -> None:
    pair.secondary(tcp(ISN + 1, b"first", ack=5))
    pair.primary(tcp(ISN + 1, b"first", ack=5))
    assert differences(pair.primary(tcp(ISN + 1, b"worst", ack=5))) == [Reason.PAYLOAD]
    assert released(pair.primary(tcp(ISN + 1, b"first", ack=5))) == []


def test_a_different_byte_is_named(pair: Pair) -> None:
    pair.primary(tcp(ISN + 1, b"hello", ack=5))
    said = pair.secondary(tcp(ISN + 1, b"help!", ack=5))
    assert released(said) == []
    (found,) = [each for each in said if isinstance(each, Diverged)]
    assert found.reason is Reason.PAYLOAD
    assert found.connection == "tcp 10.77.0.2:80 > 10.77.0.1:40000"
    assert str(ISN + 4) in found.detail


def test_a_difference_is_said_once_and_everything_waits_for_the_checkpoint(pair: Pair) -> None:
    first, second = tcp(ISN + 1, b"aa", ack=5), tcp(ISN + 3, b"bb", ack=5)
    pair.primary(first)
    assert differences(pair.secondary(tcp(ISN + 1, b"xx", ack=5))) == [Reason.PAYLOAD]
    assert pair.primary(second) == []
    said = pair.secondary(second)
    assert [each.reason for each in said] == [Reason.DIVERGED]
    assert pair.later(10_000) == []
    assert released(pair.comparison.checkpoint()) == [first, second]
    third = tcp(ISN + 5, b"cc", ack=5)
    pair.primary(third)
    assert released(pair.secondary(third)) == [third]


def test_a_checkpoint_makes_the_secondary_s_words_void(pair: Pair) -> None:
    """It acknowledged and said more than the primary; it is another machine now, which did neither."""
    pair.secondary(tcp(ISN + 1, b"ahead", ack=900))
    assert pair.comparison.checkpoint() == []
    assert pair.primary(tcp(ISN + 1, b"ahead", ack=5)) == []
    assert pair.primary(tcp(ISN + 6, ack=6)) == []
    assert len(released(pair.secondary(tcp(ISN + 1, b"ahead", ack=6)))) == 2


def test_what_the_primary_said_before_a_checkpoint_it_may_say_again(pair: Pair) -> None:
    waiting = tcp(ISN + 1, b"hello", ack=30)
    pair.primary(waiting)
    assert released(pair.comparison.checkpoint()) == [waiting]
    assert released(pair.primary(waiting)) == [waiting]
    assert differences(pair.primary(tcp(ISN + 1, b"hallo", ack=30))) == [Reason.PAYLOAD]


def test_syn_with_other_options_is_a_difference() -> None:
    pair = Pair()
    pair.primary(tcp(ISN, ack=5, flags=SYN, options=LINUX))
    its = tcp(ISN, ack=5, flags=SYN, options=LINUX.replace(b"\3\3\7", b"\3\3\6"))
    assert differences(pair.secondary(its)) == [Reason.SYN_DIFFERS]


def test_a_time_stamp_may_differ_but_not_be_missing() -> None:
    pair = Pair()
    pair.primary(tcp(ISN, ack=5, flags=SYN, options=LINUX))
    assert differences(pair.secondary(tcp(ISN, ack=5, flags=SYN, options=LINUX[:6]))) == [Reason.SYN_DIFFERS]
    pair = Pair()
    pair.primary(tcp(ISN, ack=5, flags=SYN, options=LINUX))
    other = LINUX.replace(bytes((0, 0, 0, 1)), bytes((9, 9, 9, 9)))
    assert len(released(pair.secondary(tcp(ISN, ack=5, flags=SYN, options=other)))) == 1


def test_a_syn_is_no_answer_to_a_syn_with_acknowledgement() -> None:
    pair = Pair()
    pair.primary(tcp(ISN, ack=5, flags=SYN))
    assert differences(pair.secondary(tcp(ISN, ack=None, flags=SYN))) == [Reason.SYN_DIFFERS]


def test_fin_waits_for_the_fin_at_the_same_place(pair: Pair) -> None:
    mine = tcp(ISN + 1, b"bye", ack=5, flags=FIN)
    pair.primary(mine)
    assert released(pair.secondary(tcp(ISN + 1, b"bye", ack=5))) == []
    assert released(pair.secondary(tcp(ISN + 4, ack=5, flags=FIN))) == [mine]


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (tcp(ISN + 1, b"bye", ack=5, flags=FIN), tcp(ISN + 1, b"bye bye", ack=5)),
        (tcp(ISN + 1, b"bye bye", ack=5), tcp(ISN + 1, b"bye", ack=5, flags=FIN)),
        (tcp(ISN + 1, b"bye", ack=5, flags=FIN), tcp(ISN + 1, b"by", ack=5, flags=FIN)),
    ],
)
def test_an_end_at_another_place_is_a_difference(pair: Pair, mine: bytes, its: bytes) -> None:
    assert differences(pair.primary(mine) + pair.secondary(its)) == [Reason.FIN_DIFFERS]


def test_rst_waits_for_a_rst(pair: Pair) -> None:
    mine = tcp(ISN + 1, ack=5, flags=RST)
    assert pair.primary(mine) == []
    assert released(pair.secondary(mine)) == [mine]


def test_rst_does_not_overtake_the_bytes_before_it(pair: Pair) -> None:
    data, reset = tcp(ISN + 1, b"last words", ack=5), tcp(ISN + 11, ack=5, flags=RST)
    pair.primary(data, reset)
    said = pair.secondary(reset)
    assert released(said) == []
    assert differences(said) == [Reason.RST_DIFFERS]
    pair = Pair().opened()
    pair.primary(data, reset)
    assert released(pair.secondary(data, reset)) == [data, reset]


def test_going_on_after_the_other_s_rst_is_a_difference(pair: Pair) -> None:
    pair.primary(tcp(ISN + 1, ack=5, flags=RST))
    assert differences(pair.secondary(tcp(ISN + 1, b"hello", ack=5))) == [Reason.RST_DIFFERS]


def test_a_refused_connection() -> None:
    pair = Pair()
    mine = tcp(0, ack=78, flags=RST)
    pair.primary(mine)
    assert released(pair.secondary(mine)) == [mine]
    assert released(pair.primary(mine)) == [mine]


def test_lateness_has_a_reason_and_an_age() -> None:
    cases = [
        (tcp(ISN + 1, b"hello", ack=5), Reason.LATE_PAYLOAD, 20),
        (tcp(ISN + 1, ack=6), Reason.LATE_ACK, 100),
        (tcp(ISN + 1, ack=5, flags=FIN), Reason.LATE_FLAG, 20),
    ]
    for frame, reason, limit_ms in cases:
        pair = Pair().opened()
        pair.primary(frame)
        assert pair.later(limit_ms - 1) == []
        assert pair.comparison.held_age_ms(pair.now_ms) == limit_ms - 1
        assert differences(pair.later(1)) == [reason]
        assert pair.later(1000) == []
        assert released(pair.comparison.checkpoint()) == [frame]
        assert pair.comparison.held_age_ms(pair.now_ms) == 0


@pytest.mark.parametrize(
    "its", [tcp(ISN + 1, b"alone", ack=5), tcp(ISN + 1, ack=5, flags=FIN), tcp(ISN + 1, ack=5, flags=RST)]
)
def test_words_of_the_secondary_alone_are_a_difference_in_the_end(pair: Pair, its: bytes) -> None:
    pair.secondary(its)
    assert pair.later(499) == []
    assert differences(pair.later(1)) == [Reason.SECONDARY_ALONE]


def test_a_secondary_that_is_always_ahead_is_not_alone(pair: Pair) -> None:
    for at in range(0, 400, 4):
        pair.secondary(tcp(ISN + 1 + at, b"more", ack=5))
        if at:
            assert len(released(pair.primary(tcp(ISN + 1 + at - 4, b"more", ack=5)))) == 1
        assert pair.later(100) == []


def test_a_segment_from_nowhere_is_a_difference(pair: Pair) -> None:
    assert differences(pair.primary(tcp(ISN + 0x5000_0000, b"x", ack=5))) == [Reason.WINDOW]


def test_an_acknowledgement_of_what_nobody_sent_covers_nothing(pair: Pair) -> None:
    pair.primary(tcp(ISN + 1, ack=6))
    assert released(pair.secondary(tcp(ISN + 1, ack=6 + 0x5000_0000))) == []


def test_ignored_flags_are_ignored(pair: Pair) -> None:
    mine = tcp(ISN + 1, b"hello", ack=5, flags=PSH)
    pair.primary(mine)
    assert released(pair.secondary(tcp(ISN + 1, b"hello", ack=5, flags=ACK | 0xC0))) == [mine]


def test_ipv6_and_tags_keep_connections_apart() -> None:
    pair = Pair()
    six = {"source": GUEST6, "destination": CLIENT6}
    pair.primary(tcp(500, b"abc", ack=5), tcp(500, b"def", ack=5, vlans=[7]), tcp(500, b"ghi", ack=5, **six))
    for frame in (
        tcp(500, b"ghi", ack=5, **six),
        tcp(500, b"def", ack=5, vlans=[7]),
        tcp(500, b"abc", ack=5),
    ):
        assert released(pair.secondary(frame)) == [frame]


def test_decisions_are_counted_in_all_and_per_connection(pair: Pair) -> None:
    pair.primary(tcp(ISN + 1, b"hello", ack=5))
    pair.secondary(tcp(ISN + 1, b"jello", ack=5))
    assert pair.comparison.counts == {"matched": 1, "carried": 2, "diverged_payload": 1}
    (status,) = pair.comparison.conversations()
    assert status.name == "tcp 10.77.0.2:80 > 10.77.0.1:40000"
    assert (status.diverged, status.waits) == (Reason.PAYLOAD, True)
    assert status.counts == {"matched": 1, "carried": 2, "payload": 1}


def test_acknowledgements_are_void_after_a_checkpoint_also_where_nothing_waited(pair: Pair) -> None:
    pair.secondary(tcp(ISN + 1, ack=900))
    assert pair.later(1.0) == []
    assert pair.comparison.checkpoint() == []
    mine = tcp(ISN + 1, ack=6)
    assert pair.primary(mine) == []
    assert released(pair.secondary(tcp(ISN + 1, ack=6))) == [mine]
