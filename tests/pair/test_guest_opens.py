"""Connections that the guest opens itself, from Redis that is told to follow another one.

The two guests of policy ``colo`` draw their own port and sequence number for it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.network.support import needs_root
from tests.pair.master import KEY, Master, command
from tests.pair.nodes import LIMIT_S
from tests.pair.service import POLICIES, Service, by_policy

pytestmark = needs_root

SEED = 5


@contextmanager
def followed(service: Service) -> Iterator[Master]:
    """A master that the guest was told to follow just now."""
    host = str(service.network.plan.interface.ip)
    master = Master(service.inside(lambda: socket.create_server((host, 0))))
    master.listener.settimeout(LIMIT_S)
    master.start()
    try:
        port = b"%d" % master.listener.getsockname()[1]
        assert ask(service, b"REPLICAOF", host.encode(), port) == b"+OK\r\n"
        yield master
    finally:
        master.close()


def ask(service: Service, *words: bytes) -> bytes:
    """On a connection of its own; the first line of the answer."""
    with service.connection() as sock, sock.makefile("rb") as lines:
        sock.sendall(command(*words))
        return lines.readline() + (lines.readline() if words[0] == b"GET" else b"")


@by_policy
def test_it_outlives_both_nodes(serve: Callable[[str], Service], policy: str) -> None:
    choice = random.Random(SEED)
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy])
    with followed(service) as master:
        master.go_on(choice.randrange(1, 20))
        primary.kill()
        master.go_on()
        third = service.protect_again(secondary, *POLICIES[policy])
        master.go_on(choice.randrange(1, 20))
        secondary.kill()
        master.go_on()
        master.finish()
    assert ask(service, b"GET", KEY).split()[-1] == b"%d" % master.rounds
    assert third.status == "running"
