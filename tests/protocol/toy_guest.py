"""The guest of the simulated world: a counter service of a few hundred small pages, with a clock of its own.

Accounts are in RAM, and every word that it says is written there, too, so that its history travels as pages
do, through live rounds, captures and stages, and can be read back from a survivor.  Registers (device state)
hold how many words there are and checksums: a guest that finds RAM of one epoch with registers of another
panics, as a kernel would sooner or later.

It is deterministic as the real one is: what it does follows from its state, from what it is given, and from
the virtual times at which it is given that.  It runs in *blocks* which take virtual time; what it says, it
says in the middle of one.  Between two blocks it is given things, and when it has nothing to do it waits for
its timer or for something to be given, and how long that takes is the host's business.

Requests on ``net0`` carry a client's sequence number, and a request that comes again is answered again and
not executed again, as TCP has it.  Keys on ``com1`` carry nothing of the sort, as on a serial line: a key
given twice is executed twice.

Every word holds a nonce.  A *noisy* one follows from all that the guest was ever given, and when: two guests
of which only one was given something, or later, say different things from then on.  A quiet one follows from
a secret, which changes when the guest is told that it is another node's now: two guests that run side by side
say the same, as far as they do the same in the same order; a survivor that does something anew contradicts.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import msgspec

from colo.messages import Packet

PAGE_BYTES = 64
PAGE_COUNT = 256
SCRATCH, ACCOUNTS = 0, 1
"""Pages: one that always changes, and the clients' counters."""
CLIENTS = 2
TERMINAL = CLIENTS
STREAMS = CLIENTS + 1
"""Whom it speaks to: each client, and whoever reads the console."""
FIRST_PAGES = (2, 86, 170)
"""Of each stream's words."""
WORD_BYTES = 16
WORDS_A_PAGE = PAGE_BYTES // WORD_BYTES
WORDS_MAX = WORDS_A_PAGE * (FIRST_PAGES[1] - FIRST_PAGES[0])
"""Of one stream."""
NET, CONSOLE, ANNOUNCE, SNAPSHOT = "net0", "com1", "announce", "snapshot"
PORTS = (NET, CONSOLE, ANNOUNCE, SNAPSHOT)
POWER_OFF = b"power off"
MS = 1_000_000
BLOCK_NS, BLOCKS_DIFFER = MS, 3
"""A block takes one, two or three of these."""
TIMER_NS = 9 * MS
NOTED_EVERY = 3
"""Operations between two of which the console hears."""
_WORD = struct.Struct("<BBHIQ")
_REQUEST = struct.Struct("<BHI")
_ACCOUNT = struct.Struct("<II")
"""The last operation that was executed, and the sum."""
_MIXED = struct.Struct("<QQQQ")

Speak = Callable[[int, bytes], None]
"""To whom, and a word."""


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
    NOTE = 5
    """To the console: a request was executed."""


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


def mixed(*numbers: int) -> int:
    """Up to four numbers of 64 bits made one."""
    text = _MIXED.pack(*numbers, *(0,) * (4 - len(numbers)))
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


class Registers(msgspec.Struct):
    """All of the guest that is not RAM."""

    now_ns: int = 0
    timer_ns: int = TIMER_NS
    blocks: int = 0
    entropy: int = 1
    """Of all that it was given, and when."""
    secret: int = 1
    noisy_every: int = 1
    """Of the words, the share that is noisy."""
    said: list[int] = msgspec.field(default_factory=lambda: [0] * STREAMS)
    words_checksums: list[int] = msgspec.field(default_factory=lambda: [0] * STREAMS)
    """Over everything said."""
    pages_checksum: int = 0
    """Over the pages before that."""
    pending: list[Packet] = msgspec.field(default_factory=list)
    """Given, and not looked at yet."""
    refused: int = 0
    """Keys that came while too many were pending."""
    ended: bool = False


PENDING_MAX = 6
"""Beyond that a key is refused, which the guest notices, and a request has to wait."""
_pack, _unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Registers).decode


class Guest:
    """RAM, registers, and what it takes to run."""

    def __init__(self, noisy_every: int = 1) -> None:
        self.ram = [bytes(PAGE_BYTES)] * PAGE_COUNT
        self.registers = Registers(noisy_every=noisy_every, pages_checksum=self._sum_pages())
        self.dirty: set[int] = set()

    # What a machine does with it

    def save(self) -> bytes:
        return _pack(self.registers)

    def load(self, data: bytes) -> None:
        self.registers = _unpack(data)

    def is_full(self, port: str) -> bool:
        return port in (NET, CONSOLE) and len(self.registers.pending) >= PENDING_MAX

    def give(self, port: str, payload: bytes) -> None:
        state = self.registers
        if port == SNAPSHOT:
            return  # it has nothing of which only the host knows
        state.entropy = mixed(state.entropy, state.now_ns, zlib.crc32(payload), PORTS.index(port))
        if port == ANNOUNCE:
            state.secret = mixed(state.secret, zlib.crc32(payload))
        else:
            state.pending.append((port, payload))

    @property
    def is_busy(self) -> bool:
        state = self.registers
        return bool(state.pending) or state.now_ns >= state.timer_ns

    def idle(self, until_ns: int) -> None:
        """Wait, for the timer at the longest."""
        self.registers.now_ns = min(until_ns, self.registers.timer_ns)

    def block(self, speak: Speak) -> None:
        """A little work, in the middle of which ``speak`` is told what is said."""
        state = self.registers
        assert not state.ended
        if self._sum_pages() != state.pages_checksum:
            raise Panic("memory of one instant, registers of another")
        state.blocks += 1
        started_ns, step_ns = state.now_ns, BLOCK_NS * (1 + mixed(state.blocks) % BLOCKS_DIFFER) // 4
        for kind, stream, client, number, total in self._work():
            state.now_ns += step_ns
            speak(stream, self._write_down(kind, stream, client, number, total))
        state.now_ns = started_ns + 4 * step_ns

    def _work(self) -> list[tuple[Kind, int, int, int, int]]:
        state = self.registers
        if not state.pending:
            return self._tick()
        port, payload = state.pending.pop(0)
        if port == NET:
            return self._serve(*_REQUEST.unpack(payload))
        if payload == POWER_OFF:
            state.ended = True
            return [(Kind.GOODBYE, TERMINAL, 0, 0, 0)]
        return [(Kind.ECHO, TERMINAL, 0, int.from_bytes(payload, "little"), state.refused)]

    def _tick(self) -> list[tuple[Kind, int, int, int, int]]:
        state = self.registers
        ticks = state.timer_ns // TIMER_NS
        state.timer_ns += TIMER_NS
        fresh = mixed(state.entropy, ticks).to_bytes(8, "little")
        self.write(SCRATCH, fresh * (PAGE_BYTES // 8))
        state.pages_checksum = self._sum_pages()
        if ticks % 4 or state.said[TERMINAL] > WORDS_MAX // 2:
            return []
        return [(Kind.TICK, TERMINAL, 0, ticks & 0xFFFF, 0)]

    def _serve(self, client: int, number: int, value: int) -> list[tuple[Kind, int, int, int, int]]:
        page, at = self.ram[ACCOUNTS], client * _ACCOUNT.size
        last, total = _ACCOUNT.unpack_from(page, at)
        if number == last + 1:
            account = _ACCOUNT.pack(number, total + value)
            self.write(ACCOUNTS, page[:at] + account + page[at + _ACCOUNT.size :])
            self.registers.pages_checksum = self._sum_pages()
            noted = (Kind.NOTE, TERMINAL, client, number, total + value)
            reply = (Kind.REPLY, client, client, number, total + value)
            return [reply, noted] if number % NOTED_EVERY == 1 else [reply]
        return [(Kind.AGAIN, client, client, number, total)] if number == last else []

    def _write_down(self, kind: Kind, stream: int, client: int, number: int, total: int) -> bytes:
        state = self.registers
        place = state.said[stream]
        assert place < WORDS_MAX, "the scenario is too long for this guest"
        what = mixed(kind << 8 | client, number, total, place)
        noisy = what % state.noisy_every == 0
        nonce = mixed(what, state.entropy, state.now_ns) if noisy else mixed(what, state.secret)
        data = Word(kind, client, number, total, nonce).pack()
        page, at = divmod(place, WORDS_A_PAGE)
        page, at = page + FIRST_PAGES[stream], at * WORD_BYTES
        old = self.ram[page]
        self.write(page, old[:at] + data + old[at + WORD_BYTES :])
        state.said[stream] += 1
        state.words_checksums[stream] = zlib.crc32(data, state.words_checksums[stream])
        return data

    def write(self, page: int, data: bytes) -> None:
        self.ram[page] = data
        self.dirty.add(page)

    def _sum_pages(self) -> int:
        return zlib.crc32(self.ram[ACCOUNTS], zlib.crc32(self.ram[SCRATCH]))

    # What misfortune does

    def flip(self, rng: Random) -> str:
        """One bit is not what it was; where."""
        state = self.registers
        where = rng.choice(("scratch", "accounts", "entropy", "timer", "secret", "said"))
        if where == "said" and not state.said[TERMINAL]:
            where = "entropy"  # for what was not said yet will be written
        match where:
            case "scratch":
                self.write(SCRATCH, _flipped(self.ram[SCRATCH], rng))
            case "accounts":  # and the kernel's checksum with it: it is not noticed here
                self.write(ACCOUNTS, _flipped(self.ram[ACCOUNTS], rng))
                state.pages_checksum = self._sum_pages()
            case "timer":
                state.timer_ns += TIMER_NS
            case "said":
                page = FIRST_PAGES[TERMINAL]
                first, rest = self.ram[page][:WORD_BYTES], self.ram[page][WORD_BYTES:]
                self.write(page, _flipped(first, rng) + rest)
            case _:
                setattr(state, where, getattr(state, where) ^ 1 << rng.randrange(64))
        return where

    # What a judge looks at

    def spoken(self, stream: int) -> bytes:
        """Everything that was ever said to somebody, as RAM has it."""
        first, size = FIRST_PAGES[stream], self.registers.said[stream] * WORD_BYTES
        text = b"".join(self.ram[first : first + -(-size // PAGE_BYTES)])[:size]
        if zlib.crc32(text) != self.registers.words_checksums[stream]:
            raise Panic("words of one instant, registers of another")
        return text

    def said_at(self, stream: int, at: int, size: int) -> bytes:
        """So many bytes of that, from ``at`` on."""
        page, offset = divmod(at, PAGE_BYTES)
        page += FIRST_PAGES[stream]
        text = self.ram[page]
        if offset + size > PAGE_BYTES:
            text = b"".join(self.ram[page : page + 1 + (offset + size - 1) // PAGE_BYTES])
        return text[offset : offset + size]


def _flipped(data: bytes, rng: Random) -> bytes:
    place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def words_of(text: bytes) -> list[Word]:
    """Of one stream; a word of which only a part is there is left out."""
    whole = len(text) // WORD_BYTES * WORD_BYTES
    return [Word.unpack(text[at : at + WORD_BYTES]) for at in range(0, whole, WORD_BYTES)]


def executions(words: list[Word]) -> Counter[tuple[Kind, int, int]]:
    """How often each request and each key was executed."""
    return Counter(word[:3] for word in words if word.kind in (Kind.REPLY, Kind.ECHO))
