"""The failover's state machine over every order of events, and who asks the arbiter when.

The words and the way through them are QEMU's (migration/colo-failover.c and colo.c): a request goes from none
to require, its bottom half from require to active, the side's own failover from active to completed; a
secondary that is loading goes to relaunch, and from there to none and a new request.  QEMU enters relaunch
from active; here a request that must wait becomes active only once.
"""

from __future__ import annotations

import itertools
from collections.abc import Coroutine
from typing import Any

import pytest

from colo import failover
from colo.errors import ArbiterError, FrameError, PeerLost, ProtocolViolation
from colo.failover import TRANSITIONS, Ending, Failover, FailoverStatus
from colo.messages import Dissolve, Message
from tests.protocol.judge import STATUS_AFTER

NONE, REQUIRE, ACTIVE = FailoverStatus.NONE, FailoverStatus.REQUIRE, FailoverStatus.ACTIVE
COMPLETED, RELAUNCH = FailoverStatus.COMPLETED, FailoverStatus.RELAUNCH


class Line:
    """A peer that is only closed, and says one thing before."""

    def __init__(self, last: Exception | Message | None = None) -> None:
        self.closed = 0
        self.last: Exception | Message = last or PeerLost("gone")

    async def send(self, message: Message) -> None:
        if isinstance(self.last, PeerLost):
            raise self.last

    async def turn(self) -> None:
        """Nothing to send."""

    async def receive(self) -> Message:
        if isinstance(self.last, Exception):
            raise self.last
        return self.last

    def close(self, reason: str = "closed here") -> None:
        self.closed += 1


def guarded() -> tuple[Failover, Line]:
    state, line = Failover(), Line()
    state.guard(line)
    return state, line


def test_the_table_is_the_diagram() -> None:
    assert {(a.value, b.value) for a, after in TRANSITIONS.items() for b in after} == STATUS_AFTER
    assert set(TRANSITIONS) == set(FailoverStatus)


def test_a_request_shuts_the_connection_and_a_second_one_is_refused() -> None:
    state, line = guarded()
    assert state.request("heartbeats stopped")
    assert not state.request("x-colo-lost-heartbeat", on_demand=True)
    assert (state.status, state.reason, state.on_demand, line.closed) == (
        REQUIRE,
        "heartbeats stopped",
        False,
        1,
    )


def test_a_request_before_there_is_a_connection_shuts_it_when_there_is() -> None:
    state, line = Failover(), Line()
    assert state.request("x-colo-lost-heartbeat", on_demand=True)
    state.guard(line)
    assert line.closed == 1


def test_a_request_while_installing_waits_and_keeps_its_reason() -> None:
    state, line = guarded()
    state.begin_loading()
    assert state.request("x-colo-lost-heartbeat", on_demand=True)
    assert (state.status, line.closed) == (RELAUNCH, 0)
    assert not state.request("heartbeats stopped")
    state.end_loading()
    assert (state.status, line.closed) == (REQUIRE, 1)
    assert (state.reason, state.on_demand) == ("x-colo-lost-heartbeat", True)


def test_an_end_of_the_protocol_is_a_request_of_its_own() -> None:
    state, line = guarded()
    state.begin("closed by the peer")
    assert (state.status, state.reason, line.closed) == (ACTIVE, "closed by the peer", 1)
    state.complete()
    assert state.status is COMPLETED


def test_a_request_that_came_before_gives_the_reason() -> None:
    state, _ = guarded()
    state.request("heartbeats stopped")
    state.begin("closed here")
    assert state.reason == "heartbeats stopped"


EVENTS = ("request", "begin_loading", "end_loading", "begin", "complete")


def _apply(state: Failover, event: str) -> None:
    match event:
        case "request":
            state.request("lost")
        case "begin":
            state.begin("lost")
        case _:
            getattr(state, event)()


def _is_allowed(state: Failover, event: str) -> bool:
    """What the two halves can do: an install has an end, and nothing ends or completes twice."""
    match event:
        case "begin_loading":
            return not state.loading and state.status in (NONE, REQUIRE)
        case "end_loading":
            return state.loading
        case "begin":
            return not state.loading and state.status in (NONE, REQUIRE)
        case "complete":
            return state.status is ACTIVE
    return True


@pytest.mark.parametrize("first", EVENTS)
def test_no_order_of_events_leaves_the_diagram(first: str) -> None:
    """All orders of seven events; Failover itself asserts each transition."""
    for events in itertools.product(EVENTS, repeat=6):
        state, line = guarded()
        for event in (first, *events):
            if not _is_allowed(state, event):
                break
            before = state.status
            _apply(state, event)
            assert state.status is not ACTIVE or before is not COMPLETED
            assert (state.status is RELAUNCH) <= state.loading, (
                "relaunch lasts while installing, and no longer"
            )
            assert bool(line.closed) == (state.status in (REQUIRE, ACTIVE, COMPLETED))


@pytest.mark.parametrize("event", ["begin", "complete"])
def test_an_impossible_step_is_our_mistake(event: str) -> None:
    state, _ = guarded()
    state.begin("lost")
    state.complete()
    with pytest.raises(AssertionError):
        _apply(state, event)


# lead and stand_by: who asks, and what follows


class Machine:
    """What was done to a half, in order."""

    pair, generation, node = "pair", 4, "a"

    def __init__(self, committed: bool, departed: bool = False) -> None:
        self.has_promised = self.has_sealed = committed
        self.has_departed = departed
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.done.append(name)

    def live_round(self) -> None:
        return None


class Verdicts:
    """An arbiter with its answers ready: won, lost, or none."""

    spec = "test"

    def __init__(self, *answers: bool | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int, str]] = []
        self.forgotten = 0

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        self.asked.append((pair, generation, node))
        answer = self.answers.pop(0)
        if answer is None:
            raise ArbiterError("no answer")
        return answer

    def command(self) -> None:
        raise AssertionError("nobody said anything")

    def forget(self) -> None:
        assert not self.asked
        self.forgotten += 1


class Waits:
    refusals = 0

    async def give_way(self) -> None:
        raise AssertionError("there is nothing to give way for")

    async def before_asking_again(self, refusal: ArbiterError) -> None:
        self.refusals += 1


def end_of(coroutine: Coroutine[Any, Any, Ending]) -> Ending:
    """Runs what awaits nothing that takes time."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return Ending(stop.value)
    raise AssertionError("it waits for something")


LOSSES = [PeerLost("gone"), ProtocolViolation("nonsense"), FrameError("damaged"), Dissolve("quit")]


@pytest.mark.parametrize("last", LOSSES, ids=lambda last: type(last).__name__)
@pytest.mark.parametrize(
    ("promised", "answers", "ending", "done"),
    [
        (False, (), Ending.ALONE, ["freeze", "go_alone"]),
        (True, (True,), Ending.ALONE, ["freeze", "go_alone"]),
        (True, (False,), Ending.LOST, ["freeze", "halt"]),
        (True, (None, None, True), Ending.ALONE, ["freeze", "go_alone"]),
        (True, (None, False), Ending.LOST, ["freeze", "halt"]),
    ],
)
def test_a_primary_alone(
    last: Exception | Message,
    promised: bool,
    answers: tuple[bool | None, ...],
    ending: Ending,
    done: list[str],
) -> None:
    vm, arbiter, waiter, state, line = Machine(promised), Verdicts(*answers), Waits(), Failover(), Line(last)
    assert end_of(failover.lead(vm, line, arbiter, state, waiter)) is ending
    assert vm.done == done
    assert arbiter.asked == [("pair", 5, "a")] * len(answers)
    assert (waiter.refusals, arbiter.forgotten, state.status) == (answers.count(None), 1, COMPLETED)
    assert line.closed


@pytest.mark.parametrize("last", LOSSES, ids=lambda last: type(last).__name__)
@pytest.mark.parametrize(
    ("sealed", "answers", "ending", "done"),
    [
        (False, (), Ending.NOTHING, []),
        (True, (True,), Ending.ALONE, ["take_over"]),
        (True, (False,), Ending.LOST, ["halt"]),
        (True, (None, True), Ending.ALONE, ["take_over"]),
    ],
)
def test_a_secondary_alone(
    last: Exception | Message, sealed: bool, answers: tuple[bool | None, ...], ending: Ending, done: list[str]
) -> None:
    vm, arbiter, waiter, state, line = Machine(sealed), Verdicts(*answers), Waits(), Failover(), Line(last)
    assert end_of(failover.stand_by(vm, line, arbiter, state, waiter)) is ending
    assert vm.done == ["open_stage", *done]
    assert arbiter.asked == [("pair", 5, "a")] * len(answers)
    assert (waiter.refusals, arbiter.forgotten, state.status) == (answers.count(None), 1, COMPLETED)
    assert line.closed


class GivesWay(Waits):
    """The primary asks meanwhile, if it lives."""

    def __init__(self, arbiter: Verdicts) -> None:
        self._arbiter = arbiter
        self.asked_before: list[int] = []

    async def give_way(self) -> None:
        self.asked_before.append(len(self._arbiter.asked))


@pytest.mark.parametrize(("won", "ending"), [(True, Ending.ALONE), (False, Ending.LOST)])
def test_a_secondary_whose_guest_departed_asks_when_its_primary_could_have(won: bool, ending: Ending) -> None:
    vm, arbiter, state, line = Machine(True, departed=True), Verdicts(won), Failover(), Line(LOSSES[0])
    waiter = GivesWay(arbiter)
    assert end_of(failover.stand_by(vm, line, arbiter, state, waiter)) is ending
    assert waiter.asked_before == [0]
    assert vm.done == ["open_stage", "take_over" if won else "halt"]
