"""A Linux network stack of its own in a namespace, which serves, and talks to its peer's service.

    python -m tests.rewrite.stack guest|client SOCKET SEED TCP_TIMESTAMPS VNET

Hands the descriptor of its TAP over SOCKET, waits for a word, and then opens connections to the other role's
service: what it says on them, and what it expects, follows from SEED.  Says ``d`` when all was right.
TCP_TIMESTAMPS is the sysctl: 1 adds a secret to the clock, 2 does not.  VNET is 1 for a TAP with offloads.
"""

from __future__ import annotations

import array
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.compare.stack import (
    ADDRESSES,
    FIRST_PORT,
    IFF_NO_PI,
    IFF_TAP,
    SERVICE,
    TUNSETIFF,
    give,
    pattern,
    take,
)

IFF_VNET_HDR, VNET_HEADER = 0x4000, 12
TUNSETVNETHDRSZ, TUNSETOFFLOAD = 0x400454D8, 0x400454D0
CHECKSUMS_AND_SEGMENTS = 1 | 2 | 4
"""TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6."""
CONNECTIONS = {"client": 3, "guest": 1}
"""Of each family, at once."""
SIZES = (5, 40_000, 1, 3000, 200_000, 2)
PATIENCE_S = 40.0


def make_tap(role: str, vnet: bool) -> int:
    four, six, number = ADDRESSES[role]
    tap = os.open("/dev/net/tun", os.O_RDWR)
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet else 0)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", flags))
    if vnet:
        fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        fcntl.ioctl(tap, TUNSETOFFLOAD, CHECKSUMS_AND_SEGMENTS)
    Path("/proc/sys/net/ipv6/conf/tap0/accept_dad").write_text("0")
    for command in (
        f"link set tap0 address 02:00:00:00:00:0{number}",
        "link set lo up",
        f"address add {four}/24 dev tap0",
        f"address add {six}/64 dev tap0 nodad",
        "link set tap0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return tap


def serve(listener: socket.socket, seed: int) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=answer, args=(connection, seed), daemon=True).start()


def answer(connection: socket.socket, seed: int) -> None:
    pieces = random.Random(seed)
    with connection, suppress(EOFError):  # the end of what the peer has to say
        while True:
            (size,) = struct.unpack("!I", take(connection, 4, random.Random(0)))
            if take(connection, size, pieces) == pattern(size):
                give(connection, pattern(size)[::-1], pieces)


def converse(role: str, seed: int) -> None:
    """Every connection is open while the others are at work."""
    other, pieces, open_now = ADDRESSES["client" if role == "guest" else "guest"], random.Random(seed), []
    for number in range(CONNECTIONS[role]):
        for index, family in enumerate((socket.AF_INET, socket.AF_INET6)):
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(PATIENCE_S)
            connection.bind(("", FIRST_PORT + 2 * number + index))
            connection.connect((other[index], SERVICE))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_now.append(connection)
            for each in open_now:
                ask(each, SIZES[0], pieces)
    for size in SIZES:
        for each in open_now:
            ask(each, size, pieces)
    for each in open_now:
        each.shutdown(socket.SHUT_WR)
        if each.recv(1):
            raise SystemExit("more bytes")


def ask(connection: socket.socket, size: int, pieces: random.Random) -> None:
    connection.sendall(struct.pack("!I", size))
    give(connection, pattern(size), pieces)
    if take(connection, size, pieces) != pattern(size)[::-1]:
        raise SystemExit("other bytes")


def main() -> None:
    role, path, seed, stamps, vnet = sys.argv[1:]
    Path("/proc/sys/net/ipv4/tcp_timestamps").write_text(stamps)
    tap = make_tap(role, vnet == "1")
    for index, family in enumerate((socket.AF_INET, socket.AF_INET6)):
        listener = socket.create_server((ADDRESSES[role][index], SERVICE), family=family)
        threading.Thread(target=serve, args=(listener, int(seed)), daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as parent:
        parent.connect(path)
        parent.sendmsg([b"t"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap]))])
        if parent.recv(1):
            converse(role, int(seed))
            parent.sendall(b"d")
            parent.recv(1)  # the end of the test


if __name__ == "__main__":
    main()
