"""Payloads of every format the kernel's build makes; limits and damage."""

from __future__ import annotations

import struct

import pytest

from tests.boot import images
from vmm.boot import unpack
from vmm.errors import ImageError

PACKED = [kind for kind in images.KINDS if kind != "none"]
DATA = images.vmlinux(100_000)


def unpacked(payload: bytes) -> bytes:
    return b"".join(unpack.unpack(payload, "kernel"))


@pytest.mark.parametrize("kind", PACKED)
def test_every_format(kind: str) -> None:
    assert unpacked(images.pack(kind, DATA)) == DATA


@pytest.mark.parametrize("kind", PACKED)
def test_a_view_works_like_bytes(kind: str) -> None:
    """bzImage payloads are slices of the file, not copies."""
    assert b"".join(unpack.unpack(memoryview(b"xx" + images.pack(kind, DATA))[2:], "kernel")) == DATA


@pytest.mark.parametrize("kind", PACKED)
def test_pieces_are_bounded(kind: str) -> None:
    """A payload that grows ten thousand times still comes in pieces of at most CHUNK."""
    data = bytes(9 << 20)
    sizes = [len(piece) for piece in unpack.unpack(images.pack(kind, data), "kernel")]
    assert sum(sizes) == len(data)
    assert max(sizes) <= unpack.CHUNK


@pytest.mark.parametrize("kind", PACKED)
def test_more_than_it_claims(kind: str) -> None:
    """Output stops at the size that the last word claims, whatever the stream would give."""
    payload = images.pack(kind, bytes(9 << 20))[:-4] + struct.pack("<I", 1000)
    with pytest.raises(ImageError, match="kernel: "):
        unpacked(payload)


@pytest.mark.parametrize("kind", PACKED)
def test_less_than_it_claims(kind: str) -> None:
    payload = images.pack(kind, DATA)[:-4] + struct.pack("<I", len(DATA) + 1)
    with pytest.raises(ImageError, match="kernel: "):
        unpacked(payload)


@pytest.mark.parametrize("kind", PACKED)
def test_claim_beyond_the_limit_is_refused_before_any_work(kind: str) -> None:
    payload = images.pack(kind, DATA)[:-4] + struct.pack("<I", unpack.SIZE_MAX + 1)
    with pytest.raises(ImageError, match="limit is 512 MiB"):
        next(unpack.unpack(payload, "kernel"))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated(kind: str, part: float) -> None:
    payload = images.pack(kind, DATA)
    with pytest.raises(ImageError):
        unpacked(payload[: int(len(payload) * part)])


def test_unknown_formats_are_named() -> None:
    with pytest.raises(ImageError, match="LZO, which is not supported"):
        unpacked(b"\x89LZO\0\r\n\x1a\n" + bytes(20))
    with pytest.raises(ImageError, match="begins 01 02 03"):
        unpacked(bytes(range(1, 20)))
    with pytest.raises(ImageError, match="no known compression"):
        unpacked(b"\x1f\x8b")


def test_lz4_blocks_before_the_last_are_full() -> None:
    """Otherwise a payload of empty blocks would keep the loader busy for as long as it likes."""
    block = struct.pack("<I", 1) + b"\0"
    payload = b"\x02\x21\x4c\x18" + block * 100_000 + struct.pack("<I", 0)
    with pytest.raises(ImageError, match="short block"):
        unpacked(payload)
