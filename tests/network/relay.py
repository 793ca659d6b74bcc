"""A node for tests: frames between a TAP of the pair's network and the guest's, until it is killed.

    relay.py PAIR-NAMESPACE TAP GUEST-NAMESPACE

The guest is a real network stack, that of another namespace, and this is what a machine is to the
network: a process that holds a TAP.  It says "ready" when it holds its TAP, reads and drops until it
is given a line, and then carries frames both ways, as a secondary that takes over.
"""

from __future__ import annotations

import select
import sys

from colo.network.host import enter
from vmm.backends.tap import Tap


def main(pair: str, name: str, guest: str) -> None:
    enter(guest)
    inner = Tap("tap-a")
    enter(pair)
    outer = Tap(name)
    print("ready", flush=True)
    poll = select.poll()
    for readable in (sys.stdin, inner, outer):
        poll.register(readable, select.POLLIN)
    serving = False
    while True:
        poll.poll()
        if not serving and select.select([sys.stdin], [], [], 0)[0]:
            sys.stdin.readline()
            serving = True
            poll.unregister(sys.stdin)
            print("serving", flush=True)
        for source, sink in ((inner, outer), (outer, inner)):
            while (frame := source.receive()) is not None:
                if serving:
                    sink.transmit(frame)


if __name__ == "__main__":
    main(*sys.argv[1:])
