"""Nothing that was written is missed: whole machines are compared after every checkpoint.

The guest rewrites most of its RAM all the time and is reset in between; both ways of finding changed
pages are held to it.  That the comparison itself sees something is shown by a page changed on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec import structs

from colo.messages import RamPages
from colo.transport.wire import HEADER, Encoder
from tests.pair.nodes import COUNTER, LIMIT_S, Bench, until
from tests.pair.relay import Moment, Passing

BUSY = (*COUNTER[:2], "--append", "mib=10 ms=1", "--ram", "16")
EPOCHS = 25


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
    until(lambda: secondary.events("pairing-ended"))
    ended = secondary.events("pairing-ended")[0]
    assert ended["ending"] == "nothing", "a machine that is nobody's copy took over"
    assert "the primary was" in ended["reason"]
    assert primary.status == "running"
