"""Questions that a Linux guest answers without any program of its own: echo and timestamp (RFC 792)."""

from __future__ import annotations

import socket
import struct

from tests.pair.nodes import LIMIT_S
from tests.pair.service import Service

ECHO_REPLY, ECHO, TIMESTAMP, TIMESTAMP_REPLY = 0, 8, 13, 14
IP_HEADER = 20


class Asking:
    """One question at a time, from the namespace; ``with Asking(service)``."""

    def __init__(self, service: Service) -> None:
        self._sock = service.inside(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        self._sock.connect((service.network.guest_address, 0))
        self._sock.settimeout(LIMIT_S)
        self._count = 0

    def echo(self) -> None:
        self._ask(ECHO, b"", ECHO_REPLY)

    def clock_ms(self) -> int:
        """The guest's: since midnight."""
        told = self._ask(TIMESTAMP, bytes(12), TIMESTAMP_REPLY)
        return int(struct.unpack(">III", told)[2])

    def _ask(self, kind: int, data: bytes, answered: int) -> bytes:
        self._count += 1
        number = struct.pack(">HH", 1, self._count & 0xFFFF)
        unsummed = struct.pack(">BBH", kind, 0, 0) + number + data
        self._sock.send(unsummed[:2] + checksum(unsummed) + unsummed[4:])
        while True:
            message = self._sock.recv(1 << 16)[IP_HEADER:]
            if message[0] == answered and message[4:8] == number:
                return message[8:]

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)
