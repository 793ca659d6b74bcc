"""A Linux guest with clients: real nodes on the TAPs of a namespace, and sockets in there.

The network is made once for a test file, nodes for each test.  They are joined without a relay: on a Unix
socket what the primary said is in the secondary's queue, and policies count on it.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from colo.network.host import Network
from colo.network.links import TAPS
from colo.transport.address import Address
from tests.network.support import inside
from tests.pair.crowd import Counted, Crowd, Question, forget, kv, redis
from tests.pair.nodes import LIMIT_S, Bench, Mischief, Node, no_mischief, protect

T = TypeVar("T")
PORTS: dict[str, tuple[int, Callable[[int], Question]]] = {
    "redis": (6379, lambda number: redis(f"key{number}")),
    "kv": (7000, kv),
}
SELDOM = ("--checkpoint-delay", "3600000")
"""A checkpoint is made when something calls for it, and never because time has passed."""
POLICIES = {
    "periodic": ("--policy", "periodic", "--checkpoint-delay", "10"),
    "lockstep": ("--policy", "lockstep", *SELDOM),
    "colo": ("--policy", "colo", *SELDOM),
}
by_policy = pytest.mark.parametrize(
    "policy", [pytest.param("periodic", marks=pytest.mark.long), "lockstep", "colo"]
)
"""``periodic`` is what all the other files of this folder are about."""
campaign = pytest.mark.skipif(
    "COLO_TEST_CAMPAIGN" not in os.environ, reason="takes an hour, with its like: set COLO_TEST_CAMPAIGN=1"
)
PER_CONNECTION_MAX = 30
"""Replies of each connection before something happens, at most."""


class Service:
    """Nodes with ``guest``, one after another, and its clients."""

    def __init__(self, bench: Bench, network: Network, guest: str, snapshot: Path) -> None:
        self.bench, self.network, self.guest = bench, network, guest
        self.crowd = Crowd()
        self.crowd.start()
        self._snapshot = snapshot
        self._taps: dict[str, Node] = {}
        self._port, self._question = PORTS[guest]

    # Nodes

    def start(self, *words: str, incoming: bool, mischief: Mischief = no_mischief) -> Node:
        """A node on a TAP that no living node has."""
        begin = self.bench.incoming if incoming else self.bench.start
        return self._on_tap(begin, f"n{len(self.bench.nodes)}", *words, mischief=mischief)

    def _on_tap(
        self, begin: Callable[..., Node], name: str, *words: str, mischief: Mischief = no_mischief
    ) -> Node:
        tap = next(tap for tap in TAPS if tap not in self._taps or not self._taps[tap].alive)
        assert self.network.namespace is not None
        guest = (self.guest, "--load", str(self._snapshot), "--net", self.network.nic(tap))
        guest += ("--netns", self.network.namespace)
        node = self._taps[tap] = begin(name, *words, guest=guest, mischief=mischief)
        return node

    def tap(self, node: Node) -> str:
        return next(tap for tap, each in self._taps.items() if each is node)

    def pair(self, *words: str, mischief: Mischief = no_mischief) -> tuple[Node, Node]:
        """In COLO state; ``mischief`` is the primary's."""
        primary = self.start(*words, incoming=False, mischief=mischief)
        secondary = self.start(*words, incoming=True)
        primary.ready()
        secondary.ready()
        protect(primary, secondary.link)
        return primary, secondary

    def secured(self, certificates: Path, *words: str) -> tuple[Node, Node]:
        """In COLO state over TLS, both in the namespace; the secondary has the name that is dialled."""
        words = ("--certs", str(certificates), *words)
        primary = self._on_tap(self.bench.start, "a", *words)
        secondary = self._on_tap(self.bench.start, "localhost", *words, "--incoming", "tcp:localhost:0")
        primary.ready()
        secondary.ready()
        protect(primary, Address.parse(secondary.listens()))
        return primary, secondary

    def alone(self, *words: str, mischief: Mischief = no_mischief) -> Node:
        """A primary that nobody protects yet: :meth:`protect_again`."""
        return self.start(*words, incoming=False, mischief=mischief).ready()

    def protect_again(self, survivor: Node, *words: str) -> Node:
        """By a new node."""
        fresh = self.start(*words, incoming=True).ready()
        protect(survivor, fresh.link)
        return fresh

    # Clients

    def inside(self, work: Callable[[], T]) -> T:
        return inside(self.network, work)

    def connect(self) -> socket.socket:
        return self.inside(
            lambda: socket.create_connection((self.network.guest_address, self._port), LIMIT_S)
        )

    def clients(self, count: int) -> None:
        """So many connections in all, each of which counts."""
        while len(self.crowd.members) < count:
            self.crowd.add(self.connect(), self._question(len(self.crowd.members)))
        self.crowd.go_on(2)

    def a_while(self, choice: random.Random) -> None:
        """Until a moment that nobody chose, at which some reply has just come."""
        clients = len(self.crowd.members)
        self.crowd.count_to(self.crowd.replies + choice.randrange(1, clients * PER_CONNECTION_MAX))

    def is_whole(self) -> None:
        """Every client gets more replies, and a new one finds what they were told: nothing was done twice."""
        self.crowd.go_on()
        self.crowd.finish()
        with self.connection() as sock:
            for number, member in enumerate(self.crowd.members):
                again = Counted(sock, self._question(number), member.replies)
                again.ask()
                while again.replies == member.replies:
                    again.enough = True
                    assert again.hear() is None

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        sock = self.connect()
        try:
            yield sock
        finally:
            forget(sock)

    def forget_clients(self) -> None:
        """Their connections mean nothing to the guest any more."""
        self.crowd.close()
        self.crowd = Crowd()
        self.crowd.start()

    def answers(self) -> bool:
        """Does anybody listen?"""
        try:
            forget(self.connect())
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.crowd.close()
