"""Frames of a client and of a secondary's guest, and what the other end reads in what comes out."""

from __future__ import annotations

from typing import NamedTuple

from colo.compare.checksum import checksum, pseudo_sum
from colo.compare.packet import ACK, PROTO_TCP, destination, parse, source
from colo.compare.tcp_options import options, sack_blocks, timestamps
from colo.rewrite.rewriter import Rewriter, Settings
from tests.compare.frames import CLIENT, CLIENT6, GUEST, GUEST6, tcp

MASK = 0xFFFF_FFFF
SERVICE, PORT = 80, 40000
Stamps = tuple[int, int] | None


def words(*numbers: int) -> bytes:
    return b"".join((number & MASK).to_bytes(4, "big") for number in numbers)


def option(stamps: Stamps = None, blocks: list[tuple[int, int]] | None = None) -> bytes:
    made = b"" if stamps is None else b"\1\1\x08\x0a" + words(*stamps)
    if blocks:
        made += b"\1\1\x05" + bytes((2 + 8 * len(blocks),)) + b"".join(words(*block) for block in blocks)
    return made


class Read(NamedTuple):
    """What a host makes of a frame."""

    seq: int
    ack: int
    flags: int
    payload: bytes
    stamps: Stamps
    blocks: list[tuple[int, int]]


def read(frame: bytes, l2: int = 0) -> Read:
    """Also asserts that the checksum is right."""
    packet = parse(frame, l2)
    found = options(packet)
    assert is_sound(frame, l2)
    ack = packet.ack if packet.flags & ACK else 0
    return Read(
        packet.seq,
        ack,
        packet.flags,
        bytes(packet.payload),
        timestamps(packet, found),
        sack_blocks(packet, found),
    )


def is_sound(frame: bytes, l2: int = 0) -> bool:
    packet = parse(frame, l2)
    body = frame[packet.l4 : packet.end]
    return checksum(body, pseudo_sum(source(packet), destination(packet), PROTO_TCP, len(body))) == 0


class Ends:
    """A rewriter, and both ends of one connection at it."""

    def __init__(self, settings: Settings | None = None, *, six: bool = False, port: int = PORT) -> None:
        self.rewriter = Rewriter(settings)
        self.now_ms = 0.0
        self.six, self.port = six, port
        self.l2 = self.rewriter.settings.l2
        self.header = bytes(self.l2)

    def guest_frame(
        self,
        seq: int,
        payload: bytes = b"",
        *,
        ack: int | None = None,
        flags: int = 0,
        stamps: Stamps = None,
        blocks: list[tuple[int, int]] | None = None,
        extra: bytes = b"",
    ) -> bytes:
        hosts = (GUEST6, CLIENT6) if self.six else (GUEST, CLIENT)
        return self.header + tcp(
            seq, payload, ack=ack, flags=flags, options=extra + option(stamps, blocks),
            ports=(SERVICE, self.port), source=hosts[0], destination=hosts[1],
        )  # fmt: skip

    def client_frame(
        self,
        seq: int,
        payload: bytes = b"",
        *,
        ack: int | None = None,
        flags: int = 0,
        stamps: Stamps = None,
        blocks: list[tuple[int, int]] | None = None,
        extra: bytes = b"",
    ) -> bytes:
        hosts = (GUEST6, CLIENT6) if self.six else (GUEST, CLIENT)
        return self.header + tcp(
            seq, payload, ack=ack, flags=flags, options=extra + option(stamps, blocks),
            ports=(self.port, SERVICE), source=hosts[1], destination=hosts[0],
        )  # fmt: skip

    def out(self, frame: bytes) -> Read:
        return read(self.rewriter.outward(frame, self.now_ms), self.l2)

    def into(self, frame: bytes) -> Read:
        return read(self.rewriter.inward(frame, self.now_ms), self.l2)

    def guest(self, seq: int, payload: bytes = b"", **fields: object) -> Read:
        """What the client reads in the guest's frame."""
        return self.out(self.guest_frame(seq, payload, **fields))  # type: ignore[arg-type]

    def client(self, seq: int, payload: bytes = b"", **fields: object) -> Read:
        """What the guest reads in the client's frame."""
        return self.into(self.client_frame(seq, payload, **fields))  # type: ignore[arg-type]

    def same(self, frame: bytes, *, outward: bool) -> bool:
        pass_on = self.rewriter.outward if outward else self.rewriter.inward
        return pass_on(frame, self.now_ms) is frame

    @property
    def counts(self) -> dict[str, int]:
        return self.rewriter.counts
