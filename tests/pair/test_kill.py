"""``kill -9`` of either node at every word of the protocol: the guest goes on, and its history is one.

The acceptance list of QEMU's own COLO tests (primary and secondary, outside a checkpoint and in the
middle of one), word by word.  At the moment of the kill its sender has said the word; it still arrives
unless the table says that it is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from colo.messages import (
    CheckpointReply,
    CheckpointRequest,
    Message,
    RamPages,
    Released,
    VmstateLoaded,
    VmstateReceived,
    VmstateSend,
    VmstateSize,
)
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.pair.relay import Moment, Passing, Rule

EPOCH = 3
WORDS = (
    CheckpointRequest,
    CheckpointReply,
    VmstateSend,
    RamPages,
    VmstateSize,
    VmstateReceived,
    Released,
    VmstateLoaded,
)
MAY_REPEAT = (Released, VmstateLoaded)
"""Once the primary has committed, a secondary that did not hear so says the epoch's output again."""


def whole(_: Passing) -> None:
    return None


def lost(_: Passing) -> Sequence[bytes]:
    return ()


def half(passing: Passing) -> Sequence[bytes]:
    return (passing.frame[: len(passing.frame) // 2],)


CASES = [
    *(pytest.param(word, whole, id=word.__name__) for word in WORDS),
    pytest.param(RamPages, half, id="RamPages torn"),
    pytest.param(VmstateSize, half, id="VmstateSize torn"),
    pytest.param(VmstateReceived, lost, id="VmstateReceived lost"),
    pytest.param(Released, lost, id="Released lost"),
]


def killing(victim: Node, rest: Rule) -> Callable[[Passing], Sequence[bytes] | None]:
    def act(passing: Passing) -> Sequence[bytes] | None:
        victim.kill()
        return rest(passing)

    return act


def survives(node: Node, mode: str, before: int) -> None:
    """It left COLO in good order, and its guest says more than was heard before."""
    assert node.event("COLO_EXIT") == {"mode": mode, "reason": "error"}
    until(lambda: last(node.said) > before + 2, f"the survivor's guest does not go on: {node.log}")
    status = node.execute("query-colo-status")
    assert (status["mode"], status["last-mode"], status["reason"]) == ("none", mode, "error")
    assert status["x-node"]["failover"] == "completed"
    assert node.status == "running"


@pytest.mark.parametrize(("word", "rest"), CASES)
def test_the_secondary_takes_over(bench: Bench, word: type[Message], rest: Rule) -> None:
    primary, secondary, relay = bench.pair()
    moment = relay.rule = Moment(word, killing(primary, rest), EPOCH)
    assert moment.reached.wait(LIMIT_S)
    survives(secondary, "secondary", last(primary.said))
    again = repeated(primary.said, secondary.said)
    assert again == 0 or word in MAY_REPEAT, f"{again} bytes were said twice"


@pytest.mark.parametrize(("word", "rest"), CASES)
def test_the_primary_goes_on_alone(bench: Bench, word: type[Message], rest: Rule) -> None:
    primary, secondary, relay = bench.pair()
    moment = relay.rule = Moment(word, killing(secondary, rest), EPOCH)
    assert moment.reached.wait(LIMIT_S)
    survives(primary, "primary", last(primary.said))
    said = primary.said
    assert said == text(last(said) + 1)[: len(said)]
    assert secondary.said == b""


@pytest.mark.parametrize("word", [VmstateReceived, Released, VmstateLoaded])
def test_the_first_epoch_is_enough_to_take_over(bench: Bench, word: type[Message]) -> None:
    primary, secondary, relay = bench.two()
    moment = relay.rule = Moment(word, killing(primary, whole))
    primary.migrate(relay.address)
    assert moment.reached.wait(LIMIT_S)
    survives(secondary, "secondary", last(primary.said))
    again = repeated(primary.said, secondary.said)
    assert again == 0 or word in MAY_REPEAT


def test_outside_a_checkpoint(bench: Bench) -> None:
    primary, secondary, _ = bench.pair("--checkpoint-delay", "200")
    until(lambda: primary.epoch >= 1)
    primary.kill()
    survives(secondary, "secondary", last(primary.said))
    repeated(primary.said, secondary.said)
