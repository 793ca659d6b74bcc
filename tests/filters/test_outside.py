"""Filters with the real outside: socket readers, Wireshark, TAP interfaces, a hub, a launched machine."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.filters import FilteredNet, OutputHold, announce, parse, protect, unprotect
from colo.filters.dump import Dump
from colo.filters.mirror import Mirror
from tests.filters.cables import ARP, MAC, Cable, frame, number_of
from vmm.attached import Backends
from vmm.backends import tap
from vmm.backends.hub import HubPort
from vmm.backends.net import OUTPUT_MAX, VNET_HEADER, NetBackend, Nowhere
from vmm.backends.stream import Stream
from vmm.backends.tap import Tap
from vmm.clock import ManualClock
from vmm.config import NetConfig, PcConfig, mac
from vmm.errors import BackendError, ConfigError
from vmm.launch import LaunchOptions, launch

Plug = Callable[..., tuple[FilteredNet, Cable]]
HEADER = bytes(range(VNET_HEADER))


def read_exactly(reader: socket.socket, size: int) -> bytes:
    reader.settimeout(10)
    data = b""
    while len(data) < size:
        piece = reader.recv(size - len(data))
        assert piece, f"closed after {len(data)} of {size} bytes"
        data += piece
    return data


def read_frame(reader: socket.socket, vnet_hdr: bool = False) -> tuple[int, bytes]:
    """QEMU's framing: be32 length, [be32 length of the header,] frame."""
    length = int.from_bytes(read_exactly(reader, 4), "big")
    header = int.from_bytes(read_exactly(reader, 4), "big") if vnet_hdr else 0
    return header, read_exactly(reader, length)


def mirror_of(net: FilteredNet, words: str) -> Mirror:
    added = net.add(parse(f"mirror,id=m0,{words}"))
    assert isinstance(added, Mirror)
    return added


# Mirror


def test_a_reader_gets_a_copy_of_every_frame_both_ways(plug: Plug, tmp_path: Path) -> None:
    net, cable = plug()
    path = tmp_path / "m"
    mirror = mirror_of(net, f"outdev=unix:{path},server=on")
    assert path.stat().st_mode & 0o777 == 0o600
    net.transmit(frame(0))
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
        net.transmit(memoryview(frame(1)))
        cable.arrive(frame(2))
        assert net.receive() == frame(2)
        assert [read_frame(reader) for _ in range(2)] == [(0, frame(1)), (0, frame(2))]
    assert cable.numbers == [0, 1]
    assert (mirror.copied, mirror.dropped) == (2, 1)
    assert net.dropped == 0, "a copy that nobody took is no lost frame"
    net.remove("m0")
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", (0, ARP)), ("vnet_hdr_support,", (VNET_HEADER, HEADER + ARP))],
    ids=["without", "with"],
)
def test_the_virtio_header_travels_when_the_reader_is_told(
    plug: Plug, words: str, expected: tuple[int, bytes]
) -> None:
    net, _ = plug(offloads=True)
    mirror = mirror_of(net, f"{words}outdev=tcp:127.0.0.1:0,server=on")
    with socket.create_connection(mirror.address) as reader:  # type: ignore[arg-type]
        net.transmit(HEADER + ARP)
        assert read_frame(reader, vnet_hdr=bool(words)) == expected


def test_a_slow_reader_costs_copies_and_never_time(plug: Plug, tmp_path: Path) -> None:
    """What the reader gets is whole frames, in order, and afterwards the newest again."""
    net, cable = plug()
    path = tmp_path / "m"
    mirror = mirror_of(net, f"queue=rx,outdev=unix:{path},server=on")
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
        count = 0
        while mirror.dropped < 5:
            net.transmit(frame(count, 1500))
            count += 1
        assert len(cable.heard) == count
        assert count * 1500 > OUTPUT_MAX
        kept = count - mirror.dropped
        got = []
        for _ in range(kept):
            got.append(number_of(read_frame(reader)[1]))
            net.tick()  # what a run loop does when the alarm wakes it
        assert got == list(range(kept))
        net.transmit(frame(count))
        assert number_of(read_frame(reader)[1]) == count


def test_a_mirror_that_connects_needs_its_reader_and_outlives_it(plug: Plug, tmp_path: Path) -> None:
    net, _ = plug()
    path = tmp_path / "m"
    with pytest.raises(BackendError, match="nobody listens there"):
        net.add(parse(f"mirror,id=m0,outdev=unix:{path}"))
    assert net.filters == ()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        mirror = mirror_of(net, f"outdev=unix:{path}")
        reader, _ = listener.accept()
        net.transmit(frame(1))
        assert read_frame(reader) == (0, frame(1))
        reader.close()
    for number in range(3):
        net.transmit(frame(number))
    assert mirror.dropped >= 2


def test_a_second_reader_follows_the_first_with_a_whole_frame(plug: Plug, tmp_path: Path) -> None:
    net, _ = plug()
    path = tmp_path / "m"
    mirror = mirror_of(net, f"queue=rx,outdev=unix:{path},server=on")
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        while mirror.dropped == 0:
            net.transmit(frame(0, 9000))
    net.transmit(frame(1))  # finds that the first one left
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(path))
        net.transmit(frame(2))
        assert read_frame(second) == (0, frame(2))


@pytest.mark.parametrize("outdev", ["m", "unix:", "tcp:127.0.0.1", "tcp:10.0.0.1:99", "tcp:127.0.0.1:99999"])
def test_copies_go_to_this_host_only(plug: Plug, outdev: str) -> None:
    with pytest.raises(BackendError, match="not an address for copies"):
        plug()[0].add(parse(f"mirror,id=m0,outdev={outdev},server=on"))


def test_an_address_in_use_is_an_error_and_one_of_the_dead_is_not(plug: Plug, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    net, _ = plug()
    mirror_of(net, f"outdev=unix:{path},server=on")
    with pytest.raises(BackendError, match="cannot listen there"):
        plug("net1")[0].add(parse(f"mirror,id=m1,outdev=unix:{path},server=on"))


# Dump


def test_wireshark_reads_a_dump(
    tool: Callable[[str], str], plug: Plug, clock: ManualClock, hold: OutputHold, tmp_path: Path
) -> None:
    """One dump nearer to the back end than the held output, in which the other thread writes."""
    net, cable = plug(offloads=True)
    path = tmp_path / "a.pcap"
    protect([net], hold)
    net.add(parse(f"dump,id=d0,position=head,file={path}"))
    clock.advance(1_500_000_000)
    net.transmit(HEADER + ARP)
    hold.cut(1)
    clock.advance(1_000_000_000)
    releasing = threading.Thread(target=hold.release, args=(1,))
    releasing.start()
    releasing.join()
    cable.arrive(HEADER + ARP)
    assert net.receive() == HEADER + ARP
    net.remove("d0")
    command = [tool("tshark"), "-n", "-r", str(path), "-T", "fields", "-e", "frame.time_epoch"]
    done = subprocess.run([*command, "-e", "arp.src.proto_ipv4"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["2.500000000\t10.0.0.1"] * 2 + [""]


def test_a_dump_that_fails_stops_and_the_frames_go_on(plug: Plug) -> None:
    net, cable = plug()
    with pytest.raises(BackendError, match="No space left"):
        net.add(parse("dump,id=d0,file=/dev/full"))
    dump = Dump(parse("dump,id=d0,file=/dev/null"), False, lambda: 0, 0)
    dump._file._file.close()
    dump._file._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - closed by close()
    for number in range(3):
        assert not dump.keeps(frame(number), parse("dump,id=d0,file=x").queue)
    assert "No space left" in dump.failed
    dump.close()
    assert cable.heard == []


# Real back ends


def test_held_frames_reach_a_neighbour_on_a_hub(tmp_path: Path, hold: OutputHold) -> None:
    neighbour = HubPort(str(tmp_path))
    net = FilteredNet(HubPort(str(tmp_path)))
    protect([net], hold)
    net.transmit(ARP)
    assert neighbour.receive() is None
    hold.cut(1)
    hold.release(1)
    assert neighbour.receive() == ARP
    net.transmit(ARP[::-1])
    unprotect([net])
    assert neighbour.receive() == ARP[::-1]
    for end in (net, neighbour):
        end.close()


def test_a_stream_that_two_threads_use_keeps_its_frames_whole(tmp_path: Path, hold: OutputHold) -> None:
    """The guest's thread receives (which also flushes) while the other one releases to a slow reader."""
    path = str(tmp_path / "s")
    net = FilteredNet(Stream(path, server=True))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    protect([net], hold)
    assert net.receive() is None
    count = 600
    for number in range(count):
        net.transmit(frame(number, 1500))
    hold.cut(1)
    got: list[int] = []

    def read() -> None:
        for _ in range(count):
            got.append(number_of(read_frame(peer)[1]))

    threads = [threading.Thread(target=hold.release, args=(1,)), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    while threads[1].is_alive():
        net.receive()
    for thread in threads:
        thread.join(30)
    assert (got, net.dropped) == (list(range(count)), 0)
    peer.close()
    net.close()


@pytest.mark.skipif(os.geteuid() != 0 or not Path(tap.DEVICE).exists(), reason="needs root and /dev/net/tun")
def test_an_announcement_leaves_a_tap(tool: Callable[[str], str]) -> None:
    net = FilteredNet(Tap("colotest0"), muted=True)
    subprocess.run([tool("ip"), "link", "set", "colotest0", "up"], check=True)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035)) as listener:
            listener.bind(("colotest0", 0x8035))
            listener.settimeout(10)
            net.set_offloads(checksum=False, tso4=False, tso6=False)
            announce(net, MAC)
            net.unmute()
            announce(net, MAC)
            heard = listener.recv(2000)
    finally:
        net.close()
    assert net.muted_frames == 1
    assert heard == (
        b"\xff" * 6 + MAC + bytes.fromhex("8035 0001 0800 06 04 0003") + (MAC + bytes(4)) * 2 + bytes(18)
    )


def test_an_announcement_is_a_rarp_request_for_itself(
    tool: Callable[[str], str], tmp_path: Path, plug: Plug
) -> None:
    """RFC 903: what Wireshark makes of it.  Held output does not hold it: it is the node's own word."""
    net, cable = plug()
    hold = OutputHold()
    protect([net], hold)
    announce(net, MAC)
    announce(cable, MAC)
    assert cable.heard[0] == cable.heard[1]
    assert len(cable.heard[0]) == 60
    captured = FilteredNet(Nowhere())
    captured.add(parse(f"dump,id=d0,file={tmp_path / 'b'}"))
    captured.transmit(cable.heard[0])
    captured.close()
    fields = ["eth.dst", "arp.opcode", "arp.src.hw_mac", "arp.dst.hw_mac", "arp.src.proto_ipv4"]
    command = [tool("tshark"), "-n", "-r", str(tmp_path / "b"), "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ff:ff:ff:ff:ff:ff", "3", MAC.hex(":"), MAC.hex(":"), "0.0.0.0"]


# A machine


def test_a_launched_machine_has_its_cards_wrapped(tmp_path: Path) -> None:
    made: list[tuple[int, NetBackend]] = []

    def wrap(number: int, backend: NetBackend) -> NetBackend:
        made.append((number, backend))
        return FilteredNet(backend, f"net{number}", muted=True)

    boot = tmp_path / "boot"
    boot.write_bytes(b"\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa")
    words = LaunchOptions(
        boot_sector=str(boot), nets=(f"hub={tmp_path / 'hub'}", "none"), pcaps=(str(tmp_path / "p"),)
    )
    with launch(words, wrap=wrap) as launched:
        backends = [port.backend for port in launched.machine.nets]
        assert all(isinstance(each, FilteredNet) for each in backends)
        assert [type(backend).__name__ for _, backend in made] == ["PcapTap", "Nowhere"]
        assert [number for number, _ in made] == [0, 1]
        backends[0].transmit(ARP)
    assert backends[0].fileno() == -1
    assert (tmp_path / "p").stat().st_size == 24, "a muted node's frame passed nobody"


def test_a_card_with_offloads_may_be_plugged_into_nothing_behind_filters(tmp_path: Path) -> None:
    config = PcConfig(nets=[NetConfig(mac(0), offloads=True)])
    Backends([FilteredNet(FilteredNet(Nowhere()))]).fitted(config)
    net = FilteredNet(HubPort(str(tmp_path)))
    with pytest.raises(ConfigError, match="do not agree on offloads"):
        Backends([net]).fitted(config)
    net.close()
