"""What a node says to the network, read where its TAP enters the namespace (packet(7))."""

from __future__ import annotations

import socket

from tests.pair.nodes import Node
from tests.pair.service import Service

ETH_P_ALL = 3
FRAME_MAX = 1 << 17


class Wire:
    """Frames from the node at this TAP; those to it are left out."""

    def __init__(self, service: Service, node: Node) -> None:
        self._sock = service.inside(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        )
        service.inside(lambda: self._sock.bind((service.tap(node), ETH_P_ALL)))

    def read(self) -> list[bytes]:
        """All that were said since the last time."""
        frames = []
        while True:
            try:
                frame, (_, _, kind, *_) = self._sock.recvfrom(FRAME_MAX)
            except BlockingIOError:
                return frames
            if kind != socket.PACKET_OUTGOING:
                frames.append(frame)

    def close(self) -> None:
        self._sock.close()
