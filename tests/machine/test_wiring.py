"""The board's traces, the door, the sockets and the pacer, each by itself."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.backends.net import Nowhere
from vmm.clock import NEVER_NS, ManualClock
from vmm.devices.uart import FIFO_SIZE, Register, Uart
from vmm.devices.virtio_net import VirtioNet
from vmm.errors import ReplayError
from vmm.inputs import REFUSED, REFUSED_MARK, Door
from vmm.pace import LAG_MAX_NS, RESPONSE_NS, SLICE_NS, Pacer
from vmm.ports import FEED_NS, LINE_MAX, NetPort, SerialPort
from vmm.ram import Ram
from vmm.record import LogHeader, Recorder
from vmm.replay import Replayer
from vmm.wiring import Fan, Gate, WiredOr

MS = 1_000_000


class Level:
    """A wire's far end: its level, and every change of it."""

    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self.changes.append(level)


# Wires


def test_a_fan_drives_every_receiver() -> None:
    ends = [Level(), Level(), Level()]
    fan = Fan(*ends)
    fan.set(True)
    assert [end.level for end in ends] == [True] * 3
    fan.set(False)
    assert [end.changes for end in ends] == [[True, False]] * 3


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_a_shared_line_is_high_while_anybody_pulls_it(steps: list[tuple[int, bool]]) -> None:
    end = Level()
    shared = WiredOr(end)
    inputs = [shared.input() for _ in range(4)]
    levels = [False] * 4
    for index, level in steps:
        inputs[index].set(level)
        levels[index] = level
        assert end.level == any(levels)


def test_a_released_line_waits_for_its_drivers() -> None:
    """Before a restore: who pulled is forgotten, the receiver keeps its level until somebody speaks."""
    end = Level()
    shared = WiredOr(end)
    one, other = shared.input(), shared.input()
    one.set(True)
    shared.release()
    assert end.level
    other.set(True)
    assert end.level
    other.set(False)
    assert not end.level


def test_a_gate_is_open_while_any_port_wants_it() -> None:
    applied: list[bool] = []
    gate = Gate(("port 92", "keyboard"), applied.append)
    fast, slow = gate.wish("port 92"), gate.wish("keyboard")
    for wish, level in ((fast, True), (slow, True), (fast, False), (slow, False), (slow, False)):
        wish(level)
    assert applied == [True, False]


# The door


class Sink:
    """A device with room for so many bytes; ``answers`` override it."""

    def __init__(self) -> None:
        self.room = 0
        self.answers: list[int] = []
        self.got: list[bytes] = []

    def __call__(self, payload: bytes) -> int:
        taken = self.answers.pop(0) if self.answers else min(self.room, len(payload))
        if taken > 0:
            self.room -= taken
            self.got.append(payload[:taken])
        return taken


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def door(clock: ManualClock) -> Door:
    return Door(lambda: clock.now_ns)


def header() -> LogHeader:
    return LogHeader("layout", "engine", b"", b"")


def test_what_does_not_fit_waits_in_order(door: Door) -> None:
    sink = Sink()
    door.open("com", sink)
    door.enter("com", b"abcdef")
    door.enter("com", b"ghi")
    assert sink.got == []
    assert door.is_full("com")
    assert door.waiting() == ["com"]
    for room in (4, 4, 4):
        sink.room = room
        door.retry("com")
    assert b"".join(sink.got) == b"abcdefghi"
    assert not door.is_full("com")


def test_what_was_taken_is_logged_with_its_time_and_attempts_that_were_seen(
    door: Door, clock: ManualClock, tmp_path: Path
) -> None:
    """0 is "not now" and leaves no trace; REFUSED is noticed by the guest and so is an input itself."""
    sink = Sink()
    door.open("net", sink)
    door.recorder = Recorder(tmp_path / "log", header())
    sink.answers = [0, REFUSED, 3]
    door.enter("net", b"abc")
    for _ in range(2):
        clock.advance(100)
        door.retry("net")
    door.recorder.close(300, "done")
    with Replayer(tmp_path / "log") as log:
        assert log.due(100) == [("net" + REFUSED_MARK, b"abc")]
        assert log.due(200) == [("net", b"abc")]


def test_a_replay_refuses_again_what_was_refused(door: Door, clock: ManualClock, tmp_path: Path) -> None:
    with Recorder(tmp_path / "log", header()) as recorder:
        recorder.input(100, "net" + REFUSED_MARK, b"abc")
        recorder.input(200, "net", b"abc")
        recorder.close(300, "done")
    sink = Sink()
    door.open("net", sink)
    door.replayer = Replayer(tmp_path / "log")
    door.enter("net", b"ignored")
    assert door.next_ns == 100
    clock.advance(100)
    sink.answers = [REFUSED]
    door.replay_due(lambda: b"")
    clock.advance(100)
    sink.answers = [2]
    with pytest.raises(ReplayError, match="took 2"):
        door.replay_due(lambda: b"")
    door.replayer.close()


def test_marks_and_inputs_of_one_instant_keep_their_order(
    door: Door, clock: ManualClock, tmp_path: Path
) -> None:
    """A mark between two inputs of one time sees the first and not the second."""
    sink = Sink()
    sink.room = 100
    door.open("com", sink)
    with Recorder(tmp_path / "log", header()) as recorder:
        recorder.input(50, "com", b"a")
        recorder.mark(50, b"a")
        recorder.input(50, "com", b"b")
        recorder.mark(50, b"ab")
        recorder.close(50, "done")
    door.replayer = Replayer(tmp_path / "log")
    clock.advance(50)
    door.replay_due(lambda: b"".join(sink.got))
    assert door.replayer.finished
    door.replayer.close()


# COM1's socket


@pytest.fixture
def serial(door: Door, clock: ManualClock) -> SerialPort:
    port = SerialPort("com1", door, clock)
    port.uart = Uart(Level(), port.transmit)
    port.uart.write(Register.IIR_FCR, 1, 1)  # FIFOs
    return port


def read_all(port: SerialPort) -> bytes:
    assert port.uart is not None
    data = bytearray()
    while port.uart.read(Register.LSR, 1) & 1:
        data.append(port.uart.read(Register.RBR_THR, 1))
    return bytes(data)


def test_typing_ahead_is_fed_as_the_fifo_empties(serial: SerialPort, clock: ManualClock) -> None:
    text = bytes(range(65, 65 + 40))
    serial.send(text)
    heard = bytearray()
    for _ in range(3):
        piece = read_all(serial)
        assert len(piece) <= FIFO_SIZE
        heard += piece
        clock.advance(FEED_NS)
        serial.retry()
    assert heard == text
    assert clock.deadlines() == {}, "nothing waits, so no alarm is armed"


def test_the_feeding_alarm_itself_delivers_nothing(serial: SerialPort, clock: ManualClock) -> None:
    """Alarms come before inputs, and in an order of their own: so the input waits for its turn."""
    serial.send(bytes(20))
    assert read_all(serial) == bytes(16)
    clock.advance(FEED_NS)
    assert read_all(serial) == b""
    serial.retry()
    assert read_all(serial) == bytes(4)


def test_output_is_logged_by_lines_and_long_ones_in_pieces(
    serial: SerialPort, door: Door, tmp_path: Path
) -> None:
    door.recorder = Recorder(tmp_path / "log", header())
    for byte in b"one\ntwo\n" + b"x" * (LINE_MAX + 10) + b"\nrest":
        serial.transmit(byte)
    door.recorder.close(0, "done")
    with Replayer(tmp_path / "log") as log:
        for piece in (b"one\n", b"two\n", b"x" * LINE_MAX, b"x" * 10 + b"\n"):
            log.check_output(0, "com1", piece)
        assert log.finished


def test_after_a_restart_a_line_begins(serial: SerialPort, door: Door, tmp_path: Path) -> None:
    for byte in b"half a l":
        serial.transmit(byte)
    serial.restart()
    door.recorder = Recorder(tmp_path / "log", header())
    for byte in b"ine\n":
        serial.transmit(byte)
    door.recorder.close(0, "done")
    with Replayer(tmp_path / "log") as log:
        log.check_output(0, "com1", b"ine\n")


# A card's socket


class Cable(Nowhere):
    """Brings frames that were put into it."""

    def __init__(self, frames: list[bytes]) -> None:
        super().__init__()
        self.frames = frames

    def receive(self) -> bytes | None:
        return self.frames.pop(0) if self.frames else None


def test_frames_for_a_card_without_a_driver_are_lost_as_on_a_cable(door: Door) -> None:
    cable = Cable([bytes(60)] * 3)
    port = NetPort("net0", cable, door)
    port.card = VirtioNet(b"\x52\x54\0\0\0\1", port.transmit, Ram(1), None, lambda address, data: None)
    port.pump()
    assert cable.frames == []
    assert not door.is_full("net0")
    assert port.card.state.rx_dropped == 3


def test_a_card_that_has_room_again_asks_the_machine_to_come_by(door: Door) -> None:
    asked: list[bool] = []
    port = NetPort("net0", Nowhere(), door, lambda: asked.append(True))
    port.posted()
    assert port.rx_ready
    assert asked == [True]


# Time against the wall


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def free() -> Iterator[Pacer]:
    pacer = Pacer(paced=False)
    yield pacer
    pacer.close()


@pytest.fixture
def paced() -> Iterator[Pacer]:
    pacer = Pacer(paced=True)
    yield pacer
    pacer.close()


def test_free_running_time_jumps(free: Pacer) -> None:
    began = time.monotonic()
    assert free.rest(5, 1_000_000 * MS) == (1_000_000 * MS, set())
    assert free.rest(7, 3) == (7, set()), "and never back"
    assert time.monotonic() - began < 1


def test_a_free_running_guest_comes_back_for_signals(free: Pacer) -> None:
    assert free.limit_ns(123) == 123 + RESPONSE_NS


def test_paced_time_is_the_walls(paced: Pacer) -> None:
    paced.start(0)
    began = time.monotonic_ns()
    reached, ready = paced.rest(0, 30 * MS)
    slept = time.monotonic_ns() - began
    assert ready == set()
    assert 0 < reached <= 30 * MS
    assert slept > 20 * MS


def test_a_paced_guest_runs_a_slice_ahead_at_most(paced: Pacer) -> None:
    paced.start(1000)
    assert SLICE_NS <= paced.limit_ns(1000) - 1000 < LAG_MAX_NS + SLICE_NS


def test_a_long_pause_of_the_host_is_forgotten(paced: Pacer) -> None:
    paced.start(0)
    far_behind = -20 * LAG_MAX_NS
    assert paced.wall_ns(far_behind) <= far_behind + LAG_MAX_NS


def test_input_ends_a_rest_early(paced: Pacer, pipe: tuple[int, int]) -> None:
    paced.watch(pipe[0])
    os.write(pipe[1], b"x")
    began = time.monotonic()
    reached, ready = paced.rest(0, 10_000 * MS)
    assert ready == {pipe[0]}
    assert reached < 5_000 * MS
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("timeout_ns", [0, 5 * MS, 10_000 * MS])
def test_a_wake_ends_a_wait_and_is_no_input(free: Pacer, timeout_ns: int) -> None:
    free.wake()
    began = time.monotonic()
    assert free.ready(timeout_ns) == set()
    assert time.monotonic() - began < 5
    assert free.ready() == set(), "one wake, one wait"


def test_what_is_not_watched_is_not_seen(free: Pacer, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    assert free.descriptor == -1
    for _ in range(2):  # saying so twice is saying it once
        free.watch(pipe[0])
    assert free.can_wake
    assert free.ready() == {pipe[0]}
    assert select.select([free.descriptor], [], [], 0)[0], "readable, as the native poll sees it"
    for _ in range(2):
        free.watch(pipe[0], wanted=False)
    assert free.ready() == set()
    free.watch(-1)
    assert not free.can_wake


def test_a_wait_for_ever_is_told_by_its_deadline(free: Pacer, pipe: tuple[int, int]) -> None:
    """Only input ends it: the time does not move."""
    free.watch(pipe[0])
    os.write(pipe[1], b"x")
    assert free.rest(9, NEVER_NS) == (9, {pipe[0]})
