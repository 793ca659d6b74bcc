"""The kv guest's TAKE, the program itself: compiled for this host, in a network of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import string
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.network.host import Network
from tests.network.support import inside, needs_root

ROOT = Path(__file__).resolve().parents[2]
LETTERS = (string.ascii_lowercase * 2600)[:65536].encode() * 4
PORT, LIMIT_S = 7000, 30.0

pytestmark = needs_root


@pytest.fixture(scope="module")
def connect() -> Iterator[Callable[[], socket.socket]]:
    """A new connection to a running kvd."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: apt install gcc")
    with tempfile.TemporaryDirectory() as folder, Network("colo-test-kvd") as network:
        program = Path(folder) / "kvd"
        source = ROOT / "guests/kv/kvd.c"
        subprocess.run(["gcc", "-std=c11", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
        with subprocess.Popen(network.command([str(program)]), start_new_session=True) as process:
            try:
                yield lambda: inside(network, lambda: connected(process))
            finally:
                kill_both(process)


def connected(process: subprocess.Popen[bytes]) -> socket.socket:
    """Waits until it listens."""
    while True:
        try:
            made = socket.create_connection(("127.0.0.1", PORT), LIMIT_S)
        except ConnectionRefusedError:
            assert process.poll() is None
        else:
            return made


def kill_both(process: subprocess.Popen[bytes]) -> None:
    """It and the process that dirties memory."""
    os.killpg(process.pid, signal.SIGKILL)


def answers(connection: socket.socket, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        chunk = connection.recv(1 << 16)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    return data.splitlines()


@pytest.mark.parametrize("size", [1, 4095, 4096, 65535, 65536, 65537, 200_000])
def test_it_takes_what_was_announced(connect: Callable[[], socket.socket], size: int) -> None:
    with connect() as connection:
        connection.sendall(b"TAKE %d\n" % size + LETTERS[:size])
        assert answers(connection, 1) == [b"TOOK %d 0" % size]


@pytest.mark.parametrize("place", [0, 5000, 65535, 65536, 199_999])
def test_one_letter_that_differs_is_seen(connect: Callable[[], socket.socket], place: int) -> None:
    size = 200_000
    letters = LETTERS[:place] + b"!" + LETTERS[place + 1 : size]
    with connect() as connection:
        connection.sendall(b"TAKE %d\n" % size + letters)
        assert answers(connection, 1) == [b"TOOK %d 1" % size]


def test_letters_in_another_order_are_seen(connect: Callable[[], socket.socket]) -> None:
    with connect() as connection:
        connection.sendall(b"TAKE 3000\n" + LETTERS[1:3001])
        (answer,) = answers(connection, 1)
        assert answer.startswith(b"TOOK 3000 ")
        assert answer != b"TOOK 3000 0"


def test_requests_around_it_are_answered_in_order(connect: Callable[[], socket.socket]) -> None:
    with connect() as connection:
        connection.sendall(b"PING\nTAKE 10\n" + LETTERS[:10] + b"TAKE 5\n" + LETTERS[:5] + b"PING\nTAKE 0\n")
        assert answers(connection, 5) == [b"PONG", b"TOOK 10 0", b"TOOK 5 0", b"PONG", b"ERR"]


def test_a_line_in_two_parts_and_letters_one_by_one(connect: Callable[[], socket.socket]) -> None:
    with connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (b"TA", b"KE 4\n", b"a", b"b", b"c"):
            connection.sendall(part)
        connection.sendall(b"dPING\n")
        assert answers(connection, 2) == [b"TOOK 4 0", b"PONG"]
