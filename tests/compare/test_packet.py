"""Frames are what their headers say; frames whose headers lie are compared as a whole."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from colo.compare import packet, tcp_options
from colo.compare.packet import VNET_HEADER, Kind, describe, parse, vnet_header
from tests.compare import frames
from tests.compare.frames import CLIENT6, GUEST6, fragments, fragments6

SIX = {"source": GUEST6, "destination": CLIENT6}
HOP_BY_HOP = bytes((6, 0, 1, 4, 0, 0, 0, 0))


SEGMENT = frames.tcp(7, b"hello", ack=9)[34:]
NAME, NAME6 = "tcp 10.77.0.2:80 > 10.77.0.1:40000", "tcp [fd00::2]:80 > [fd00::1]:40000"


@pytest.mark.parametrize("vnet", [False, True])
@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (frames.tcp(7, b"hello", ack=9), NAME),
        (frames.tcp(7, b"hello", ack=9, options=b"\1\1"), NAME),
        (frames.ip(6, SEGMENT, options=b"\x94\4\0\0"), NAME),
        (frames.tcp(7, b"hello", ack=9, vlans=[5]), f"{NAME} vlan 5"),
        (frames.tcp(7, b"hello", ack=9, **SIX), NAME6),
        (frames.ip(0, SEGMENT, options=HOP_BY_HOP, **SIX), NAME6),
    ],
)
def test_a_segment_is_found_behind_every_header(frame: bytes, name: str, vnet: bool) -> None:
    frame = bytes(VNET_HEADER) + frame if vnet else frame
    for padding in (b"", bytes(6)):
        found = parse(frame + padding, VNET_HEADER if vnet else 0)
        assert found.kind is Kind.TCP
        assert (found.seq, found.ack, found.flags, found.window) == (7, 9, packet.ACK, 1000)
        assert found.payload == b"hello"
        assert describe(found) == name


def test_tags_are_part_of_a_conversation_and_their_priority_is_not() -> None:
    keys = {parse(frames.tcp(1, vlans=vlans)).key for vlans in ([], [5], [6], [5, 6], [6, 5])}
    assert len(keys) == 5
    assert parse(frames.tcp(1, vlans=[5])).key == parse(frames.tcp(1, vlans=[0xE005])).key


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (frames.udp(b"x"), Kind.UDP),
        (frames.udp(b"x", **SIX), Kind.UDP),
        (frames.echo(1, 2), Kind.ICMP),
        (frames.echo(1, 2, kind=129, **SIX), Kind.ICMPV6),
        (frames.ip(47, b"gre"), Kind.IP),
        (frames.ip(50, b"esp", **SIX), Kind.IP),
        (frames.ip(59, b"", **SIX), Kind.IP),
        (frames.arp(), Kind.ARP),
        (frames.ethernet(0x88CC, b"lldp"), Kind.OTHER),
        (frames.ethernet(20, b"\x42\x42\3"), Kind.OTHER),
        (frames.tcp(1, vlans=[1, 2, 3]), Kind.OTHER),
        (fragments(frames.udp(bytes(64)), 32)[1], Kind.FRAGMENT),
        (fragments6(frames.udp(bytes(64), **SIX), 32)[1], Kind.FRAGMENT),
    ],
)
def test_kinds(frame: bytes, kind: Kind) -> None:
    found = parse(frame)
    assert found.kind is kind
    assert describe(found)


def test_keys_of_different_kinds_differ() -> None:
    made = [
        frames.udp(b"x"),
        frames.udp(b"x", ports=(53, 40001)),
        frames.echo(1, 2),
        frames.echo(2, 2),
        frames.echo(1, 2, kind=8),
        frames.ip(17 + 128, b"x"),
        frames.ip(47, b"x"),
        frames.arp(),
        frames.arp(sender="10.77.0.3"),
        frames.ethernet(0x88CC, b"lldp"),
        fragments(frames.udp(bytes(64)), 32, ident=1)[0],
        fragments(frames.udp(bytes(64)), 32, ident=2)[0],
    ]
    assert len({parse(frame).key for frame in made}) == len(made)
    assert parse(frames.echo(1, 2)).key == parse(frames.echo(1, 3)).key


ordinary = [
    frames.tcp(1, b"abc", options=b"\2\4\5\xb4\1\3\3\7"),
    frames.tcp(1, b"abc", vlans=[1, 2]),
    frames.tcp(1, b"abc", **SIX),
    frames.ip(0, frames.tcp(7, b"hello")[34:], options=HOP_BY_HOP, **SIX),
    frames.udp(b"abc"),
    frames.udp(b"abc", **SIX),
    frames.echo(1, 2),
    frames.arp(),
    *fragments(frames.udp(bytes(64)), 32),
    *fragments6(frames.udp(bytes(64), **SIX), 32),
]


@pytest.mark.parametrize("frame", ordinary)
def test_a_frame_cut_short_is_no_packet(frame: bytes) -> None:
    for length in range(len(frame)):
        found = parse(frame[:length])
        assert found.kind is Kind.OTHER
        assert found.payload == frame[:length]
        assert describe(found)


@given(st.sampled_from(ordinary), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6))
@example(ordinary[0], [(46, 0xF0)])
def test_whatever_a_frame_says_offsets_stay_inside(frame: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(frame)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    inside(bytes(damaged))


@given(st.binary(max_size=200), st.sampled_from([0, VNET_HEADER]))
def test_random_bytes_never_raise(frame: bytes, l2: int) -> None:
    inside(frame, l2)


def inside(frame: bytes, l2: int = 0) -> None:
    found = parse(frame, l2)
    assert found.start <= found.end <= len(frame)
    assert found.kind is Kind.OTHER or l2 + 14 <= found.l3 <= found.l4 <= found.start
    assert describe(found)
    if found.kind is Kind.TCP:
        read = tcp_options.options(found)
        tcp_options.timestamps(found, read)
        tcp_options.sack_blocks(found, read)


def test_a_length_of_zero_is_believed_only_of_a_segment_that_a_card_cuts() -> None:
    """A segment of more than 64 KiB does not fit the field; without an offload header it is a lie."""
    frame = bytearray(frames.tcp(1, bytes(70000)))
    frame[16:18] = b"\0\0"
    assert parse(bytes(frame)).kind is Kind.OTHER
    assert len(parse(bytes(VNET_HEADER) + bytes(frame), VNET_HEADER).payload) == 70000


def test_the_offload_header() -> None:
    frame = struct.pack("<BBHHHHH", 1, packet.GSO_TCPV4, 54, 1448, 34, 16, 1)
    read = vnet_header(frame)
    assert read == (packet.NEEDS_CSUM, packet.GSO_TCPV4, 54, 1448, 34, 16, 1)
    assert vnet_header(frame[:11]) is None


def test_options_of_a_linux_syn() -> None:
    linux = bytes.fromhex("020405b4 0402 080a 00000001 00000002 01 030307")
    found = parse(frames.tcp(1, flags=packet.SYN, ack=None, options=linux))
    read = tcp_options.options(found)
    assert (read.mss, read.window_scale, read.sack_permitted, read.whole) == (1460, 7, True, True)
    assert tcp_options.timestamps(found, read) == (1, 2)


def test_sack_blocks_and_what_is_unknown() -> None:
    sack = b"\5\x12" + struct.pack("!IIII", 1, 2, 3, 4)
    found = parse(frames.tcp(1, options=b"\1\1" + sack + b"\x22\4ab"))
    read = tcp_options.options(found)
    assert tcp_options.sack_blocks(found, read) == [(1, 2), (3, 4)]
    assert read.others == (b"\x22\4ab",)
    assert tcp_options.timestamps(found, read) is None


@pytest.mark.parametrize("options", [b"\2\0\0\0", b"\2\1\0\0", b"\1\1\1\2", b"\5\x28\0\0"])
def test_options_that_contradict_their_length_end_the_walk(options: bytes) -> None:
    read = tcp_options.options(parse(frames.tcp(1, b"payload", options=options)))
    assert not read.whole
    assert read.mss is None
