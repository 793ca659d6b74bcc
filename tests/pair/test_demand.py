"""A person says that the peer is lost: ``x-colo-lost-heartbeat``, on either side."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial

import pytest

from colo.errors import ControlError
from colo.messages import VmstateReceived
from tests.pair import mischief
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.pair.relay import Moment

LOST = "x-colo-lost-heartbeat"


def left(node: Node, mode: str, reason: str) -> None:
    assert node.event("COLO_EXIT") == {"mode": mode, "reason": reason}
    assert node.facts["failover"] == "completed"


def halted(node: Node) -> None:
    until(lambda: node.status == "postmigrate", f"{node.name} is not halted: {node.log}")


def test_the_primary_is_told(bench: Bench) -> None:
    primary, secondary, _ = bench.pair()
    primary.execute(LOST)
    left(primary, "primary", "request")
    left(secondary, "secondary", "error")
    halted(secondary)
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 2)
    said = primary.said
    assert said == text(last(said) + 1)[: len(said)]
    assert secondary.said == b""


def test_the_secondary_is_told(bench: Bench) -> None:
    primary, secondary, _ = bench.pair()
    secondary.execute(LOST)
    left(secondary, "secondary", "request")
    left(primary, "primary", "error")
    halted(primary)
    heard = primary.said
    until(lambda: last(secondary.said) > last(heard) + 2)
    assert primary.said == heard, "it speaks after it has lost"
    repeated(heard, secondary.said)


def test_both_are_told_and_one_wins(bench: Bench) -> None:
    """In the middle of a checkpoint, so that both have what they would need."""
    primary, secondary, relay = bench.pair()

    def tell_both(_: object) -> None:
        primary.execute(LOST)
        with suppress(ControlError):  # it has heard already that the primary left, and acted
            secondary.execute(LOST)

    moment = relay.rule = Moment(VmstateReceived, tell_both, 3)
    assert moment.reached.wait(LIMIT_S)
    left(primary, "primary", "request")
    until(lambda: sorted((primary.status, secondary.status)) == ["postmigrate", "running"])
    winner = primary if primary.status == "running" else secondary
    before = last(winner.said)
    until(lambda: last(winner.said) > before + 2)


def test_refused_when_there_is_no_pair(bench: Bench) -> None:
    primary, secondary, _ = bench.two()
    for node in (primary, secondary):
        with pytest.raises(ControlError, match="not in COLO state"):
            node.execute(LOST)


def test_refused_when_it_has_been_done(bench: Bench) -> None:
    primary, secondary, _ = bench.pair()
    primary.execute(LOST)
    left(primary, "primary", "request")
    for node in (primary, secondary):
        with pytest.raises(ControlError, match=r"not in COLO state|already activated"):
            node.execute(LOST)
    assert primary.status == "running"


def test_nobody_acts_without_the_arbiter(bench: Bench) -> None:
    """It cannot be asked until its directory is back; meanwhile a person may say so again."""
    primary, secondary, _ = bench.pair()
    away = bench.arbiter.with_name("away")
    bench.arbiter.rename(away)
    primary.execute(LOST)
    until(lambda: primary.facts["failover"] == "active" and primary.events("arbiter"))
    before = primary.said
    assert primary.execute("query-colo-status")["reason"] == "processing"
    secondary.told("arbiter")
    primary.execute(LOST)
    assert primary.said == before
    assert secondary.said == b""
    away.rename(bench.arbiter)
    until(lambda: sorted((primary.status, secondary.status)) == ["postmigrate", "running"])


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
def test_a_primary_that_is_told_to_end_hands_over(bench: Bench, how: str) -> None:
    primary, secondary, _ = bench.pair()
    until(lambda: primary.epoch >= 2)
    if how == "quit":
        primary.execute("quit")
    else:
        primary.signal(signal.SIGTERM)
    assert primary.ended() == 0
    left(secondary, "secondary", "error")
    until(lambda: last(secondary.said) > last(primary.said) + 2)
    repeated(primary.said, secondary.said)


def test_a_primary_that_is_told_to_end_as_a_checkpoint_begins(bench: Bench) -> None:
    """The guest's thread may be over when it is asked to pause, which is no fault of anybody."""
    primary = bench.start("a", mischief=partial(mischief.end_at_checkpoint, 3)).ready()
    secondary = bench.incoming("b").ready()
    primary.migrate(secondary.link)
    assert primary.ended() == 0
    until(lambda: last(secondary.said) > last(primary.said) + 2)
    repeated(primary.said, secondary.said)


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
def test_a_secondary_that_is_told_to_end_leaves(bench: Bench, how: str) -> None:
    primary, secondary, _ = bench.pair()
    until(lambda: primary.epoch >= 2)
    if how == "quit":
        secondary.execute("quit")
    else:
        secondary.signal(signal.SIGTERM)
    assert secondary.ended() == 0
    left(primary, "primary", "error")
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 2)
    assert secondary.said == b""
