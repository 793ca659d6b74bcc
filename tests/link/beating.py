"""A process that beats: ``beating.py DESCRIPTOR INTERVAL_MS SILENCE_MS`` on an inherited socket.

Says ``beating`` when it has begun and ``lost: REASON`` when its peer is lost; at the end of standard input
says how many beats it heard.
"""

from __future__ import annotations

import socket
import sys

from colo.transport.frames import FrameSocket
from colo.transport.heartbeat import Heartbeat


def main() -> None:
    descriptor, interval_ms, silence_ms = map(int, sys.argv[1:])

    def lost(reason: str) -> None:
        print(f"lost: {reason}", flush=True)

    beat = Heartbeat(FrameSocket(socket.socket(fileno=descriptor)), lost, interval_ms, silence_ms)
    print("beating", flush=True)
    sys.stdin.read()
    beat.close()
    print(f"heard: {beat.beats}", flush=True)


if __name__ == "__main__":
    main()
