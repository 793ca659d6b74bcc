"""The pair's network with real namespaces, TAPs, clients and deaths."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.errors import NetworkError
from colo.network.host import Network, Publish
from tests.network.support import (
    ROOT,
    WAIT_S,
    descriptors,
    ended,
    inhabitants,
    inside,
    namespace_of,
    needs_root,
    running,
    said,
    script,
    tell,
)
from vmm.backends.net import VNET_HEADER, parse
from vmm.backends.tap import Tap

GUEST_MAC = bytes.fromhex("525400123456")
DISCARD_PORT = 9
SUPERVISOR = """
import sys, signal
sys.path.insert(0, sys.argv[1])
from colo.network.host import Network
network = Network("colo-test", publish=[(0, 6379)])
network.start()
if len(sys.argv) > 2:
    signal.signal(signal.SIGINT, lambda *_: None)
print(network.pid, flush=True)
for line in sys.stdin:
    print(network.stats()["open"], flush=True)
"""

pytestmark = needs_root


def announce(tap: Tap) -> None:
    """The guest says where it is: a gratuitous ARP (RFC 826, RFC 5227)."""
    address = socket.inet_aton("10.77.0.2")
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + address + bytes(6) + address
    tap.transmit(bytes(VNET_HEADER) + b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + arp)


def frames_until_for_guest(tap: Tap) -> list[bytes]:
    """What comes, with the first frame for the guest as the last."""
    heard = []
    while select.select([tap], [], [], WAIT_S)[0]:
        frame = tap.receive()
        if frame is None:
            continue
        heard.append(frame)
        if frame[VNET_HEADER : VNET_HEADER + 6] == GUEST_MAC:
            return heard
    raise AssertionError(f"no frame came for the guest: {heard}")


def datagram_at(tap: Tap) -> bytes:
    """The payload of the next UDP datagram for the guest."""
    ip_header = VNET_HEADER + 14
    return frames_until_for_guest(tap)[-1][ip_header + 28 :]


def client_of(network: Network, ip: str) -> socket.socket:
    """A UDP client inside, which knows the guest's hardware address."""
    words = ["neighbour", "replace", network.guest_address, "lladdr", GUEST_MAC.hex(":"), "dev", "br0"]
    network.run([ip, *words], check=True)
    made = inside(network, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.connect((network.guest_address, DISCARD_PORT))
    return made


def forwarding(network: Network, ip: str, tap: str) -> bool:
    shown = network.run([ip, "-d", "link", "show", tap], capture_output=True, text=True).stdout
    return "state forwarding" in shown


def opened(network: Network, ip: str, name: str) -> Tap:
    """A TAP that a node holds and the bridge serves."""
    made = inside(network, lambda: Tap(name))
    for _ in range(1000):  # each look takes longer than the kernel needs for its part
        if forwarding(network, ip, name):
            return made
    raise AssertionError(f"{name} does not forward")


def test_frames_for_a_dead_nodes_guest_reach_the_survivor_at_once(
    network: Network, tool: Callable[[str], str]
) -> None:
    ip = tool("ip")
    client = client_of(network, ip)
    for died, survives in (("tap-a", "tap-b"), ("tap-b", "tap-a"), ("tap-a", "tap-b")):
        first, second = opened(network, ip, died), opened(network, ip, survives)
        announce(first)
        client.send(b"to whoever serves")
        assert datagram_at(first) == b"to whoever serves"
        assert datagram_at(second) == b"to whoever serves"
        first.close()
        client.send(b"after the death")  # one, at once, without a word from the survivor
        assert datagram_at(second) == b"after the death"
        second.close()
    client.close()


def test_what_one_nodes_guest_says_does_not_come_to_the_other(
    network: Network, tool: Callable[[str], str]
) -> None:
    ip = tool("ip")
    client = client_of(network, ip)
    speaks, listens = opened(network, ip, "tap-a"), opened(network, ip, "tap-b")
    announce(speaks)  # to everybody, and before the datagram
    client.send(b"then this")
    heard = frames_until_for_guest(listens)
    assert heard[-1][VNET_HEADER : VNET_HEADER + 6] == GUEST_MAC
    assert GUEST_MAC not in {frame[VNET_HEADER + 6 : VNET_HEADER + 12] for frame in heard}
    for each in (client, speaks, listens):
        each.close()


def test_a_clients_connection_outlives_the_node_that_served_it(network: Network, guest: Network) -> None:
    assert network.namespace is not None
    assert guest.namespace is not None
    relays = [script("relay", network.namespace, tap, guest.namespace) for tap in network.taps]
    with running(guest.command(script("echo", "10.77.0.2", "6379"))) as service:
        assert said(service) == "ready"
        # One TAP of the guest's network can be held by one node at a time, as one guest by one node.
        with running(relays[0]) as first:
            assert said(first) == "ready"
            tell(first, "serve")
            assert said(first) == "serving"
            client = socket.create_connection(("127.0.0.1", network.published[0].host_port), WAIT_S)
            client.sendall(b"before")
            assert client.recv(100) == b"before"
            first.kill()
            first.wait()
            client.sendall(b"while nobody serves")
        with running(relays[1]) as second:
            assert said(second) == "ready"
            tell(second, "serve")
            received = b""
            while received != b"while nobody serves":
                received += client.recv(100)
            client.sendall(b"after")
            assert client.recv(100) == b"after"
            client.close()
    assert network.stats()["accepted"] == 1
    assert network.stats()["resets"] == 0


def test_a_connection_made_while_nobody_serves_is_closed_and_counted(network: Network) -> None:
    with socket.create_connection(("127.0.0.1", network.published[0].host_port), WAIT_S) as client:
        assert client.recv(100) == b""
    assert network.stats()["unreachable"] == 1
    assert network.stats()["open"] == 0


def test_an_unreachable_service_of_a_living_guest_is_closed_and_counted(
    network: Network, tool: Callable[[str], str]
) -> None:
    network.run([tool("ip"), "address", "add", "10.77.0.2/32", "dev", "lo"], check=True)
    with socket.create_connection(("127.0.0.1", network.published[0].host_port), WAIT_S) as client:
        assert client.recv(100) == b""
    assert network.stats()["unreachable"] == 1


def test_what_is_inside(network: Network, tool: Callable[[str], str]) -> None:
    def show(*words: str) -> str:
        done = network.run([tool("ip"), *words], capture_output=True, text=True, check=True)
        return str(done.stdout)

    bridge = show("-d", "link", "show", "br0")
    for setting in (
        "02:00:0a:4d:00:01",
        "stp_state 0",
        "forward_delay 0",
        "mcast_snooping 0",
        "ageing_time 0",
    ):
        assert setting in bridge
    assert "10.77.0.1/24" in show("address", "show", "br0")
    assert "127.0.0.1/8" in show("address", "show", "lo")
    assert "rto_min lock 20ms" in show("route")
    for name in ("br0", "tap-a", "tap-b"):
        assert "inet6" not in show("address", "show", name)
    assert "default" not in show("route")


def test_the_guest_hears_nothing_that_nobody_sent(network: Network, tool: Callable[[str], str]) -> None:
    """The first frame is the client's: no discovery, solicitation or spanning tree before it."""
    ip = tool("ip")
    client = client_of(network, ip)
    tap = opened(network, ip, "tap-a")
    client.send(b"first")
    frame = None
    while frame is None:
        assert select.select([tap], [], [], WAIT_S)[0]
        frame = tap.receive()
    assert frame.endswith(b"first")
    tap.close()
    client.close()


def test_taps_can_be_added_and_used_again(network: Network) -> None:
    network.add_tap("tap-c")
    assert network.taps == ("tap-a", "tap-b", "tap-c")
    for _ in range(3):
        inside(network, lambda: parse(network.nic("tap-c"))).close()


def test_a_tap_name_that_is_none_is_refused_with_its_reason(network: Network) -> None:
    with pytest.raises(NetworkError, match="not the name of an interface: expected 1 to 15 bytes"):
        network.add_tap("tap/c")


def test_a_tap_in_use_cannot_be_taken_by_a_second_node(network: Network) -> None:
    holder = inside(network, lambda: Tap("tap-a"))
    with pytest.raises(Exception, match="in use by another process"):
        inside(network, lambda: Tap("tap-a"))
    holder.close()


def test_nothing_is_left_after_close() -> None:
    before, names = descriptors(), sorted(Path("/run").glob("netns/*"))
    network = Network("colo-test", publish=[(0, 6379)])
    network.start()
    assert network.pid is not None
    holder, namespace = network.pid, namespace_of(network.pid)
    assert namespace != namespace_of(os.getpid())
    network.close()
    assert not Path(f"/proc/{holder}").exists()
    assert inhabitants(namespace) == []
    assert descriptors() == before
    assert sorted(Path("/run").glob("netns/*")) == names
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", network.published[0].host_port), WAIT_S)
    network.close()


def test_a_failed_start_leaves_nothing() -> None:
    before = descriptors()
    taken = socket.create_server(("127.0.0.1", 0))
    network = Network("colo-test", publish=[(0, 1), (taken.getsockname()[1], 2)])
    with pytest.raises(NetworkError, match="in use by"):
        network.start()
    taken.close()
    assert network.pid is None
    assert descriptors() == before


def test_it_can_be_started_again_on_the_same_port() -> None:
    with Network("colo-test", publish=[(0, 6379)]) as network:
        port = network.published[0].host_port
        with socket.create_connection(("127.0.0.1", port), WAIT_S):
            pass
    with Network("colo-test", publish=[(port, 6379)]) as network:
        assert network.published == [Publish(port, 6379)]
        assert network.alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_holder_ends_with_its_supervisor(number: signal.Signals) -> None:
    with running([sys.executable, "-c", SUPERVISOR, str(ROOT)]) as supervisor:
        holder = int(said(supervisor))
        namespace, watch = namespace_of(holder), os.pidfd_open(holder)
        supervisor.send_signal(number)
        assert ended(watch)
        os.close(watch)
        assert inhabitants(namespace) == []


def test_the_holder_ends_with_its_supervisor_though_a_fork_of_it_lives() -> None:
    forked = SUPERVISOR.replace(
        "for line", "import os, time\nif os.fork() == 0:\n    sys.stdin.read()\n    os._exit(0)\nfor line"
    )
    with running([sys.executable, "-c", forked, str(ROOT)]) as supervisor:
        watch = os.pidfd_open(int(said(supervisor)))
        os.kill(supervisor.pid, signal.SIGKILL)
        assert ended(watch)
        os.close(watch)


def test_ctrl_c_in_the_terminal_is_not_for_the_holder() -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(ROOT), "ignores SIGINT"]
    with running(command, start_new_session=True) as supervisor:
        holder = int(said(supervisor))
        os.killpg(supervisor.pid, signal.SIGINT)
        os.kill(holder, signal.SIGINT)
        tell(supervisor, "still there?")
        assert said(supervisor) == "0"


def test_a_dead_holder_is_an_error_that_says_so(network: Network) -> None:
    assert network.pid is not None
    watch = os.pidfd_open(network.pid)
    os.kill(network.pid, signal.SIGKILL)
    assert ended(watch)
    os.close(watch)
    with pytest.raises(NetworkError, match="expected it to live as long as the pair"):
        network.stats()
    assert not network.alive


@pytest.fixture
def explained(tool: Callable[[str], str]) -> Iterator[Network]:
    """A network to be made by hand; its named namespace is gone afterwards."""
    tool("ip")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Network(f"colo-explained-{os.getpid()}", publish=[(port, 6379)])
    yield made
    subprocess.run(["ip", "netns", "delete", made.name], capture_output=True, check=False)


def test_the_explained_commands_make_the_same(network: Network, explained: Network, tmp_path: Path) -> None:
    links = [line for line in explained.explain() if line.startswith("ip ")]
    removal = [line for line in explained.explain_close() if line.startswith("ip ")]
    show = ["-d link show br0", "address show br0", "route", "-d link show tap-a", "-d link show tap-b"]
    looks = [f"ip -n {explained.name} {words} > {tmp_path}/{number}" for number, words in enumerate(show)]
    script = "\n".join(["set -e", *links, *looks, *removal])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/run/netns/{explained.name}").exists()
    for number, words in enumerate(show):
        ours = network.run(["ip", *words.split()], capture_output=True, text=True, check=True).stdout
        assert settled(str(ours)) == settled((tmp_path / str(number)).read_text())


def settled(shown: str) -> str:
    """Without what differs between any two: timers that run, and the TAPs' own random addresses."""
    return re.sub(r"\w+_timer +[\d.]+|link/ether (?!02:00:0a)\S+", "", shown)


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed: apt install socat")
def test_the_explained_forwarder_carries_a_client(explained: Network) -> None:
    echo = shlex.join(script("echo", explained.guest_address, "6379"))
    lines = [
        "set -e",
        *explained.explain(),
        f"ip -n {explained.name} address add {explained.guest_address}/32 dev lo",
        f"ip netns exec {explained.name} {echo} &",
        "read line",
        "kill $!",
        *explained.explain_close(),
    ]
    with running(["bash", "-c", "\n".join(lines)], start_new_session=True) as made:
        assert said(made) == "ready"
        with socket.create_connection(("127.0.0.1", explained.published[0].host_port), WAIT_S) as client:
            client.sendall(b"by hand")
            assert client.recv(100) == b"by hand"
        tell(made, "done")
        assert made.wait(WAIT_S) == 0
