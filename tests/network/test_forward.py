"""The forwarder between real sockets: what arrives, what ends, what breaks, and what it holds."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from colo.network import forward as network_forward
from colo.network.forward import CHUNK, IN, Forwarder, Poller
from tests.network.support import WAIT_S, descriptors

MANY = 8 << 20
"""Bytes of a large transfer: more than the kernel's buffers of three sockets hold."""
TURNS_MAX = 200


class Rig:
    """A forwarder in a thread of its own, its clients, and the guest's listening socket."""

    def __init__(self, opened: ExitStack, limit: int) -> None:
        self._opened = opened
        self.service = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.service.settimeout(WAIT_S)
        self._public = socket.create_server(("127.0.0.1", 0))
        self.address = self._public.getsockname()
        self._poller = Poller()
        self.forwarder = Forwarder(self._poller, [(self._public, self.service.getsockname())], limit)
        self._asking, self._asked = socket.socketpair()
        self._poller.add(self._asked.fileno(), IN, self._obey)
        self._work: list[Callable[[], None]] = []
        self._going = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._going:
            self._poller.step(self.forwarder.wait_s())
            self.forwarder.expire()

    def _obey(self, _events: int) -> None:
        self._asked.recv(1)
        self._work.pop(0)()
        self._asked.send(b"!")

    def call(self, work: Callable[[], None]) -> None:
        """Have ``work`` done between two turns of the loop."""
        self._work.append(work)
        self._asking.settimeout(WAIT_S)
        self._asking.send(b"?")
        self._asking.recv(1)

    def client(self) -> socket.socket:
        made = socket.create_connection(self.address, WAIT_S)
        return self._opened.enter_context(closing(made))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and the guest's end of its connection."""
        client = self.client()
        served, _ = self.service.accept()
        served.settimeout(WAIT_S)
        return client, self._opened.enter_context(closing(served))

    def stats(self) -> dict[str, int]:
        found: list[dict[str, int]] = []
        self.call(lambda: found.append(self.forwarder.stats()))
        return found[0]

    def becomes(self, **wanted: int) -> bool:
        """Do the counts become these, within the limit?"""
        for _ in range(TURNS_MAX):
            stats = self.stats()
            if all(stats[name] == value for name, value in wanted.items()):
                return True
            select.select([], [], [], WAIT_S / 1000)
        raise AssertionError(f"{stats} does not become {wanted}")

    def close(self) -> None:
        self.call(self._stop)
        self._thread.join(WAIT_S)
        self.forwarder.close()
        self._poller.close()
        self._asking.close()
        self._asked.close()

    def _stop(self) -> None:
        self._going = False


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def rig(opened: ExitStack) -> Iterator[Rig]:
    made = Rig(opened, limit=16)
    yield made
    made.close()


def reset(sock: socket.socket) -> None:
    """Close with RST (RFC 9293, 3.5.2)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cannot_send(sock: socket.socket) -> bool:
    """Does sending come to fail, within the limit?"""
    for _ in range(TURNS_MAX):
        try:
            sock.sendall(b"anybody there?")
        except (BrokenPipeError, ConnectionResetError):
            return True
        select.select([], [], [], WAIT_S / 1000)
    return False


def all_of(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 20):
        received += data
    return bytes(received)


def test_data_goes_both_ways(rig: Rig) -> None:
    client, served = rig.pair()
    for message in (b"a", b"request", bytes(range(256)) * 100):
        client.sendall(message)
        assert served.recv(len(message), socket.MSG_WAITALL) == message
        served.sendall(message[::-1])
        assert client.recv(len(message), socket.MSG_WAITALL) == message[::-1]


def test_data_sent_before_the_guest_answered_arrives(rig: Rig) -> None:
    client = rig.client()
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    served, _ = rig.service.accept()
    with served:
        assert all_of(served) == b"early"
        served.sendall(b"late")
    assert all_of(client) == b"late"
    rig.becomes(open=0, established=1, resets=0, unreachable=0)


@pytest.mark.parametrize("first", [0, 1])
def test_a_half_closed_connection_still_carries_the_other_direction(rig: Rig, first: int) -> None:
    ends = rig.pair()
    leaving, staying = ends[first], ends[1 - first]
    leaving.sendall(b"last words")
    leaving.shutdown(socket.SHUT_WR)
    assert all_of(staying) == b"last words"
    for number in range(10):
        staying.sendall(b"%d" % number)
        assert leaving.recv(1) == b"%d" % number
    staying.close()
    assert leaving.recv(1) == b""
    rig.becomes(open=0, resets=0)


@pytest.mark.parametrize("first", [0, 1])
def test_a_reset_is_passed_on_as_a_reset(rig: Rig, first: int) -> None:
    ends = rig.pair()
    ends[0].sendall(b"x")
    assert ends[1].recv(1) == b"x"
    reset(ends[first])
    with pytest.raises(ConnectionResetError):
        ends[1 - first].recv(1)
    rig.becomes(open=0, resets=1)


@pytest.mark.parametrize("first", [0, 1])
def test_a_reset_after_a_half_close_is_passed_on(rig: Rig, first: int) -> None:
    ends = rig.pair()
    leaving, staying = ends[first], ends[1 - first]
    leaving.shutdown(socket.SHUT_WR)
    assert staying.recv(1) == b""
    reset(leaving)
    assert cannot_send(staying)  # its stream had ended already: this is what tells of the reset
    rig.becomes(open=0, resets=1)


def test_a_service_that_has_gone_resets_its_client(rig: Rig) -> None:
    client, served = rig.pair()
    served.close()
    assert client.recv(1) == b""
    assert cannot_send(client)
    rig.becomes(open=0, resets=1)


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_large_transfer_arrives_whole(rig: Rig, receiver: int) -> None:
    ends = rig.pair()
    data = os.urandom(1 << 20) * (MANY >> 20)
    sender = threading.Thread(target=send_all, args=(ends[1 - receiver], data))
    sender.start()
    received = all_of(ends[receiver])
    sender.join(WAIT_S)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    assert rig.stats()["bytes"] == MANY


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def stuff(sock: socket.socket) -> int:
    """Send until nothing more is taken; how much it was."""
    sock.setblocking(False)
    sent, chunk = 0, bytes(1 << 16)
    while select.select([], [sock], [], WAIT_S / 100)[1]:
        with suppress(BlockingIOError):
            sent += sock.send(chunk)
    sock.settimeout(WAIT_S)
    return sent


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_receiver_that_does_not_read_holds_its_sender_back(rig: Rig, receiver: int) -> None:
    ends = rig.pair()
    sent = stuff(ends[1 - receiver])
    kept: list[int] = []

    def look() -> None:
        for connection in rig.forwarder.connections:
            kept.extend(len(side.kept or b"") for side in (connection.client, connection.guest))

    rig.call(look)
    assert 0 < max(kept) <= CHUNK
    assert min(kept) == 0
    # The other direction is not held up, nor is another client.
    ends[receiver].sendall(b"still there")
    assert ends[1 - receiver].recv(100) == b"still there"
    other, served = rig.pair()
    other.sendall(b"me too")
    assert served.recv(100) == b"me too"
    ends[1 - receiver].shutdown(socket.SHUT_WR)
    assert len(all_of(ends[receiver])) == sent


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_sender_that_leaves_while_held_back_costs_no_turns(rig: Rig, receiver: int) -> None:
    """Both directions of its socket are over, which epoll reports without being asked."""
    ends = rig.pair()
    sender, reader = ends[1 - receiver], ends[receiver]
    sent = stuff(sender)
    reader.shutdown(socket.SHUT_WR)
    assert sender.recv(1) == b""
    sender.close()
    turns = 0
    step = Poller.step

    def counted(poller: Poller, wait_s: float) -> None:
        nonlocal turns
        turns += 1
        step(poller, wait_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Poller, "step", counted)
        for _ in range(10):
            rig.stats()
            select.select([], [], [], WAIT_S / 1000)
    assert turns < 40
    assert len(all_of(reader)) == sent
    rig.becomes(open=0, resets=0)


def test_a_service_that_refuses_is_counted_and_the_client_closed(rig: Rig) -> None:
    rig.service.close()
    client = rig.client()
    assert client.recv(1) == b""
    rig.becomes(accepted=1, unreachable=1, established=0, open=0)


def test_a_service_that_never_answers_is_given_up(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_forward, "CONNECT_WAIT_S", 0.2)
    rig = Rig(opened, limit=16)
    # A full backlog drops further connection requests without a word (listen(2)).
    rig.service.listen(0)
    rig.service.setblocking(False)
    waiting = [opened.enter_context(socket.socket()) for _ in range(4)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(rig.service.getsockname())
    assert select.select([], waiting[:1], [], WAIT_S)[1]
    client = rig.client()
    assert client.recv(1) == b""
    rig.becomes(unreachable=1, open=0)
    rig.close()


def test_a_client_that_leaves_before_the_guest_answers_is_forgotten(opened: ExitStack) -> None:
    rig = Rig(opened, limit=16)
    rig.service.listen(0)
    waiting = [opened.enter_context(socket.socket()) for _ in range(4)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(rig.service.getsockname())
    assert select.select([], waiting[:1], [], WAIT_S)[1]
    client = rig.client()
    rig.becomes(open=1)
    reset(client)
    rig.becomes(open=0, unreachable=0, resets=0)
    rig.close()


def test_clients_beyond_the_limit_are_closed_and_counted(opened: ExitStack) -> None:
    rig = Rig(opened, limit=2)
    pairs = [rig.pair() for _ in range(2)]
    assert rig.client().recv(1) == b""
    rig.becomes(refused=1, open=2)
    for client, served in pairs:
        client.sendall(b"unharmed")
        assert served.recv(100) == b"unharmed"
    pairs[0][0].close()
    assert pairs[0][1].recv(1) == b""
    pairs[0][1].close()
    rig.becomes(open=1)
    client, served = rig.pair()
    client.sendall(b"room again")
    assert served.recv(100) == b"room again"
    rig.close()


def test_many_clients_that_come_and_go_leave_no_descriptor(opened: ExitStack) -> None:
    rig = Rig(opened, limit=16)
    before = descriptors()
    for number in range(100):
        with socket.create_connection(rig.address, WAIT_S) as client:
            served, _ = rig.service.accept()
            client.sendall(b"x")
            assert served.recv(1) == b"x"
            if number % 2:
                reset(served)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                served.close()
                assert client.recv(1) == b""
    rig.becomes(open=0, accepted=100)
    assert descriptors() == before
    rig.close()


def test_a_number_that_is_used_again_does_not_get_the_old_sockets_events() -> None:
    """Two events of one turn; the first one's handler closes the other and opens a new socket."""
    poller = Poller()
    handled: list[str] = []
    ends = [socket.socketpair() for _ in range(2)]
    replaced: list[socket.socket] = []

    def first(_events: int) -> None:
        handled.append("first")
        poller.remove(ends[1][0].fileno())
        poller.dispose(ends[1][0])
        replaced.extend(socket.socketpair())
        poller.add(replaced[0].fileno(), IN, lambda _: handled.append("stranger"))

    poller.add(ends[0][0].fileno(), IN, first)
    poller.add(ends[1][0].fileno(), IN, lambda _: handled.append("second"))
    for _, far in ends:
        far.send(b"x")
    poller.step(WAIT_S)
    assert handled in (["first"], ["second", "first"])
    poller.close()
    for sock in (*ends[0], *ends[1], *replaced):
        sock.close()
