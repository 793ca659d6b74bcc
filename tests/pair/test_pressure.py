"""A secondary or a link that is slow makes epochs longer, never memory larger."""

from __future__ import annotations

import threading

import pytest

from colo.filters.hold import HARD_FRAMES
from colo.messages import VmstateReceived
from tests.pair.guests import lines, talker
from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.pair.relay import Moment, Passing

EPOCH = 3
HELD = 15
"""Pieces of output that are waited for: more than ten times what an epoch holds otherwise."""


def held(node: Node) -> int:
    return int(node.facts["held-frames"])


def test_one_epoch_is_in_flight_and_output_waits(bench: Bench) -> None:
    primary, secondary, relay = bench.pair(guest=talker(bench.place))
    go_on = threading.Event()

    def wait(_: Passing) -> None:
        assert go_on.wait(LIMIT_S)

    moment = relay.rule = Moment(VmstateReceived, wait, EPOCH)
    until(lambda: f"VmstateReceived({EPOCH})" in relay.words)
    said = primary.said
    until(lambda: held(primary) > HELD)
    assert primary.said == said, "output of an epoch that was not committed"
    assert held(primary) <= HARD_FRAMES
    assert f"CheckpointRequest({EPOCH + 1})" not in relay.words, "a second epoch is in flight"
    assert primary.status == "running", "a slow link does not stop the guest"
    go_on.set()
    assert moment.reached.wait(LIMIT_S)
    until(lambda: len(primary.said) > len(said) and primary.epoch > EPOCH + 2)
    spoken = lines(primary.said)
    assert spoken == list(range(1, len(spoken) + 1)), "output was lost or moved"
    assert primary.facts["statistics"]["output-dropped"] == 0
    assert secondary.said == b""


@pytest.mark.parametrize("bytes_per_s", [200_000])
def test_a_slow_link(bench: Bench, bytes_per_s: int) -> None:
    primary, _, relay = bench.pair(guest=talker(bench.place))
    relay.bytes_per_s = bytes_per_s
    epoch = primary.epoch
    until(lambda: primary.epoch > epoch + 5)
    requests = [int(word[18:-1]) for word in relay.words if word.startswith("CheckpointRequest")]
    received = [word for word in relay.words if word.startswith("VmstateReceived")]
    assert requests == list(range(len(requests)))
    assert len(requests) - len(received) <= 1
    spoken = lines(primary.said)
    assert spoken == list(range(1, len(spoken) + 1))
