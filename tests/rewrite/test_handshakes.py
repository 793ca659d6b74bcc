"""How the difference of sequence numbers is learned, whoever opens and whatever happens meanwhile.

``OWN`` is the initial number of the secondary's guest, ``ITS`` the primary's, ``CLIENT`` the client's.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.compare.packet import ACK, FIN, RST, SYN
from tests.rewrite.ends import MASK, Ends, read

OWN, ITS, CLIENT = 1000, 0xFFFF_FF00, 5000
numbers = st.integers(0, MASK) | st.sampled_from([0, 1, 2**31 - 1, 2**31, MASK - 1, MASK])


def accepted(own: int = OWN, its: int = ITS, client: int = CLIENT, **around: object) -> Ends:
    """The client opened."""
    ends = Ends(**around)  # type: ignore[arg-type]
    ends.client(client, flags=SYN)
    ends.guest(own, ack=client + 1, flags=SYN)
    ends.client(client + 1, ack=its + 1)
    return ends


def opened(own: int = OWN, its: int = ITS, client: int = CLIENT) -> Ends:
    """The guest opened."""
    ends = Ends()
    ends.guest(own, flags=SYN)
    ends.client(client, ack=its + 1, flags=SYN)
    return ends


def goes_on(ends: Ends, own: int = OWN, its: int = ITS, client: int = CLIENT) -> None:
    """Both directions, at positions far from the beginning."""
    for position in (1, 2**20, 2**31, 2**32 - 5):
        said = ends.guest(own + position, b"reply", ack=client + position)
        assert (said.seq, said.ack, said.payload) == (
            (its + position) & MASK,
            (client + position) & MASK,
            b"reply",
        )
        heard = ends.client(
            client + position, b"ask", ack=its + position, blocks=[(its + position + 9, its + position + 12)]
        )
        assert (heard.seq, heard.ack) == ((client + position) & MASK, (own + position) & MASK)
        assert heard.blocks == [((own + position + 9) & MASK, (own + position + 12) & MASK)]


@given(numbers, numbers, numbers)
def test_the_client_opens(own: int, its: int, client: int) -> None:
    ends = Ends()
    syn = ends.client_frame(client, flags=SYN)
    assert ends.same(syn, outward=False)
    assert ends.same(ends.guest_frame(own, ack=client + 1, flags=SYN), outward=True)
    heard = ends.client(client + 1, ack=its + 1)
    assert (heard.seq, heard.ack) == ((client + 1) & MASK, (own + 1) & MASK)
    goes_on(ends, own, its, client)
    assert ends.counts["learned_accepted"] == 1


@given(numbers, numbers, numbers)
def test_the_guest_opens(own: int, its: int, client: int) -> None:
    ends = Ends()
    assert ends.same(ends.guest_frame(own, flags=SYN), outward=True)
    heard = ends.client(client, ack=its + 1, flags=SYN)
    assert (heard.seq, heard.ack, heard.flags) == (client, (own + 1) & MASK, SYN | ACK)
    said = ends.guest(own + 1, ack=client + 1)
    assert (said.seq, said.ack) == ((its + 1) & MASK, (client + 1) & MASK)
    goes_on(ends, own, its, client)
    assert ends.counts["learned_opened"] == 1


def test_both_open_at_once() -> None:
    ends = Ends()
    ends.guest(OWN, flags=SYN)
    assert ends.same(ends.client_frame(CLIENT, flags=SYN), outward=False)
    assert ends.guest(OWN, ack=CLIENT + 1, flags=SYN).seq == OWN
    heard = ends.client(CLIENT, ack=ITS + 1, flags=SYN)
    assert (heard.seq, heard.ack) == (CLIENT, OWN + 1)
    goes_on(ends)


def test_both_open_at_once_and_the_client_s_syn_ack_is_lost() -> None:
    ends = Ends()
    ends.guest(OWN, flags=SYN)
    ends.client(CLIENT, flags=SYN)
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    assert ends.client(CLIENT + 1, b"x", ack=ITS + 1).ack == OWN + 1
    goes_on(ends)


def test_ipv6_and_behind_a_virtio_header() -> None:
    from colo.rewrite.rewriter import Settings

    goes_on(accepted(six=True))
    goes_on(accepted(settings=Settings(vnet=True)))


def test_the_first_acknowledgement_may_be_lost() -> None:
    """Bytes that begin where the acknowledgement would have stood teach as well."""
    ends = Ends()
    ends.client(CLIENT, flags=SYN)
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    assert ends.client(CLIENT + 1 + 1460, b"second", ack=ITS + 1).ack == OWN + 1
    goes_on(ends)


def test_a_syn_said_again_is_the_same_one() -> None:
    ends = accepted()
    assert ends.guest(OWN, ack=CLIENT + 1, flags=SYN).seq == ITS
    goes_on(ends)
    ends = opened()
    assert ends.guest(OWN, flags=SYN).seq == ITS
    goes_on(ends)
    assert ends.counts["learned_opened"] == 1


def test_a_syn_with_another_number_begins_anew() -> None:
    ends = Ends()
    ends.guest(OWN, flags=SYN)
    ends.guest(OWN + 777, flags=SYN)
    assert ends.client(CLIENT, ack=ITS + 1, flags=SYN).ack == OWN + 778
    goes_on(ends, OWN + 777)


def test_the_same_ports_again() -> None:
    ends = accepted()
    ends.guest(OWN + 1, ack=CLIENT + 1, flags=FIN)
    ends.client(CLIENT + 1, ack=ITS + 2, flags=FIN)
    for n in range(1, 4):
        own, its, client = OWN + 70_000 * n, ITS + 3_000_000 * n, CLIENT + 90_000 * n
        assert ends.same(ends.client_frame(client, flags=SYN), outward=False)
        ends.guest(own, ack=client + 1, flags=SYN)
        assert ends.client(client + 1, ack=its + 1).ack == own + 1
        goes_on(ends, own, its, client)


def test_what_is_left_of_the_last_connection_teaches_nothing() -> None:
    ends = accepted()
    again = CLIENT + 1_000_000
    ends.client(again, flags=SYN)
    ends.guest(OWN + 90_000, ack=again + 1, flags=SYN)
    stale = ends.client(CLIENT + 1, ack=ITS + 1)
    refused = ends.guest(stale.ack, flags=RST)
    assert refused.seq == (ITS + 1) & MASK, "a reset takes its number from what it refuses"
    assert ends.counts["stale"] == 1
    assert ends.client(again + 1, ack=77).ack == OWN + 90_001
    goes_on(ends, OWN + 90_000, 76, again)


def test_a_connection_of_the_guest_that_the_client_still_has_open() -> None:
    """RFC 9293, figure 9: an acknowledgement that answers a SYN is refused, and teaches nothing."""
    ends = Ends()
    ends.guest(OWN, flags=SYN, stamps=(100, 0))
    for _ in range(2):
        answer = ends.client(300, ack=100, stamps=(5, 77))
        assert (answer.ack, answer.stamps) == (OWN + 1, (5, 100)), "once it is given the benefit of the doubt"
    assert ends.guest(OWN, flags=SYN, stamps=(1100, 0)).seq == OWN
    answer = ends.client(300, ack=100, stamps=(5, 77))
    assert (answer.seq, answer.ack) == (300, 100)
    assert ends.guest(answer.ack, flags=RST).seq == 100
    assert ends.guest(OWN, flags=SYN, stamps=(3100, 0)).seq == OWN
    assert ends.client(CLIENT, ack=ITS + 1, flags=SYN).ack == OWN + 1
    goes_on(ends)
    assert ends.counts["premature"] == 2


def test_an_acknowledgement_that_overtakes_the_syn_ack() -> None:
    """To the primary it is one of its SYN, and ignored; the secondary must not refuse it."""
    ends = Ends()
    ends.guest(OWN, flags=SYN)
    assert ends.client(CLIENT + 1, ack=ITS + 1).ack == OWN + 1
    assert ends.client(CLIENT, ack=ITS + 1, flags=SYN).ack == OWN + 1
    goes_on(ends)


def test_a_syn_of_a_client_that_forgot_the_connection_is_challenged_in_its_numbers() -> None:
    """RFC 5961, section 4: the guest answers with the numbers of the connection that it still has."""
    ends = accepted()
    assert ends.same(ends.client_frame(CLIENT + 123_456, flags=SYN), outward=False)
    challenge = ends.guest(OWN + 1, ack=CLIENT + 1)
    assert challenge.seq == (ITS + 1) & MASK
    assert ends.same(ends.client_frame(CLIENT + 1, flags=RST), outward=False)
    goes_on(ends)


@pytest.mark.parametrize("payload", [b"", b"data"])
def test_an_answer_that_waited_at_a_checkpoint_is_not_seen(payload: bytes) -> None:
    """The guest repeats its SYN-ACK and goes on: the client's next acknowledgement is of more than that."""
    ends = Ends()
    ends.rewriter.reset()
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    ends.guest(OWN + 1, payload, ack=CLIENT + 1, flags=0 if payload else FIN)
    ack = OWN + 1 + (len(payload) or 1)
    assert ends.client(CLIENT + 1, ack=ack).ack == ack
    assert ends.counts["confirmed"] == 1


def test_a_syn_ack_that_came_before_the_guest_repeated_its_syn() -> None:
    ends = Ends()
    ends.guest(OWN, flags=SYN)
    ends.rewriter.reset()
    assert ends.client(CLIENT, ack=ITS + 1, flags=SYN).ack == (ITS + 1) & MASK
    ends.guest(ITS, flags=SYN)
    ends.guest(ITS + 1, ack=CLIENT + 1)
    assert ends.counts["confirmed"] == 1
    assert ends.client(CLIENT + 1, ack=ITS + 50).ack == (ITS + 50) & MASK


def test_an_acknowledgement_by_which_the_guest_repeats_itself_proves_nothing() -> None:
    """A host that awaits the client's first acknowledgement may challenge a segment out of its window."""
    ends = Ends()
    ends.client(CLIENT, flags=SYN)
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    ends.client(CLIENT - 70_000, ack=ITS + 1)
    ends.guest(OWN + 1, ack=CLIENT + 1)
    assert ends.client(CLIENT + 1, ack=ITS + 1).ack == OWN + 1
    goes_on(ends)


def test_a_syn_ack_that_is_said_again_has_the_number_that_was_learned() -> None:
    """A survivor repeats its last frames: a client may see one number only of a connection's two SYN-ACKs."""
    ends = Ends()
    ends.client(CLIENT, flags=SYN)
    syn_ack = ends.guest_frame(OWN, ack=CLIENT + 1, flags=SYN)
    ends.out(syn_ack)
    assert read(ends.rewriter.once_more(syn_ack)).seq == OWN
    ends.client(CLIENT + 1, ack=ITS + 1)
    assert read(ends.rewriter.once_more(syn_ack)).seq == ITS
    data = ends.guest_frame(OWN + 1, b"reply", ack=CLIENT + 1)
    shown = ends.rewriter.outward(data, ends.now_ms)
    assert ends.rewriter.once_more(shown) == shown


# Resets


def test_a_reset_by_the_guest_stands_where_the_client_accepts_it() -> None:
    ends = accepted()
    assert ends.guest(OWN + 9, ack=CLIENT + 1, flags=RST).seq == (ITS + 9) & MASK
    assert ends.guest(OWN + 9, flags=RST).seq == (ITS + 9) & MASK


def test_a_reset_that_refuses_a_segment_has_its_number() -> None:
    ends = accepted()
    heard = ends.client(CLIENT + 1, b"late", ack=ITS + 50)
    assert ends.guest(heard.ack, flags=RST).seq == (ITS + 50) & MASK


def test_a_reset_that_refuses_a_syn_has_none() -> None:
    ends = accepted()
    ends.client(CLIENT + 1, flags=RST, ack=ITS + 1)
    ends.client(CLIENT + 500, flags=SYN)
    refusal = ends.guest_frame(0, ack=CLIENT + 501, flags=RST)
    assert ends.same(refusal, outward=True)
    assert ends.guest(0, ack=CLIENT + 400, flags=RST).seq == (ITS - OWN) & MASK, "no answer to that SYN"


def test_a_refused_syn_of_the_guest() -> None:
    """RFC 9293, section 3.10.7.3: a reset is acceptable in SYN-SENT when it acknowledges the SYN."""
    ends = Ends()
    ends.guest(OWN, flags=SYN)
    heard = ends.client(0, ack=ITS + 1, flags=RST)
    assert (heard.seq, heard.ack) == (0, OWN + 1)
    assert ends.counts["learned_refused"] == 1


def test_a_reset_of_the_client_is_at_its_own_number() -> None:
    ends = accepted()
    assert ends.client(CLIENT + 1, flags=RST).seq == CLIENT + 1
    heard = ends.client(CLIENT + 1, flags=RST, ack=ITS + 1)
    assert (heard.seq, heard.ack) == (CLIENT + 1, OWN + 1)


def test_a_reset_in_an_unfinished_handshake_is_followed_by_one_that_counts() -> None:
    """The client has the primary's SYN-ACK; the survivor gives up; the client's challenge teaches."""
    ends = Ends()
    ends.client(CLIENT, flags=SYN)
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    ends.rewriter.take_over(0.0)
    ends.guest(OWN + 1, ack=CLIENT + 1, flags=RST)
    heard = ends.client(CLIENT + 1, ack=ITS + 1)
    assert ends.guest(heard.ack, flags=RST).seq == (ITS + 1) & MASK


# Checkpoints and failover


def test_what_a_checkpoint_has_is_not_changed() -> None:
    ends = accepted()
    ends.rewriter.reset()
    assert ends.same(ends.guest_frame(ITS + 5, b"x", ack=CLIENT + 1), outward=True)
    assert ends.same(ends.client_frame(CLIENT + 1, b"x", ack=ITS + 6), outward=False)
    assert ends.guest(ITS, ack=CLIENT + 1, flags=SYN).seq == ITS & MASK, "its SYN, said again"
    assert ends.client(CLIENT + 1, ack=ITS + 1).ack == (ITS + 1) & MASK
    goes_on(ends, ITS)


def test_a_syn_that_waited_at_a_checkpoint_is_answered_with_an_own_number() -> None:
    """It was in the primary's card: this rewriter never saw it."""
    ends = Ends()
    ends.rewriter.reset()
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
    assert ends.client(CLIENT + 1, ack=ITS + 1).ack == OWN + 1
    goes_on(ends)


def test_a_connection_goes_on_after_a_failover() -> None:
    for ends in (accepted(), opened()):
        ends.rewriter.take_over(0.0)
        goes_on(ends)
        assert ends.rewriter.active


def test_a_handshake_under_way_at_a_failover() -> None:
    """Whose SYN-ACK the client took shows in its answer."""
    for known in (ITS, OWN):
        ends = Ends()
        ends.client(CLIENT, flags=SYN)
        ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
        ends.rewriter.take_over(0.0)
        ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
        assert ends.client(CLIENT + 1, ack=known + 1).ack == OWN + 1
        goes_on(ends, OWN, known)


def test_after_a_failover_the_guest_s_numbers_are_the_client_s() -> None:
    ends = accepted()
    ends.rewriter.take_over(0.0)
    other = Ends(port=40001)
    other.rewriter = ends.rewriter
    for frame in (other.client_frame(9, flags=SYN), other.client_frame(10, ack=901)):
        assert other.same(frame, outward=False)
    for frame in (other.guest_frame(900, ack=10, flags=SYN), other.guest_frame(901, b"x", ack=10)):
        assert other.same(frame, outward=True)


def test_an_old_duplicate_cannot_open_a_survivor_s_connection() -> None:
    """RFC 9293, figure 8: its guest must see that another SYN is acknowledged."""
    ends = accepted()
    ends.rewriter.take_over(0.0)
    syn = ends.guest(OWN + 70_000, flags=SYN)
    stale = ends.client(300, ack=syn.seq - 5_000, flags=SYN)
    assert stale.ack == OWN + 65_000
    assert ends.client(300, ack=syn.seq + 1, flags=SYN).ack == OWN + 70_001


def test_a_survivor_s_next_connection_between_the_same_ports_is_after_the_last() -> None:
    """A client in TIME-WAIT takes only a later number (RFC 9293, section 3.6.1): it knows the primary's."""
    ends = accepted()
    ends.rewriter.take_over(0.0)
    assert ends.guest(OWN + 65_538, flags=SYN).seq == (ITS + 65_538) & MASK


def test_the_next_secondary_starts_from_what_the_survivor_has() -> None:
    survivor = accepted()
    survivor.rewriter.take_over(0.0)
    ends = Ends()
    ends.rewriter.reset(survivor.rewriter.translations())
    goes_on(ends)
    ends.rewriter.reset(survivor.rewriter.translations())
    assert ends.client(CLIENT + 1, ack=ITS + 1).ack == OWN + 1
    ends.rewriter.reset(survivor.rewriter.translations())
    assert len(ends.rewriter.translations()) == 1, "an unused one is not forgotten"
    ends.rewriter.take_over(0.0)
    goes_on(ends)
    assert len(ends.rewriter.translations()) == 1
    ends.rewriter.reset()
    assert ends.rewriter.translations() == []
