"""Hostile bytes on a link: refused by FrameError or PeerLost, at once, in little memory; the node lives.

The CRCs would stop nearly every mutation at the door, so each kind is also tried with right CRCs: that
reaches the decoder of messages and the limits behind it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.errors import FrameError, PeerLost, Refused
from colo.messages import (
    Channel,
    CheckpointRequest,
    Inputs,
    Message,
    RamPages,
    VmstateReceived,
    VmstateSize,
    Welcome,
)
from colo.transport import address as addresses
from colo.transport import wire
from colo.transport.address import Address
from colo.transport.link import Connection, Link
from colo.transport.listener import Listener
from colo.transport.wire import FIELDS, HEADER, MAGIC, Decoder, Encoder
from tests.link.support import World, hello, run, shut

MEMORY_MAX = 3 * wire.CAPACITY_KEPT
"""For frames of some KiB that promise anything at all."""

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(max_examples=300, deadline=None)

Mutation = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)
Pieces = st.lists(st.integers(1, 4000), min_size=1, max_size=10)
Value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
Tag = st.sampled_from([str(kind.__struct_config__.tag) for kind in wire.WORDS])

WORDS: list[Message] = [
    hello(),
    Welcome(50, bytes(16)),
    CheckpointRequest(1),
    RamPages(1, 3, bytes(range(256)) * 8),
    VmstateSize(1, b"d" * 16, 3, {"pit": b"\1\2", "disk0": bytes(300)}, [("net0", b"frame")]),
    VmstateReceived(1),
    Inputs(2, [("com1", b"x"), ("net0", b"y" * 60)]),
]


def frames() -> list[bytes]:
    encoder = Encoder()
    return [bytes(encoder.frame(word)) for word in WORDS]


CONVERSATION = b"".join(frames())


def sealed(payload: bytes, sequence: int) -> bytes:
    fields = FIELDS.pack(MAGIC, sequence, len(payload), zlib.crc32(payload))
    return fields + struct.pack(">I", zlib.crc32(fields)) + payload


def mutated(data: bytes, mutation: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for where, value in mutation:
        changed[int(where * len(changed))] = value
    return bytes(changed)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


def decoded(data: bytes, pieces: list[int] | None = None) -> tuple[list[Message], bool]:
    """What was understood, and whether the rest was refused; any other exception fails the test."""
    found: list[Message] = []
    sizes = (pieces or [len(data) or 1]) * (len(data) + 1)
    at = 0
    refusal = ""
    with little_memory():
        decoder = Decoder()
        try:
            for size in sizes:
                if at >= len(data):
                    break
                decoder.feed(data[at : at + size])
                at += size
                while (message := decoder.next()) is not None:
                    found.append(message)
        except FrameError as exc:
            refusal = str(exc)
    assert len(refusal) < 400
    return found, bool(refusal)


@many
@given(Mutation, Pieces)
def test_a_conversation_with_any_bytes_changed(mutation: list[tuple[float, int]], pieces: list[int]) -> None:
    """What is understood is what was said, up to the change."""
    data = mutated(CONVERSATION, mutation)
    found, refused = decoded(data, pieces)
    assert found == WORDS[: len(found)]
    assert refused == (data != CONVERSATION)


@many
@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=12), Pieces)
def test_frames_repeated_left_out_and_moved(order: list[int], pieces: list[int]) -> None:
    every = frames()
    found, refused = decoded(b"".join(every[index] for index in order), pieces)
    right = next((at for at, index in enumerate(order) if index != at), len(order))
    assert found == WORDS[:right]
    assert refused == (right < len(order))


@many
@given(st.binary(max_size=4000), Pieces)
def test_any_bytes(data: bytes, pieces: list[int]) -> None:
    found, refused = decoded(data, pieces)
    assert found == []
    assert refused or len(data) < HEADER.size


@many
@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=100)
)
def test_any_header_under_a_right_crc(sequence: int, length: int, crc: int, rest: bytes) -> None:
    for number in (0, sequence):
        fields = FIELDS.pack(MAGIC, number, length, crc)
        found, refused = decoded(fields + struct.pack(">I", zlib.crc32(fields)) + rest)
        assert found == []
        assert refused or (number == 0 and length > len(rest))


@many
@given(Tag, st.lists(Value, max_size=8))
def test_any_values_under_any_tag(tag: str, values: list[Any]) -> None:
    """Accepted only as a message that is within its declaration: it passes again."""
    found, refused = decoded(sealed(msgspec.msgpack.encode([tag, *values]), 0))
    assert refused == (not found)
    if found:
        assert decoded(bytes(Encoder().frame(found[0]))) == (found, False)


@many
@given(st.sampled_from(range(len(WORDS))), Mutation)
def test_a_changed_message_under_right_crcs(index: int, mutation: list[tuple[float, int]]) -> None:
    payload = mutated(frames()[index][HEADER.size :], mutation)
    found, refused = decoded(sealed(payload, 0))
    assert refused == (not found)


@many
@given(st.binary(max_size=2000))
def test_any_payload_under_right_crcs(payload: bytes) -> None:
    found, refused = decoded(sealed(payload, 0))
    assert refused == (not found)


@few
@given(Mutation, st.floats(0, 1))
def test_a_link_that_hears_a_damaged_conversation_ends(
    mutation: list[tuple[float, int]], part: float
) -> None:
    data = mutated(CONVERSATION, mutation)[: int(part * len(CONVERSATION))]

    async def listen(link: Link) -> None:
        while True:
            await link.receive()

    async def test() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link = await Link.over(ours, None)
        theirs.sendall(data)
        theirs.close()
        with pytest.raises((FrameError, PeerLost)):
            await listen(link)
        with pytest.raises(PeerLost):
            await link.receive()
        link.close()
        await link.wait_closed()

    run(test())


async def fitting(listener: Listener) -> Connection:
    """The first that fits: a mutation may have made a Hello that can be read, and is refused."""
    while True:
        with suppress(Refused):
            return await listener.accept()


@few
@given(st.sampled_from(list(Channel)), st.lists(st.binary(max_size=300) | Mutation, min_size=1, max_size=5))
def test_a_listening_node_lives(tmp_path: Path, channel: Channel, clients: list[Any]) -> None:
    greeting = addresses.PREAMBLES[channel] + bytes(Encoder().frame(hello(channel=channel)))

    async def test() -> None:
        world = World(Address.parse(f"unix:{tmp_path}/node"), None)
        loop = asyncio.get_running_loop()
        async with world.listener() as listener:
            for client in clients:
                data = (
                    addresses.PREAMBLES[channel] + client
                    if isinstance(client, bytes)
                    else mutated(greeting, client)
                )
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.setblocking(False)
                    sock.connect(f"{tmp_path}/node")
                    await loop.sock_sendall(sock, data)
                    sock.shutdown(socket.SHUT_WR)
                    with suppress(ConnectionResetError):  # what it had not read yet
                        while await loop.sock_recv(sock, 65536):
                            continue
            near, far = await asyncio.gather(world.dial(listener), fitting(listener))
            await shut(near, far)

    run(test())
