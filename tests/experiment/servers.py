"""Servers for the load's client, which answer as a guest does, and wrong when told to.

A script is a function from the number of a request on its connection, from 1 on, and its bytes, to what is
answered; None: nothing, ever; an empty answer: the connection ends.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[[int, bytes], bytes | None]
Whole = Callable[[bytes], int]
"""How many bytes of what has come are a request; 0: not all of it is here."""


def a_line(data: bytes) -> int:
    return data.find(b"\n") + 1


def so_many(count: int) -> Whole:
    return lambda data: count if len(data) >= count else 0


def http(data: bytes) -> int:
    end = data.find(b"\r\n\r\n")
    return 0 if end < 0 else end + 4


def resp(data: bytes) -> int:
    """An array of two words, as Redis speaks."""
    lines = data.split(b"\r\n")
    return len(data) if len(lines) == 6 else 0


@contextmanager
def serving(script: Script, whole: Whole = a_line, *, once: bool = False) -> Iterator[int]:
    """A server on this host, its port; ``once``: a connection ends after its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, script, whole, once))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, script: Script, whole: Whole, once: bool) -> None:
    threads = []
    with suppress(OSError):  # the end
        while True:
            connection, _ = listener.accept()
            threads.append(threading.Thread(target=_serve, args=(connection, script, whole, once)))
            threads[-1].start()
    for thread in threads:
        thread.join()


def _serve(connection: socket.socket, script: Script, whole: Whole, once: bool) -> None:
    number, data = 0, b""
    with connection, suppress(ConnectionError):
        while chunk := connection.recv(1 << 20):
            data += chunk
            while length := whole(data):
                number += 1
                answer = script(number, data[:length])
                data = data[length:]
                if answer == b"":
                    return
                if answer is not None:
                    connection.sendall(answer)
                if once:
                    return
