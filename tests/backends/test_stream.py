"""Frames over a byte stream, between two back ends and against raw sockets that misbehave."""

from __future__ import annotations

import select
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.backends.net import FRAME_MAX, FRAME_MIN, OUTPUT_MAX
from vmm.backends.stream import Stream
from vmm.errors import BackendError

FRAME = bytes(range(60))


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def readable(backend: Stream, wait_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(backend.fileno(), select.POLLIN)
    return bool(poll.poll(wait_ms))


def wait_frame(backend: Stream) -> bytes:
    """What the run loop does: sleep until readable, receive, as often as it takes."""
    while readable(backend, 5000):
        frame = backend.receive()
        if frame is not None:
            return frame
    raise AssertionError("no frame in five seconds")


def connected(backend: Stream) -> bool:
    """A function, because a type checker takes a property to keep its value."""
    return backend.connected


def port_of(server: Stream) -> int:
    address = server.address
    assert isinstance(address, tuple)
    return address[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Stream]:
    made = Stream(str(tmp_path / "cable"), server=True)
    yield made
    made.close()


def raw_peer(server: Stream) -> socket.socket:
    assert isinstance(server.address, str)
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(5)
    peer.connect(server.address)
    assert readable(server)
    assert server.receive() is None  # lets the peer in
    assert connected(server)
    return peer


def test_frames_pass_both_ways_in_order(server: Stream) -> None:
    client = Stream(str(server.address))
    frames = [FRAME, b"\xff" * FRAME_MIN, b"\xaa" * FRAME_MAX]
    for frame in frames[:2]:
        client.transmit(frame)
        server.transmit(memoryview(frame))
    assert [wait_frame(server) for _ in frames[:2]] == frames[:2]
    assert [wait_frame(client) for _ in frames[:2]] == frames[:2]
    assert server.receive() is None
    client.transmit(frames[2])
    assert wait_frame(server) == frames[2]
    assert (client.dropped, server.dropped) == (0, 0)
    client.close()


def test_tcp_on_the_loopback() -> None:
    server = Stream("127.0.0.1:0", server=True)
    client = Stream(f"localhost:{port_of(server)}")
    client.transmit(FRAME)
    assert wait_frame(server) == FRAME
    server.transmit(FRAME)
    assert wait_frame(client) == FRAME
    client.close()
    server.close()


def test_bytes_on_the_wire_are_length_and_frame(server: Stream) -> None:
    """What QEMU's stream and socket back ends speak: 32 bits, most significant byte first."""
    with raw_peer(server) as peer:
        server.transmit(FRAME)
        assert peer.recv(100) == b"\0\0\0\x3c" + FRAME


def test_input_readiness_is_truthful(server: Stream) -> None:
    """Two frames in one packet: after one receive() the descriptor is readable still."""
    with raw_peer(server) as peer:
        peer.send(framed(FRAME) + framed(FRAME[:20]))
        assert server.receive() == FRAME
        assert readable(server)
        assert server.receive() == FRAME[:20]
        assert not readable(server)
        assert server.receive() is None


def test_a_frame_may_come_in_any_pieces(server: Stream) -> None:
    data = framed(FRAME)
    with raw_peer(server) as peer:
        for cut in range(1, len(data)):
            peer.send(data[:cut])
            assert server.receive() is None
            peer.send(data[cut:])
            assert server.receive() == FRAME, cut


def test_truncation_at_every_byte_ends_the_connection_and_the_next_peer_is_served(server: Stream) -> None:
    data = framed(FRAME)
    for cut in range(len(data)):
        with raw_peer(server) as peer:
            peer.send(data[:cut])
        assert server.receive() is None
        assert not connected(server)
    assert server.faults == {"closed": 1, "closed in mid-frame": len(data) - 1}
    with raw_peer(server) as peer:  # no byte of a half frame is left over
        peer.send(data)
        assert server.receive() == FRAME


@pytest.mark.parametrize("length", [FRAME_MAX + 1, 1 << 24, 0xFFFF_FFFF])
def test_an_oversize_length_ends_the_connection(server: Stream, length: int) -> None:
    with raw_peer(server) as peer:
        peer.send(length.to_bytes(4, "big") + b"x" * 1000)
        assert server.receive() is None
        assert not connected(server)
        assert server.faults == {"oversize frame": 1}
        with pytest.raises(ConnectionResetError):  # and the peer is told
            peer.recv(1)


@pytest.mark.parametrize("length", [0, 1, FRAME_MIN - 1])
def test_a_frame_without_a_whole_header_is_dropped_alone(server: Stream, length: int) -> None:
    with raw_peer(server) as peer:
        peer.send(framed(b"x" * length) + framed(FRAME))
        assert server.receive() is None
        assert server.dropped == 1
        assert server.receive() == FRAME


def test_one_peer_at_a_time_the_next_waits_its_turn(server: Stream) -> None:
    first = raw_peer(server)
    assert isinstance(server.address, str)
    second = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    second.connect(server.address)
    second.send(framed(FRAME))
    assert not readable(server)  # it is not looked at while the first is there
    first.close()
    assert wait_frame(server) == FRAME
    second.close()


def test_a_client_that_lost_its_peer_tries_again_when_its_guest_sends(tmp_path: Path) -> None:
    path = str(tmp_path / "cable")
    server = Stream(path, server=True)
    client = Stream(path)
    server.transmit(FRAME)
    assert wait_frame(client) == FRAME
    server.close()
    assert client.receive() is None
    assert not connected(client)
    assert not readable(client)  # an idle machine is not woken for a cable that is loose
    client.transmit(FRAME)
    assert client.dropped == 1
    server = Stream(path, server=True)
    client.transmit(FRAME)
    assert wait_frame(server) == FRAME
    client.close()
    server.close()


def test_a_tcp_client_finds_nobody_and_then_somebody() -> None:
    server = Stream("127.0.0.1:0", server=True)
    address = f"127.0.0.1:{port_of(server)}"
    client = Stream(address)
    assert server.receive() is None
    client.transmit(FRAME)
    assert wait_frame(server) == FRAME
    server.close()
    while connected(client):
        assert readable(client, 5000)
        assert client.receive() is None
    client.transmit(FRAME)  # refused, now or at the next look
    while connected(client):
        assert readable(client, 5000)
        client.receive()
    assert client.dropped == 1
    server = Stream(address, server=True)
    client.transmit(FRAME)
    assert wait_frame(server) == FRAME
    client.close()
    server.close()


def test_a_peer_that_does_not_read_costs_a_limit_of_memory_then_frames(server: Stream) -> None:
    frame = b"\x5a" * 60000
    with raw_peer(server) as peer:
        sent = 0
        while server.dropped < 3:
            server.transmit(frame)
            sent += 1
        kept = sent - 3
        assert kept * len(frame) < OUTPUT_MAX + (4 << 20)  # ours and the kernel's
        expected = framed(frame) * kept
        got = bytearray()
        while len(got) < len(expected):
            got += peer.recv(1 << 20)
            server.receive()  # readable for writing: the loop calls, the rest goes out
        assert got == expected  # whole frames, in order, and none after the gap is damaged
        assert not server.pending_output
        assert not readable(server)
        server.transmit(FRAME)
        assert peer.recv(100) == framed(FRAME)


def test_room_at_the_peer_wakes_the_loop(server: Stream) -> None:
    with raw_peer(server) as peer:
        while not server.pending_output:
            server.transmit(b"\0" * 60000)
        assert not readable(server)
        peer.recv(1 << 20)
        assert readable(server, 5000)


def test_half_a_frame_is_not_finished_at_the_next_peer(server: Stream) -> None:
    with raw_peer(server):
        while not server.pending_output:
            server.transmit(b"\0" * 60000)
    while connected(server):
        server.receive()
    assert server.dropped == 1
    with raw_peer(server) as peer:
        server.transmit(FRAME)
        assert peer.recv(100) == framed(FRAME)


def test_frames_outside_the_limits_or_without_a_peer_are_dropped(server: Stream) -> None:
    server.transmit(FRAME)
    assert server.dropped == 1
    with raw_peer(server) as peer:
        server.transmit(b"x" * (FRAME_MIN - 1))
        server.transmit(b"x" * (FRAME_MAX + 1))
        assert server.dropped == 3
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_whatever_the_peer_says_nothing_is_raised(pieces: list[bytes]) -> None:
    server = Stream("127.0.0.1:0", server=True)
    with socket.create_connection(("127.0.0.1", port_of(server))) as peer:
        assert readable(server, 5000)
        for piece in pieces:
            try:
                peer.send(piece)
            except OSError:
                break  # we hung up on it
            for _ in range(10):
                frame = server.receive()
                assert frame is None or FRAME_MIN <= len(frame) <= FRAME_MAX
    server.close()


def test_the_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "cable"
    server = Stream(str(path), server=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.close()
    server.close()
    assert not path.exists()
    server.transmit(FRAME)
    assert server.dropped == 1


def test_a_socket_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cable"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server = Stream(str(path), server=True)
    server.close()


def test_errors_say_what_to_do(tmp_path: Path, server: Stream) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(BackendError, match="not a socket"):
        Stream(str(file), server=True)
    assert file.read_text() == "precious"
    with pytest.raises(BackendError, match="another process listens there"):
        Stream(str(server.address), server=True)
    with pytest.raises(BackendError, match=r"nobody answers .*start the other side first, or add ',server'"):
        Stream(str(tmp_path / "nobody"))
    with pytest.raises(BackendError, match="cannot listen there"):
        Stream(str(tmp_path / "no" / "such" / "directory"), server=True)
    for address in ("10.0.0.1:5", "0.0.0.0:5", "example.org:5", "127.0.0.1:70000", ":5"):
        with pytest.raises(BackendError, match=r"expected 127\.0\.0\.1:PORT"):
            Stream(address)


QEMU = shutil.which("qemu-system-x86_64")


def wait_path(sender: Stream, receiver: Stream) -> None:
    """Until a frame passes QEMU, and every earlier one has.

    The kernel completes a connection before QEMU attends to it; until then QEMU drops what is meant for
    that end as if the cable were out (seen on a busy host: the first frame, never a later one).
    """
    for attempt in range(50):
        sender.transmit(attempt.to_bytes(4, "big") * FRAME_MIN)
        if readable(receiver, 200):
            break
    sender.transmit(b"last" * FRAME_MIN)
    while wait_frame(receiver) != b"last" * FRAME_MIN:
        pass


@pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")
def test_qemu_repeats_what_it_is_told(tmp_path: Path) -> None:
    """A QEMU without a machine, whose hub joins two stream back ends: a frame in at one, out at the other."""
    assert QEMU is not None
    known = subprocess.run((QEMU, "-netdev", "help"), capture_output=True, text=True, check=False)
    if "stream" not in known.stdout.split():
        pytest.skip("needs a QEMU with -netdev stream (7.2 or later)")
    ends = [Stream(str(tmp_path / name), server=True) for name in "ab"]
    command = [QEMU, "-machine", "none", "-display", "none", "-nodefaults"]
    for name in "ab":
        path = tmp_path / name
        command += ["-netdev", f"stream,id={name},server=off,addr.type=unix,addr.path={path}"]
        command += ["-netdev", f"hubport,id=port-{name},hubid=0,netdev={name}"]
    qemu = subprocess.Popen(command)
    try:
        for end in ends:
            assert readable(end, 10_000)
            assert end.receive() is None
        wait_path(ends[0], ends[1])
        wait_path(ends[1], ends[0])
        for frame in (FRAME, b"\xff" * 1514, b"\x01" * FRAME_MIN, b"\x02" * FRAME_MAX):
            ends[0].transmit(frame)
            assert wait_frame(ends[1]) == frame
            ends[1].transmit(frame)
            assert wait_frame(ends[0]) == frame
        assert all(not end.faults for end in ends)
    finally:
        qemu.kill()
        qemu.wait()
        for end in ends:
            end.close()
