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
from tests.pair.service import POLICIES
from tests.pair.test_cut import one_goes_on

SHORT = ("--heartbeat", "20", "--silence", "400")
by_policy = pytest.mark.parametrize("policy", POLICIES)


@by_policy
@pytest.mark.parametrize("directions", [(), (TO_PRIMARY,), (TO_SECONDARY,)], ids=["both", "back", "forth"])
def test_a_cut_link(bench: Bench, certificates: Path, policy: str, directions: tuple[Direction, ...]) -> None:
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.cut(*directions)
    one_goes_on(primary, secondary)


@by_policy
@pytest.mark.parametrize("channel", Channel)
def test_one_connection_ends(bench: Bench, certificates: Path, policy: str, channel: Channel) -> None:
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.sever([channel])
    if (channel, policy) == (
        Channel.COMPANION,
        "periodic",
    ):  # which misses it as soon as somebody talks there
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


@pytest.mark.parametrize("policy", ["periodic", "colo"])
def test_what_the_pair_can_do_without_its_companion(bench: Bench, certificates: Path, policy: str) -> None:
    """Checkpoints do, and the pair stays one."""
    primary, secondary, relay = in_colo(bench, certificates, policy)
    relay.cut(channels=[Channel.COMPANION])
    before, epoch = last(primary.said), primary.epoch
    until(lambda: last(primary.said) > before + 2)
    assert primary.epoch > epoch
    assert (primary.migration, secondary.status) == ("colo", "colo")
    primary.kill()
    before = last(primary.said)
    until(lambda: last(secondary.said) > before + 2)
    repeated(primary.said, secondary.said)


def in_colo(bench: Bench, certificates: Path, policy: str) -> tuple[Node, Node, Relay]:
    """And the guest has said something."""
    primary, secondary, relay = bench.secured(certificates, *POLICIES[policy], *SHORT, mischief=impatient)
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 1)
    return primary, secondary, relay
