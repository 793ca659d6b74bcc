"""A network guest: what it answers is heard when it is committed, and what it was asked is not forgotten.

``udpecho`` answers each datagram with the same one, on a hub in user space; the client speaks Ethernet.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colo.messages import Inputs, VmstateReceived
from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.pair.relay import Moment, Passing, Relay
from vmm.backends.hub import HubPort
from vmm.config import mac

CLIENT_MAC = b"\x02client"[:6]
CLIENT_IP, GUEST_IP = bytes((10, 77, 0, 9)), bytes((10, 77, 0, 2))
CLIENT_PORT, ECHO_PORT = 4000, 7
UDP = 17


def datagram(said: bytes) -> bytes:
    """To the guest, without a UDP checksum (RFC 768: zero means none)."""
    udp = struct.pack(">HHHH", CLIENT_PORT, ECHO_PORT, 8 + len(said), 0) + said
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, UDP, 0, CLIENT_IP, GUEST_IP)
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
    return mac(0) + CLIENT_MAC + b"\x08\x00" + header + udp


class Client:
    """Asks, and collects what is answered."""

    def __init__(self, port: HubPort) -> None:
        self._port = port
        self.answers: list[bytes] = []
        self.announced = 0
        """Frames of the guest's that nobody asked for: where it is now."""

    def ask(self, said: bytes) -> None:
        self._port.transmit(datagram(said))

    def listen(self) -> None:
        while (frame := self._port.receive()) is not None:
            if frame[:6] == CLIENT_MAC and frame[23] == UDP:
                size = struct.unpack_from(">H", frame, 38)[0]
                self.answers.append(frame[42 : 34 + size])
            elif frame[:6] == b"\xff" * 6:
                self.announced += 1

    def answered(self, said: bytes) -> bool:
        self.listen()
        return said in self.answers


@contextmanager
def echoing(bench: Bench) -> Iterator[tuple[Node, Node, Relay, Client]]:
    hub = bench.place / "hub"
    port = HubPort(str(hub))
    words = ("udpecho", "--ram", "16", "--net", f"hub={hub}")
    try:
        primary, secondary, relay = bench.pair(guest=words)
        client = Client(port)
        client.ask(b"first")
        until(lambda: client.answered(b"first"))
        yield primary, secondary, relay, client
    finally:
        port.close()


def test_an_answer_waits_for_its_commit(bench: Bench) -> None:
    with echoing(bench) as (primary, _, relay, client):
        go_on = threading.Event()

        def wait(_: Passing) -> None:
            assert go_on.wait(LIMIT_S)

        epoch = primary.epoch
        relay.rule = Moment(VmstateReceived, wait, epoch + 1)
        client.ask(b"held")
        until(lambda: int(primary.facts["held-frames"]) > 0)
        assert not client.answered(b"held"), "the world heard what a survivor would not know"
        go_on.set()
        until(lambda: client.answered(b"held"))
        assert client.answers == [b"first", b"held"]


def test_a_question_on_its_way_is_answered_by_the_survivor(bench: Bench) -> None:
    """Asked once: the primary's guest had it, the answer was held, and then the primary died."""
    with echoing(bench) as (primary, secondary, relay, client):

        def kill(passing: Passing) -> None:
            primary.kill()

        moment = relay.rule = Moment(Inputs, kill)
        client.ask(b"asked once")
        assert moment.reached.wait(LIMIT_S)
        assert secondary.event("COLO_EXIT")["mode"] == "secondary"
        until(lambda: client.answered(b"asked once"))
        assert client.announced > 0, "the network is told where the guest is now"
        client.ask(b"and again")
        until(lambda: client.answered(b"and again"))
        assert set(client.answers) == {b"first", b"asked once", b"and again"}


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_client_that_repeats_misses_nothing(bench: Bench, victim: str, tmp_path: Path) -> None:
    with echoing(bench) as (primary, secondary, _, client):
        for number in range(60):
            said = b"number %d" % number
            if number == 30:
                bench.nodes[victim].kill()
            client.ask(said)
            until(lambda said=said: answered_or_asked_again(client, said))  # type: ignore[misc]
        survivor = secondary if victim == "a" else primary
        assert survivor.status == "running"
        assert {b"number %d" % number for number in range(60)} <= set(client.answers)


def answered_or_asked_again(client: Client, said: bytes) -> bool:
    if client.answered(said):
        return True
    client.ask(said)
    return False
