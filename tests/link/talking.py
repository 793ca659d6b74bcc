"""A process that talks: ``talking.py DESCRIPTOR MEMORY``, to be interrupted at any moment.

Sockets come over the Unix socket DESCRIPTOR.  On each it says numbered words of many sizes on a companion
until it cannot any more, then writes how many it began as eight bytes to DESCRIPTOR.  How many the kernel
has taken whole stands in the memory file MEMORY at any time, also when this process was killed.
"""

from __future__ import annotations

import mmap
import select
import socket
import struct
import sys

from colo.errors import PeerLost
from colo.messages import Said
from colo.transport.companion import Companion
from colo.transport.frames import FrameSocket

COUNT = struct.Struct("@Q")
SIZES = (0, 20, 150, 1500, 60, 9000, 200, 40_000)
"""Bytes of payload: the last do not fit a small queue, and are taken in parts."""
BEHIND_MAX = 1 << 20


def word(number: int) -> Said:
    return Said(epoch=number, packets=[("net0", bytes(SIZES[number % len(SIZES)]))])


def talk(companion: Companion, held: memoryview) -> int:
    """The number of words that were begun, once it is over."""
    begun = 0
    try:
        while True:
            begun += 1
            if companion.send(word(begun - 1)):
                COUNT.pack_into(held, 0, begun)
            elif companion.backlog > BEHIND_MAX:
                select.select([], [companion], [])
                if companion.flush():
                    COUNT.pack_into(held, 0, begun)
    except PeerLost:
        return begun


def main() -> None:
    descriptor, memory = map(int, sys.argv[1:])
    control = socket.socket(fileno=descriptor)
    with mmap.mmap(memory, COUNT.size) as mapped, memoryview(mapped) as held:
        while True:
            _, descriptors, *_ = socket.recv_fds(control, 1, 1)
            if not descriptors:
                return
            COUNT.pack_into(held, 0, 0)
            companion = Companion(FrameSocket(socket.socket(fileno=descriptors[0])), lambda reason: None)
            control.sendall(COUNT.pack(talk(companion, held)))


if __name__ == "__main__":
    main()
