"""The gate of policy colo: what goes before a commit, what waits for it, and the limits."""

from __future__ import annotations

import pytest

from colo.compare.packet import FIN, SYN, VNET_HEADER
from colo.compare.verdict import Settings
from colo.filters.compared import AHEAD_FRAMES, TAKEN_BYTES, TAKEN_FRAMES
from colo.filters.hold import HARD_BYTES, HARD_FRAMES
from tests.compare.frames import echo, fragments, tcp, udp
from tests.filters.gates import Gated

HELLO, OTHER = tcp(500, b"hello", ack=5), tcp(500, b"HELLO", ack=5)


def port(number: int, seq: int = 500, payload: bytes = b"hello", *, ack: int = 5, flags: int = 0) -> bytes:
    """Of one of several connections."""
    return tcp(seq, payload, ack=ack, flags=flags, ports=(80, number))


@pytest.fixture
def gated() -> Gated:
    return Gated().opened()


# What goes, and what waits


def test_before_the_first_commit_everything_waits_in_the_hold() -> None:
    gated = Gated()
    gated.hold.gate = gated.gate
    gated.primary(HELLO)
    gated.secondary(HELLO)
    gated.later(1e6)
    assert (gated.world, gated.asked, gated.gate.waits) == ([], [], False)
    assert gated.hold.held_frames == 1
    gated.cut()
    gated.hold.release(gated.epoch)
    assert gated.frames == [HELLO]


@pytest.mark.parametrize("first", ["primary", "secondary"])
def test_what_both_say_goes_at_once(gated: Gated, first: str) -> None:
    for speak in (gated.primary, gated.secondary) if first == "primary" else (gated.secondary, gated.primary):
        assert gated.world == []
        speak(HELLO)
    assert gated.early == gated.world == [("net0", HELLO)]
    assert (gated.hold.held_frames, gated.gate.held_frames, gated.gate.held_bytes) == (0, 0, 0)
    gated.checkpoint()
    assert gated.frames == [HELLO], "said once"


def test_what_differs_waits_for_the_next_commit(gated: Gated) -> None:
    gated.primary(HELLO)
    gated.secondary(OTHER)
    assert (gated.world, gated.asked) == ([], ["payload"])
    assert gated.gate.divergence is not None
    assert gated.gate.divergence.connection == "tcp 10.77.0.2:80 > 10.77.0.1:40000"
    gated.cut()
    assert gated.world == [], "the cut is not the commit"
    assert gated.hold.taken(gated.epoch, 1000) == [("net0", HELLO)], "it travels with its epoch"
    gated.commit()
    assert gated.frames == [HELLO]
    assert gated.early == []
    again = tcp(505, b"again", ack=5)
    gated.primary(again)
    gated.secondary(again)
    assert gated.early == [("net0", again)], "and the connection is compared again"


def test_many_differences_ask_for_one_checkpoint(gated: Gated) -> None:
    for n in range(10):
        gated.primary(port(n))
        gated.secondary(port(n, payload=b"HELLO"))
    gated.primary(b"12:00", port="com1")
    gated.secondary(b"12:01", port="com1")
    assert gated.asked == ["payload"]
    assert gated.gate.account.triggers == gated.gate.counts["diverged_payload"] == 11
    gated.checkpoint()
    gated.primary(udp(b"a"))
    gated.secondary(udp(b"b"))
    assert gated.asked == ["payload", "content"]


def test_others_go_on_while_one_waits(gated: Gated) -> None:
    gated.primary(HELLO)
    gated.secondary(OTHER)
    gated.primary(port(1))
    gated.secondary(port(1))
    assert gated.frames == [port(1)]


def test_what_waits_is_handed_over_in_the_order_in_which_it_was_said(gated: Gated) -> None:
    whole = udp(bytes(300))
    said = [
        ("net0", port(1)),
        ("com1", b"text"),
        ("net1", port(1)),
        *(("net0", piece) for piece in fragments(whole, 128)[:2]),
        ("net0", port(2)),
        ("net0", port(1, 505)),
        ("com1", b"more"),
        ("net1", echo(1, 2)),
    ]
    for name, frame in said:
        gated.primary(frame, port=name)
    gated.secondary(b"te", port="com1")
    gated.secondary(port(2))
    assert gated.early == [("com1", b"te"), ("net0", port(2))]
    gated.checkpoint()
    said[1] = ("com1", b"xt")
    said.remove(("net0", port(2)))
    assert gated.world[2:] == said


def test_a_datagram_goes_in_the_frames_in_which_it_was_said(gated: Gated) -> None:
    whole = udp(bytes(range(200)))
    pieces = fragments(whole, 64)
    gated.primary(*pieces)
    gated.secondary(*fragments(whole, 96, ident=9))
    assert gated.frames == pieces


def test_the_same_object_may_be_said_again(gated: Gated) -> None:
    """One-byte pieces are one object in Python; a guest that says the same thing twice is no error."""
    ping = echo(1, 2)
    for _ in range(3):
        assert gated.gate.offer("net0", ping)
        assert gated.gate.offer("com1", b"x")
    assert gated.gate.held_frames == 6
    gated.secondary(ping)
    gated.secondary(b"xx", port="com1")
    assert gated.early == [("net0", ping), ("com1", b"xx")]
    assert gated.gate.held_frames == 3
    gated.checkpoint()
    assert gated.world[2:] == [("net0", ping), ("net0", ping), ("com1", b"x")]


def test_frames_with_a_header_of_the_card_and_without(gated: Gated) -> None:
    gated = Gated(nets={"net0": True, "net1": False}).opened()
    mine, its = bytes(VNET_HEADER) + HELLO, b"\1" + bytes(VNET_HEADER - 1) + HELLO
    gated.primary(mine)
    gated.secondary(its)
    gated.primary(HELLO, port="net1")
    gated.secondary(HELLO, port="net1")
    assert gated.early == [("net0", mine), ("net1", HELLO)]


def test_what_is_for_the_guest_is_none_of_the_gate_s(gated: Gated) -> None:
    gated.primary(b"for the guest", port="net0:in")
    gated.cut()
    gated.primary(b"in between", port="net0:in")
    gated.commit()
    assert gated.frames == [b"for the guest"]
    gated.checkpoint()
    assert gated.frames == [b"for the guest", b"in between"]


# Between a cut and its commit


def test_between_cut_and_commit_nothing_goes_and_then_everything_is_compared(gated: Gated) -> None:
    gated.cut()
    gated.primary(port(1), port(2))
    gated.secondary(port(1))
    gated.later(1e6)
    assert (gated.world, gated.asked) == ([], [])
    gated.commit()
    assert gated.early == [("net0", port(1))], "the secondary was ahead of the commit"
    gated.secondary(port(2))
    assert gated.frames == [port(1), port(2)]


def test_what_the_secondary_said_before_the_cut_is_void(gated: Gated) -> None:
    gated.primary(HELLO)
    gated.secondary(HELLO, udp(b"x"), tcp(505, ack=9))
    gated.secondary(b"x", port="com1")
    gated.cut()
    gated.primary(tcp(505, ack=9), udp(b"x"))
    gated.primary(b"x", port="com1")
    gated.commit()
    assert gated.world == [("net0", HELLO)]
    assert gated.gate.held_frames == 3


def test_tidings_of_an_epoch_that_is_cut_before_it_was_committed_are_void(gated: Gated) -> None:
    gated.cut()
    gated.secondary(HELLO)
    gated.cut()
    gated.primary(HELLO)
    gated.commit()
    assert gated.world == []


def test_a_request_is_forgotten_with_its_cause(gated: Gated) -> None:
    """The frame of the old epoch is the hold's from the cut on: it can be late no more."""
    gated.primary(HELLO)
    gated.cut()
    gated.commit()
    gated.later(1e6)
    assert gated.asked == []
    assert gated.gate.divergence is None


def test_the_end_of_the_pair_says_all_that_waits(gated: Gated) -> None:
    gated.primary(port(1), udp(b"x"))
    gated.secondary(port(1, payload=b"HELLO"))
    gated.hold.end()
    assert gated.frames == [port(1), udp(b"x")]
    assert gated.hold.gate is None
    assert not gated.gate.offer("net0", HELLO)


# Time


def test_what_waits_too_long_asks_for_a_checkpoint(gated: Gated) -> None:
    limits = Settings()
    assert not gated.gate.waits
    gated.primary(udp(b"x"))
    assert gated.gate.waits
    gated.later(limits.wait_ms - 1)
    assert gated.asked == []
    assert gated.gate.held_age_ms == limits.wait_ms - 1
    gated.later(1)
    gated.later(1)
    assert gated.asked == ["late content"]
    gated.checkpoint()
    assert not gated.gate.waits


def test_a_secondary_that_talks_alone_is_a_cause_as_well(gated: Gated) -> None:
    gated.secondary(udp(b"x"))
    assert gated.gate.waits
    gated.later(Settings().alone_ms)
    assert gated.asked == ["secondary alone"]


def test_waiting_is_accounted_for(gated: Gated) -> None:
    gated.secondary(port(1))
    gated.primary(port(1))  # at once
    gated.primary(port(2))
    gated.now_ms += 4
    gated.primary(port(3))
    gated.now_ms += 4
    gated.secondary(port(2), port(3))
    gated.primary(port(4))
    gated.now_ms += 12
    gated.cut()
    gated.commit()
    facts = gated.gate.facts()
    assert (facts["taken"], facts["said"], facts["handed-over"]) == (4, 3, 1)
    assert facts["bytes-said"] == 3 * len(port(1))
    assert (facts["waited"], facts["waited-ms-max"], facts["waited-ms-mean"]) == (3, 12.0, 8.0)
    assert (facts["held-frames"], facts["held-age-ms"]) == (0, 0.0)


def test_conversations_of_all_ports_are_told_of(gated: Gated) -> None:
    gated.primary(HELLO)
    gated.primary(udp(b"x"), port="net1")
    names = {each.name: each.waits for each in gated.gate.conversations()}
    assert names == {
        "tcp 10.77.0.2:80 > 10.77.0.1:40000": True,
        "udp 10.77.0.2:53 > 10.77.0.1:40000": True,
        "com1": False,
    }


# Limits


@pytest.mark.parametrize("limit", [{"frames_max": 5}, {"bytes_max": 5 * len(HELLO) + 1}])
def test_over_a_limit_everything_waits_and_a_checkpoint_is_asked_for(limit: dict[str, int]) -> None:
    gated = Gated(**limit).opened()
    said = [port(n) for n in range(8)]
    gated.primary(*said)
    assert gated.asked == ["queue full"]
    assert (gated.gate.held_frames, gated.gate.account.refused) == (5, 3)
    gated.secondary(*said)
    assert gated.frames == said[:5], "what was taken may still go"
    gated.primary(port(0, 505))
    gated.secondary(port(0, 505))
    assert gated.frames == said[:5], "but nothing new is taken: it would overtake what was refused"
    gated.checkpoint()
    assert gated.frames == [*said, port(0, 505)]
    gated.primary(port(9))
    gated.secondary(port(9))
    assert gated.frames[-1] == port(9)


def test_what_was_said_between_cut_and_commit_may_be_too_much() -> None:
    gated = Gated(frames_max=5).opened()
    gated.cut()
    said = [port(n) for n in range(8)]
    gated.primary(*said)
    gated.commit()
    assert (gated.gate.held_frames, gated.hold.held_frames) == (5, 3)
    gated.checkpoint()
    assert gated.frames == said


def test_a_conversation_that_is_full_loses_nothing() -> None:
    """The comparison keeps no more of it; the gate does, and hands it over."""
    gated = Gated(settings=Settings(queue_max=4)).opened()
    said = [port(1, 500 + n, b"x") for n in range(12)]
    gated.primary(*said)
    assert gated.asked == ["queue full"]
    gated.checkpoint()
    assert gated.frames == said
    assert gated.gate.account.lost == 0


def test_a_console_that_is_full_loses_nothing(gated: Gated) -> None:
    piece = bytes(1 << 16)
    gated.primary(*[piece] * 40, port="com1")
    assert gated.asked == ["queue full"]
    gated.checkpoint()
    assert sum(map(len, gated.frames)) == 40 << 16


def test_mode_qemu_loses_what_qemu_loses() -> None:
    gated = Gated(mode="qemu", settings=Settings(queue_max=4)).opened()
    said = [port(1, 500 + n, b"x") for n in range(12)]
    gated.primary(*said)
    gated.primary(*[b"x"] * 6, port="com1")
    assert (gated.gate.account.lost, gated.gate.held_frames) == (7, 5 + 6)
    gated.checkpoint()
    assert gated.frames == said[:5] + [b"x"] * 6


def test_a_secondary_far_ahead_of_the_commit_looks_as_if_it_were_silent(gated: Gated) -> None:
    gated.cut()
    gated.secondary(*[echo(1, n) for n in range(AHEAD_FRAMES + 2)])
    gated.secondary(b"x", port="net7")
    assert gated.gate.account.unheard == 3
    gated.commit()
    last, lost = echo(1, AHEAD_FRAMES - 1), echo(1, AHEAD_FRAMES)
    gated.primary(last)
    assert gated.frames == [last]
    gated.primary(lost)
    assert gated.frames == [last]


@pytest.mark.parametrize("why", ["gate full", "conversation full", "cut twice", "out of use"])
def test_numbers_that_the_comparison_was_not_shown_are_not_taken_for_old_ones(why: str) -> None:
    """The same ports again, unseen, with numbers and bytes of the last connection: all new to a client."""
    gated = Gated(frames_max=3, settings=Settings(queue_max=1)).opened()
    syn, old = port(1, 499, b"", flags=SYN), port(1, 500, bytes(100))
    for frame in (syn, old, port(1, 600, b"", flags=FIN)):
        gated.secondary(frame)
        gated.primary(frame)
    assert len(gated.early) == 3
    new = port(1, 519, b"", flags=SYN)
    if why == "gate full":
        gated.primary(port(2), port(3), port(4), new)
        assert gated.gate.account.refused == 1
    elif why == "conversation full":
        gated.primary(*[port(1, 601, b"", ack=6)] * 2, new)
        assert gated.gate.counts["queue_full"] == 1
    elif why == "cut twice":
        gated.cut()
        gated.primary(new)
        gated.cut()
        gated.commit()
    else:
        gated.cut()
        gated.hold.gate = None
        gated.primary(new)
        gated.cut()
        gated.gate.cut()
        gated.hold.gate = gated.gate
        gated.commit()
    gated.checkpoint()
    assert gated.frames[-1] == new
    heard = len(gated.early)
    gated.primary(port(1, 520, bytes(50)))
    assert len(gated.early) == heard, "the secondary has not said this"
    gated.secondary(port(1, 520, bytes(50)))
    assert len(gated.early) == heard + 1


def test_limits_leave_room_for_what_they_promise() -> None:
    assert 2 * TAKEN_FRAMES <= HARD_FRAMES
    assert 2 * TAKEN_BYTES <= HARD_BYTES
