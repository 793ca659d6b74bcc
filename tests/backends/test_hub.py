"""The hub: every port hears every other, and the dead do not matter."""

from __future__ import annotations

import multiprocessing
import select
import signal
import socket
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from vmm.backends.hub import PORTS_MAX, HubPort
from vmm.backends.net import FRAME_MAX, FRAME_MIN, OUTPUT_MAX
from vmm.errors import BackendError

FRAME = bytes(range(60))


def ports(tmp_path: Path, count: int) -> list[HubPort]:
    return [HubPort(str(tmp_path / "hub")) for _ in range(count)]


def close(made: list[HubPort]) -> None:
    for port in made:
        port.close()


def readable(port: HubPort, wait_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    return bool(poll.poll(wait_ms))


def test_a_frame_reaches_all_others_once_and_not_its_sender(tmp_path: Path) -> None:
    made = ports(tmp_path, 4)
    made[1].transmit(memoryview(FRAME))
    for index, port in enumerate(made):
        assert readable(port) == (index != 1)
        assert port.receive() == (FRAME if index != 1 else None)
        assert port.receive() is None
    close(made)


def test_frames_keep_boundaries_order_and_size(tmp_path: Path) -> None:
    one, other = made = ports(tmp_path, 2)
    frames = [b"a" * FRAME_MIN, b"b" * FRAME_MAX, b"c" * 1514]
    for frame in frames:
        one.transmit(frame)
    assert [other.receive() for _ in frames] == frames
    close(made)


def test_one_who_joins_later_is_heard_and_hears(tmp_path: Path) -> None:
    made = ports(tmp_path, 1)
    made[0].transmit(FRAME)  # into the void: nobody was there to miss it
    made += ports(tmp_path, 1)
    made[0].transmit(FRAME)
    assert made[1].receive() == FRAME
    made[1].transmit(FRAME)
    assert made[0].receive() == FRAME
    assert made[0].dropped == 0
    close(made)


def test_a_burst_beyond_the_kernels_queue_arrives_whole(tmp_path: Path) -> None:
    """net.unix.max_dgram_qlen is 10 by default; a TCP window is more."""
    one, other = made = ports(tmp_path, 2)
    frames = [number.to_bytes(4, "big") * 300 for number in range(600)]
    for frame in frames:
        one.transmit(frame)
    assert one.pending_output
    got: list[bytes] = []
    while len(got) < len(frames):
        arrived = other.receive()
        if arrived is None:
            assert readable(one, 5000)  # room at the neighbour wakes the sender
            assert one.receive() is None
        else:
            got.append(arrived)
    assert got == frames
    assert not readable(one)
    assert one.dropped == 0
    close(made)


def test_a_neighbour_that_does_not_read_loses_frames_alone(tmp_path: Path) -> None:
    sender, deaf, keen = made = ports(tmp_path, 3)
    count = 4 * OUTPUT_MAX // 60000
    for number in range(count):
        sender.transmit(number.to_bytes(4, "big") * 15000)
        sender.flush()
        while (frame := keen.receive()) is None:
            sender.flush()
        assert frame[:4] == number.to_bytes(4, "big")
    assert 0 < sender.dropped < count
    assert deaf.receive() == b"\0" * 60000
    close(made)


def test_closing_is_leaving(tmp_path: Path) -> None:
    one, other = made = ports(tmp_path, 2)
    one.transmit(FRAME)
    other.close()
    other.close()
    one.transmit(FRAME)
    assert one.dropped == 0
    made.append(HubPort(str(tmp_path / "hub")))  # the same number, another machine
    assert made[2].name == other.name
    one.transmit(FRAME)
    assert made[2].receive() == FRAME
    close(made)


def test_what_waited_for_one_who_left_is_counted(tmp_path: Path) -> None:
    one, other = made = ports(tmp_path, 2)
    sent = 0
    while sent < 50:
        one.transmit(FRAME)
        sent += 1
    assert one.dropped == 0
    other.close()
    one.flush()
    assert not one.pending_output
    assert 0 < one.dropped < sent  # the kernel's queue held the rest
    close(made)


def hold_a_port(directory: str, ready: Connection) -> None:
    port = HubPort(directory)
    ready.send(port.name)
    signal.pause()


def test_a_killed_machine_leaves_nothing_that_matters(tmp_path: Path) -> None:
    directory = str(tmp_path / "hub")
    here, there = multiprocessing.Pipe()
    victim = multiprocessing.get_context("spawn").Process(target=hold_a_port, args=(directory, there))
    victim.start()
    assert here.recv() == "port-00"
    one = HubPort(directory)
    one.transmit(FRAME)
    victim.kill()
    victim.join()
    victim.close()
    here.close()
    there.close()
    assert (tmp_path / "hub" / "port-00").is_socket()  # its file is still there
    one.transmit(FRAME)
    one.transmit(FRAME)
    assert not one.pending_output
    other = HubPort(directory)
    assert other.name == "port-00"  # and is cleared away by the next to come
    one.transmit(FRAME)
    assert other.receive() == FRAME
    assert one.dropped == 0
    one.close()
    other.close()


def test_ports_are_limited_and_come_back(tmp_path: Path) -> None:
    made = ports(tmp_path, PORTS_MAX)
    with pytest.raises(BackendError, match="all 32 ports are taken"):
        HubPort(str(tmp_path / "hub"))
    made[7].close()
    made.append(HubPort(str(tmp_path / "hub")))
    assert made[-1].name == "port-07"
    made[-1].transmit(FRAME)
    assert sum(port.receive() == FRAME for port in made if port.fileno() >= 0) == PORTS_MAX - 1
    close(made)


def test_what_is_no_frame_is_dropped_both_ways(tmp_path: Path) -> None:
    (port,) = made = ports(tmp_path, 1)
    port.transmit(b"x" * (FRAME_MIN - 1))
    port.transmit(b"x" * (FRAME_MAX + 1))
    assert port.dropped == 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.connect(str(tmp_path / "hub" / port.name))
        for junk in (b"", b"x" * (FRAME_MIN - 1), b"x" * (FRAME_MAX + 1)):
            stranger.send(junk)
            assert port.receive() is None
        stranger.send(FRAME)
        assert port.receive() == FRAME
    assert port.dropped == 5
    close(made)


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    directory.mkdir()
    (directory / "README").write_text("mine")
    one, other = made = ports(tmp_path, 2)
    one.transmit(FRAME)
    assert other.receive() == FRAME
    close(made)
    assert [entry.name for entry in directory.iterdir()] == ["README"]


def test_the_hub_is_private(tmp_path: Path) -> None:
    (port,) = made = ports(tmp_path, 1)
    assert stat.S_IMODE((tmp_path / "hub").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "hub" / port.name).stat().st_mode) == 0o600
    close(made)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BackendError, match="not a directory that can be opened or made"):
        HubPort(str(file))
    with pytest.raises(BackendError, match="at most 107 bytes"):
        HubPort(str(tmp_path / ("x" * 120)))
