"""The guest of the simulated world: a counter service of a few hundred small pages.

Accounts are in RAM, and every word that it says is written there, too, so that its history travels as pages
do, through live rounds, captures and stages, and can be read back from a survivor.  Registers (device state)
hold how many words there are and checksums: a guest that finds RAM of one epoch with registers of another
panics, as a kernel would sooner or later.

Requests on ``net0`` carry a client's sequence number, and a request that comes again is answered again
and not executed again, as TCP has it.  Keys on ``com1`` carry nothing of the sort, as on a serial line:
a key given twice is executed twice.

Every word holds a nonce of the node that it was said on.  Two nodes that do the same work therefore say
different things: a world that hears one and then deals with the other is contradicted.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from enum import IntEnum
from random import Random
from typing import NamedTuple

import msgspec

from colo.messages import Packet

PAGE_BYTES = 64
PAGE_COUNT = 256
SCRATCH, ACCOUNTS, WORDS = 0, 1, 2
"""Pages: one that always changes, the clients' counters, and the first of those with what was said."""
WORD_BYTES = 16
WORDS_A_PAGE = PAGE_BYTES // WORD_BYTES
WORDS_MAX = WORDS_A_PAGE * (PAGE_COUNT - WORDS)
CLIENTS = 2
NET, CONSOLE = "net0", "com1"
POWER_OFF = b"power off"
_WORD = struct.Struct("<BBHIQ")
_REQUEST = struct.Struct("<BHI")
_ACCOUNT = struct.Struct("<II")
"""The last operation that was executed, and the sum."""


class Panic(AssertionError):
    """A guest found its memory and its registers to be of two different instants."""


class Kind(IntEnum):
    """What a word is about."""

    REPLY = 0
    """A request was executed."""
    AGAIN = 1
    """A request was executed before."""
    ECHO = 2
    """A key was executed."""
    TICK = 3
    """Nobody asked."""
    GOODBYE = 4


class Word(NamedTuple):
    """What a guest says."""

    kind: Kind
    client: int
    number: int
    """Of the request, or of the key."""
    total: int
    nonce: int

    def __str__(self) -> str:
        return f"{self.kind.name} {self.client}.{self.number} {self.total} ({self.nonce & 0xFFFF:04x})"

    def pack(self) -> bytes:
        return _WORD.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Word:
        kind, *rest = _WORD.unpack(data)
        return cls(Kind(kind), *rest)


def request(client: int, number: int, value: int) -> bytes:
    return _REQUEST.pack(client, number, value)


class Registers(msgspec.Struct):
    """All of the guest that is not RAM."""

    said: int = 0
    words_checksum: int = 0
    """Over everything said."""
    pages_checksum: int = 0
    """Over the pages before that."""
    pending: list[Packet] = msgspec.field(default_factory=list)
    """Given, and not looked at yet."""
    ended: bool = False


_pack, _unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Registers).decode


class Guest:
    """RAM, registers, and what it takes to run."""

    def __init__(self, entropy: Random) -> None:
        """``entropy`` is the node's: no two nodes have the same."""
        self._entropy = entropy
        self.ram = [bytes(PAGE_BYTES)] * PAGE_COUNT
        self.registers = Registers(pages_checksum=self._sum_pages())
        self.dirty: set[int] = set()

    # What a machine does with it

    def save(self) -> bytes:
        return _pack(self.registers)

    def load(self, data: bytes) -> None:
        self.registers = _unpack(data)

    def give(self, port: str, payload: bytes) -> None:
        self.registers.pending.append((port, payload))

    def run(self) -> bytes | None:
        """A little work; what was said in it."""
        state = self.registers
        assert not state.ended
        if self._sum_pages() != state.pages_checksum:
            raise Panic("memory of one instant, registers of another")
        if not state.pending:
            self._write(SCRATCH, self._entropy.randbytes(PAGE_BYTES))
            state.pages_checksum = self._sum_pages()
            if self._entropy.random() < 0.8 or state.said > WORDS_MAX // 2:
                return None
            return self._say(Kind.TICK, 0, 0, 0)
        port, payload = state.pending.pop(0)
        if port == NET:
            return self._serve(*_REQUEST.unpack(payload))
        if payload == POWER_OFF:
            state.ended = True
            return self._say(Kind.GOODBYE, 0, 0, 0)
        return self._say(Kind.ECHO, 0, int.from_bytes(payload, "little"), 0)

    def _serve(self, client: int, number: int, value: int) -> bytes | None:
        page, at = self.ram[ACCOUNTS], client * _ACCOUNT.size
        last, total = _ACCOUNT.unpack_from(page, at)
        if number == last + 1:
            account = _ACCOUNT.pack(number, total + value)
            self._write(ACCOUNTS, page[:at] + account + page[at + _ACCOUNT.size :])
            self.registers.pages_checksum = self._sum_pages()
            return self._say(Kind.REPLY, client, number, total + value)
        return self._say(Kind.AGAIN, client, number, total) if number == last else None

    def _say(self, kind: Kind, client: int, number: int, total: int) -> bytes:
        state = self.registers
        assert state.said < WORDS_MAX, "the scenario is too long for this guest"
        data = Word(kind, client, number, total, self._entropy.getrandbits(64)).pack()
        page, place = divmod(state.said, WORDS_A_PAGE)
        old, at = self.ram[WORDS + page], place * WORD_BYTES
        self._write(WORDS + page, old[:at] + data + old[at + WORD_BYTES :])
        state.said += 1
        state.words_checksum = zlib.crc32(data, state.words_checksum)
        return data

    def _write(self, page: int, data: bytes) -> None:
        self.ram[page] = data
        self.dirty.add(page)

    def _sum_pages(self) -> int:
        return zlib.crc32(self.ram[ACCOUNTS], zlib.crc32(self.ram[SCRATCH]))

    # What a judge looks at

    def history(self) -> list[bytes]:
        """Everything that was ever said, as RAM has it."""
        said = self.registers.said
        text = b"".join(self.ram[WORDS:])[: said * WORD_BYTES]
        if zlib.crc32(text) != self.registers.words_checksum:
            raise Panic("words of one instant, registers of another")
        return [text[at : at + WORD_BYTES] for at in range(0, said * WORD_BYTES, WORD_BYTES)]


def executions(history: list[bytes]) -> Counter[tuple[Kind, int, int]]:
    """How often each request and each key was executed."""
    words = map(Word.unpack, history)
    return Counter(word[:3] for word in words if word.kind in (Kind.REPLY, Kind.ECHO))
