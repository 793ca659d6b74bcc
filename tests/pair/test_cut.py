"""The link is cut and both nodes live; or one was stopped for so long that it was taken for dead.

What matters is who speaks: with an arbiter that both can ask exactly one node goes on, and with a person
as the arbiter nobody does until told.
"""

from __future__ import annotations

import signal

import pytest

from colo.messages import (
    CheckpointReply,
    CheckpointRequest,
    RamPages,
    Released,
    VmstateReceived,
    VmstateSize,
)
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.pair.relay import TO_PRIMARY, TO_SECONDARY, Direction, Moment, Relay

SHORT = ("--heartbeat", "20", "--silence", "300")
WORDS = (CheckpointRequest, CheckpointReply, RamPages, VmstateSize, VmstateReceived, Released)


def one_goes_on(primary: Node, secondary: Node) -> None:
    """The other one is halted, and says nothing more."""
    nodes = (primary, secondary)
    until(lambda: sorted(node.status for node in nodes) == ["postmigrate", "running"])
    winner, loser = sorted(nodes, key=lambda node: node.status == "postmigrate")
    heard = loser.said
    before = max(last(primary.said), last(secondary.said))
    until(lambda: last(winner.said) > before + 2)
    assert loser.said == heard, "a loser speaks"
    assert not loser.execute("query-status")["running"]
    if winner is secondary:
        repeated(primary.said, secondary.said)
    else:
        assert primary.said == text(last(primary.said) + 1)[: len(primary.said)]
        assert secondary.said == b""


def cut_at(relay: Relay, word: type, *directions: Direction) -> None:
    moment = relay.rule = Moment(word, lambda _: relay.cut(*directions), 3)
    assert moment.reached.wait(LIMIT_S)


@pytest.mark.parametrize("word", WORDS)
def test_a_cut_link(bench: Bench, word: type) -> None:
    primary, secondary, relay = bench.pair(*SHORT)
    cut_at(relay, word)
    one_goes_on(primary, secondary)


@pytest.mark.parametrize("direction", [TO_PRIMARY, TO_SECONDARY])
@pytest.mark.parametrize("word", [CheckpointRequest, VmstateReceived])
def test_half_a_cut_link(bench: Bench, word: type, direction: Direction) -> None:
    primary, secondary, relay = bench.pair(*SHORT)
    cut_at(relay, word, direction)
    one_goes_on(primary, secondary)


def test_sockets_that_are_closed_in_between(bench: Bench) -> None:
    primary, secondary, relay = bench.pair()
    relay.sever()
    one_goes_on(primary, secondary)


@pytest.mark.parametrize("told", ["a", "b"])
def test_a_person_decides(bench: Bench, told: str) -> None:
    primary, secondary, relay = bench.pair(*SHORT, "--arbiter", "manual")
    relay.cut()
    primary.told("arbiter")
    secondary.told("arbiter")
    until(lambda: primary.facts["failover"] == secondary.facts["failover"] == "active")
    heard = primary.said
    assert secondary.said == b""
    assert "running" not in (primary.status, secondary.status)
    winner = bench.nodes[told]
    winner.execute("x-colo-lost-heartbeat")
    until(lambda: last(winner.said) > last(heard) + 2)
    assert winner.event("COLO_EXIT")["reason"] == "error", "the link was lost before a person said so"
    if winner is secondary:
        assert primary.said == heard, "nobody told it to speak"
        repeated(heard, secondary.said)
    else:
        assert secondary.said == b""
    assert sum(node.status == "running" for node in (primary, secondary)) == 1


def test_a_primary_that_was_stopped_for_too_long(bench: Bench) -> None:
    primary, secondary, _ = bench.pair(*SHORT)
    until(lambda: primary.epoch >= 3)
    primary.signal(signal.SIGSTOP)
    heard = primary.said
    assert secondary.event("COLO_EXIT") == {"mode": "secondary", "reason": "error"}
    until(lambda: last(secondary.said) > last(heard) + 2)
    primary.signal(signal.SIGCONT)
    until(lambda: primary.status == "postmigrate", f"the revived primary is not halted: {primary.log}")
    assert primary.said == heard, "the revived primary speaks"
    repeated(heard, secondary.said)


def test_a_secondary_that_was_stopped_for_too_long(bench: Bench) -> None:
    primary, secondary, _ = bench.pair(*SHORT)
    until(lambda: primary.epoch >= 3)
    secondary.signal(signal.SIGSTOP)
    assert primary.event("COLO_EXIT") == {"mode": "primary", "reason": "error"}
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 2)
    secondary.signal(signal.SIGCONT)
    one_goes_on(primary, secondary)


def test_a_short_stop_is_no_death(bench: Bench) -> None:
    primary, secondary, _ = bench.pair()
    for node in (primary, secondary):
        epoch = primary.epoch
        node.signal(signal.SIGSTOP)
        node.signal(signal.SIGCONT)
        until(lambda epoch=epoch: primary.epoch > epoch + 3)  # type: ignore[misc]
    assert primary.migration == "colo"
