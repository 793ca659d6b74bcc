"""Connections between two living nodes are cut, all of them or one alone: exactly one node goes on.

Over TCP and TLS, as between two hosts, where what the kernel took is not held by the peer yet.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.messages import Channel
from tests.pair.history import last, repeated
from tests.pair.mischief import impatient
from tests.pair.nodes import Bench, Node, until
from tests.pair.relay import TO_PRIMARY, TO_SECONDARY, Direction, Relay
from tests.pair.service import POLICIES, by_policy
from tests.pair.test_cut import one_goes_on

SILENCE_MS = 300
DIRECTIONS = [
    pytest.param((), id="both"),
    pytest.param((TO_PRIMARY,), id="back", marks=pytest.mark.long),
    pytest.param((TO_SECONDARY,), id="forth"),
]


def in_colo(bench: Bench, certificates: Path, policy: str) -> tuple[Node, Node, Relay]:
    """The guest has said something, and from here on the nodes soon miss each other."""
    primary, secondary, relay = bench.secured(certificates, *POLICIES[policy], mischief=impatient)
    for node in (primary, secondary):
        node.execute("migrate-set-parameters", **{"x-heartbeat-silence": SILENCE_MS})
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 1)
    return primary, secondary, relay


@by_policy
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_cut_link(bench: Bench, certificates: Path, policy: str, directions: tuple[Direction, ...]) -> None:
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.cut(*directions)
    one_goes_on(primary, secondary)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_companion_ends(bench: Bench, certificates: Path, policy: str) -> None:
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.sever([Channel.COMPANION])
    if policy == "periodic":  # nobody misses it until somebody talks there
        primary.execute("migrate-set-parameters", **{"x-policy": "lockstep"})
    one_goes_on(primary, secondary)


@by_policy
@pytest.mark.parametrize("channel", [Channel.PROTOCOL, Channel.HEARTBEAT])
def test_one_connection_is_cut(bench: Bench, certificates: Path, policy: str, channel: Channel) -> None:
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.cut(channels=[channel])
    primary.execute("migrate-set-parameters", **{"x-policy": policy})  # which wants a checkpoint
    one_goes_on(primary, secondary)


def test_a_log_that_nobody_receives(bench: Bench, certificates: Path) -> None:
    """The heart beats, and no checkpoint is due for an hour; the primary's guest must not wait for ever."""
    primary, secondary, relay = in_colo(bench, certificates, "lockstep")
    relay.cut(channels=[Channel.COMPANION])
    one_goes_on(primary, secondary)


@pytest.mark.parametrize("policy", [pytest.param("periodic", marks=pytest.mark.long), "colo"])
def test_what_the_pair_can_do_without_its_companion(bench: Bench, certificates: Path, policy: str) -> None:
    """Checkpoints do, and the pair stays one."""
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.cut(channels=[Channel.COMPANION])
    before, epoch = last(primary.said), primary.epoch
    until(lambda: last(primary.said) > before + 2 and primary.epoch > epoch)
    assert (primary.migration, secondary.status) == ("colo", "colo")
    primary.kill()
    before = last(primary.said)
    until(lambda: last(secondary.said) > before + 2)
    repeated(primary.said, secondary.said)
