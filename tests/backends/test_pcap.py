"""Captures: the bytes of the format, and what Wireshark makes of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections import deque
from pathlib import Path

import pytest

from vmm.backends import pcap
from vmm.backends.net import VNET_HEADER, NetBackend, Nowhere
from vmm.backends.pcap import PcapTap
from vmm.backends.stream import Stream
from vmm.clock import ManualClock
from vmm.errors import BackendError

ARP = bytes.fromhex(
    "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000001 000000000000 0a000002"
)


class Offloading(Nowhere):
    """A back end whose frames carry a virtio-net header, with frames to give."""

    __slots__ = ("arriving",)

    def __init__(self) -> None:
        super().__init__(offloads=True)
        self.arriving: deque[bytes] = deque()

    def receive(self) -> bytes | None:
        return self.arriving.popleft() if self.arriving else None


def test_the_file_is_as_the_format_says(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "a.pcap"
    tap: NetBackend = PcapTap(Nowhere(), str(path), lambda: clock.now_ns, epoch_s=1_700_000_000)
    clock.advance(2_000_000_003)
    tap.transmit(memoryview(ARP))
    tap.close()
    assert path.read_bytes() == (
        struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
        + struct.pack("<IIII", 1_700_000_002, 3, len(ARP), len(ARP))
        + ARP
    )
    assert tap.dropped == 1  # it was recorded, and then lost


def test_the_virtio_header_is_left_out_both_ways(tmp_path: Path) -> None:
    backend = Offloading()
    backend.arriving.append(b"\x01" * VNET_HEADER + ARP)
    path = tmp_path / "a.pcap"
    tap = PcapTap(backend, str(path), lambda: 5)
    assert tap.offloads
    assert tap.receive() == b"\x01" * VNET_HEADER + ARP
    assert tap.receive() is None
    tap.transmit(bytes(VNET_HEADER) + ARP)
    tap.transmit(b"x")  # a runt of a runt: recorded as the nothing that it is
    tap.close()
    record = struct.pack("<IIII", 0, 5, len(ARP), len(ARP)) + ARP
    assert path.read_bytes()[24:] == record * 2 + struct.pack("<IIII", 0, 5, 0, 0)
    assert tap.frames == 3


def test_the_rest_is_the_back_ends_own(tmp_path: Path) -> None:
    server = Stream("127.0.0.1:0", server=True)
    tap = PcapTap(server, str(tmp_path / "a.pcap"), lambda: 0)
    assert tap.fileno() == server.fileno()
    assert (tap.offloads, tap.pending_output, tap.dropped) == (False, False, 0)
    tap.flush()
    tap.transmit(ARP)
    assert tap.dropped == server.dropped == 1
    tap.close()
    assert server.fileno() == -1


def test_same_run_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pcap", tmp_path / "b.pcap"]
    for path in paths:
        clock = ManualClock()
        tap = PcapTap(Nowhere(), str(path), lambda clock=clock: clock.now_ns)  # type: ignore[misc]
        for _ in range(100):
            clock.advance(12345678)
            tap.transmit(ARP)
        tap.close()
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_file_can_be_watched_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    tap = PcapTap(Nowhere(), str(path), lambda: 0)
    assert path.stat().st_size == 24
    for _ in range(pcap.FLUSH_EVERY):
        tap.transmit(ARP)
    assert path.stat().st_size == 24 + pcap.FLUSH_EVERY * (16 + len(ARP))
    tap.close()


def test_a_capture_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcap, "CAPTURE_MAX", 24 + 2 * (16 + len(ARP)))
    path = tmp_path / "a.pcap"
    tap = PcapTap(Nowhere(), str(path), lambda: 0)
    for _ in range(5):
        tap.transmit(ARP)
    tap.close()
    assert (tap.frames, tap.unrecorded, tap.dropped) == (2, 3, 5)
    assert path.stat().st_size == pcap.CAPTURE_MAX


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"capture .*cannot be written .*name another"):
        PcapTap(Nowhere(), str(tmp_path / "no" / "a.pcap"), lambda: 0)
    full = PcapTap(Nowhere(), "/dev/null", lambda: 0)
    full.close()
    with pytest.raises(BackendError, match="No space left on device"):
        PcapTap(Nowhere(), "/dev/full", lambda: 0)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_wireshark_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    clock = ManualClock()
    tap = PcapTap(Nowhere(), str(path), lambda: clock.now_ns, epoch_s=1_000_000_000)
    for _ in range(3):
        clock.advance(1_000_000_001)
        tap.transmit(ARP)
    tap.close()
    fields = ("frame.time_epoch", "arp.src.proto_ipv4", "arp.dst.proto_ipv4")
    command = [
        "tshark",
        "-n",
        "-r",
        str(path),
        "-T",
        "fields",
        *(word for name in fields for word in ("-e", name)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [
        "1000000001.000000001\t10.0.0.1\t10.0.0.2",
        "1000000002.000000002\t10.0.0.1\t10.0.0.2",
        "1000000003.000000003\t10.0.0.1\t10.0.0.2",
        "",
    ]
