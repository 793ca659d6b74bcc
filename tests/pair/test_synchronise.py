"""The initial synchronisation: whatever becomes of it, the primary's guest runs on unharmed.

And a later one to a good secondary succeeds.
"""

from __future__ import annotations

import socket
import threading

import pytest

from colo.messages import RamPages, VmstateReceived
from colo.transport.address import Address
from tests.pair.guests import lines, scribbler
from tests.pair.history import last, text
from tests.pair.nodes import LIMIT_S, Bench, Node, protect, until
from tests.pair.relay import Moment, Passing


def unharmed(primary: Node) -> None:
    assert primary.status == "running"
    assert primary.execute("query-colo-status")["mode"] == "none"
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 1)
    assert primary.said == text(last(primary.said) + 1)[: len(primary.said)]


def failed(primary: Node) -> str:
    """Why."""
    until(lambda: primary.migration == "failed")
    return str(primary.execute("query-migrate")["error-desc"])


def test_cancelled(bench: Bench) -> None:
    primary, secondary, relay = bench.two()
    go_on = threading.Event()

    def wait(_: Passing) -> None:
        assert go_on.wait(LIMIT_S)

    relay.rule = Moment(RamPages, wait)
    primary.migrate(relay.address)
    until(lambda: "RamPages(0)" in relay.words)
    primary.execute("migrate_cancel")
    until(lambda: primary.migration == "cancelled")
    assert primary.execute("query-migrate")["error-desc"] == "migrate_cancel"
    unharmed(primary)
    go_on.set()
    secondary.told("pairing-ended")
    assert secondary.migration == "failed"
    protect(primary, relay.address)
    unharmed_and_protected(primary)


def unharmed_and_protected(primary: Node) -> None:
    before, epoch = last(primary.said), primary.epoch
    until(lambda: last(primary.said) > before + 1 and primary.epoch > epoch)
    assert primary.said == text(last(primary.said) + 1)[: len(primary.said)]
    assert primary.execute("query-colo-status")["mode"] == "primary"


def test_cancelled_before_anybody_answered(bench: Bench) -> None:
    primary = bench.start("a").ready()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{bench.place}/deaf")
        deaf.listen()
        primary.migrate(Address.parse(f"unix:{bench.place}/deaf"))
        assert primary.migration == "setup"
        primary.execute("migrate_cancel")
        assert primary.migration == "cancelled"
    unharmed(primary)
    secondary = bench.incoming("b").ready()
    protect(primary, secondary.link)
    unharmed_and_protected(primary)


def test_cancelling_nothing_is_no_error(bench: Bench) -> None:
    primary = bench.start("a").ready()
    primary.execute("migrate_cancel")
    assert primary.migration == "none"


@pytest.mark.parametrize("word", [RamPages, VmstateReceived])
def test_the_secondary_dies(bench: Bench, word: type) -> None:
    """VmstateReceived: it may have held a whole machine, so the primary has to win before it goes on."""
    primary, secondary, relay = bench.two()

    def kill(_: Passing) -> tuple[bytes, ...]:
        secondary.kill()
        relay.rule = lambda _: ()  # nor what it had sent behind this word
        return ()

    relay.rule = Moment(word, kill)
    primary.migrate(relay.address)
    assert "the peer" in failed(primary)
    unharmed(primary)
    third = bench.incoming("c").ready()
    protect(primary, third.link)
    unharmed_and_protected(primary)


def test_the_primary_dies_and_the_secondary_waits_for_another(bench: Bench) -> None:
    primary, secondary, relay = bench.two()

    def kill(_: Passing) -> None:
        primary.kill()

    relay.rule = Moment(RamPages, kill)
    primary.migrate(relay.address)
    secondary.told("pairing-ended")
    assert secondary.status == "inmigrate"
    assert not secondary.execute("query-status")["running"]
    another = bench.start("c").ready()
    protect(another, secondary.link)
    unharmed_and_protected(another)
    assert secondary.said == b""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--ram", "24"), "RAM 16 MiB, this node has 24 MiB"),
        (("--pair", "q"), "pair p, this node belongs to q"),
        (("--epoch", "2027-01-01"), "configuration epoch_s"),
    ],
)
def test_a_node_that_does_not_fit_refuses(bench: Bench, words: tuple[str, ...], reason: str) -> None:
    primary, other = bench.start("a"), bench.incoming("b", *words)
    primary.ready()
    other.ready()
    primary.migrate(other.link)
    assert reason in failed(primary)
    assert reason in other.told("refused")["reason"]
    unharmed(primary)
    protect(primary, bench.incoming("c", "--arbiter", "manual").ready().link)
    unharmed_and_protected(primary)


def test_a_second_primary_is_refused(bench: Bench) -> None:
    """Neither of the pair is disturbed."""
    primary, secondary, _ = bench.pair()
    another = bench.start("c").ready()
    another.migrate(secondary.link)
    assert "follows another" in failed(another)
    unharmed(another)
    unharmed_and_protected(primary)


def test_nobody_is_there(bench: Bench) -> None:
    primary = bench.start("a").ready()
    primary.migrate(Address.parse(f"unix:{bench.place}/nobody"))
    assert "does a node listen there?" in failed(primary)
    unharmed(primary)


def test_a_guest_that_is_faster_than_the_link_is_slowed(bench: Bench) -> None:
    """It changes 8 MiB while the link carries one; the pause budget holds half of that."""
    primary, _, relay = bench.two("--pause-budget", "1", guest=scribbler(bench.place))
    relay.bytes_per_s = 8 << 20
    primary.migrate(relay.address)
    until(lambda: primary.execute("query-migrate").get("cpu-throttle-percentage", 0) >= 20)
    relay.bytes_per_s = None
    until(lambda: primary.migration == "colo")
    assert primary.execute("query-migrate")["ram"]["dirty-sync-count"] >= 3
    before = lines(primary.said)[-1]
    until(lambda: lines(primary.said)[-1] > before + 3, "it is still slowed")
