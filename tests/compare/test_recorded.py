"""What real Linux stacks say, recorded here and now: two runs of one service, one for each machine.

Two namespaces, each a host with a TAP; frames pass between them through this test, which loses some TCP
frames of both directions and keeps what the guest sent.  The second recording, with its sequence numbers
shifted as a rewriter would, plays the secondary.  Everything else is as the two kernels made it: initial
sequence numbers, time stamps, identifications, segments, retransmissions, selective and delayed
acknowledgements, fragments.  tshark reads the same capture and says what is in it.
"""

from __future__ import annotations

import array
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.compare.comparison import Comparison
from colo.compare.packet import ACK, FIN, SYN, Kind, Packet, parse
from colo.compare.seq import MASK
from colo.compare.verdict import Diverged, Reason
from tests.compare.frames import differences, released

LOSS = 0.02
WAIT_S = 60.0

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK) or not shutil.which("unshare"),
    reason="needs root, /dev/net/tun and unshare, to make network namespaces",
)


class Host:
    """One namespace with its program and TAP."""

    def __init__(self, role: str, folder: Path, seed: int) -> None:
        path = str(folder / f"{role}.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(WAIT_S)
            command = ["unshare", "--net", sys.executable, "-P", str(Path(__file__).with_name("stack.py"))]
            self.process = subprocess.Popen(
                [*command, role, path, str(seed)], stderr=subprocess.PIPE, text=True
            )
            self.control, _ = listener.accept()
        _, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(4))
        self.tap = array.array("i", ancillary[0][2])[0]

    def close(self) -> None:
        os.close(self.tap)
        self.control.close()
        self.process.terminate()
        self.process.communicate(timeout=WAIT_S)


def record(folder: Path, seed: int) -> list[bytes]:
    """Frames that the guest sent in one run, whether or not they were lost on the way."""
    guest = Host("guest", folder, seed)
    client = Host("client", folder, seed)
    loss, sent, closing = random.Random(seed), [], set[bytes]()
    try:
        client.control.sendall(b"g")
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            ready, _, _ = select.select([guest.tap, client.tap, client.control], [], [], 1.0)
            for tap, to in ((guest.tap, client.tap), (client.tap, guest.tap)):
                if tap in ready:
                    frame = os.read(tap, 65536)
                    if tap == guest.tap:
                        sent.append(frame)
                    packet = parse(frame)
                    if tap == client.tap and is_first_fin(packet, closing):
                        continue
                    if packet.kind is not Kind.TCP or loss.random() >= LOSS:
                        os.write(to, frame)
            if client.control in ready and not {guest.tap, client.tap} & set(ready):
                assert client.control.recv(1) == b"d", client.process.communicate(timeout=WAIT_S)[1]
                return sent
    finally:
        client.close()
        guest.close()
    raise AssertionError("the conversations did not end")


def is_first_fin(packet: Packet, closing: set[bytes]) -> bool:
    """Of its connection: the client's are always lost, so that the guest's last word of each comes late."""
    if packet.kind is not Kind.TCP or not packet.flags & FIN or packet.key in closing:
        return False
    closing.add(packet.key)
    return True


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[bytes]]:
    return tuple(record(tmp_path_factory.mktemp(f"run{seed}"), seed) for seed in (1, 2))  # type: ignore[return-value]


def compared(frames: list[bytes]) -> list[Packet]:
    """Of the conversations: no discovery of neighbours, and not the attempts to find the service up."""
    made = [parse(frame) for frame in frames]
    wanted = (Kind.TCP, Kind.UDP, Kind.FRAGMENT)
    return [each for each in made if each.kind in wanted and each.key[-2:] != struct.pack("!H", 39999)]


def beginnings(packets: list[Packet]) -> dict[bytes, tuple[int, int]]:
    """Initial numbers of guest and client, by connection."""
    return {each.key: (each.seq, each.ack) for each in packets if each.kind is Kind.TCP and each.flags & SYN}


def translated(packets: list[Packet], like: dict[bytes, tuple[int, int]]) -> list[bytes]:
    """As a rewriter leaves the secondary's frames: in the primary's numbers."""
    mine, made = beginnings(packets), []
    for each in packets:
        frame = bytearray(each.frame)
        if each.kind is Kind.TCP:
            (seq, ack), (own_seq, own_ack) = like[each.key], mine[each.key]
            numbers = (each.seq + seq - own_seq) & MASK, (each.ack + ack - own_ack) & MASK
            frame[each.l4 + 4 : each.l4 + 12] = struct.pack("!II", *numbers)
        made.append(bytes(frame))
    return made


def test_two_runs_of_real_stacks_are_the_same(runs: tuple[list[bytes], list[bytes]]) -> None:
    first, second = compared(runs[0]), compared(runs[1])
    mine = [each.frame for each in first]
    its = translated(second, beginnings(first))
    assert len(beginnings(first)) == len(beginnings(second)) == 6
    for seed in range(5):
        comparison, order = Comparison(), random.Random(seed)
        queues, said = [list(mine), list(its)], []
        while queues[0] or queues[1]:
            side = int(order.random() * (len(queues[0]) + len(queues[1])) >= len(queues[0]))
            said += (comparison.feed_primary, comparison.feed_secondary)[side](queues[side].pop(0), 0.0)
        assert [each for each in said if isinstance(each, Diverged)] == []
        assert sorted(released(said)) == sorted(mine)
    assert comparison.counts.get("retransmitted", 0) > 0


def test_a_changed_byte_in_a_recording_is_found(runs: tuple[list[bytes], list[bytes]]) -> None:
    first, second = compared(runs[0]), compared(runs[1])
    its = translated(second, beginnings(first))
    rng = random.Random(1)
    full = [n for n, each in enumerate(first) if each.kind is Kind.TCP and each.end - each.start > 100]
    for _ in range(10):
        mine = [each.frame for each in first]
        n = rng.choice(full)
        at = rng.randrange(first[n].start, first[n].end)
        mine[n] = mine[n][:at] + bytes((mine[n][at] ^ 1,)) + mine[n][at + 1 :]
        comparison = Comparison()
        said = [each for frame in mine for each in comparison.feed_primary(frame, 0.0)]
        said += [each for frame in its for each in comparison.feed_secondary(frame, 0.0)]
        assert differences(said) == [Reason.PAYLOAD]
        assert mine[n] not in released(said)


def test_tshark_reads_the_same(
    runs: tuple[list[bytes], list[bytes]], tool: Callable[[str], str], tmp_path: Path
) -> None:
    capture = tmp_path / "run.pcap"
    packets = [each for each in map(parse, runs[0]) if each.kind is Kind.TCP]
    records = [struct.pack("<IIII", 0, 0, len(each.frame), len(each.frame)) + each.frame for each in packets]
    capture.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"".join(records))
    fields = ("tcp.seq_raw", "tcp.ack_raw", "tcp.len", "tcp.flags", "tcp.window_size_value", "tcp.srcport")
    command = [tool("tshark"), "-r", str(capture), "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    read = [tuple(int(word, 0) for word in line.split("\t")) for line in lines]
    assert read == [
        (each.seq, each.ack, each.end - each.start, each.flags, each.window, 8080) for each in packets
    ]
    assert {each.flags & (SYN | ACK) for each in packets} >= {SYN | ACK, ACK}
