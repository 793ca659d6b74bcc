"""Kernel payloads, unpacked on the host, piece by piece.

Sources: Linux Documentation/arch/x86/boot.rst ("payload_offset": the formats and their magic
numbers); RFC 1952 (gzip); the xz and lzma-alone file formats; RFC 8878 (Zstandard); the LZ4 frame
format, section "Legacy frame".

The kernel's build appends the unpacked size as a 32-bit word to every format (a gzip stream ends
with that word by itself), so the last word of a payload is checked before unpacking against
``SIZE_MAX`` and after it against what came out.  Output is produced in pieces of at most
``CHUNK`` bytes: a consumer copies each into guest RAM and drops it, which keeps the process small
and is three times as fast as building the whole image first.

Not supported: LZO, for which Python has no maintained decoder; no distribution ships such a
kernel.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import lz4.block
import zstandard

from vmm.errors import ImageError
from vmm.ram import MIB

SIZE_MAX = 512 * MIB
"""No kernel unpacks to more; an image that claims to is refused before any work is done."""
CHUNK = 8 * MIB
"""Size of a piece, and of an LZ4 legacy block."""
XZ_MEMORY_MAX = 256 * MIB
"""Decoder memory: the kernel's build uses a 32 MiB dictionary."""
ZSTD_WINDOW_MAX = 1 << 27
"""The kernel's build uses `zstd -22 --ultra`, whose window is 128 MiB."""

Bytes = bytes | memoryview


def unpack(payload: Bytes, name: str) -> Iterator[bytes]:
    """The unpacked pieces of ``payload``; anything wrong raises ImageError, at the latest at the end.

    ``name`` says whose payload it is, for the message.
    """
    kind, decode = _recognise(payload, name)
    expected = struct.unpack_from("<I", payload, len(payload) - 4)[0]
    if expected > SIZE_MAX:
        raise ImageError(
            f"{name}: {kind} payload claims to unpack to {expected >> 20} MiB, the limit is"
            f" {SIZE_MAX >> 20} MiB: the file is damaged"
        )
    total = 0
    try:
        for piece in decode(payload):
            total += len(piece)
            if total > expected:
                break
            yield piece
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError) as exc:
        raise ImageError(f"{name}: {kind} payload damaged: {exc}; fetch the kernel again") from None
    except (OSError, EOFError, ValueError, MemoryError) as exc:
        raise ImageError(f"{name}: {kind} payload damaged: {exc}; fetch the kernel again") from None
    if total != expected:
        found = "more" if total > expected else f"{total:#x}"
        raise ImageError(
            f"{name}: {kind} payload unpacked to {found} bytes, expected {expected:#x}:"
            " the file is truncated or damaged"
        )


class _Decompressor(Protocol):
    """What lzma and bz2 have in common."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: Bytes, max_length: int = -1) -> bytes: ...


def _recognise(payload: Bytes, name: str) -> tuple[str, Callable[[Bytes], Iterator[bytes]]]:
    head = bytes(payload[:6])
    for magic, kind, decode in _FORMATS:
        if head.startswith(magic) and len(payload) >= 8:
            return kind, decode
    if head.startswith(b"\x89LZO"):
        raise ImageError(f"{name}: payload is LZO, which is not supported: build with ZSTD, LZ4, XZ or GZIP")
    raise ImageError(f"{name}: payload begins {head.hex(' ') or 'nowhere'}, which is no known compression")


def _gzip(payload: Bytes) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    data: Bytes = payload
    while not decoder.eof:
        piece = decoder.decompress(data, CHUNK)
        if not piece and not decoder.eof:
            raise EOFError("the stream ends early")
        yield piece
        data = decoder.unconsumed_tail


def _drained(decoder: _Decompressor, payload: Bytes) -> Iterator[bytes]:
    data: Bytes = payload
    while not decoder.eof:
        piece = decoder.decompress(data, CHUNK)
        if not piece and not decoder.eof:
            raise EOFError("the stream ends early")
        yield piece
        data = b""


def _bzip2(payload: Bytes) -> Iterator[bytes]:
    return _drained(bz2.BZ2Decompressor(), payload)


def _xz(payload: Bytes) -> Iterator[bytes]:
    return _drained(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX), payload)


def _lzma(payload: Bytes) -> Iterator[bytes]:
    """lzma-alone; its header may leave the size open, and then an end mark closes the stream."""
    return _drained(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=XZ_MEMORY_MAX), payload)


def _zstd(payload: Bytes) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    with decoder.stream_reader(io.BytesIO(payload[:-4])) as reader:
        while piece := reader.read(CHUNK):
            yield piece


def _lz4(payload: Bytes) -> Iterator[bytes]:
    """Blocks of exactly 8 MiB, the last one shorter: a 32-bit packed size, then the bytes."""
    at, end = 4, len(payload) - 4
    full = True
    while at < end:
        if not full:
            raise ValueError("a short block is followed by another")
        if at + 4 > end:
            raise EOFError("the stream ends in a block's size")
        (packed,) = struct.unpack_from("<I", payload, at)
        at += 4
        if not 0 < packed <= end - at:
            raise ValueError(f"a block of {packed:#x} bytes where {end - at:#x} are left")
        piece = lz4.block.decompress(payload[at : at + packed], uncompressed_size=CHUNK)
        full = len(piece) == CHUNK
        yield piece
        at += packed


_FORMATS: tuple[tuple[bytes, str, Callable[[Bytes], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\x00\x00", "lzma", _lzma),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
