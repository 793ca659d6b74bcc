"""Under every policy, a node is told to end, or that its peer is lost, while both live and clients work."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from tests.network.support import needs_root
from tests.pair.nodes import until
from tests.pair.service import POLICIES, Service, by_policy
from tests.pair.test_demand import LOST, halted, left
from tests.pair.wire import Wire

pytestmark = needs_root

SEED = 9
Serve = Callable[[str], Service]


@by_policy
@pytest.mark.parametrize("told", ["primary", "secondary"])
def test_the_other_one_is_left(serve: Serve, policy: str, told: str) -> None:
    """It hears so, and says nothing more to the network."""
    service = serve("redis")
    nodes = service.pair(*POLICIES[policy])
    service.clients(4)
    service.a_while(random.Random(SEED))
    winner, loser = nodes if told == "primary" else reversed(nodes)
    wire = Wire(service, loser)
    try:
        winner.execute(LOST)
        left(winner, told, "request")
        wire.read()  # what it said before the other one served
        halted(loser)
        service.is_whole()
        assert wire.read() == []
    finally:
        wire.close()


@by_policy
@pytest.mark.parametrize("told", ["primary", "secondary"])
def test_a_node_that_is_told_to_end(serve: Serve, policy: str, told: str) -> None:
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy])
    service.clients(4)
    service.a_while(random.Random(SEED))
    ending, other = (primary, secondary) if told == "primary" else (secondary, primary)
    ending.signal(signal.SIGTERM)
    assert ending.ended() == 0
    until(lambda: other.status == "running")
    service.is_whole()
