"""Replaying an input log: what is due when, and where the machine departs from what it did.

The whole log is read and checked before the first instruction; then inputs, outputs and marks are
three queues, each read from the file as it is consumed, so memory holds an index and no payloads.

The caller runs the machine to the smaller of :attr:`Replayer.next_input_ns`,
:attr:`Replayer.next_mark_ns` and :attr:`Replayer.end_ns`, delivers what is ``due``, and passes
every output to ``check_output``.  A departure is ReplayError at the earliest record that shows it;
the state at the mark before it and ``vmm.compare`` then tell which device it was.

``vmm.record`` describes the file.
"""

from __future__ import annotations

import os
import stat
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Generic, NoReturn, TypeVar

import msgspec

from vmm.clock import NEVER_NS
from vmm.errors import ReplayError, StateError
from vmm.record import (
    FORMAT,
    FRAME,
    HEADER_MAX,
    MAGIC,
    PREAMBLE,
    RECORD_MAX,
    Close,
    Input,
    LogHeader,
    Mark,
    Output,
    Record,
    output_digest,
)
from vmm.state import unpack

_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_ZEROES_STEP = 1 << 16

R = TypeVar("R", Input, Output, Mark)


class Replayer:
    """A whole, checked log and how far a machine has followed it."""

    __slots__ = (
        "_file",
        "_inputs",
        "_marks",
        "_outputs",
        "end_ns",
        "header",
        "path",
        "reason",
        "records",
        "torn",
        "unchecked",
    )

    def __init__(self, path: Path | str) -> None:
        """Read and check the log at ``path``; ReplayError when it is anything else."""
        self.path = Path(path)
        self.records = 0
        self.end_ns = 0
        self.reason: str | None = None
        """Why the recording ended; None when it was cut short."""
        self.torn: str | None = None
        """What was found after the last whole record, if anything."""
        self.unchecked = 0
        """Outputs at or after the end of a log that was cut short, which nothing can confirm."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not make us wait
            self._file: BinaryIO = os.fdopen(fd, "rb")
        except OSError as exc:
            raise ReplayError(f"log {path}: {exc.strerror}") from exc
        self._inputs = _Queue(Input, self._record_at)
        self._outputs = _Queue(Output, self._record_at)
        self._marks = _Queue(Mark, self._record_at)
        try:
            self._read_all()
        except BaseException:
            self.close()
            raise

    @property
    def next_input_ns(self) -> int:
        """When the next input is due; NEVER_NS when all were delivered."""
        return self._inputs.next_ns

    @property
    def next_mark_ns(self) -> int:
        return self._marks.next_ns

    @property
    def finished(self) -> bool:
        """Every input was delivered and every output was seen again."""
        return self._inputs.next_ns == NEVER_NS and self._outputs.next_ns == NEVER_NS

    def due(self, now_ns: int) -> list[tuple[str, bytes]]:
        """The inputs stamped ``now_ns``, in order; ReplayError when one should have come earlier.

        Those logged after a mark of the same time come when the mark was checked.
        """
        found = []
        while (record := self._inputs.head) is not None and record.ns <= now_ns:
            if self._marks.next_ns == now_ns and self._marks.number < self._inputs.number:
                break
            if record.ns < now_ns:
                self._depart(self._inputs.number, now_ns, _input(record), f"a machine already at {now_ns} ns")
            self._inputs.advance()
            found.append((record.port, record.payload))
        return found

    def check_output(self, ns: int, port: str, payload: bytes) -> None:
        """ReplayError unless this is the next logged output, at its time."""
        made = Output(ns, port, output_digest(payload), len(payload))
        record = self._outputs.head
        if record is None and self.reason is None and ns >= self.end_ns:
            self.unchecked += 1
        elif record != made:
            expected = "no more output" if record is None else _output(record)
            self._depart(self._outputs.number, ns, expected, _output(made))
        else:
            self._outputs.advance()

    def check_mark(self, ns: int, state_hash: bytes) -> None:
        """ReplayError unless the log has this hash at this time; earlier marks may have been skipped."""
        output = self._outputs.head
        if output is not None and output.ns < ns:
            self._depart(self._outputs.number, ns, _output(output), "no such output")
        while self._marks.next_ns < ns:
            self._marks.advance()
        record = self._marks.head
        if record is None or record.ns != ns:
            expected = "no more marks" if record is None else f"no mark before {record.ns} ns"
            self._depart(self._marks.number, ns, expected, f"one at {ns} ns")
        if record.digest != state_hash:
            expected, found = record.digest.hex(), state_hash.hex()
            self._depart(self._marks.number, ns, f"state hash {expected}", f"state hash {found}")
        self._marks.advance()

    def finish(self, ns: int) -> None:
        """The machine stopped at ``ns``: ReplayError when the log has something more for it."""
        found = f"the end of the run at {ns} ns"
        if (record := self._inputs.head) is not None:
            self._depart(self._inputs.number, ns, _input(record), found)
        if (output := self._outputs.head) is not None:
            self._depart(self._outputs.number, ns, _output(output), found)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Replayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _depart(self, number: int, now_ns: int, expected: str, found: str) -> NoReturn:
        raise ReplayError(
            f"log {self.path}: replay departs at {now_ns} ns, record {number} of {self.records}:"
            f" expected {expected}; found {found}"
        )

    # Reading

    def _read_all(self) -> None:
        size, crc = self._read_header()
        for offset, body_size, record in self._scan(size, crc):
            if not self.end_ns <= record.ns < NEVER_NS:
                self._damaged(offset, f"time {record.ns} ns after {self.end_ns} ns")
            if self.reason is not None:
                self._damaged(offset, "a record after the log was closed")
            self.end_ns = record.ns
            if isinstance(record, Close):
                self.reason = record.reason
            else:
                self._queue_of(record).add(self.records, offset, body_size)
            self.records += 1
        self._inputs.load()
        self._outputs.load()
        self._marks.load()

    def _queue_of(self, record: Input | Output | Mark) -> _Queue[Input] | _Queue[Output] | _Queue[Mark]:
        if isinstance(record, Input):
            return self._inputs
        return self._outputs if isinstance(record, Output) else self._marks

    def _read_header(self) -> tuple[int, int]:
        """Size of the file, and the CRC that the first record continues."""
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ReplayError(f"log {self.path}: not a regular file")
        start = self._file.read(PREAMBLE.size)
        if start[: len(MAGIC)] != MAGIC:
            found = start[: len(MAGIC)].hex(" ") or "nothing"
            raise ReplayError(f"log {self.path}: not an input log: starts with {found}")
        if len(start) < PREAMBLE.size:
            raise ReplayError(f"log {self.path}: truncated after {len(start)} bytes, before its header")
        _, form, header_size, crc = PREAMBLE.unpack(start)
        if form != FORMAT:
            raise ReplayError(f"log {self.path}: format {form}; this build reads format {FORMAT}")
        if header_size > HEADER_MAX:
            raise ReplayError(f"log {self.path}: header of {header_size} bytes; at most {HEADER_MAX}")
        packed = self._file.read(header_size)
        if len(packed) < header_size:
            raise ReplayError(f"log {self.path}: truncated: {len(packed)} of {header_size} header bytes")
        if zlib.crc32(packed) != crc:
            raise ReplayError(
                f"log {self.path}: header is damaged: CRC {zlib.crc32(packed):#x}, not {crc:#x}"
            )
        try:
            self.header = unpack(LogHeader, packed)
        except StateError as exc:
            raise ReplayError(f"log {self.path}: {exc}") from exc
        return status.st_size, crc

    def _scan(self, size: int, crc: int) -> Iterator[tuple[int, int, Record]]:
        """Every whole record with its offset and size; sets ``torn`` for what is left."""
        at = self._file.tell()
        while size - at >= FRAME.size:
            body_size, expected = FRAME.unpack(self._file.read(FRAME.size))
            if body_size == 0 and self._only_zeroes_from(at):
                break
            if not 0 < body_size <= RECORD_MAX:
                self._damaged(at, f"length {body_size}, at most {RECORD_MAX} is allowed")
            if body_size > size - at - FRAME.size:
                break
            body = self._file.read(body_size)
            crc = zlib.crc32(body, crc)
            if crc != expected:
                self._damaged(at, f"CRC {crc:#010x}, it says {expected:#010x}")
            yield at + FRAME.size, body_size, self._decoded(body, at)
            at += FRAME.size + body_size
        if at < size:
            self.torn = f"{size - at} bytes after record {self.records}, an incomplete one, were left out"

    def _only_zeroes_from(self, at: int) -> bool:
        """Reads to the end: only for the last thing looked at."""
        self._file.seek(at)
        while block := self._file.read(_ZEROES_STEP):
            if any(block):
                return False
        return True

    def _decoded(self, body: bytes, offset: int) -> Record:
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            self._damaged(offset, str(exc))

    def _damaged(self, offset: int, what: str) -> NoReturn:
        raise ReplayError(f"log {self.path}: record {self.records} at offset {offset} is damaged: {what}")

    def _record_at(self, offset: int, size: int) -> Record:
        try:
            body = os.pread(self._file.fileno(), size, offset)
        except OSError as exc:
            raise ReplayError(f"log {self.path}: {exc.strerror} at offset {offset}") from exc
        return self._decoded(body, offset)


class _Queue(Generic[R]):
    """The records of one kind, in order; only the next one is in memory."""

    __slots__ = ("_kind", "_next", "_numbers", "_offsets", "_read", "_sizes", "head")

    def __init__(self, kind: type[R], read: Callable[[int, int], Record]) -> None:
        self.head: R | None = None
        self._kind: type[R] = kind
        self._read = read
        self._next = 0
        self._numbers, self._offsets, self._sizes = array("Q"), array("Q"), array("I")

    def add(self, number: int, offset: int, size: int) -> None:
        self._numbers.append(number)
        self._offsets.append(offset)
        self._sizes.append(size)

    @property
    def next_ns(self) -> int:
        return NEVER_NS if self.head is None else self.head.ns

    @property
    def number(self) -> int:
        """Which record of the log is next; when none is, the last of this kind."""
        return self._numbers[min(self._next, len(self._numbers) - 1)] if self._numbers else 0

    def advance(self) -> None:
        self._next += 1
        self.load()

    def load(self) -> None:
        """Read the next record."""
        self.head = None
        if self._next < len(self._offsets):
            record = self._read(self._offsets[self._next], self._sizes[self._next])
            if not isinstance(record, self._kind):
                raise ReplayError(f"the log changed under us: record {self.number} is {record!r:.200}")
            self.head = record


def _input(record: Input) -> str:
    return f"{len(record.payload)} bytes into {record.port} at {record.ns} ns"


def _output(record: Output) -> str:
    return f"{record.size} bytes from {record.port} at {record.ns} ns (digest {record.digest.hex()})"
