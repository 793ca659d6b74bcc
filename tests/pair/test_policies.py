"""``kill -9`` of either node at a moment that nobody chose, under every policy: no client notices.

The guests are real Linux, their clients ordinary TCP connections, some of them older than the pair's last
checkpoint and some younger.  Each counts (:mod:`tests.pair.crowd`), so that what is lost, repeated or of
another state shows.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from tests.network.support import needs_root
from tests.pair.icmp import Asking
from tests.pair.mischief import patient
from tests.pair.nodes import until
from tests.pair.service import POLICIES, Service, campaign

pytestmark = needs_root

Serve = Callable[[str], Service]
SEED = 4
COUNTS = (1, 4, 16)
DEATHS = ((1, "primary"), (4, "secondary"), (4, "primary"), (16, "primary"))
"""How many clients there are, and who dies."""
CAMPAIGN_KILLS = 50
CLOSE_MS = 20
RESEED_MS = 2000
"""CRNG_RESEED_START_INTERVAL of Linux's drivers/char/random.c is a second."""
INTERRUPTS = 200
"""It takes in sixty-four at once."""


@pytest.mark.parametrize("policy", POLICIES)
def test_no_client_notices_a_death(serve: Serve, policy: str) -> None:
    """The first client outlives them all.

    Each survivor goes on with what the one before it had, translations of translations included.
    """
    choice = random.Random(SEED)
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy])
    for count, victim in DEATHS:
        service.clients(count)
        service.a_while(choice)
        if victim == "secondary":
            secondary.kill()
        else:
            primary.kill()
            primary = secondary
        service.crowd.go_on()
        secondary = service.protect_again(primary, *POLICIES[policy])
    service.is_whole()
    assert (primary.facts["generation"], secondary.status) == (len(DEATHS), "colo")


def test_a_guest_whose_first_connections_are_younger_than_the_checkpoint(serve: Serve) -> None:
    """The two guests draw secrets of their own for sequence numbers and time stamps.

    QEMU's rewriter leaves time stamps alone: there a client drops what the survivor sends (RFC 7323, PAWS) on
    about half of such connections.  Linux draws the secret at its first connection, from a generator that
    takes in the times of interrupts once a second: these differ when there were some since the checkpoint.
    """
    service = serve("kv")
    primary = service.alone(*POLICIES["colo"], mischief=patient)
    with Asking(service) as asking:
        began_ms = asking.clock_ms()
        until(lambda: asking.clock_ms() - began_ms > RESEED_MS)
        survivor = service.protect_again(primary)
        for _ in range(INTERRUPTS):
            asking.echo()
    epoch = primary.epoch
    service.clients(4)
    assert primary.epoch == epoch, "there was a checkpoint, with which the survivor learned the secrets"
    primary.kill()
    service.is_whole()
    assert survivor.facts["failover"] == "completed"


def test_a_survivor_reads_the_log_to_its_end(serve: Serve) -> None:
    """It was stopped until the primary waited for it, so there are words behind a mark, and nobody to tell.

    The arbiter is a person: it goes on following until it is told to take over.
    """
    service = serve("kv")
    primary, survivor = service.pair(*POLICIES["lockstep"], "--arbiter", "manual")

    def count(name: str) -> int:
        return int(primary.facts["statistics"][name])

    service.clients(1)
    until(lambda: count("log-lag-ms") < CLOSE_MS, "the guests do not come close")
    survivor.signal(signal.SIGSTOP)
    stalls = count("stalls")
    until(lambda: count("stalls") > stalls, "the primary does not wait")
    words = count("log-words")  # of both kinds
    marks = count("marks")
    primary.kill()
    survivor.signal(signal.SIGCONT)
    survivor.told("arbiter")
    survivor.execute("x-colo-lost-heartbeat")
    service.is_whole()
    assert survivor.told("took-over")["log_words"] >= words - marks


@pytest.mark.long
@campaign
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["redis", "kv"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_campaign(serve: Serve, name: str, count: int, policy: str) -> None:
    choice = random.Random(SEED + count)
    service = serve(name)
    primary, secondary = service.pair(*POLICIES[policy])
    service.clients(count)
    for _ in range(CAMPAIGN_KILLS):
        service.a_while(choice)
        victim = choice.choice([primary, primary, secondary])
        victim.kill()
        service.crowd.go_on()
        primary = secondary if victim is primary else primary
        secondary = service.protect_again(primary, *POLICIES[policy])
    service.is_whole()
