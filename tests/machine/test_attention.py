"""A guest in conversation is given what comes at once; a busy one is given it together."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.machine.support import ECHO, MS, SECOND, arp_request, machine, multiboot, udp_echo
from vmm.attention import CLOSE_NS, LOOKS, TURNS, Attention
from vmm.backends.net import NetBackend
from vmm.cpu.control import ControlBlock
from vmm.machine import Backends, Ended, Machine
from vmm.session import Session

USUAL_NS = 50_000


@pytest.fixture
def block() -> ControlBlock:
    block = ControlBlock()
    block["QUANTUM"] = USUAL_NS
    return block


def converse(attention: Attention, turns: int, received: int = 0, sent: int = 0) -> tuple[int, int]:
    """The counts after so many turns."""
    for _ in range(turns):
        received, sent = received + 1, sent + 1
        attention.gave(received, sent)
    return received, sent


def test_turns_make_a_conversation(block: ControlBlock) -> None:
    attention = Attention(block)
    converse(attention, TURNS - 1)
    assert block["QUANTUM"] == USUAL_NS
    converse(attention, 1, TURNS - 1, TURNS - 1)
    assert block["QUANTUM"] == CLOSE_NS


@pytest.mark.parametrize(
    ("received", "sent"), [(1, 0), (2, 1), (2, 0), (5, 7)], ids=["no word", "two", "two, no word", "many"]
)
def test_frames_in_a_row_end_it(block: ControlBlock, received: int, sent: int) -> None:
    attention = Attention(block)
    before = converse(attention, TURNS)
    attention.gave(before[0] + received, before[1] + sent)
    assert block["QUANTUM"] == USUAL_NS
    converse(attention, TURNS - 1, before[0] + received, before[1] + sent)
    assert block["QUANTUM"] == USUAL_NS, "and it begins anew"


def test_other_input_says_nothing(block: ControlBlock) -> None:
    """A key, or a frame that was lost: the cards' counts stay."""
    attention = Attention(block)
    before = converse(attention, TURNS)
    attention.gave(*before)
    attention.gave(before[0], before[1] + 1)
    assert block["QUANTUM"] == CLOSE_NS


def test_a_guest_that_computes_for_long_is_left_alone() -> None:
    with machine(ECHO.format(idle="")) as pc:
        pc.run(MS)
        block = pc.cpu.block
        usual, looks = block["QUANTUM"], block["N_LOOKS"]
        converse(Attention(block), TURNS)
        pc.run(MS + (LOOKS - 3) * CLOSE_NS)
        assert block["QUANTUM"] == CLOSE_NS
        pc.run(MS + (LOOKS + 3) * CLOSE_NS)
        assert block["QUANTUM"] == usual
        assert block["N_LOOKS"] - looks < LOOKS + 10


class Peer:
    """The far end of the guest's cable: sends ``burst`` frames whenever all that it sent were answered."""

    offloads = False
    pending_output = False

    def __init__(self) -> None:
        self._guest, self._host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._guest.setblocking(False)
        self.burst = 1
        self.asked = self.answers = 0

    def ask(self, frame: bytes) -> None:
        self.asked += 1
        self._host.send(frame)

    def fileno(self) -> int:
        return self._guest.fileno()

    def receive(self) -> bytes | None:
        try:
            return self._guest.recv(2048)
        except BlockingIOError:
            return None

    def transmit(self, frame: bytes | memoryview) -> None:
        self.answers += 1
        if self.answers == self.asked:
            for _ in range(self.burst):
                self.ask(udp_echo(b"again"))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._guest.close()
        self._host.close()


def answered(pc: Machine, peer: Peer) -> None:
    """Long enough for either to be recognised."""
    count = peer.answers + 4 * TURNS
    while peer.answers < count:
        assert pc.run(pc.clock.now_ns + MS) is Ended.TIME
        assert pc.clock.now_ns < 60 * SECOND


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


def test_a_machine_attends_to_its_client(peer: Peer) -> None:
    cable: NetBackend = peer
    with multiboot("udpecho", backends=Backends([cable])) as pc:
        Session(pc).expect("GUEST-READY udpecho", within_s=1)
        usual = pc.cpu.block["QUANTUM"]
        assert usual > CLOSE_NS
        peer.ask(arp_request())
        for burst, quantum in ((1, CLOSE_NS), (4, usual), (1, CLOSE_NS)):
            peer.burst = burst
            answered(pc, peer)
            assert pc.cpu.block["QUANTUM"] == quantum
