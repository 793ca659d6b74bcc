"""The benchmark's client of QEMU's gdb stub: packets as they are on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.benchmarks.qemu_injector_gdb import (
    ACK,
    NAK,
    SIGINT,
    Decoder,
    Gdb,
    GdbError,
    checksum,
    packet,
    payload,
)


def test_a_packet_has_its_sum() -> None:
    assert packet(b"OK") == b"$OK#9a"
    assert packet(b"") == b"$#00"
    assert checksum(b"\xff\x02") == b"01"


def test_what_means_something_is_escaped() -> None:
    assert packet(b"a#b$c}d*") == b"$a}\x03b}\x04c}]d}\n#" + checksum(b"a}\x03b}\x04c}]d}\n")
    assert payload(b"a}\x03b}\x04c}]d}\n") == b"a#b$c}d*"


def test_a_repeated_byte_is_written_out() -> None:
    assert payload(b"0* ") == b"0000", "GDB's own example: a blank is 32, three more"
    assert payload(b'xy*"z') == b"xyyyyyyz"


@pytest.mark.parametrize("data", [b"a}", b"a*", b"*!"])
def test_an_escape_of_nothing_is_an_error(data: bytes) -> None:
    with pytest.raises(GdbError, match="where it means nothing"):
        payload(data)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 9), min_size=1))
def test_packets_come_whole_in_whatever_pieces(sent: list[bytes], sizes: list[int]) -> None:
    data = b"".join(ACK + packet(each) for each in sent)
    decoder = Decoder()
    heard: list[bytes | None] = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        heard += decoder.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert heard == [part for each in sent for part in (ACK, b"$" + each)]


def test_a_damaged_packet_is_noticed_and_the_next_one_read() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"$OK#9b$OK#9a-")) == [None, b"$OK", NAK]
    assert list(decoder.feed(b"noise$T0")) == []
    assert list(decoder.feed(b"5#b9")) == [b"$T05"]


# A stub that says what it is told to: the client's side of a conversation is what is looked at.

Stub = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def conversation(stub: Stub, client: Callable[[Gdb], Awaitable[object]]) -> object:
    async def both() -> object:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stub(reader, writer)
            writer.close()
            ended.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            gdb = Gdb(*await asyncio.open_connection(host, port))
            try:
                return await client(gdb)
            finally:
                await gdb.close()
                await ended.wait()

    return asyncio.run(both())


def test_a_damaged_answer_is_asked_for_again() -> None:
    async def stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(packet(b"p10"))) == packet(b"p10")
        writer.write(ACK + b"$12#00")
        assert await reader.readexactly(1) == NAK
        writer.write(packet(b"3412000000000000"))
        assert await reader.readexactly(1) == ACK

    assert conversation(stub, lambda gdb: gdb.register("rip")) == 0x1234


def test_a_refused_command_is_sent_again() -> None:
    wanted = packet(b"P11=02020000")

    async def stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(wanted)) == wanted
        writer.write(NAK)
        assert await reader.readexactly(len(wanted)) == wanted
        writer.write(ACK + packet(b"OK"))
        assert await reader.readexactly(1) == ACK

    assert conversation(stub, lambda gdb: gdb.set_register("rflags", 0x202)) is None


def test_a_stop_is_asked_for_with_one_byte() -> None:
    async def stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(5) == packet(b"c")
        writer.write(ACK)
        assert await reader.readexactly(1) == b"\x03"
        writer.write(packet(b"T02thread:01;"))
        assert await reader.readexactly(1) == ACK

    async def client(gdb: Gdb) -> int:
        await gdb.go_on()
        gdb.interrupt()
        return await gdb.stopped()

    assert conversation(stub, client) == SIGINT


def test_an_error_says_which_command() -> None:
    async def stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(packet(b"m10,4")))
        writer.write(ACK + packet(b"E14"))
        await reader.readexactly(1)

    with pytest.raises(GdbError, match=r"m10,4.*error 14"):
        conversation(stub, lambda gdb: gdb.memory(0x10, 4))


def test_a_stub_that_leaves_is_an_error() -> None:
    async def stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)

    with pytest.raises(GdbError, match="closed the connection"):
        conversation(stub, lambda gdb: gdb.go_on())
