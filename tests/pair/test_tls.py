"""The same over TCP with mutual TLS, where a relay sees bytes only: nodes are killed by count.

``colo certs`` makes the certificates, as on two hosts.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.transport.address import Address
from tests.network.support import needs_root
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.pair.relay import TO_PRIMARY, TO_SECONDARY, Direction, Relay
from tests.pair.service import POLICIES, Service, by_policy
from tests.pair.test_kill import survives

LONG = pytest.mark.long


@pytest.fixture(params=["periodic", pytest.param("lockstep", marks=LONG), pytest.param("colo", marks=LONG)])
def pair(bench: Bench, certificates: Path, request: pytest.FixtureRequest) -> tuple[Node, Node, Relay]:
    return bench.secured(certificates, "--policy", request.param)


class Count:
    """Kills a node when that many more bytes have passed in one direction."""

    def __init__(self, victim: Node, direction: Direction, count: int) -> None:
        self.reached = threading.Event()
        self._victim, self._direction, self._count = victim, direction, count
        self._first: int | None = None

    def __call__(self, direction: Direction, passed: int) -> None:
        if direction is not self._direction or self.reached.is_set():
            return
        self._first = passed if self._first is None else self._first
        if passed >= self._first + self._count:
            self._victim.kill()
            self.reached.set()


COUNTS = [
    (TO_SECONDARY, 1),
    (TO_SECONDARY, 5_000),
    (TO_SECONDARY, 20_011),
    (TO_PRIMARY, 1),
    (TO_PRIMARY, 300),
]


@pytest.mark.parametrize(("direction", "count"), COUNTS)
def test_the_secondary_takes_over(pair: tuple[Node, Node, Relay], direction: Direction, count: int) -> None:
    primary, secondary, relay = pair
    killed = relay.watch = Count(primary, direction, count)
    assert killed.reached.wait(LIMIT_S)
    survives(secondary, "secondary", last(primary.said))
    repeated(primary.said, secondary.said)


@pytest.mark.parametrize(("direction", "count"), COUNTS)
def test_the_primary_goes_on_alone(pair: tuple[Node, Node, Relay], direction: Direction, count: int) -> None:
    primary, secondary, relay = pair
    killed = relay.watch = Count(secondary, direction, count)
    assert killed.reached.wait(LIMIT_S)
    survives(primary, "primary", last(primary.said))
    said = primary.said
    assert said == text(last(said) + 1)[: len(said)]


def test_tcp_without_certificates_is_refused(bench: Bench) -> None:
    primary = bench.start("a").ready()
    primary.migrate(Address(host="localhost", port=9))
    until(lambda: primary.migration == "failed")
    assert "certificates" in primary.execute("query-migrate")["error-desc"]
    before = last(primary.said)
    until(lambda: last(primary.said) > before)


@needs_root
@by_policy
@pytest.mark.parametrize("victim", ["a", pytest.param("localhost", marks=LONG)])
def test_clients_of_a_pair_on_two_hosts(
    serve: Callable[[str], Service], certificates: Path, policy: str, victim: str
) -> None:
    """What the kernel took is not held yet: output waits until the other node says that it has the log."""
    choice = random.Random(len(policy))
    service = serve("redis")
    service.secured(certificates, *POLICIES[policy])
    service.clients(4)
    service.a_while(choice)
    service.bench.nodes[victim].kill()
    service.is_whole()
