"""What a link must not do and a broken host does: damaged, short, repeated, moved frames.

The receiver refuses, says why, and the pair dissolves in order: one node goes on, the other one is
halted or gives up; nobody hangs, and nothing that was damaged is ever installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from colo.messages import RamPages, VmstateReceived
from colo.transport.wire import HEADER
from tests.pair.history import last, repeated, text
from tests.pair.nodes import LIMIT_S, Bench, until
from tests.pair.relay import Moment, Passing, Relay, Rule

EPOCH = 3


def flipped(at: int) -> Rule:
    def act(passing: Passing) -> Sequence[bytes]:
        frame = bytearray(passing.frame)
        frame[at] ^= 0x10
        return (bytes(frame),)

    return act


def repeat(passing: Passing) -> Sequence[bytes]:
    return (passing.frame, passing.frame)


def leave_out(_: Passing) -> Sequence[bytes]:
    return ()


def shorten(passing: Passing) -> Sequence[bytes]:
    """The next frame then begins where this one should go on."""
    return (passing.frame[:-1],)


def enlarge(passing: Passing) -> Sequence[bytes]:
    return (passing.frame[:12] + b"\xff\xff\xff\xff" + passing.frame[16:],)


class Swap:
    """A frame changes places with the next one in its direction: after pages there is one."""

    def __init__(self) -> None:
        self._kept: Passing | None = None
        self._done = False

    def __call__(self, passing: Passing) -> Sequence[bytes] | None:
        if self._done:
            return None
        if self._kept is None:
            if not isinstance(passing.message, RamPages):
                return None
            self._kept = passing
            return ()
        if passing.direction is not self._kept.direction:
            return None
        self._done = True
        return (passing.frame, self._kept.frame)


DAMAGES: dict[str, tuple[Callable[[], Rule], str]] = {
    "a byte of the payload": (lambda: flipped(HEADER.size + 5), "is damaged"),
    "the last byte": (lambda: flipped(-1), "is damaged"),
    "a byte of the header": (lambda: flipped(5), "header is damaged"),
    "the magic": (lambda: flipped(0), "where a frame begins"),
    "the length": (lambda: enlarge, "header is damaged"),
    "repeated": (lambda: repeat, "repeated, lost or moved"),
    "left out": (lambda: leave_out, "repeated, lost or moved"),
    "shortened": (lambda: shorten, "damaged"),
}


def dissolves(bench: Bench, reason: str) -> None:
    primary, secondary = bench.nodes["a"], bench.nodes["b"]
    reasons = [node.told("pairing-ended")["reason"] for node in (primary, secondary)]
    assert any(reason in each for each in reasons), reasons
    until(lambda: sorted((primary.status, secondary.status)) == ["postmigrate", "running"])
    winner = primary if primary.status == "running" else secondary
    before = max(last(primary.said), last(secondary.said))
    until(lambda: last(winner.said) > before + 2)
    if winner is secondary:
        repeated(primary.said, secondary.said)
    else:
        assert primary.said == text(last(primary.said) + 1)[: len(primary.said)]


def damage(relay: Relay, word: type, act: Rule) -> None:
    moment = relay.rule = Moment(word, act, EPOCH)
    assert moment.reached.wait(LIMIT_S)


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_frame_for_the_secondary(bench: Bench, what: str) -> None:
    _, _, relay = bench.pair()
    act, reason = DAMAGES[what]
    damage(relay, RamPages, act())
    dissolves(bench, reason)


@pytest.mark.parametrize("what", ["a byte of the payload", "repeated", "the magic"])
def test_a_damaged_frame_for_the_primary(bench: Bench, what: str) -> None:
    _, _, relay = bench.pair()
    act, reason = DAMAGES[what]
    damage(relay, VmstateReceived, act())
    dissolves(bench, reason)


def test_frames_that_changed_places(bench: Bench) -> None:
    _, _, relay = bench.pair()
    relay.rule = Swap()
    dissolves(bench, "repeated, lost or moved")


def test_the_words_of_an_earlier_epoch(bench: Bench) -> None:
    """Whole, of the right sequence, and not what the protocol allows there."""
    _, _, relay = bench.pair()

    def earlier(passing: Passing) -> Sequence[bytes]:
        from msgspec import structs

        from colo.transport.wire import Encoder

        encoder = Encoder()
        encoder.sequence = HEADER.unpack_from(passing.frame)[1]
        message = passing.message
        assert isinstance(message, VmstateReceived)
        return (bytes(encoder.frame(structs.replace(message, epoch=message.epoch - 1))),)

    damage(relay, VmstateReceived, earlier)
    dissolves(bench, f"expected VmstateReceived({EPOCH})")
