"""Recording a session in which the host chose every moment, and living it again."""

from __future__ import annotations

import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

import vmm
from tests.machine.support import ECHO, LOG, MS, SECOND, arp_request, machine, multiboot, udp_echo
from vmm import recording
from vmm.backends.console import Terminal
from vmm.backends.stream import Stream
from vmm.errors import ReplayError
from vmm.guest import BuiltGuest
from vmm.launch import LaunchOptions
from vmm.machine import Backends, Ended, Machine
from vmm.record import FRAME, PREAMBLE, Input, Output, Record
from vmm.session import Session
from vmm.state import pack

TYPED = b"pack my box with five dozen jugs of ale; then type ahead"
BUSY = ECHO.format(idle="")
PAUSES_S = (0.0003, 0.0011, 0.0007, 0.0023, 0.0001)
"""Between two keys.  What they come to in virtual time is up to the host."""


@contextmanager
def keyboard(typed: bytes) -> Iterator[tuple[Terminal, threading.Thread]]:
    """A console whose keys come from a pipe, and the thread that presses them one at a time."""
    read_end, write_end = os.pipe()
    sink = os.open(os.devnull, os.O_WRONLY)

    def press() -> None:
        never = threading.Event()
        for number, key in enumerate(typed):
            never.wait(PAUSES_S[number % len(PAUSES_S)])
            os.write(write_end, bytes((key,)))

    thread = threading.Thread(target=press)
    with Terminal(read_end, sink) as terminal:
        try:
            yield terminal, thread
        finally:
            for descriptor in (read_end, write_end, sink):
                os.close(descriptor)


def recorded_session(log: Path, source: str, paced: bool) -> tuple[str, bytes]:
    """Type to ``source`` while it runs; its final hash, and when each byte came."""
    with (
        keyboard(TYPED + b"q") as (console, fingers),
        machine(source, Backends(consoles=[console]), paced=paced) as pc,
    ):
        recording.start(pc, log)
        fingers.start()
        assert pc.run(60 * SECOND) is Ended.POWEROFF
        fingers.join()
        recording.finish(pc, "it quit")
        return pc.digest, pc.ram.read(LOG, 8 * len(TYPED))


def again(log: Path, source: str) -> tuple[str, bytes]:
    with machine(source) as twin:
        recording.follow(twin, log)
        assert recording.run(twin) == "it quit"
        return twin.digest, twin.ram.read(LOG, 8 * len(TYPED))


@pytest.mark.parametrize("idle", ["hlt", ""], ids=["asleep", "busy"])
def test_typing_at_moments_of_the_host(tmp_path: Path, idle: str) -> None:
    source = ECHO.format(idle=idle)
    expected = recorded_session(tmp_path / "log", source, paced=True)
    assert expected[1][4::8] == TYPED
    assert again(tmp_path / "log", source) == expected


def test_two_recordings_differ_and_each_replays_itself(tmp_path: Path) -> None:
    """Otherwise the moments would not have mattered and the test above would prove nothing."""
    source = ECHO.format(idle="")
    found = [recorded_session(tmp_path / f"log{n}", source, paced=True) for n in range(2)]
    assert found[0] != found[1]
    for number, expected in enumerate(found):
        assert again(tmp_path / f"log{number}", source) == expected


def test_typing_under_timer_interrupts(tmp_path: Path) -> None:
    """Inputs next to alarms and interrupts: what comes first at one instant must be the same again."""
    log = tmp_path / "log"
    with multiboot("counter", command_line="mib=1 ms=1") as pc:
        recording.start(pc, log)
        for at_us in range(900, 30_000, 83):
            pc.run(at_us * 1000)
            pc.door.enter("keyboard", b"\x1e\x9e")
            if at_us % 5 == 0:
                recording.mark(pc)
        recording.finish(pc, "enough")
        expected = pc.digest
    with multiboot("counter", command_line="mib=1 ms=1") as twin:
        recording.follow(twin, log)
        assert recording.run(twin) == "enough"
        assert twin.digest == expected


def test_a_snapshot_taken_while_recording_is_an_input(tmp_path: Path) -> None:
    """Saving makes the processor forget translations, which a guest may notice: the replay does it, too."""
    log = tmp_path / "log"
    with multiboot("counter") as pc:
        recording.start(pc, log)
        pc.run(5 * MS)
        pc.save(tmp_path / "on-the-way")
        pc.run(9 * MS)
        recording.finish(pc, "saved")
        expected = pc.digest
    assert b"snapshot" in log.read_bytes()
    with multiboot("counter") as twin:
        recording.follow(twin, log)
        recording.run(twin)
        assert twin.digest == expected


def test_recording_from_a_snapshot(tmp_path: Path) -> None:
    """A log that starts in the middle of a line of output."""
    from vmm.machine import resume

    source = ECHO.format(idle="hlt")
    with machine(source) as pc:
        pc.run(MS)
        pc.serial.send(b"half a l")
        pc.run(3 * MS)
        with pc.hold() as held:
            recording.start(pc, tmp_path / "log")
            pc.serial.send(b"ine\nq")
            assert pc.run(SECOND) is Ended.POWEROFF
            recording.finish(pc, "quit")
            with resume(held) as twin:
                recording.follow(twin, tmp_path / "log")
                recording.run(twin)
                assert pc.differences(twin) == []


# Network frames


class Client(threading.Thread):
    """The other end of the cable: asks udpecho, waits for each answer, then stops the machine."""

    def __init__(self, path: Path, pc: Machine) -> None:
        super().__init__()
        self._path = path
        self._pc = pc
        self.answers: list[bytes] = []

    def run(self) -> None:
        with socket.socket(socket.AF_UNIX) as cable:
            cable.connect(str(self._path))
            cable.settimeout(20)
            frames = [arp_request(), *(udp_echo(bytes((n,)) * (1 + 37 * n)) for n in range(30))]
            for frame in frames:
                cable.sendall(struct.pack(">I", len(frame)) + frame)
                (size,) = struct.unpack(">I", self._exactly(cable, 4))
                self.answers.append(self._exactly(cable, size))
            burst = b"".join(struct.pack(">I", len(f)) + f for f in frames[1:] * 20)
            cable.sendall(burst)
            for _ in frames[1:] * 10:
                (size,) = struct.unpack(">I", self._exactly(cable, 4))
                self._exactly(cable, size)
        self._pc.stop()

    @staticmethod
    def _exactly(cable: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += cable.recv(size - len(data))
        return data


def test_frames_over_a_stream_socket(tmp_path: Path) -> None:
    """One at a time, then a burst that is more than the guest has buffers for: refusals are logged."""
    log = tmp_path / "log"
    cable = Stream(str(tmp_path / "cable"), server=True)
    with multiboot("udpecho", backends=Backends([cable]), paced=True) as pc:
        recording.start(pc, log)
        Session(pc).expect("GUEST-READY udpecho", within_s=1)  # before, frames are lost as on any cable
        client = Client(tmp_path / "cable", pc)
        client.start()
        assert pc.run(60 * SECOND) is Ended.REQUEST
        client.join()
        recording.finish(pc, "answered")
        expected = pc.digest
        cable.close()
    assert client.answers[0][12:14] == b"\x08\x06", "ARP first"
    assert client.answers[1:][-1].endswith(bytes((29,)) * (1 + 37 * 29))
    with multiboot("udpecho") as twin:
        recording.follow(twin, log)
        recording.run(twin)
        assert twin.digest == expected


# Departures


def rewritten(log: Path, change: Callable[[Record], Record]) -> Path:
    """The log with some records changed and every check word right."""
    data = log.read_bytes()
    _, _, header_size, crc = PREAMBLE.unpack_from(data)
    at = PREAMBLE.size + header_size
    out = bytearray(data[:at])
    while at < len(data):
        size, _ = FRAME.unpack_from(data, at)
        record = msgspec.msgpack.decode(data[at + FRAME.size : at + FRAME.size + size], type=Record)
        body = pack(change(record))
        crc = zlib.crc32(body, crc)
        out += FRAME.pack(len(body), crc) + body
        at += FRAME.size + size
    changed = log.with_suffix(".changed")
    changed.write_bytes(out)
    return changed


@pytest.fixture
def conversation(tmp_path: Path) -> Path:
    """A log of ECHO, which tells when its inputs came: seven bytes, a millisecond apart, and one line."""
    with machine(BUSY) as pc:
        recording.start(pc, tmp_path / "log")
        for number, text in enumerate((b"abc", b"def", b"q")):
            pc.run((1 + number) * MS)
            pc.serial.send(text)
        assert pc.run(SECOND) is Ended.POWEROFF
        recording.finish(pc, "it quit")
    return tmp_path / "log"


def departure(log: Path) -> str:
    with machine(BUSY) as twin:
        recording.follow(twin, log)
        with pytest.raises(ReplayError) as caught:
            recording.run(twin)
        assert twin.door.replayer is None, "and the machine has let go of the log"
    return str(caught.value)


def test_the_log_itself_replays(conversation: Path) -> None:
    same = rewritten(conversation, lambda record: record)
    assert same.read_bytes() == conversation.read_bytes()
    with machine(BUSY) as twin:
        recording.follow(twin, same)
        assert recording.run(twin) == "it quit"


def test_a_changed_input_shows_at_the_first_output(conversation: Path) -> None:
    def change(record: Record) -> Record:
        if isinstance(record, Input) and record.payload == b"e":
            return Input(record.ns, record.port, b"x")
        return record

    said = departure(rewritten(conversation, change))
    assert "replay departs at" in said
    assert "from com1" in said


def test_a_changed_output_shows_with_time_and_port(conversation: Path) -> None:
    def change(record: Record) -> Record:
        if isinstance(record, Output):
            return Output(record.ns, record.port, bytes(8), record.size)
        return record

    said = departure(rewritten(conversation, change))
    assert "8 bytes from com1" in said
    assert bytes(8).hex() in said


def test_an_input_that_comes_at_another_time_shows(conversation: Path) -> None:
    def change(record: Record) -> Record:
        if isinstance(record, Input) and record.payload == b"e":
            return Input(record.ns + 1000, record.port, record.payload)
        return record

    assert "departs at" in departure(rewritten(conversation, change))


def test_an_input_for_a_port_that_is_not_there(conversation: Path) -> None:
    def change(record: Record) -> Record:
        return Input(record.ns, "com7", record.payload) if isinstance(record, Input) else record

    assert "com7, which this machine lacks" in departure(rewritten(conversation, change))


def test_another_start_is_refused(conversation: Path) -> None:
    with machine(ECHO.format(idle="hlt")) as other, pytest.raises(ReplayError, match="start state"):
        recording.follow(other, conversation)


def test_a_replay_hears_nothing_but_its_log(conversation: Path) -> None:
    with machine(BUSY) as twin:
        recording.follow(twin, conversation)
        twin.run(2 * MS + 1)
        twin.serial.send(b"intruder")
        assert recording.run(twin) == "it quit"
        assert "intruder" not in twin.console.text


# Linux


def test_a_linux_session_replays(guest: Callable[[str], BuiltGuest], tmp_path: Path) -> None:
    """Boot, a session typed in pieces at odd times, and marks: everything of it again."""
    guest("linux")
    log = tmp_path / "log"
    with vmm.start("linux") as pc:
        pc.record(log)
        pc.expect("~ # ")
        for number in range(12):
            pc.send(f"echo $(({number} * {number})); ")
            pc.run_for(0.003_271 * number)
            recording.mark(pc.machine)
        pc.command("cat /proc/uptime; head -c 8 /dev/urandom | hexdump")
        pc.stop_recording("seen")
        expected = pc.hash
    with vmm.start(LaunchOptions(guest="linux")) as twin:
        assert twin.replay(log) == "seen"
        assert twin.hash == expected
