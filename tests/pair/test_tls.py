"""The same over TCP with mutual TLS, where a relay sees bytes only: nodes are killed by count.

``colo certs`` makes the certificates, as on two hosts.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from colo.transport.address import Address
from tests.cli.command import colo
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, Node, protect, until
from tests.pair.relay import TO_PRIMARY, TO_SECONDARY, Direction, Relay
from tests.pair.test_kill import survives

HOSTS = ("a", "b", "localhost")
"""Names of the nodes, and the name by which the secondary is reached."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    words = [word for host in HOSTS for word in ("--host", host)]
    done = colo("certs", directory, *words)
    assert done.status == 0, done.err
    return directory


@pytest.fixture
def pair(bench: Bench, certificates: Path) -> tuple[Node, Node, Relay]:
    """In COLO state over TLS.  The secondary's own certificate has the name that is dialled."""
    certs = ("--certs", str(certificates))
    primary = bench.start("a", *certs)
    secondary = bench.start("localhost", *certs, "--incoming", "tcp:localhost:0")
    primary.ready()
    secondary.ready()
    target = Address.parse(secondary.listens())
    relay = Relay(Address(host="localhost"), target, opaque=True)
    bench.relays.append(relay)
    protect(primary, relay.address)
    return primary, secondary, relay


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
