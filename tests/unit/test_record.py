"""The input log: what was recorded is due again at its time, and every departure is named."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.clock import NEVER_NS
from vmm.errors import BackendError, ReplayError
from vmm.record import FORMAT, FRAME, INPUT_MAX, MAGIC, PREAMBLE, RECORD_MAX, Image, LogHeader, Recorder
from vmm.replay import Replayer

HEADER = LogHeader("layout-1", "engine-1", b"cfg", bytes(16), [Image("disk.img", 4096, b"\x11" * 16)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A short session: two keys, their echo, a frame, a mark, an orderly end."""
    log = tmp_path / "run.log"
    recorder = Recorder(log, HEADER)
    recorder.input(1000, "com1", b"l")
    recorder.output(1010, "com1", b"l")
    recorder.input(2000, "com1", b"s")
    recorder.input(2000, "net0", b"frame")
    recorder.output(2010, "com1", b"s")
    recorder.mark(3000, b"\xaa" * 16)
    recorder.output(3000, "net0", b"reply")
    recorder.mark(4000, b"\xbb" * 16)
    recorder.close(5000, "the guest powered off")
    return log


def frames(path: Path) -> list[int]:
    """Where each record starts, and where the last one ends."""
    data = path.read_bytes()
    at = PREAMBLE.size + PREAMBLE.unpack_from(data)[2]
    starts = [at]
    while at < len(data):
        at += FRAME.size + FRAME.unpack_from(data, at)[0]
        starts.append(at)
    return starts


def refused(path: Path) -> str:
    with pytest.raises(ReplayError) as caught:
        Replayer(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# A replay that follows


def test_the_whole_log_comes_back(path: Path) -> None:
    with Replayer(path) as log:
        assert log.header == HEADER
        assert (log.records, log.end_ns, log.reason, log.torn) == (9, 5000, "the guest powered off", None)
        assert log.due(999) == []
        assert log.next_input_ns == 1000
        assert log.due(1000) == [("com1", b"l")]
        log.check_output(1010, "com1", b"l")
        assert log.due(2000) == [("com1", b"s"), ("net0", b"frame")]
        assert log.next_input_ns == NEVER_NS
        log.check_output(2010, "com1", b"s")
        assert log.next_mark_ns == 3000
        log.check_mark(3000, b"\xaa" * 16)
        assert [log.finished] == [False]
        log.check_output(3000, "net0", b"reply")
        assert [log.finished] == [True]
        log.check_mark(4000, b"\xbb" * 16)
        assert log.next_mark_ns == NEVER_NS
        log.finish(5000)


def test_marks_may_be_skipped(path: Path) -> None:
    with Replayer(path) as log:
        for ns, port, payload in ((1010, "com1", b"l"), (2010, "com1", b"s"), (3000, "net0", b"reply")):
            log.check_output(ns, port, payload)
        log.check_mark(4000, b"\xbb" * 16)


Events = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["input", "output", "mark"]),
        st.sampled_from(["com1", "net0"]),
        st.binary(max_size=20),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(Events)
def test_any_log_replays_itself(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str, str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    recorder, now = Recorder(path, HEADER), 0
    timed = []
    for step, kind, port, payload in events:
        now += step
        timed.append((now, kind, port, payload))
        if kind == "mark":
            recorder.mark(now, payload)
        else:
            getattr(recorder, kind)(now, port, payload)
    recorder.close(now, "done")
    with Replayer(path) as log:
        inputs: list[tuple[str, bytes]] = []
        for ns, kind, port, payload in timed:
            if kind == "input" and log.next_input_ns == ns:
                inputs += log.due(ns)
            elif kind == "output":
                log.check_output(ns, port, payload)
            elif kind == "mark" and log.next_mark_ns == ns:
                log.check_mark(ns, payload)
        assert inputs == [(port, payload) for _, kind, port, payload in timed if kind == "input"]
        assert log.finished
        log.finish(now)


# A replay that departs


def test_running_past_an_input(path: Path) -> None:
    with Replayer(path) as log:
        for _ in range(2):  # a departure consumes nothing: asking again says the same
            with pytest.raises(ReplayError) as caught:
                log.due(1001)
            assert str(caught.value) == (
                f"log {path}: replay departs at 1001 ns, record 0 of 9:"
                " expected 1 bytes into com1 at 1000 ns; found a machine already at 1001 ns"
            )


@pytest.mark.parametrize(
    ("ns", "port", "payload"),
    [(1011, "com1", b"l"), (1010, "com2", b"l"), (1010, "com1", b"L"), (1010, "com1", b"ll")],
)
def test_another_output(path: Path, ns: int, port: str, payload: bytes) -> None:
    with Replayer(path) as log, pytest.raises(ReplayError) as caught:
        log.check_output(ns, port, payload)
    text = str(caught.value)
    assert f"departs at {ns} ns, record 1 of 9: expected 1 bytes from com1 at 1010 ns (digest " in text
    assert f"; found {len(payload)} bytes from {port} at {ns} ns (digest " in text


def test_an_output_too_many(path: Path) -> None:
    with Replayer(path) as log:
        log.check_output(1010, "com1", b"l")
        log.check_output(2010, "com1", b"s")
        log.check_output(3000, "net0", b"reply")
        with pytest.raises(ReplayError, match=r"expected no more output; found 1 bytes from com1 at 3500 ns"):
            log.check_output(3500, "com1", b"!")
        assert log.unchecked == 0


def test_an_output_too_few_shows_at_the_next_mark(path: Path) -> None:
    with Replayer(path) as log:
        log.check_output(1010, "com1", b"l")
        with pytest.raises(
            ReplayError, match=r"record 4 of 9: expected 1 bytes from com1 at 2010 ns.*no such"
        ):
            log.check_mark(3000, b"\xaa" * 16)


def test_another_state(path: Path) -> None:
    with Replayer(path) as log:
        log.check_output(1010, "com1", b"l")
        log.check_output(2010, "com1", b"s")
        with pytest.raises(
            ReplayError, match=rf"record 5 of 9: expected state hash {'aa' * 16}; found state hash cc"
        ):
            log.check_mark(3000, b"\xcc" * 16)
        with pytest.raises(ReplayError, match=r"expected no mark before 3000 ns; found one at 2500 ns"):
            log.check_mark(2500, b"\xaa" * 16)


def test_stopping_too_early(path: Path) -> None:
    with Replayer(path) as log:
        with pytest.raises(
            ReplayError, match=r"record 0 of 9: expected 1 bytes into com1 at 1000 ns; found the end"
        ):
            log.finish(900)
        log.due(1000)
        log.due(2000)
        with pytest.raises(ReplayError, match=r"record 1 of 9: expected 1 bytes from com1 at 1010 ns"):
            log.finish(5000)


# Logs that were cut short


def test_torn_at_every_byte(path: Path) -> None:
    """A killed recorder: the log is good up to its last whole record, wherever it was cut."""
    data, starts = path.read_bytes(), frames(path)
    for size in range(starts[0], len(data)):
        path.write_bytes(data[:size])
        with Replayer(path) as log:
            whole = sum(1 for start in starts[1:] if start <= size)
            assert log.records == whole
            assert log.reason is None
            left = size - starts[whole]
            expected = (
                f"{left} bytes after record {whole}, an incomplete one, were left out" if left else None
            )
            assert log.torn == expected


def test_zeroes_that_a_host_crash_leaves_are_a_torn_end(path: Path) -> None:
    starts = frames(path)
    data = path.read_bytes()[: starts[4]]
    path.write_bytes(data + bytes(70_000))
    with Replayer(path) as log:
        assert log.records == 4
        assert log.torn is not None
    path.write_bytes(data + bytes(70_000) + b"\1")
    assert "record 4 at offset" in refused(path)
    assert "length 0" in refused(path)


def test_outputs_that_a_torn_log_lost_are_counted_not_refused(path: Path) -> None:
    os.truncate(path, frames(path)[5] - 1)  # the echo at 2010 ns is not whole
    with Replayer(path) as log:
        log.check_output(1010, "com1", b"l")
        with pytest.raises(ReplayError):
            log.check_output(1999, "com1", b"s")  # the log was still there at 2000 ns
        log.check_output(2010, "com1", b"s")
        assert log.unchecked == 1


def test_a_killed_recorder_loses_nothing_it_accepted(tmp_path: Path) -> None:
    code = (
        "import os, sys; from vmm.record import *;"
        "r = Recorder(sys.argv[1], LogHeader('', '', b'', b''));"
        "r.input(5, 'com1', b'x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], check=False)
    with Replayer(tmp_path / "log") as log:
        assert log.due(5) == [("com1", b"x")]
        assert (log.reason, log.torn) == (None, None)


# Damage


def test_not_a_log(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    assert "No such file" in refused(other)
    other.write_bytes(b"")
    assert "starts with nothing" in refused(other)
    other.write_bytes(b"COLOVMM\0" + bytes(100))
    assert "not an input log: starts with 43 4f 4c 4f 56 4d 4d 00" in refused(other)
    other.write_bytes(MAGIC + b"\1")
    assert "truncated after 9 bytes" in refused(other)
    other.write_bytes(path.read_bytes()[: PREAMBLE.size + 4])
    assert "truncated: 4 of" in refused(other)
    other.write_bytes(MAGIC + (FORMAT + 1).to_bytes(4, "little") + bytes(8))
    assert f"format {FORMAT + 1}; this build reads format {FORMAT}" in refused(other)
    other.write_bytes(PREAMBLE.pack(MAGIC, FORMAT, 1 << 31, 0))
    assert "header of 2147483648 bytes; at most 1048576" in refused(other)
    other.write_bytes(PREAMBLE.pack(MAGIC, FORMAT, 3, zlib.crc32(b"abc")) + b"abc")
    assert "LogHeader" in refused(other)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    assert "Is a directory" in refused(tmp_path)


def test_every_flipped_bit_of_a_record_is_seen(path: Path) -> None:
    """Damage, or a torn end when a length became larger than the file; never a wrong record."""
    data, starts = path.read_bytes(), frames(path)
    for at in range(starts[0], len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        record = max(number for number, start in enumerate(starts) if start <= at)
        try:
            log = Replayer(path)
        except ReplayError as exc:
            found = str(exc)
        else:
            found = f"record {log.records} is damaged" if log.torn else "nothing"
            log.close()
        assert re.search(rf"record {record} (at offset {starts[record]} )?is damaged", found)


def test_records_lost_doubled_or_moved_are_seen(path: Path) -> None:
    data, at = path.read_bytes(), frames(path)
    one, other = data[at[2] : at[3]], data[at[3] : at[4]]
    for middle in (other, one + one + other, other + one):
        path.write_bytes(data[: at[2]] + middle + data[at[4] :])
        assert "is damaged: CRC" in refused(path)


def forged(path: Path, *bodies: bytes) -> Path:
    """The log's header followed by well-sealed records of any content."""
    data = path.read_bytes()[: frames(path)[0]]
    crc = PREAMBLE.unpack_from(data)[3]
    for body in bodies:
        crc = zlib.crc32(body, crc)
        data += FRAME.pack(len(body), crc) + body
    path.write_bytes(data)
    return path


CLOSE_5 = b"\x93\x04\x05\xa1x"
MARK_5 = b"\x93\x03\x05\xc4\x00"
MARK_4 = b"\x93\x03\x04\xc4\x00"


@pytest.mark.parametrize(
    ("bodies", "words"),
    [
        ([b"\xc1"], "record 0"),
        ([b"\x93\x09\x05\xa1x"], "record 0 at offset"),
        ([b"\x92\x04\x05"], "record 0"),
        ([b"\x93\x04\x05\xa1\xff"], "record 0 at offset .*utf-8"),
        ([b"\x91" * 3000 + b"\x90"], "record 0"),
        ([MARK_5, MARK_4], "record 1 at offset .*: time 4 ns after 5 ns"),
        ([CLOSE_5, MARK_5], "a record after the log was closed"),
        ([b"\x93\x03\xcf\x40" + bytes(7) + b"\xc4\x00"], f"time {NEVER_NS} ns"),
        ([b"\x93\x03\x05\xc4\x41" + bytes(0x41)], "length <= 64"),
    ],
)
def test_lying_records(path: Path, bodies: list[bytes], words: str) -> None:
    with pytest.raises(ReplayError, match=words):
        Replayer(forged(path, *bodies))


def test_oversize_length_allocates_nothing(path: Path) -> None:
    start = frames(path)[0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(FRAME.pack(RECORD_MAX + 1, 0))
        file.truncate(1 << 40)  # sparse: the file does have that many bytes
    assert f"length {RECORD_MAX + 1}, at most {RECORD_MAX}" in refused(path)


# The recorder


def test_a_log_is_never_overwritten(path: Path) -> None:
    with pytest.raises(BackendError, match="File exists; choose another name"):
        Recorder(path, HEADER)


def test_largest_input(tmp_path: Path) -> None:
    with Recorder(tmp_path / "log", HEADER) as recorder:
        recorder.input(0, "x" * 64, bytes(INPUT_MAX))
    with Replayer(tmp_path / "log") as log:
        assert log.due(0) == [("x" * 64, bytes(INPUT_MAX))]


def test_nothing_after_the_close(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log", HEADER)
    recorder.close(1, "done")
    with pytest.raises(BackendError, match="record 1 at 2 ns came after the log was closed"):
        recorder.mark(2, b"")


def test_a_full_disk_names_the_record(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from vmm.record import *;"
        "r = Recorder(sys.argv[1], LogHeader('', '', b'', b'')); r.input(1, 'com1', b'x');"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (100, {resource.RLIM_INFINITY}));"
        "r.input(2, 'com1', bytes(500))"
    )
    log = tmp_path / "log"
    run = subprocess.run([sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=False)
    assert "BackendError" in run.stderr
    assert (
        "record 1 at 2 ns could not be written: File too large; the log is good up to its 1 records"
        in run.stderr
    )
    with Replayer(log) as replayer:
        assert replayer.due(1) == [("com1", b"x")]
        assert replayer.torn is not None
