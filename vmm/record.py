"""The input log: all that the world said to a machine, and when; enough to run it again.

::

    0     magic, format, header length, CRC-32 of the header
    20    header: MessagePack of LogHeader (start state, builds, disk images)
    ...   records, each: length, CRC-32, MessagePack of Input | Output | Mark | Close

A machine is a function of its start state and of ``(virtual_ns, port, payload)`` for every input.
Outputs are logged as digest and length only: replay makes them again, and compares.  Marks are
hashes of the whole state now and then; they bound how far a departure can go unseen.

The CRC of a record continues that of the record before it, and the first one that of the header,
so a record lost, doubled, moved or from another log is damage like any other.  Records are written
at once and never changed.  A recorder that was killed leaves at most an incomplete last record (a
host that crashed may leave zeroes after it): that log is good up to its last whole record, and
says so in :attr:`Replayer.torn`.

Both ends are pure: they know no machine, and no time but what they are told.  Not here: changing an
input to see what would have happened, and starting in the middle; for that, start from a snapshot.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Annotated

from vmm.clock import NEVER_NS
from vmm.errors import BackendError
from vmm.state import State, at_most, field, length, pack, u32, u64

MAGIC = b"COLOLOG\0"
FORMAT = 1
PREAMBLE = struct.Struct("<8sIII")
FRAME = struct.Struct("<II")

HEADER_MAX = 1 << 20
CONFIG_MAX = 256 << 10
IMAGES_MAX = 64
INPUT_MAX = 1 << 20
"""A console paste or a network frame with offloads (64 KiB) is far smaller."""
RECORD_MAX = INPUT_MAX + 256
OUTPUT_DIGEST_SIZE = 8

PortName = Annotated[str, at_most(64)]


class Image(State):
    """A disk, kernel or module the machine started with."""

    name: Annotated[str, at_most(4096)]
    size: u64
    digest: Annotated[bytes, at_most(64)]


class LogHeader(State):
    """What a machine must be to replay this log."""

    layout_digest: Annotated[str, at_most(128)]
    engine_digest: Annotated[str, at_most(128)]
    config: Annotated[bytes, at_most(CONFIG_MAX)]
    start_hash: Annotated[bytes, at_most(64)]
    images: Annotated[list[Image], at_most(IMAGES_MAX)] = field(default_factory=list)


class Input(State, tag=1):
    """The world said ``payload`` on ``port``."""

    ns: u64
    port: PortName
    payload: Annotated[bytes, at_most(INPUT_MAX)]


class Output(State, tag=2):
    """The machine said something of ``size`` bytes on ``port``."""

    ns: u64
    port: PortName
    digest: Annotated[bytes, length(OUTPUT_DIGEST_SIZE)]
    size: u32


class Mark(State, tag=3):
    """The machine's whole state hashed to ``digest``."""

    ns: u64
    digest: Annotated[bytes, at_most(64)]


class Close(State, tag=4):
    """The recording ended here and on purpose."""

    ns: u64
    reason: Annotated[str, at_most(1024)]


Record = Input | Output | Mark | Close


def output_digest(payload: bytes | bytearray | memoryview) -> bytes:
    return hashlib.blake2b(payload, digest_size=OUTPUT_DIGEST_SIZE).digest()


class Recorder:
    """Appends to a new log; whatever was accepted survives the death of this process."""

    __slots__ = ("_crc", "_file", "_last_ns", "path", "records")

    def __init__(self, path: Path | str, header: LogHeader) -> None:
        """Make the log; BackendError when it exists or cannot be made."""
        self.path = Path(path)
        self.records = 0
        self._last_ns = 0
        packed = pack(header)
        assert len(packed) <= HEADER_MAX
        self._crc = zlib.crc32(packed)
        try:
            self._file: io.FileIO | None = io.FileIO(self.path, "x")
        except OSError as exc:
            raise BackendError(f"log {path}: cannot be made: {exc.strerror}; choose another name") from exc
        self._write(PREAMBLE.pack(MAGIC, FORMAT, len(packed), self._crc) + packed, "its header")

    def input(self, ns: int, port: str, payload: bytes) -> None:
        """To be called before the machine sees the input, so that no run is ahead of its log."""
        self._append(Input(ns, port, payload))

    def output(self, ns: int, port: str, payload: bytes) -> None:
        self._append(Output(ns, port, output_digest(payload), len(payload)))

    def mark(self, ns: int, state_hash: bytes) -> None:
        self._append(Mark(ns, state_hash))

    def close(self, ns: int, reason: str) -> None:
        """End the log and wait until it is on the disk; nothing can be added any more."""
        self._append(Close(ns, reason[:1024]))
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise BackendError(f"log {self.path}: not known to be on the disk: {exc.strerror}") from exc
        finally:
            self._drop()

    def _append(self, record: Record) -> None:
        assert self._last_ns <= record.ns < NEVER_NS, "virtual time runs forward"
        self._last_ns = record.ns
        body = pack(record)
        self._crc = zlib.crc32(body, self._crc)
        self._write(FRAME.pack(len(body), self._crc) + body, f"record {self.records} at {record.ns} ns")
        self.records += 1

    def _write(self, data: bytes, what: str) -> None:
        if self._file is None:
            raise BackendError(f"log {self.path}: {what} came after the log was closed or had failed")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as exc:
            self._drop()
            raise BackendError(
                f"log {self.path}: {what} could not be written: {exc.strerror};"
                f" the log is good up to its {self.records} records"
            ) from exc

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the log open-ended when nobody closed it: that is what happened."""
        self._drop()
