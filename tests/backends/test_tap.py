"""A TAP interface, in a network namespace that ends with the test's thread."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from vmm.backends import tap
from vmm.backends.net import FRAME_MAX, VNET_HEADER
from vmm.backends.tap import Tap
from vmm.errors import BackendError

CLONE_NEWNET = 0x40000000
GUEST_MAC = bytes.fromhex("525400123456")
HOST_IP, GUEST_IP = "10.99.0.1", "10.99.0.2"
NO_OFFLOAD = bytes(VNET_HEADER)
NEEDS_CSUM = 0x01  # VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio 1.2, 5.1.6

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(tap.DEVICE).exists(), reason="needs root and /dev/net/tun"
)


def in_namespace(body: Callable[[], None]) -> None:
    """Run ``body`` in a new network namespace: namespaces belong to threads, and die with the last."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
                pytest.skip(f"no new network namespace: {os.strerror(ctypes.get_errno())}")
            body()
        except BaseException as exc:  # handed to the test's own thread
            failure.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True, text=True)


def configured(name: str) -> Tap:
    made = Tap(name)
    with suppress(FileNotFoundError):  # a kernel without IPv6 says nothing by itself anyway
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    ip("address", "add", f"{HOST_IP}/24", "dev", name)
    ip("link", "set", name, "up")
    ip("neighbour", "add", GUEST_IP, "lladdr", GUEST_MAC.hex(":"), "dev", name)
    return made


def wait_udp(backend: Tap) -> bytes:
    """The next UDP frame, past whatever else the host's stack has to say."""
    poll = select.poll()
    poll.register(backend.fileno(), select.POLLIN)
    while poll.poll(5000):
        while (frame := backend.receive()) is not None:
            if frame[VNET_HEADER + 12 : VNET_HEADER + 14] == b"\x08\x00" and frame[VNET_HEADER + 23] == 17:
                return frame
    raise AssertionError("no UDP frame in five seconds")


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp_from_guest(host_mac: bytes, port: int, payload: bytes) -> bytes:
    addresses = socket.inet_aton(GUEST_IP) + socket.inet_aton(HOST_IP)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0)
    total = ~checksum(head + addresses) & 0xFFFF
    head = head[:10] + total.to_bytes(2, "big") + addresses
    udp = struct.pack(">HHHH", 4000, port, 8 + len(payload), 0)  # checksum 0: none, RFC 768
    return host_mac + GUEST_MAC + b"\x08\x00" + head + udp + payload


def test_frames_pass_both_ways() -> None:
    def body() -> None:
        backend = configured("vmtest0")
        assert backend.offloads
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.bind((HOST_IP, 5000))
            host.settimeout(5)
            host.sendto(b"to the guest", (GUEST_IP, 4000))
            frame = wait_udp(backend)
            assert frame[VNET_HEADER:][:6] == GUEST_MAC
            assert frame.endswith(b"to the guest")
            host_mac = frame[VNET_HEADER + 6 : VNET_HEADER + 12]
            backend.transmit(memoryview(NO_OFFLOAD + udp_from_guest(host_mac, 5000, b"to the host!")))
            assert host.recvfrom(100) == (b"to the host!", (GUEST_IP, 4000))
        assert backend.receive() is None
        assert backend.dropped == 0
        backend.close()

    in_namespace(body)


def test_checksums_are_left_to_a_guest_that_can_and_done_for_one_that_cannot() -> None:
    """virtio 1.2, 5.1.6.4.1: VIRTIO_NET_HDR_F_NEEDS_CSUM only after GUEST_CSUM was negotiated."""

    def body() -> None:
        backend = configured("vmtest0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.sendto(b"odd", (GUEST_IP, 4000))
            assert wait_udp(backend)[0] & NEEDS_CSUM
            backend.set_offloads(checksum=False, tso4=True, tso6=True)
            host.sendto(b"odd", (GUEST_IP, 4000))
            frame = wait_udp(backend)
        assert not frame[0] & NEEDS_CSUM
        udp = frame[VNET_HEADER + 34 :]
        pseudo = frame[VNET_HEADER + 26 : VNET_HEADER + 34] + b"\0\x11" + udp[4:6]
        assert checksum(pseudo + udp + b"\0") == 0xFFFF
        backend.close()

    in_namespace(body)


def test_frames_that_the_kernel_refuses_are_counted() -> None:
    def body() -> None:
        backend = Tap("vmtest0")
        frame = b"\xff" * 12 + b"\x08\x00" + bytes(46)
        backend.transmit(NO_OFFLOAD + frame)  # the interface is down
        assert backend.dropped == 1
        ip("link", "set", "vmtest0", "up")
        backend.transmit(NO_OFFLOAD + frame)
        assert backend.dropped == 1
        backend.transmit(NO_OFFLOAD + frame[:13])
        backend.transmit(NO_OFFLOAD + b"x" * (FRAME_MAX + 1))
        nonsense = struct.pack("<BBHHHHH", NEEDS_CSUM, 0, 0, 0, 9999, 9999, 0)  # checksum beyond the frame
        backend.transmit(nonsense + frame)
        assert backend.dropped == 4
        backend.close()

    in_namespace(body)


def test_one_interface_has_one_holder() -> None:
    def body() -> None:
        first = Tap("vmtest0")
        with pytest.raises(BackendError, match="tap=vmtest0: in use by another process"):
            Tap("vmtest0")
        first.close()
        first.close()
        Tap("vmtest0").close()

    in_namespace(body)


def test_an_interface_of_another_kind_is_refused() -> None:
    def body() -> None:
        ip("tuntap", "add", "vmtest0", "mode", "tun")
        with pytest.raises(BackendError, match="not a plain TAP interface"):
            Tap("vmtest0")

    in_namespace(body)


def test_an_interface_deleted_in_use_is_an_error_and_not_a_loop() -> None:
    def body() -> None:
        backend = Tap("vmtest0")
        ip("link", "delete", "vmtest0")
        with pytest.raises(BackendError, match="look whether something deleted it"):
            backend.receive()
        with pytest.raises(BackendError, match="look whether something deleted it"):
            backend.transmit(NO_OFFLOAD + bytes(60))
        backend.close()

    in_namespace(body)


@pytest.mark.parametrize("name", ["", "a-name-too-long!", "tap%d", "a/b", "a b", ".", "é" * 8])
def test_what_is_no_interface_name_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match=r"expected 1 to 15 bytes .* try tap=tap0"):
        Tap(name)


def test_a_missing_device_says_what_to_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(BackendError, match=r"does not exist: .*modprobe tun"):
        Tap("vmtest0")


def test_without_privilege_it_says_what_to_type() -> None:
    """In a child process that gives up root: EPERM comes from the kernel, not from a stand-in."""
    if os.stat(tap.DEVICE).st_mode & 0o006 != 0o006:  # noqa: PTH116 - the mode of a device
        expected = "run as root, or use stream= or hub="
    else:
        expected = "ip tuntap add vmtest0 mode tap user 65534"
    program = (
        "import os; from vmm.backends.tap import Tap; os.setgroups([]); os.setuid(65534)\n"
        "try: Tap('vmtest0')\n"
        "except Exception as exc: print(exc)"
    )
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    assert expected in done.stdout
