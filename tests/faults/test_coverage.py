"""The table of what was seen, and exploration that is led by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.faults import plan as plans
from colo.faults.coverage import Combination, Coverage, label
from colo.faults.errors import FaultError
from colo.faults.expand import trial
from colo.faults.explore import Explorer
from colo.faults.golden import Golden
from colo.faults.model import AtTime, ClockJump, Fault, LinkFault, NodeFault, RegisterFault, Trial

SOON = AtTime(ns=1)
COMBINATIONS = st.builds(Combination, *(st.sampled_from(["a", "bb", ""]) for _ in range(3)))


def test_a_table_of_what_was_seen_and_was_not() -> None:
    coverage = Coverage(["node:kill", "link:drop"])
    idle, staged = ("idle", "CheckpointRequest"), ("staged", "VmstateSize")
    assert coverage.add([Combination(*idle), Combination(*staged), Combination(*staged)]) == 2
    assert coverage.add([Combination(*idle, "node:kill"), Combination(*idle)]) == 1
    assert coverage.table() == (
        "state   message            none  link:drop  node:kill\n"
        "idle    CheckpointRequest     2          .          1\n"
        "staged  VmstateSize           2          .          .\n"
    )
    assert list(coverage.unseen()) == [
        Combination(*idle, "link:drop"),
        Combination(*staged, "link:drop"),
        Combination(*staged, "node:kill"),
    ]
    assert coverage.share() == 0.25


def test_faults_have_names_that_say_what_they_do() -> None:
    made: list[Fault] = [
        LinkFault(when=SOON, effect="drop"),
        NodeFault(when=SOON, effect="kill"),
        RegisterFault(when=SOON, register="rax", mask=1),
        ClockJump(when=SOON, by_ns=1),
    ]
    assert [label(fault) for fault in made] == ["link:drop", "node:kill", "register:toggle", "clock-jump"]


@given(st.lists(COMBINATIONS), st.lists(COMBINATIONS))
def test_parts_of_a_campaign_add_up(first: list[Combination], second: list[Combination]) -> None:
    """Whatever the order, and through bytes: as when workers report."""
    whole, left, right = Coverage(["x"]), Coverage(["x"]), Coverage()
    whole.add(second + first)
    left.add(first)
    right.add(second)
    left.merge(Coverage.unpack(right.pack()))
    assert left.pack() == whole.pack()
    assert left.table() == whole.table()
    seen = {each for each in first + second if each.fault}
    possible = {Combination(*pair, fault) for pair in whole.situations for fault in whole.faults}
    assert set(whole.unseen()) == possible - seen


@pytest.mark.parametrize("data", [b"", b"[]", b'{"faults": [], "seen": [[["a"], 1]]}'])
def test_what_is_no_coverage_is_refused(data: bytes) -> None:
    with pytest.raises(FaultError, match="found no coverage"):
        Coverage.unpack(data)


GOLDEN = Golden(end_ns=1 << 20)
PLAN = plans.plan(
    seed=5,
    count=100_000,
    faults_per_trial="0..2",
    quiet={"start_ns": 1000},
    fault=[
        {"kind": "node", "effect": "kill", "when": {"at": "time", "ns": "*"}},
        {"kind": "clock-jump", "by_ns": ["1..100", -5], "when": {"at": "time", "ns": "*"}},
        {"kind": "link", "effect": ["drop", "duplicate"], "when": {"at": "time", "ns": "*"}},
    ],
)


def narrow(trial: Trial) -> Iterator[Combination]:
    """A protocol whose next state is reached by a fault near enough to a time, four times as near each."""
    for fault in trial.faults:
        assert isinstance(fault.when, AtTime)
        yield Combination("any", "", label(fault))
        for level in range(1, 9):
            if abs(fault.when.ns - 700_000) < (1 << 20 - 2 * level):
                yield Combination(f"level {level}", "", label(fault))


def explored(runs: int) -> Explorer:
    explorer = Explorer(PLAN, GOLDEN)
    for _ in range(runs):
        tried = explorer.propose()
        explorer.tell(tried, narrow(tried))
    return explorer


def test_exploration_reaches_what_chance_does_not() -> None:
    runs = 1500
    led = explored(runs)
    chance = Coverage()
    for number in range(runs):
        chance.add(narrow(trial(PLAN, GOLDEN, number)))
    assert len(chance.situations) < len(led.coverage.situations) == 9


def test_exploration_is_the_same_again_and_keeps_to_the_plan() -> None:
    one, other = explored(300), explored(300)
    assert one.kept == other.kept
    assert one.coverage.pack() == other.coverage.pack()
    for kept in one.kept:
        assert len(kept.faults) <= 3
        assert all(fault.when.ns >= 1000 for fault in kept.faults if isinstance(fault.when, AtTime))


def test_a_batch_is_proposed_before_any_answer() -> None:
    explorer = Explorer(PLAN, GOLDEN)
    batch = [explorer.propose() for _ in range(10)]
    assert batch == [trial(PLAN, GOLDEN, number) for number in range(10)]
    new = [explorer.tell(tried, narrow(tried)) for tried in batch]
    assert explorer.kept == [tried for tried, some in zip(batch, new, strict=True) if some]
