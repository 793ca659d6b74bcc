"""Rewriting a log record by record, to plant what a replay must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmm.record import FRAME, PREAMBLE, Close, Input, LogHeader, Mark, Output, Record, Recorder
from vmm.state import unpack

_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def read(path: Path) -> tuple[LogHeader, list[Record]]:
    data = path.read_bytes()
    size = PREAMBLE.unpack_from(data)[2]
    return unpack(LogHeader, data[PREAMBLE.size : PREAMBLE.size + size]), list(
        _records(data, PREAMBLE.size + size)
    )


def _records(data: bytes, at: int) -> Iterator[Record]:
    while at < len(data):
        size, _ = FRAME.unpack_from(data, at)
        at += FRAME.size
        yield _decoder.decode(data[at : at + size])
        at += size


def rewrite(source: Path, target: Path, change: Callable[[Record], Record]) -> None:
    """``source`` with every record changed: a whole log with right checksums."""
    header, records = read(source)
    with Recorder(target, header) as recorder:
        for record in map(change, records):
            match record:
                case Input():
                    recorder.input(record.ns, record.port, record.payload)
                case Mark():
                    recorder.mark(record.ns, record.digest)
                case Close():
                    recorder.close(record.ns, record.reason)
                case Output():
                    recorder._append(record)  # which is given a digest only, as we have only that
