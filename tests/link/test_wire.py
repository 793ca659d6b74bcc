"""Frames: what goes in comes out, and everything else is refused with its reason, in bounded memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import msgspec
import pytest

from colo import messages
from colo.errors import FrameError
from colo.messages import Beat, CheckpointRequest, Inputs, Message, RamPages, VmstateSize
from colo.transport import wire
from colo.transport.wire import HEADER, Decoder, Encoder
from tests.link.support import hello

PAYLOAD_AT = HEADER.size
WORDS: list[Message] = [
    hello(),
    messages.Welcome(50, bytes(16)),
    messages.Refusal("no"),
    messages.CheckpointReady(),
    CheckpointRequest(1),
    messages.CheckpointReply(1),
    messages.VmstateSend(1),
    RamPages(1, 3, bytes(range(256)) * 40),
    VmstateSize(1, b"d" * 16, 3, {"pit": b"\1\2", "disk0": bytes(1000)}, [("net0", b"frame")]),
    messages.VmstateReceived(1),
    messages.Released(1),
    messages.VmstateLoaded(1),
    Inputs(2, [("com1", b"x"), ("net0", b"y" * 60)]),
    messages.Log(2, 10**9, [(10**8, "net0", b"y" * 60)], [0xFFFFFFFF], {"com1": 5}),
    messages.Mark(2, 10**9, {"pit": bytes(16)}, 4096, bytes(32)),
    messages.Progress(2, 7, 6),
    messages.Said(2, [("net0", b"z" * 60)]),
    messages.Diverged(2, 10**9, "pit", {"pit": b"\1\2"}),
    messages.GuestShutdown(2, "reboot"),
    messages.Dissolve("quit"),
    Beat(7),
]


def conversation() -> bytes:
    encoder = Encoder()
    return b"".join(encoder.frame(word) for word in WORDS)


def everything(data: bytes, decoder: Decoder | None = None) -> list[Message]:
    decoder = decoder or Decoder()
    decoder.feed(data)
    found: list[Message] = []
    while (message := decoder.next()) is not None:
        found.append(message)
    return found


def sealed(payload: bytes, sequence: int = 0, magic: bytes = b"COLO", length: int | None = None) -> bytes:
    """A frame in which every checksum is right, whatever else is not."""
    size = len(payload) if length is None else length
    fields = struct.pack(">4sQII", magic, sequence, size, zlib.crc32(payload))
    return fields + struct.pack(">I", zlib.crc32(fields)) + payload


def test_every_word_of_the_protocol_passes() -> None:
    assert {type(word) for word in WORDS} == set(wire.WORDS)
    assert everything(conversation()) == WORDS


def test_the_bytes_are_the_documented_ones() -> None:
    encoder = Encoder()
    encoder.frame(Beat(0))
    payload = msgspec.msgpack.encode(["beat", 5])
    assert encoder.frame(Beat(5)) == sealed(payload, sequence=1)


def test_bytes_may_come_in_any_pieces() -> None:
    data = conversation()
    for size in (1, 2, 7, HEADER.size, 1000):
        decoder, found = Decoder(), []
        for at in range(0, len(data), size):
            decoder.feed(data[at : at + size])
            while (message := decoder.next()) is not None:
                found.append(message)
        assert found == WORDS


def test_a_conversation_cut_at_every_byte_gives_whole_messages_only() -> None:
    data = conversation()
    for size in range(len(data)):
        found = everything(data[:size])
        assert found == WORDS[: len(found)]
        assert len(found) < len(WORDS)


@pytest.mark.parametrize("at", [0, 3, 4, 11, 12, 15, 16, 19, 20, 23, PAYLOAD_AT, PAYLOAD_AT + 3, -1])
def test_a_changed_byte_is_refused_at_once(at: int) -> None:
    """At once: also a changed length, for which more bytes would have to be waited for."""
    frame = Encoder().frame(CheckpointRequest(1))
    frame[at] ^= 0x40
    with pytest.raises(FrameError, match=r"damaged|where a frame begins"):
        everything(bytes(frame))


@pytest.mark.parametrize(
    ("order", "found", "expected"),
    [([0, 0], 0, 1), ([0, 2], 2, 1), ([1, 0], 1, 0)],
    ids=["replay", "gap", "swap"],
)
def test_frames_out_of_order_are_refused(order: list[int], found: int, expected: int) -> None:
    encoder = Encoder()
    frames = [bytes(encoder.frame(Beat(number))) for number in range(3)]
    with pytest.raises(FrameError, match=f"found frame {found}, expected {expected}"):
        everything(b"".join(frames[index] for index in order))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (msgspec.msgpack.encode(["beat", 1]) + b"\0", "trailing"),
        (msgspec.msgpack.encode(["beat"]), "length"),
        (msgspec.msgpack.encode(["beat", 1, 2]), "length"),
        (msgspec.msgpack.encode(["beat", -1]), ">= 0"),
        (msgspec.msgpack.encode(["beat", "1"]), "int"),
        (msgspec.msgpack.encode(["sudo", 1]), "sudo"),
        (msgspec.msgpack.encode(["x" * 100_000, 1]), "x"),
        (msgspec.msgpack.encode(["refused", "x" * 4097]), "4096"),
        (msgspec.msgpack.encode(["welcome", 50, bytes(17)]), "16"),
        (msgspec.msgpack.encode(["ram-pages", 1, 1, bytes(messages.BATCH_MAX + 1)]), "bytes"),
        (msgspec.msgpack.encode(["inputs", 1, [["com1", b""]] * 513]), "512"),
        (msgspec.msgpack.encode({"type": "beat"}), "array"),
        (b"\x92\xa7refused\xa4\xff\xff\xff\xff", "UTF-8|utf-8"),
        (b"\x93\xa6inputs\x01\xdd\xff\xff\xff\xff", "length"),
        (b"\x91" * 50_000, "str"),
        (b"\xc1", "no message of ours"),
        (b"", "no message of ours"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason) as caught:
        everything(sealed(payload))
    assert len(str(caught.value)) < 300


def test_a_length_over_the_limit_is_refused_before_memory_is_set_aside() -> None:
    tracemalloc.start()
    try:
        decoder = Decoder(limit=1000)
        with pytest.raises(FrameError, match="claims 4294967295 bytes, expected 1000 at most"):
            everything(sealed(b"", length=2**32 - 1), decoder)
        decoder = Decoder()
        everything(sealed(b"", length=wire.FRAME_MAX), decoder)
        assert len(decoder.space()) < 2 * wire.CAPACITY_KEPT, "what is promised is not yet there"
        assert tracemalloc.get_traced_memory()[1] < 4 * wire.CAPACITY_KEPT
    finally:
        tracemalloc.stop()


def test_after_a_bad_frame_nothing_more_is_had() -> None:
    encoder, decoder = Encoder(), Decoder()
    decoder.feed(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    decoder.feed(encoder.frame(Beat(0)))
    for _ in range(2):
        with pytest.raises(FrameError, match="b'GET ' where a frame begins"):
            decoder.next()


def test_a_message_that_no_receiver_takes_is_not_sent_and_not_counted() -> None:
    encoder = Encoder(limit=100)
    with pytest.raises(FrameError, match=r"a RamPages of .* bytes was to be sent; a frame has 100"):
        encoder.frame(RamPages(1, 1, bytes(100)))
    assert everything(bytes(encoder.frame(Beat(0)))) == [Beat(0)]


def test_the_largest_messages_pass_and_leave_a_small_buffer() -> None:
    """Given as sockets give them: whatever fits into the space."""
    decoder = Decoder()
    encoder = Encoder()
    words: list[Message] = [
        RamPages(1, 1, bytes(messages.BATCH_MAX)),
        VmstateSize(1, b"", 0, {"disk0": bytes(messages.VMSTATE_MAX)}, []),
        Beat(1),
    ]
    for word in words:
        decoder.feed(encoder.frame(word))
        assert decoder.next() == word
        assert decoder.next() is None
    assert len(decoder.space()) <= wire.CAPACITY_KEPT


def test_a_receiver_that_waits_while_full_holds_little() -> None:
    """A reader that heeds ``full`` never holds more than a buffer, however many frames come."""
    encoder, decoder = Encoder(), Decoder()
    stream = b"".join(encoder.frame(Beat(number)) for number in range(50_000))
    at = count = most = 0
    while at < len(stream):
        if not decoder.full:
            space = decoder.space()
            part = stream[at : at + len(space)]
            space[: len(part)] = part
            decoder.filled(len(part))
            at += len(part)
        most = max(most, decoder.waiting)
        while decoder.next() is not None:
            count += 1
    assert (count, decoder.waiting) == (50_000, 0)
    assert most <= wire.CAPACITY


def test_the_digest_covers_every_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    class Beat2(Message, frozen=True, tag="beat"):
        count: messages.Text

    assert wire._protocol_digest() == wire.PROTOCOL_DIGEST
    changes: list[tuple[str, Any]] = [
        ("WORDS", wire.WORDS[:-1]),
        ("WORDS", (*wire.WORDS[:-1], Beat2)),
        ("WORDS", wire.WORDS[::-1]),
        ("FRAME_MAX", wire.FRAME_MAX + 1),
    ]
    for name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(wire, name, value)
            assert wire._protocol_digest() != wire.PROTOCOL_DIGEST
