"""A machine whose card moves frames by itself, beside one of which every frame is written down."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cpu.frame_worlds import Sockets
from tests.machine.support import MS, arp_request, udp_echo
from vmm import recording
from vmm.attention import CLOSE_NS, TURNS
from vmm.backends.net import VNET_HEADER
from vmm.boot.source import MultibootBoot
from vmm.config import NetConfig, PcConfig, mac
from vmm.guest import open as open_guest
from vmm.machine import Backends, Machine
from vmm.ports import NetPort
from vmm.runloop import RunLoop

HEADER = bytes(VNET_HEADER)


class Side:
    """A guest that echoes datagrams, on a wire."""

    def __init__(self, stack: ExitStack) -> None:
        built = open_guest("udpecho").build()
        boot = MultibootBoot(built.kernel.read_bytes(), built.cmdline)
        self.wire = Sockets()
        stack.callback(self.wire.close)
        config = PcConfig(ram_mib=16, nets=[NetConfig(mac(0), offloads=True)])
        self.pc = Machine(config, boot, Backends(nets=[self.wire.backend]))
        stack.callback(self.pc.close)
        self.port = self.pc.nets[0]

    def run_for(self, ns: int) -> None:
        self.pc.run(self.pc.clock.now_ns + ns)


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        made = Side(stack), Side(stack)
        for each in made:
            each.run_for(20 * MS)
            each.wire.put(HEADER + arp_request())
            each.run_for(MS)  # the halted guest is given it at the end of that
            each.run_for(MS)
            assert len(each.wire.come()) == 1, "it answers who it is"
        yield made


def test_guests_are_alike_to_the_bit(
    sides: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    hear = RunLoop.hear
    monkeypatch.setattr(RunLoop, "hear", lambda loop: heard.append(hear(loop)) or heard[-1])
    direct, written = sides
    for each in sides:
        each.pc.cpu.hear(each.pc.loop.hear)
    recorder = recording.start(written.pc, tmp_path / "log")
    assert direct.port.direct() >= 0 > written.port.direct()
    rng = random.Random(1)
    for turn in range(200):
        frames = [
            HEADER + udp_echo(rng.randbytes(rng.choice((1, 40, 900)))) for _ in range(rng.choice((0, 1, 3)))
        ]
        frames += [b"no frame"] * (turn % 50 == 49)
        ns = rng.choice((3_000, 10_000, 60_000, MS))
        for each in sides:
            for frame in frames:
                each.wire.put(frame)
            each.run_for(ns)
        assert direct.wire.come() == written.wire.come()
        assert direct.pc.clock.now_ns == written.pc.clock.now_ns
        if turn % 10 == 9:
            assert direct.pc.state_hash() == written.pc.state_hash()
    assert direct.port.backend.dropped == written.port.backend.dropped == 4
    assert direct.port.card is not None
    assert direct.port.card.state.tx_frames > 100
    assert heard.count(True) > 20 < heard.count(False)
    recorder.close(written.pc.clock.now_ns, "done")


def test_a_busy_guest_is_given_frames_without_a_stop(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not a frame, and what somebody else waits for, stops it."""
    side, _ = sides
    loop = side.pc.loop
    heard = []
    hear = NetPort.hear
    monkeypatch.setattr(NetPort, "hear", lambda port: heard.append(hear(port)) or heard[-1])
    side.wire.put(HEADER + udp_echo(b"direct"))
    assert loop.hear()
    assert heard == [True]
    side.run_for(MS)
    (answer,) = side.wire.come()
    assert answer.endswith(b"direct")

    side.wire.put(b"no frame")
    assert not loop.hear()
    assert side.port.rx_ready, "what was read is looked at before the guest runs on"
    side.run_for(MS)
    assert side.port.backend.dropped == 1

    near, far = socket.socketpair()
    with near, far:
        side.pc.call(near.fileno(), lambda: None)
        side.wire.put(HEADER + udp_echo(b"later"))
        assert not loop.hear(), "somebody is called between two blocks, and the loop knows the order"
        side.pc.call(near.fileno(), None)
    side.pc.watch(lambda waits: None)
    assert not loop.hear()
    side.pc.watch(None)
    assert loop.hear()


def test_a_conversation_of_bare_frames_is_noticed(sides: tuple[Side, Side]) -> None:
    side, _ = sides
    for _ in range(TURNS):
        assert side.pc.cpu.block["QUANTUM"] > CLOSE_NS
        side.wire.put(HEADER + udp_echo(b"turn"))
        assert side.pc.loop.hear()
        side.run_for(MS)
        assert len(side.wire.come()) == 1
    side.wire.put(HEADER + udp_echo(b"turn"))
    assert side.pc.loop.hear()
    assert side.pc.cpu.block["QUANTUM"] == CLOSE_NS
