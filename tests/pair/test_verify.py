"""Nothing that was written is missed: whole machines are compared after every checkpoint.

The guest rewrites most of its RAM all the time and is reset in between; both ways of finding changed
pages are held to it.  That the comparison itself sees something is shown by a page changed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from msgspec import structs

from colo.messages import RamPages
from colo.transport.wire import HEADER, Encoder
from tests.network.support import needs_root
from tests.pair.history import last, repeated
from tests.pair.nodes import COUNTER, LIMIT_S, Bench, until
from tests.pair.relay import Moment, Passing
from tests.pair.service import POLICIES, Service, by_policy

BUSY = (*COUNTER[:2], "--append", "mib=10 ms=1", "--ram", "16")
EPOCHS = 25
ROUNDS = 4


@pytest.mark.parametrize("source", ["kernel", "scan"])
def test_both_sources_miss_nothing(bench: Bench, source: str) -> None:
    primary, secondary, _ = bench.pair("--verify", "--dirty-source", source, guest=BUSY)
    facts = primary.facts
    if source == "kernel" and facts["dirty-source"] != "kernel":
        pytest.skip(facts["dirty-reason"])
    for reset in (False, True, True):
        if reset:
            primary.execute("system_reset")
        epoch = primary.epoch
        until(lambda epoch=epoch: primary.epoch > epoch + EPOCHS // 3)  # type: ignore[misc]
    assert primary.facts["dirty-source"] == source
    assert primary.facts["statistics"]["verified"] >= EPOCHS
    assert secondary.facts["statistics"]["verified"] >= EPOCHS
    assert max(each["pages_sent"] for each in primary.events("epoch")[1:]) > 2000
    assert primary.migration == "colo"


def test_a_page_that_is_another_one_is_noticed(bench: Bench) -> None:
    """The frame is whole and its page decodes; only the content is not what the primary had."""
    primary, secondary, relay = bench.pair("--verify")

    def change(passing: Passing) -> Sequence[bytes]:
        message = passing.message
        assert isinstance(message, RamPages)
        encoder = Encoder()
        encoder.sequence = HEADER.unpack_from(passing.frame)[1]
        data = bytearray(message.data)
        data[-1] ^= 0x40
        return (bytes(encoder.frame(structs.replace(message, data=bytes(data)))),)

    moment = relay.rule = Moment(RamPages, change, 3)
    assert moment.reached.wait(LIMIT_S)
    assert primary.event("COLO_EXIT") == {"mode": "primary", "reason": "error"}
    ended = secondary.told("pairing-ended")
    assert ended["ending"] == "nothing", "a machine that is nobody's copy took over"
    assert "the primary was" in ended["reason"]
    assert primary.status == "running"


@by_policy
def test_what_a_living_secondary_wrote_is_taken_back(bench: Bench, policy: str) -> None:
    """Its guest rewrites the same RAM between checkpoints; installing one must leave nothing of that."""
    primary, secondary = bench.joined(*POLICIES[policy], "--verify", guest=BUSY)
    for _ in range(ROUNDS):
        before = last(primary.said)
        until(lambda before=before: last(primary.said) > before)  # type: ignore[misc]
        primary.execute("x-colo-checkpoint")
    assert primary.facts["statistics"]["verified"] >= ROUNDS
    assert secondary.facts["statistics"]["verified"] >= ROUNDS
    assert primary.migration == "colo"
    primary.kill()
    before = last(primary.said)
    until(lambda: last(secondary.said) > before + 2)
    repeated(primary.said, secondary.said, mib=10, ms=1)


@needs_root
@by_policy
def test_linux_is_the_same_after_every_checkpoint(serve: Callable[[str], Service], policy: str) -> None:
    service = serve("redis")
    primary, secondary = service.pair(*POLICIES[policy], "--verify")
    service.clients(4)
    for _ in range(ROUNDS):
        service.crowd.go_on(1)
        primary.execute("x-colo-checkpoint")
    assert secondary.facts["statistics"]["verified"] >= ROUNDS
    primary.kill()
    service.is_whole()
