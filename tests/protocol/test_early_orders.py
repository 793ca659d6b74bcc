"""Wrong rules of early release, planted one at a time: the simulator must see each of them.

As in :mod:`tests.protocol.test_orders`.  Each plant is a mistake that somebody could make in the rules by
which output goes before the commit (:mod:`colo.node.logged`, :mod:`colo.node.compared`), in the secondary's
part of them (:mod:`colo.node.follower`, :mod:`colo.node.runner`), or in the halves around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from colo.lockstep.reader import LogReader
from colo.node.compared import Compared
from colo.node.follower import Follower
from colo.node.logged import Logged
from colo.node.runner import Runner
from tests.protocol.companions import TcpCompanion
from tests.protocol.early_plants import (
    AcknowledgesTooMuch,
    ComparesFromTheCut,
    CountsWhatWaits,
    DiscardsAtTheRequest,
    DiscardsAtTheSeal,
    DrainsNothing,
    DrainsUnshut,
    FollowsWordsOfAnyEpoch,
    ForgetsTheUnspoken,
    GivesOldInputs,
    GivesUpReading,
    GoesBack,
    GoesLiveAtTheSeal,
    HearsTheDead,
    IgnoresTheStage,
    KeepsWhatItTook,
    KeepsWhatItWrote,
    LiveAtTheLastInput,
    LogsOnlyOutput,
    OpensAtTheCut,
    RemembersTooMuch,
    RepeatsNoConsole,
    SaysFirst,
    SaysWhatItLikes,
    SaysWithoutFrontier,
    ShowsTooEarly,
    TellsBeforeItSays,
    TellsNobody,
)
from tests.protocol.nodes import BRIEF, Parts, parts
from tests.protocol.simulator import Failure, Simulator
from tests.protocol.toy_primary import ToyPrimary
from tests.protocol.toy_secondary import ToySecondary

SEEDS = 1500
"""A plant that is not seen in so many random worlds is not seen."""
RARELY: dict[str, Any] = {"epochs": 0, "delays": (10**6, 10**6)}
"""No checkpoint mends what nobody asks to have mended."""

Plant = tuple[Callable[[], Parts], set[str]]
ONE_SPEAKER, ONE_HISTORY, ONCE = "one speaker", "one history", "executed once"
EQUAL, WHOLE, SERVES = "both machines are equal", "the guest is whole", "somebody serves"
ALARM, INVENTED, LASTS = "no false alarm", "nothing is invented", "a pair lasts"


def _rule(kind: type[Logged] | type[Compared], **others: Any) -> Callable[[], Parts]:
    class Primary(ToyPrimary):
        logged_kind = kind if issubclass(kind, Logged) else Logged
        compared_kind = kind if issubclass(kind, Compared) else Compared

    return lambda: parts("lockstep" if issubclass(kind, Logged) else "colo", primary=Primary, **others)


def _part(kind: type[Follower] | type[Runner], **others: Any) -> Callable[[], Parts]:
    class Secondary(ToySecondary):
        follower_kind = kind if issubclass(kind, Follower) else Follower
        runner_kind = kind if issubclass(kind, Runner) else Runner

    policy = "lockstep" if issubclass(kind, Follower) else "colo"
    return lambda: parts(policy, secondary=Secondary, **others)


def _half(half: type[ToySecondary], policies: str) -> Callable[[], Parts]:
    return lambda: parts(policies, secondary=half)


PLANTS: dict[str, Plant] = {
    "said, then logged": (_rule(SaysFirst), {ONE_HISTORY}),
    "said without a frontier": (_rule(SaysWithoutFrontier), {ONE_HISTORY}),
    "a backlog counts as held": (_rule(CountsWhatWaits), {ONE_HISTORY}),
    "open at the cut": (_rule(OpensAtTheCut), {ONE_HISTORY}),
    "not handed over at the cut": (_rule(KeepsWhatItTook), {ONE_HISTORY}),
    "told as heard before it is said": (_rule(TellsBeforeItSays), {ONE_HISTORY}),
    "inputs wait for an output": (_rule(LogsOnlyOutput), {ALARM}),
    "live at the last input": (_part(LiveAtTheLastInput), {ONE_HISTORY}),
    "drained without a fence": (_part(DrainsUnshut), {ONE_HISTORY, ONE_SPEAKER}),
    "drained of nothing": (_part(DrainsNothing), {ONE_HISTORY}),
    "nothing is unspoken": (_part(ForgetsTheUnspoken), {ONE_HISTORY}),
    "words of another epoch": (_part(FollowsWordsOfAnyEpoch), {ALARM}),
    "acknowledged before it came": (_part(AcknowledgesTooMuch, companion="tcp"), {ONE_HISTORY}),
    "a failed send ends the reading": (_part(GivesUpReading), {ONE_HISTORY}),
    "log discarded at the seal": (_half(DiscardsAtTheSeal, "lockstep"), {ONE_HISTORY, ALARM}),
    "log discarded at the request": (_half(DiscardsAtTheRequest, "lockstep"), {ONE_HISTORY, ALARM}),
    "a sealed epoch is ignored": (_half(IgnoresTheStage, "lockstep"), {ONE_HISTORY, INVENTED}),
    "back to the last epoch": (_half(GoesBack, "lockstep"), {ONE_HISTORY}),
    "said without comparison": (_rule(SaysWhatItLikes), {ONE_HISTORY}),
    "compared from the cut": (_rule(ComparesFromTheCut), {ONE_HISTORY}),
    "tidings of another epoch": (_rule(HearsTheDead, noisy_every=50), {ONE_HISTORY}),
    "no console again": (_part(RepeatsNoConsole), {ONE_HISTORY}),
    "the console told as seen before it is": (_rule(ShowsTooEarly), {ONE_HISTORY}),
    "inputs of another epoch": (_part(GivesOldInputs), {ONCE}),
    "sayings of another epoch": (_part(RemembersTooMuch), {ONE_HISTORY, INVENTED}),
    "both run: a sealed epoch is ignored": (_half(IgnoresTheStage, "colo"), {ONE_HISTORY, INVENTED}),
    "both run: back to the last epoch": (_half(GoesBack, "colo"), {ONE_HISTORY}),
}


def first_failure(made: Parts, run: str = "random", seeds: range = range(SEEDS)) -> Failure | None:
    """Of worlds with these parts; ``run`` is how each seed is tried."""
    simulator = Simulator(made)
    for seed in seeds:
        try:
            getattr(simulator, run)(seed)
        except Failure as failure:
            return failure
    return None


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_is_caught(name: str) -> None:
    make, rules = PLANTS[name]
    failure = first_failure(make())
    assert failure is not None, f"{name}: the simulator is blind to it"
    print(f"{name}: seed {failure.seed}, step {failure.violation.step}: {failure.violation.rule}")
    assert failure.violation.rule in rules, failure


def test_what_a_kernel_took_over_tcp_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TcpCompanion, "held_on_send", True)
    failure = first_failure(parts("lockstep", companion="tcp"))
    assert failure is not None
    assert failure.violation.rule == ONE_HISTORY, failure


def test_a_divergence_of_which_nobody_is_told_is_caught() -> None:
    failure = first_failure(_part(TellsNobody, **RARELY)(), "mild")
    assert failure is not None
    assert failure.violation.rule in (SERVES, LASTS), failure


def test_a_guest_that_differs_and_says_so_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are not compared: only marks find what a bit did, and a log that cannot be followed."""
    monkeypatch.setattr(LogReader, "check_output", lambda *_: None)
    monkeypatch.setattr(LogReader, "_expect", lambda *_: None)
    monkeypatch.setattr(Follower, "_compare", lambda self, mark: setattr(self, "_done", self._done))
    failure = first_failure(parts("lockstep", **RARELY), "mild")
    assert failure is not None
    assert failure.violation.rule in (SERVES, LASTS, ONE_HISTORY), failure


def test_a_survivor_that_does_not_read_the_log_after_a_sealed_epoch_is_caught() -> None:
    """It takes a secondary that stood still between the two."""
    failure = first_failure(parts("lockstep", secondary=GoesLiveAtTheSeal, **BRIEF), "late", range(12, 60))
    assert failure is not None
    assert failure.violation.rule == ONE_HISTORY, failure


@pytest.mark.parametrize("policy", ["lockstep", "colo"])
def test_what_a_bit_did_stays_when_pages_are_not_given_back(policy: str) -> None:
    failure = first_failure(parts(policy, secondary=KeepsWhatItWrote), "mild")
    assert failure is not None
    assert failure.violation.rule in (EQUAL, WHOLE), failure
