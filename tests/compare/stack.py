"""A Linux network stack of its own, in a namespace, for recording what real TCP says.

    stack.py guest|client SOCKET SEED

Makes a TAP in the namespace that it was started in, hands its descriptor over SOCKET, and then serves
(guest) or runs the same few conversations (client).  SEED decides only how the work is cut in pieces.
"""

from __future__ import annotations

import array
import fcntl
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

ADDRESSES = {"guest": ("10.77.0.2", "fd00::2", 2), "client": ("10.77.0.1", "fd00::1", 1)}
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
SERVICE, FIRST_PORT = 8080, 40000
SIZES = (1, 3000, 200_000)
DATAGRAM = 4000
TCP_CLOSE = 7
"""First byte of TCP_INFO: nothing more is expected of this connection (include/net/tcp_states.h)."""
TRIES_S = 20.0
"""Limit of every wait: loss is repaired in well under a second."""


def make_tap(role: str) -> int:
    four, six, number = ADDRESSES[role]
    tap = Path("/dev/net/tun").open("r+b", buffering=0)  # noqa: SIM115  (open for the life of the program)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
    Path("/proc/sys/net/ipv6/conf/tap0/accept_dad").write_text("0")
    for command in (
        f"link set tap0 address 02:00:00:00:00:0{number}",
        "link set lo up",
        f"address add {four}/24 dev tap0",
        f"address add {six}/64 dev tap0 nodad",
        "link set tap0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    kept.append(tap)
    return tap.fileno()


kept: list[object] = []


def pattern(size: int) -> bytes:
    return bytes((n * n >> 3) & 0xFF for n in range(size))


def take(connection: socket.socket, size: int, pieces: random.Random) -> bytes:
    data = b""
    while len(data) < size:
        got = connection.recv(min(pieces.randrange(1, 9000), size - len(data)))
        if not got:
            raise EOFError(len(data))
        data += got
    return data


def give(connection: socket.socket, data: bytes, pieces: random.Random) -> None:
    at = 0
    while at < len(data):
        size = pieces.randrange(1, 6000)
        connection.sendall(data[at : at + size])
        at += size


def serve(family: int, address: str, seed: int) -> None:
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.bind((address, SERVICE))
    threading.Thread(target=answer, args=(datagrams,), daemon=True).start()
    listener = socket.create_server((address, SERVICE), family=socket.AddressFamily(family))
    pieces = random.Random(seed)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(EOFError):  # a client that only looked whether anyone is there
            for _ in range(2):
                (size,) = struct.unpack("!I", take(connection, 4, random.Random(0)))
                take(connection, size, pieces)
                give(connection, pattern(size), pieces)


def answer(datagrams: socket.socket) -> None:
    while True:
        _, sender = datagrams.recvfrom(100)
        datagrams.sendto(pattern(DATAGRAM), sender)


def close(connection: socket.socket) -> None:
    """Until the other side has acknowledged our FIN, which is the last that it says."""
    connection.shutdown(socket.SHUT_WR)
    for _ in range(int(TRIES_S / 0.01)):
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            return
        time.sleep(0.01)
    raise SystemExit("our FIN is not acknowledged")


def visit(family: int, address: str, seed: int) -> None:
    pieces = random.Random(seed)
    for number, size in enumerate(SIZES):
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(TRIES_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("", FIRST_PORT + number))
            connection.connect((address, SERVICE))
            for _ in range(2):
                connection.sendall(struct.pack("!I", size))
                give(connection, pattern(size), pieces)
                if take(connection, size, pieces) != pattern(size):
                    raise SystemExit("other bytes")
            if connection.recv(1):
                raise SystemExit("more bytes")
            close(connection)
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(TRIES_S)
        datagrams.bind(("", FIRST_PORT))
        datagrams.sendto(b"?", (address, SERVICE))
        if datagrams.recv(DATAGRAM + 1) != pattern(DATAGRAM):
            raise SystemExit("another datagram")


def main() -> None:
    role, path, seed = sys.argv[1:]
    descriptor = make_tap(role)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as parent:
        parent.connect(path)
        rights = array.array("i", [descriptor])
        parent.sendmsg([b"t"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        families = ((socket.AF_INET, 0), (socket.AF_INET6, 1))
        if role == "guest":
            for family, index in families:
                thread = threading.Thread(target=serve, args=(family, ADDRESSES[role][index], int(seed)))
                thread.daemon = True
                thread.start()
            parent.recv(1)  # the end of the test
            return
        parent.recv(1)  # the relay is at work
        for family, index in families:
            address = ADDRESSES["guest"][index]
            wait_for(family, address)
            visit(family, address, int(seed))
        parent.sendall(b"d")
        parent.recv(1)


def wait_for(family: int, address: str) -> None:
    """Until the service answers."""
    for _ in range(int(TRIES_S / 0.05)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", FIRST_PORT - 1))
            if probe.connect_ex((address, SERVICE)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("nobody answers")


if __name__ == "__main__":
    main()
