"""What is changed in a frame, and that nothing else is: fields, checksums, offloads, tags, fragments."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.compare.checksum import checksum
from colo.compare.packet import (
    FIN,
    GSO_TCPV4,
    NEEDS_CSUM,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    SYN,
    VNET_HEADER,
    parse,
)
from colo.rewrite.edit import edited
from colo.rewrite.rewriter import Rewriter, Settings
from tests.compare.frames import CLIENT6, GUEST6, arp, echo, fragments, fragments6, ip, tcp, udp
from tests.rewrite.ends import MASK, Ends, is_sound, option, read, words

OWN, ITS, CLIENT = 1000, 0xFFFF_FF00, 5000
SHIFT = ITS - OWN


def opened(ends: Ends | None = None, clock: int = 90_000) -> Ends:
    ends = ends or Ends()
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN, stamps=(100, 7))
    ends.client(CLIENT + 1, ack=ITS + 1, stamps=(8, 100 + clock))
    return ends


@given(st.binary(max_size=300), st.lists(st.integers(0, MASK), min_size=3, max_size=3), st.integers(0, 5))
def test_any_change_at_any_alignment(payload: bytes, values: list[int], odd: int) -> None:
    """The sum as brought up to date is the sum of the changed segment."""
    frame = tcp(1, payload, options=bytes((1,)) * 20)
    l4 = parse(frame).l4
    changes = []
    for at, new in zip((l4 + 4, l4 + 20 + odd, l4 + 30 + odd), values, strict=True):
        changes.append((at, int.from_bytes(frame[at : at + 4], "big"), new))
    made = edited(frame, 0, l4 + 40, l4 + 16, changes)
    assert is_sound(made)
    for at, _, new in changes:
        assert made[at : at + 4] == words(new)
    rest = [
        n
        for n in range(len(frame))
        if not any(at <= n < at + 4 for at in (l4 + 16, *(c[0] for c in changes)))
    ]
    assert [made[n] for n in rest] == [frame[n] for n in rest]


def test_a_damaged_segment_stays_damaged() -> None:
    ends = opened()
    frame = bytearray(ends.guest_frame(OWN + 1, b"payload", ack=CLIENT + 1, stamps=(101, 8)))
    frame[-1] ^= 1
    assert not is_sound(ends.rewriter.outward(bytes(frame), 0.0))


def test_nothing_but_the_fields_is_changed() -> None:
    ends = opened()
    frame = ends.guest_frame(OWN + 1, b"payload", ack=CLIENT + 1, stamps=(101, 8), flags=FIN)
    made = ends.rewriter.outward(frame, 0.0)
    other = ends.guest_frame(ITS + 1, b"payload", ack=CLIENT + 1, stamps=(90_101, 8), flags=FIN)
    assert made == other
    assert type(made) is bytes
    assert ends.client(CLIENT + 1, b"ask", ack=ITS + 8, stamps=(9, 90_101)) == read(
        ends.client_frame(CLIENT + 1, b"ask", ack=OWN + 8, stamps=(9, 101))
    )


@pytest.mark.parametrize("before", [b"", b"\1", b"\3\3\7", b"\1\1\1"])
def test_options_in_any_order(before: bytes) -> None:
    """Time stamps need not be aligned, and may come behind anything."""
    ends = opened()
    blocks = b"\5\x12" + words(ITS + 20, ITS + 30, ITS + 50, ITS + 60)
    extra = before + blocks + b"\x08\x0a" + words(9, 90_100)
    heard = ends.client(CLIENT + 1, ack=ITS + 8, extra=extra)
    assert heard.stamps == (9, 100)
    assert heard.blocks == [(OWN + 20, OWN + 30), (OWN + 50, OWN + 60)]
    said = ends.guest(OWN + 1, ack=CLIENT + 1, extra=before + b"\x08\x0a" + words(101, 9))
    assert said.stamps == (90_101, 9)


def test_blocks_of_the_guest_are_the_client_s_numbers() -> None:
    ends = opened()
    said = ends.guest(OWN + 1, ack=CLIENT + 1, stamps=(101, 8), blocks=[(CLIENT + 9, CLIENT + 12)])
    assert said.blocks == [(CLIENT + 9, CLIENT + 12)]
    heard = ends.client(CLIENT + 1, ack=ITS + 8, stamps=(9, 90_101), blocks=[(ITS + 9, ITS + 300)])
    assert heard.blocks == [(OWN + 9, OWN + 300)]


def test_what_is_not_tcp_is_the_same_object() -> None:
    rewriter = opened().rewriter
    frames = [
        b"",
        b"short",
        arp(),
        udp(b"data"),
        echo(1, 1),
        echo(1, 1, kind=8),
        echo(1, 1, kind=128, source=GUEST6, destination=CLIENT6),
        ip(47, b"tunnel"),
        *fragments(udp(bytes(3000)), 1480),
    ]
    for frame in frames:
        assert rewriter.outward(frame, 0.0) is frame
        assert rewriter.inward(frame, 0.0) is frame


def test_tags_are_part_of_a_connection() -> None:
    rewriter = Rewriter()
    around = {"vlans": (7,)}
    back = {"source": "10.77.0.1", "destination": "10.77.0.2", "ports": (40000, 80), "vlans": (7,)}
    rewriter.outward(tcp(OWN, ack=CLIENT + 1, flags=SYN, **around), 0.0)
    assert read(rewriter.inward(tcp(CLIENT + 1, ack=ITS + 1, **back), 0.0)).ack == OWN + 1
    assert read(rewriter.outward(tcp(OWN + 1, b"x", ack=CLIENT + 1, **around), 0.0)).seq == (ITS + 1) & MASK
    untagged = tcp(OWN + 1, b"x", ack=CLIENT + 1)
    assert rewriter.outward(untagged, 0.0) is untagged


# Offloads


def virtio(flags: int, kind: int, size: int, start: int, offset: int) -> bytes:
    return struct.pack("<BBHHHHH", flags, kind, 66, size, start, offset, 0)


def test_a_partial_checksum_is_left_alone() -> None:
    ends = opened(Ends(Settings(vnet=True)))
    frame = ends.guest_frame(OWN + 1, bytes(5000), ack=CLIENT + 1, stamps=(101, 8))[VNET_HEADER:]
    frame = frame[:50] + b"\xab\xcd" + frame[52:]
    header = virtio(NEEDS_CSUM, GSO_TCPV4, 1448, 34, 16)
    made = ends.rewriter.outward(header + frame, 0.0)
    assert made[: VNET_HEADER + 14] == header + frame[:14]
    assert made[VNET_HEADER + 50 : VNET_HEADER + 52] == b"\xab\xcd"
    packet = parse(made, VNET_HEADER)
    assert packet.seq == (ITS + 1) & MASK
    assert packet.payload == bytes(5000)


@pytest.mark.parametrize(("flags", "start"), [(2, 0), (0, 34), (NEEDS_CSUM, 14)])
def test_any_other_checksum_behind_a_virtio_header_is_corrected(flags: int, start: int) -> None:
    """Whole ones, also in a frame of several segments; a partial one of something else is none of ours."""
    ends = opened(Ends(Settings(vnet=True)))
    frame = ends.guest_frame(OWN + 1, bytes(5000), ack=CLIENT + 1, stamps=(101, 8))[VNET_HEADER:]
    assert ends.out(virtio(flags, GSO_TCPV4, 1448, start, 16) + frame).seq == (ITS + 1) & MASK


def test_a_segment_longer_than_its_length_field_can_say() -> None:
    ends = opened(Ends(Settings(vnet=True)))
    frame = bytearray(ends.guest_frame(OWN + 1, bytes(65_500), ack=CLIENT + 1, stamps=(101, 8)))
    frame[VNET_HEADER + 16 : VNET_HEADER + 18] = b"\0\0"
    packet = parse(ends.rewriter.outward(bytes(frame), 0.0), VNET_HEADER)
    assert packet.seq == (ITS + 1) & MASK
    assert len(packet.payload) == 65_500


# Fragments


def joined(pieces: list[bytes], header: int) -> bytes:
    """The segment as a receiver puts it together."""
    return b"".join(piece[header:] for piece in pieces)


@pytest.mark.parametrize("six", [False, True])
def test_a_fragmented_segment(six: bool) -> None:
    ends = opened(Ends(six=six))
    whole = ends.guest_frame(OWN + 1, bytes(range(256)) * 10, ack=CLIENT + 1, stamps=(101, 8))
    wanted = ends.guest_frame(ITS + 1, bytes(range(256)) * 10, ack=CLIENT + 1, stamps=(90_101, 8))
    cut, headers = (fragments6, (62, 54)) if six else (fragments, (34, 34))
    pieces = cut(whole, 1400)
    made = [ends.rewriter.outward(piece, 0.0) for piece in pieces]
    assert joined(made, headers[0]) == wanted[headers[1] :]
    assert made[1] is pieces[1]
    back = cut(ends.client_frame(CLIENT + 1, bytes(2000), ack=ITS + 1, stamps=(9, 90_101)), 1400)
    wanted = ends.client_frame(CLIENT + 1, bytes(2000), ack=OWN + 1, stamps=(9, 101))
    assert joined([ends.rewriter.inward(piece, 0.0) for piece in back], headers[0]) == wanted[headers[1] :]


@pytest.mark.parametrize("size", [8, 16, 24])
def test_a_header_cut_in_pieces_is_left_alone(size: int) -> None:
    ends = opened()
    frame = ends.guest_frame(OWN + 1, bytes(60), ack=CLIENT + 1, stamps=(101, 8))
    for piece in fragments(frame, size):
        assert ends.rewriter.outward(piece, 0.0) is piece
    assert ends.counts["split"] == 1


# Errors that quote a segment


def error(quote: bytes, kind: int = 3, code: int = 4) -> bytes:
    body = struct.pack("!BBHI", kind, code, 0, 1400) + quote
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    return ip(PROTO_ICMP, body, source="10.77.0.9", destination="10.77.0.2")


def error6(quote: bytes) -> bytes:
    body = struct.pack("!BBHI", 2, 0, 0xABCD, 1400) + quote
    return ip(PROTO_ICMPV6, body, source="fd00::9", destination=GUEST6)


def test_a_segment_that_an_error_quotes_is_the_guest_s_again() -> None:
    """RFC 5927: one whose number is not in flight is ignored, and with it the path's packet size."""
    ends = opened()
    on_wire = ends.rewriter.outward(
        ends.guest_frame(OWN + 9, bytes(20), ack=CLIENT + 1, stamps=(101, 8)), 0.0
    )
    made = ends.rewriter.inward(error(on_wire[14:]), 0.0)
    assert made[14 + 28 + 20 + 4 :][:4] == words(OWN + 9)
    assert checksum(made[34:]) == 0
    assert ends.rewriter.inward(error(on_wire[14 : 14 + 28]), 0.0)[14 + 28 + 24 :][:4] == words(OWN + 9)
    assert ends.counts["quoted"] == 2


def test_a_segment_that_an_error_of_ipv6_quotes() -> None:
    ends = opened(Ends(six=True))
    on_wire = ends.rewriter.outward(
        ends.guest_frame(OWN + 9, bytes(20), ack=CLIENT + 1, stamps=(101, 8)), 0.0
    )
    frame = error6(on_wire[14:])
    made = ends.rewriter.inward(frame, 0.0)
    at = 14 + 40 + 8 + 40 + 4
    assert made == frame[:56] + made[56:58] + frame[58:at] + words(OWN + 9) + frame[at + 4 :]
    assert checksum(made[54:]) == checksum(frame[54:]), "whatever the sum was, it is the sum still"


def test_other_errors_are_the_same_object() -> None:
    ends = opened()
    on_wire = ends.rewriter.outward(
        ends.guest_frame(OWN + 9, bytes(20), ack=CLIENT + 1, stamps=(101, 8)), 0.0
    )
    quote = on_wire[14:]
    other = Ends(port=40001).guest_frame(5, ack=6)[14:]
    later = quote[:6] + b"\0\5" + quote[8:]
    for frame in (
        error(other), error(udp(b"x")[14:]), error(quote[:20]), error(quote[:27]), error(b""), error(later),
        error(b"\x65" + quote[1:]), error(b"\x41" + quote[1:]), error(quote, kind=8), error6(quote),
        error6(b"\x60" + bytes(60)),
    ):  # fmt: skip
        assert ends.rewriter.inward(frame, 0.0) is frame
    frame = error(quote)
    assert ends.rewriter.outward(frame, 0.0) is frame, "what the guest quotes is the client's number"


# Anything


@given(st.binary(max_size=120), st.booleans())
def test_no_bytes_are_too_wrong(data: bytes, vnet: bool) -> None:
    rewriter = opened(Ends(Settings(vnet=vnet))).rewriter
    assert len(rewriter.outward(data, 0.0)) == len(data)
    assert len(rewriter.inward(data, 0.0)) == len(data)


@given(st.data())
def test_no_segment_is_too_wrong(data: st.DataObject) -> None:
    """Frames that begin well, with any bytes changed."""
    ends = opened()
    blocks = [(ITS + 9, ITS + 30)]
    frame = bytearray(
        ends.client_frame(CLIENT + 1, b"x" * 20, ack=ITS + 1, stamps=(9, 90_100), blocks=blocks)
    )
    for at, value in data.draw(st.lists(st.tuples(st.integers(12, 89), st.integers(0, 255)), max_size=6)):
        frame[at] = value
    assert len(ends.rewriter.inward(bytes(frame), 0.0)) == len(frame)
    assert len(ends.rewriter.outward(bytes(frame), 0.0)) == len(frame)


def test_options_that_contradict_their_lengths_are_left_alone() -> None:
    ends = opened()
    for extra in (b"\x08\x0a\0\0", b"\x08\x00", b"\x05\x0b" + bytes(9), b"\x05\xff", bytes((8,))):
        said = parse(ends.rewriter.outward(ends.guest_frame(OWN + 1, b"x", ack=CLIENT + 1, extra=extra), 0.0))
        assert said.seq == (ITS + 1) & MASK
        assert bytes(said.frame[said.l4 + 20 : said.start]).startswith(extra)


def test_proto_and_option_helpers_agree() -> None:
    """What these tests make is what the parser of the comparison reads."""
    packet = parse(tcp(1, options=option((5, 6), [(7, 8)])))
    assert packet.frame[packet.l3 + 9] == PROTO_TCP
    assert read(packet.frame).stamps == (5, 6)
    assert read(packet.frame).blocks == [(7, 8)]
