"""A client of QEMU's gdb stub: the packets of the GDB Remote Serial Protocol that a fault injector needs.

Source: *Debugging with GDB*, appendix "GDB Remote Serial Protocol": a packet is ``$``, data, ``#`` and the
sum of the data's bytes modulo 256 in base 16; each is acknowledged by ``+`` or asked for again by ``-``.  In
data ``}`` escapes the next byte (which was XORed with 0x20), and ``*`` repeats the one before it.  Registers
of x86-64 are numbered as in GDB's ``64bit-core.xml``; a guest in 32-bit mode has no more than eight.

Used: ``qSupported``, ``qXfer:features:read`` (QEMU answers ``p`` and ``P`` only to whoever has asked for its
registers' names), ``p``, ``P``, ``m``, ``M``, ``Z0``, ``z0``, ``c``, the interrupt byte, and QEMU's own
``Qqemu.PhyMemMode``.

Not modelled: several threads (the guest has one processor), notifications, other architectures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14"),
    *("r15", "rip", "rflags"),
)
"""By number."""
WIDTHS = {"rflags": 4}
"""Bytes of a register, where it is not eight."""
ESCAPE, ESCAPE_XOR = 0x7D, 0x20
RUN, RUN_BASE = 0x2A, 29
"""``x*`` and a byte: so many more of x as the byte is above 29."""
SPECIAL = b"#$}*"
INTERRUPT = b"\x03"
ACK, NAK = b"+", b"-"
SENDS_MAX = 4
ANSWER_S = 60.0
"""The stub answers at once; a loaded host may not."""

SIGINT, SIGQUIT, SIGTRAP = 2, 3, 5
"""What QEMU says when it stops: asked to, the guest ended, a breakpoint."""


class GdbError(Exception):
    """The stub said something else than was expected, or nothing."""


def checksum(data: bytes) -> bytes:
    """As two digits."""
    return b"%02x" % (sum(data) & 0xFF)


def packet(payload: bytes) -> bytes:
    """``payload`` on its way."""
    data = bytearray()
    for byte in payload:
        data += bytes((ESCAPE, byte ^ ESCAPE_XOR)) if byte in SPECIAL else bytes((byte,))
    return b"$" + bytes(data) + b"#" + checksum(data)


def payload(data: bytes) -> bytes:
    """What is between ``$`` and ``#``, without escapes and repetitions."""
    found = bytearray()
    at = 0
    while at < len(data):
        byte = data[at]
        cut_short = byte in (ESCAPE, RUN) and at + 1 == len(data)
        if cut_short or (byte == RUN and not found):
            raise GdbError(f"gdb stub: a packet with {chr(byte)!r} where it means nothing: {data!r}")
        if byte == ESCAPE:
            found.append(data[at + 1] ^ ESCAPE_XOR)
        elif byte == RUN:
            found += found[-1:] * (data[at + 1] - RUN_BASE)
        else:
            found.append(byte)
        at += 2 if byte in (ESCAPE, RUN) else 1
    return bytes(found)


class Decoder:
    """Bytes as they come, as whole packets (their payloads), acknowledgements and refusals."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Payloads of packets; ``None`` is a packet that was damaged.  ``+`` and ``-`` are as they are."""
        self._unread += data
        while self._unread:
            if self._unread[0] != ord("$"):
                sign = bytes(self._unread[:1])
                del self._unread[:1]
                if sign in (ACK, NAK):
                    yield sign
                continue
            end = self._unread.find(b"#")
            if end < 0 or len(self._unread) < end + 3:
                return
            body, said = bytes(self._unread[1:end]), bytes(self._unread[end + 1 : end + 3])
            del self._unread[: end + 3]
            # A payload may be "+" itself: what is in a packet is told apart by its first byte.
            yield b"$" + payload(body) if said.lower() == checksum(body) else None


class Gdb:
    """A connection.  QEMU stops the guest when it is made."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = Decoder()
        self._heard: list[bytes] = []

    @classmethod
    async def connect(cls, path: Path) -> Gdb:
        made = cls(*await asyncio.open_unix_connection(path))
        await made.ask(b"qSupported:xmlRegisters=i386")
        if not (await made.ask(b"qXfer:features:read:target.xml:0,ffff")).startswith((b"l", b"m")):
            raise GdbError("gdb stub: no register names, without which it lets no single one be written")
        return made

    # Packets

    async def _receive(self) -> bytes:
        """The next packet's payload behind ``$``, acknowledged; or ``+``, ``-``."""
        while not self._heard:
            data = await self._reader.read(1 << 16)
            if not data:
                raise GdbError("gdb stub: it closed the connection")
            for each in self._decoder.feed(data):
                if each is None or each[:1] == b"$":
                    self._writer.write(NAK if each is None else ACK)
                if each is not None:
                    self._heard.append(each)
        return self._heard.pop(0)

    async def send(self, command: bytes) -> None:
        """Until it was acknowledged."""
        for _ in range(SENDS_MAX):
            self._writer.write(packet(command))
            async with asyncio.timeout(ANSWER_S):
                if (sign := await self._receive()) not in (ACK, NAK):
                    raise GdbError(f"gdb stub: {sign!r} before it acknowledged {command!r}")
            if sign == ACK:
                return
        raise GdbError(f"gdb stub: it refused {command!r} {SENDS_MAX} times")

    async def _packet(self) -> bytes:
        while (found := await self._receive())[:1] != b"$":
            continue
        return found[1:]

    async def ask(self, command: bytes) -> bytes:
        """Send a command that has an answer."""
        await self.send(command)
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._packet()
        except TimeoutError:
            raise GdbError(f"gdb stub: no answer to {command!r} within {ANSWER_S:g} s") from None
        if len(answer) == 3 and answer[:1] == b"E":
            raise GdbError(f"gdb stub: {command!r}: error {answer[1:].decode()}")
        return answer

    async def _do(self, command: bytes) -> None:
        answer = await self.ask(command)
        if answer != b"OK":
            raise GdbError(f"gdb stub: {command!r}: {answer!r}, expected OK")

    # State

    async def register(self, name: str) -> int:
        return int.from_bytes(
            bytes.fromhex((await self.ask(b"p%x" % REGISTERS.index(name))).decode()), "little"
        )

    async def set_register(self, name: str, value: int) -> None:
        data = value.to_bytes(WIDTHS.get(name, 8), "little").hex().encode()
        await self._do(b"P%x=%s" % (REGISTERS.index(name), data))

    async def physical(self, wanted: bool) -> None:
        """Addresses of memory are physical ones from now on, or linear ones."""
        await self._do(b"Qqemu.PhyMemMode:%d" % wanted)

    async def memory(self, address: int, size: int) -> bytes:
        return bytes.fromhex((await self.ask(b"m%x,%x" % (address, size))).decode())

    async def set_memory(self, address: int, data: bytes) -> None:
        await self._do(b"M%x,%x:%s" % (address, len(data), data.hex().encode()))

    async def set_breakpoint(self, address: int) -> None:
        await self._do(b"Z0,%x,1" % address)

    async def clear_breakpoint(self, address: int) -> None:
        await self._do(b"z0,%x,1" % address)

    # Running

    async def go_on(self) -> None:
        await self.send(b"c")

    def interrupt(self) -> None:
        """Asks for a stop; :meth:`stopped` says when it is there."""
        self._writer.write(INTERRUPT)

    async def stopped(self) -> int:
        """Waits until the guest does not run any more; the signal that says why."""
        answer = await self._packet()
        if answer[:1] not in (b"T", b"S"):
            raise GdbError(f"gdb stub: {answer!r}, expected why the guest stopped")
        return int(answer[1:3], 16)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
