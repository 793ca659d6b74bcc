"""Messages to bytes and back: one message, one frame.  No sockets here.

A frame is a header and the MessagePack form of one word of :mod:`colo.messages`::

    offset  size
       0      4   magic, "COLO"
       4      8   sequence number: the frames of one direction of one connection count from 0
      12      4   length of the payload
      16      4   CRC-32 of the payload
      20      4   CRC-32 of the 20 bytes before
      24          payload

All numbers are big-endian; the CRC is that of IEEE 802.3, as :mod:`zlib` computes it.  The header has
a CRC of its own so that a damaged length is refused at once: a reader who believed it would wait for
bytes that never come.  The sequence number makes a frame that is repeated, left out or moved as
evident as one that is damaged.  A receiver refuses a length over its limit before it sets memory
aside, and takes memory as the bytes arrive, not as they are promised.

CRCs find damage, not malice: who may connect at all is the business of file modes and TLS
(:mod:`colo.transport.address`, :mod:`colo.transport.certs`).  There is no version number:
:data:`PROTOCOL_DIGEST` covers this header and every message's declaration, and nodes whose digests differ
refuse each other.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import cast, get_args

import msgspec

from colo import messages
from colo.errors import FrameError
from colo.messages import Message, Word
from vmm.state import State, layout

HEADER = struct.Struct(">4sQIII")
FIELDS = struct.Struct(">4sQII")
"""The header up to its own CRC."""
MAGIC = b"COLO"
WORDS = cast("tuple[type[Message], ...]", get_args(Word))

FRAME_MAX = messages.VMSTATE_MAX + messages.HELD_MAX + (1 << 20)
"""Bytes of payload: the largest message is a VmstateSize, and a MiB is ample for its names."""
GREETING_MAX = 256 << 10
"""Until two nodes know each other: a Hello is a configuration and a few texts."""
BEAT_MAX = 64
"""On the heartbeat channel."""
COMPANION_MAX = messages.INPUT_MAX + (256 << 10)
"""On the companion channel: the largest input there is, or some hundred packets."""

SPACE_MIN = 64 << 10
"""A receive call is given at least this much room, so that small frames come many at a time."""
CAPACITY = 256 << 10
"""Of a buffer at rest."""
CAPACITY_KEPT = messages.BATCH_MAX + (128 << 10)
"""A buffer that has grown to hold a batch of pages stays: the next one will be as large."""


def _protocol_digest() -> str:
    """Of everything in which two builds could misunderstand each other."""
    # vmm.state describes any msgspec declaration, whatever its base.
    kinds = [(kind.__struct_config__.tag, layout(cast("type[State]", kind))) for kind in WORDS]
    channels = ",".join(channel.value for channel in messages.Channel)
    text = "\n".join(
        [
            HEADER.format,
            str(FRAME_MAX),
            str(COMPANION_MAX),
            channels,
            *(f"{tag} {says}" for tag, says in kinds),
        ]
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


PROTOCOL_DIGEST = _protocol_digest()


class Encoder:
    """One direction of one connection, as its sender counts."""

    __slots__ = ("_encoder", "limit", "sequence")

    def __init__(self, limit: int = FRAME_MAX) -> None:
        self.limit = limit
        self.sequence = 0
        self._encoder = msgspec.msgpack.Encoder()

    def frame(self, message: Message) -> bytearray:
        """The bytes to send, for the caller to keep.

        FrameError when the message is too long for any receiver: nothing was counted then, and the
        connection may go on with other words.
        """
        frame = bytearray(HEADER.size)
        self._encoder.encode_into(message, frame, HEADER.size)
        length = len(frame) - HEADER.size
        if length > self.limit:
            what = type(message).__name__
            raise FrameError(f"a {what} of {length} bytes was to be sent; a frame has {self.limit} at most")
        with memoryview(frame) as view:
            FIELDS.pack_into(frame, 0, MAGIC, self.sequence, length, zlib.crc32(view[HEADER.size :]))
            struct.pack_into(">I", frame, FIELDS.size, zlib.crc32(view[: FIELDS.size]))
        self.sequence += 1
        return frame


class Decoder:
    """One direction of one connection, as its receiver checks it.

    Bytes go into :meth:`space`, :meth:`filled` says how many, and :meth:`next` gives the messages.
    After a FrameError nothing more can be had: where the next frame would begin is not known.
    """

    __slots__ = ("_buffer", "_damage", "_decoder", "_end", "_length", "_start", "limit", "sequence")

    def __init__(self, limit: int = FRAME_MAX) -> None:
        self.limit = limit
        self.sequence = 0
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Word)
        self._buffer = bytearray(CAPACITY)
        self._start = self._end = 0
        self._length: int | None = None
        """Of the payload whose header, at ``_start``, was checked."""
        self._damage: str | None = None

    @property
    def waiting(self) -> int:
        """Bytes received that no message was made of yet."""
        return self._end - self._start

    @property
    def full(self) -> bool:
        """Enough is waiting: receive no more before :meth:`next` was called."""
        return self.waiting >= max(CAPACITY // 2, self._wanted)

    def space(self) -> memoryview:
        """Where the next bytes go; never empty.  Good until the next call of any method."""
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > CAPACITY_KEPT:
                self._buffer = bytearray(CAPACITY)
        short = len(self._buffer) - self._start < self._wanted
        if len(self._buffer) - self._end < SPACE_MIN or (short and self._start):
            self._make_room()
        return memoryview(self._buffer)[self._end :]

    def filled(self, count: int) -> None:
        """That many bytes are now in what :meth:`space` gave."""
        self._end += count
        assert self._end <= len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes that are somewhere else already."""
        rest = memoryview(data)
        while rest:
            space = self.space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            self.filled(count)
            rest = rest[count:]

    def next(self) -> Message | None:
        """The next message, or None until more bytes came."""
        if self._damage is not None:
            raise FrameError(self._damage)
        try:
            return self._next()
        except FrameError as exc:
            self._damage = str(exc)
            raise

    def _next(self) -> Message | None:
        if self._length is None:
            if self.waiting < HEADER.size:
                return None
            self._length = self._header()
        if self.waiting < self._wanted:
            return None
        start, end = self._start + HEADER.size, self._start + self._wanted
        with memoryview(self._buffer)[start:end] as payload:
            expected = HEADER.unpack_from(self._buffer, self._start)[3]
            if (found := zlib.crc32(payload)) != expected:
                raise FrameError(
                    f"frame {self.sequence} is damaged: its CRC is {found:08x}, expected {expected:08x}"
                )
            message = self._message(payload)
        self._start, self._length = end, None
        self.sequence += 1
        return message

    def _header(self) -> int:
        """The length of the payload that follows, of a header in which all is right."""
        magic, sequence, length, _, crc = HEADER.unpack_from(self._buffer, self._start)
        if magic != MAGIC:
            raise FrameError(f"found {magic!r} where a frame begins, expected {MAGIC!r}")
        with memoryview(self._buffer)[self._start : self._start + FIELDS.size] as fields:
            if (found := zlib.crc32(fields)) != crc:
                raise FrameError(f"a header is damaged: its CRC is {found:08x}, expected {crc:08x}")
        if sequence != self.sequence:
            raise FrameError(f"found frame {sequence}, expected {self.sequence}: repeated, lost or moved")
        if length > self.limit:
            raise FrameError(f"frame {sequence} claims {length} bytes, expected {self.limit} at most")
        return int(length)

    def _message(self, payload: memoryview) -> Message:
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            said = str(exc)[:200]  # an unknown tag is repeated in it, as long as the peer made it
            raise FrameError(f"frame {self.sequence} is no message of ours: {said}") from None

    @property
    def _wanted(self) -> int:
        """Bytes from ``_start`` on that the next step needs."""
        return HEADER.size + (self._length or 0)

    def _make_room(self) -> None:
        """At least SPACE_MIN after ``_end``, and the frame's whole length where that is affordable."""
        waiting = self.waiting
        capacity = waiting + max(SPACE_MIN, waiting // 2)
        if self._wanted > waiting:
            # What is promised is set aside at once up to a batch; a larger frame doubles as it comes.
            capacity = min(self._wanted + SPACE_MIN, max(CAPACITY_KEPT, 2 * waiting))
        kept = self._buffer
        if capacity > len(kept):
            self._buffer = bytearray(capacity)
        with memoryview(kept)[self._start : self._end] as unread:
            self._buffer[:waiting] = bytes(unread) if kept is self._buffer else unread
        self._start, self._end = 0, waiting
