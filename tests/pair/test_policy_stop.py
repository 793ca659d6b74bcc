"""Under every policy, a node is stopped for so long that it is taken for dead, and then goes on.

The other one serves, and what was stopped has said its last word: not one frame of it reaches the network.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.network.support import needs_root
from tests.pair.history import last, repeated, text
from tests.pair.nodes import Bench, Node, until
from tests.pair.service import POLICIES, Service, by_policy
from tests.pair.wire import Wire

SEED = 8
SHORT = ("--heartbeat", "20", "--silence", "600")
"""A busy host must not look like a dead one before the test begins."""


@contextmanager
def stopped(node: Node) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    node.signal(signal.SIGSTOP)
    until(lambda: state(node) == "T", f"{node.name} does not stop")
    yield
    node.signal(signal.SIGCONT)


def state(node: Node) -> str:
    """Of the process, in proc(5)'s letters."""
    return Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(") ")[2][0]


def is_halted(node: Node) -> None:
    until(lambda: node.status == "postmigrate", f"{node.name} is not halted: {node.log}")


@needs_root
@by_policy
def test_a_revived_primary_says_nothing(serve: Callable[[str], Service], policy: str) -> None:
    choice = random.Random(SEED)
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy], *SHORT)
    service.clients(4)
    service.a_while(choice)
    wire = Wire(service, primary)
    try:
        with stopped(primary):
            wire.read()
            assert secondary.event("COLO_EXIT") == {"mode": "secondary", "reason": "error"}
            service.crowd.go_on()
        is_halted(primary)
        service.is_whole()
        assert wire.read() == [], "a primary that had lost spoke"
    finally:
        wire.close()


@needs_root
@by_policy
def test_a_revived_secondary_says_nothing(serve: Callable[[str], Service], policy: str) -> None:
    choice = random.Random(SEED)
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy], *SHORT)
    service.clients(4)
    service.a_while(choice)
    wire = Wire(service, secondary)
    try:
        with stopped(secondary):
            assert primary.event("COLO_EXIT") == {"mode": "primary", "reason": "error"}
            service.crowd.go_on()
        is_halted(secondary)
        service.is_whole()
        assert wire.read() == []
    finally:
        wire.close()


@by_policy
def test_a_console_after_a_stop(bench: Bench, policy: str) -> None:
    primary, secondary = bench.start("a", *POLICIES[policy], *SHORT), bench.incoming("b", *SHORT)
    primary.ready()
    secondary.ready()
    primary.migrate(secondary.link)
    until(lambda: primary.migration == "colo")
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 2)
    with stopped(primary):
        heard = primary.said
        until(lambda: last(secondary.said) > last(heard) + 2)
    is_halted(primary)
    assert primary.said == heard, "a primary that had lost spoke"
    repeated(heard, secondary.said)
    assert heard == text(last(heard) + 1)[: len(heard)]


@needs_root
@by_policy
def test_a_short_stop_is_no_death(serve: Callable[[str], Service], policy: str) -> None:
    choice = random.Random(SEED)
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy])
    service.clients(4)
    for node in (primary, secondary):
        service.a_while(choice)
        with stopped(node):
            pass
        service.crowd.go_on()
    assert (primary.migration, secondary.status) == ("colo", "colo")
    primary.kill()
    service.is_whole()
