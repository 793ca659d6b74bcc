"""Trials of a plan: each by itself, the same everywhere, within the golden run, not in quiet periods."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.faults import plan as plans
from colo.faults import text
from colo.faults.choices import WEIGHT_MAX
from colo.faults.errors import PlanError
from colo.faults.expand import trial, trials
from colo.faults.golden import Golden, Guest, spans
from colo.faults.model import (
    AtAddress,
    AtInstruction,
    AtStep,
    AtTime,
    DataFault,
    DiskFault,
    Intermittent,
    LinkFault,
    LostInterrupt,
    NodeFault,
    RegisterFault,
    Trial,
)
from colo.faults.strategies import faults
from colo.faults.strategies import plans as any_plans
from tests.faults.golden_runs import GOLDEN, PRIMARY

ALONE = Golden(end_ns=1000, guests={"": Guest(instructions=50, virtual=((0, 4096),))})


AT_1 = {"at": "time", "ns": 1}
KILL = {"kind": "node", "effect": "kill"}


def made(table: dict[str, Any], golden: Golden = GOLDEN, count: int = 300, **parts: Any) -> list[Any]:
    """The first fault of each trial of a plan of one fault."""
    plan = plans.plan(seed=3, count=count, fault=[table], **parts)
    return [found.faults[0] for found in trials(plan, golden)]


EVERYTHING: dict[str, Any] = {
    "seed": 11,
    "count": 200,
    "faults_per_trial": "0..4",
    "quiet": {"start_ns": 10_000, "end_ns": 10_000, "between_ns": 5000},
    "fault": [
        {"kind": "register", "register": "*", "mask": "*", "target": "primary", "weight": 3,
         "when": {"at": "instruction", "count": "*"}},
        {"kind": "data", "address": "*", "width": [1, 2, 4], "mask": "*", "operation": "*",
         "target": "primary",
         "when": [{"at": "time", "ns": "*"}, {"at": "address", "address": "*", "hits": "*"}]},
        {"kind": "link", "target": "*", "effect": ["drop", "corrupt"], "probability": "0.1..0.9",
         "when": {"at": "time", "ns": {"distribution": "exponential", "mean": 100_000}}},
        {"kind": "node", "target": "*", "effect": "pause",
         "for_ns": {"distribution": "log-uniform", "low": 1, "high": 1_000_000},
         "when": {"at": "step", "node": "*", "step": "*", "count": "*"}},
        {"kind": "disk", "target": "*", "effect": "torn", "first_sector": "*", "sectors": "1..8",
         "when": {"at": "time", "ns": "0..2_000_000"}},
    ],
}  # fmt: skip


def test_a_trial_is_had_without_the_others() -> None:
    plan = plans.plan(**EVERYTHING)
    whole = list(trials(plan, GOLDEN))
    assert [trial(plan, GOLDEN, number) for number in (199, 0, 77)] == [whole[199], whole[0], whole[77]]
    assert list(trials(plan, GOLDEN, 150, 160)) == whole[150:160]
    assert list(trials(plan, GOLDEN, 190, 1000)) == whole[190:]
    assert len(set(whole)) == 200


def test_trials_are_the_same_everywhere() -> None:
    """Another Python or host must make the very same; the digest was made with CPython 3.11."""
    lines = "\n".join(text.to_json(found) for found in trials(plans.plan(**EVERYTHING), GOLDEN))
    assert hashlib.blake2b(lines.encode(), digest_size=8).hexdigest() == "13d497aeca448e5d"


def test_a_change_to_one_fault_leaves_the_others() -> None:
    tables = [EVERYTHING["fault"][2], EVERYTHING["fault"][3]]
    before = plans.plan(seed=1, count=20, fault=tables)
    after = plans.plan(seed=1, count=20, fault=[{**tables[0], "probability": "0.5..0.6"}, tables[1]])
    for one, other in zip(trials(before, GOLDEN), trials(after, GOLDEN), strict=True):
        assert one.seed == other.seed
        assert one.faults[1] == other.faults[1]
        assert one.faults[0] != other.faults[0]


def test_each_trial_has_every_fault_or_as_many_as_the_plan_says() -> None:
    tables: list[dict[str, Any]] = [
        {"kind": "node", "target": name, "effect": "kill", "when": {"at": "time", "ns": 1}} for name in "ab"
    ]
    plan = plans.plan(count=50, fault=tables)
    assert {tuple(fault.target for fault in found.faults) for found in trials(plan, GOLDEN)} == {("a", "b")}
    tables[0]["weight"] = 9
    plan = plans.plan(count=500, faults_per_trial="1..3", fault=tables)
    assert {len(found.faults) for found in trials(plan, GOLDEN)} == {1, 2, 3}
    count = Counter(fault.target for found in trials(plan, GOLDEN) for fault in found.faults)
    assert 0.87 < count["a"] / count.total() < 0.93


def test_wildcards_stand_for_what_the_golden_run_did() -> None:
    flips = made({"kind": "register", "register": "*", "mask": "*", "target": "primary",
                  "when": {"at": "instruction", "count": "*"}})  # fmt: skip
    assert all(0 <= fault.when.count < 1000 and fault.mask.bit_count() == 1 for fault in flips)
    assert {fault.register for fault in flips} == set(PRIMARY.registers)
    assert len({fault.mask for fault in flips}) > 55
    times = made({"kind": "clock-jump", "by_ns": 1, "when": {"at": "time", "ns": "*"}}, count=3000)
    assert min(fault.when.ns for fault in times) < 2000
    assert 998_000 < max(fault.when.ns for fault in times) <= 1_000_000
    hits = made({"kind": "instruction", "mask": 1, "address": "*", "target": "primary",
                 "when": {"at": "address", "address": "*", "hits": "*"}})  # fmt: skip
    assert {(fault.when.address, fault.when.hits) for fault in hits} == {
        (0x400000, 1), (0x400000, 2), (0x400000, 3), (0x400005, 1)
    }  # fmt: skip
    assert {fault.address for fault in hits} == {0x400000, 0x400005}
    lost = {"kind": "lost-interrupt", "target": "primary", "when": {"at": "time", "ns": 1}}
    assert {fault.line for fault in made({**lost, "line": "*"})} == {0, 4}
    assert {fault.vector for fault in made({**lost, "vector": "*"})} == {48}


def test_wildcards_for_memory_stay_within_what_was_touched() -> None:
    table = {
        "kind": "data",
        "address": "*",
        "target": "primary",
        "mask": "*",
        "when": {"at": "time", "ns": 1},
    }
    words = made({**table, "width": 8})
    assert all(fault.address % 8 == 0 for fault in words)
    assert {(0x1000 < f.address and f.address + 8 <= 0x1FFF) or f.address == 0x5000 for f in words} == {True}
    only = made({**table, "width": 1, "space": "physical"})
    assert {fault.address for fault in only} == {0x9000, 0x9001, 0x9002, 0x9003}
    assert {fault.mask for fault in only} == {1 << bit for bit in range(8)}
    values = made({**table, "width": 1, "operation": "overwrite", "mask": 0x0F, "value": "*"})
    assert {fault.value for fault in values} == set(range(16))


def test_wildcards_for_names_and_steps() -> None:
    node = {"kind": "node", "effect": "kill"}
    kills = made(
        {**node, "target": "*", "when": {"at": "step", "node": "*", "step": "*", "count": "*"}}, count=999
    )
    assert {fault.target for fault in kills} == {"primary", "secondary"}
    assert len({(fault.when.node, fault.when.step, fault.when.count) for fault in kills}) == 1 + 20 + 20
    drops = made({"kind": "link", "effect": "drop", "target": "*", "when": {"at": "time", "ns": 1}})
    assert {fault.target for fault in drops} == {"client", "pair"}
    torn = made({"kind": "disk", "effect": "torn", "first_sector": "*", "when": {"at": "time", "ns": 1}})
    assert {fault.first_sector for fault in torn} == set(range(100)) & {fault.first_sector for fault in torn}
    assert len({fault.first_sector for fault in torn}) > 80
    slow = {"kind": "arbiter", "effect": "wrong", "for_ns": 1, "target": "*", "when": {"at": "time", "ns": 1}}
    assert {fault.target for fault in made(slow)} == {"arbiter"}


def test_one_machine_needs_no_name() -> None:
    flips = made({"kind": "register", "register": "rax", "mask": 1,
                  "when": {"at": "instruction", "count": "*"}}, ALONE)  # fmt: skip
    assert {fault.when.count for fault in flips} == set(range(50))


def test_a_list_may_have_words_and_tables() -> None:
    table = {"kind": "link", "effect": "drop", "for_ns": 5, "when": AT_1,
             "persistence": ["transient", {"period_ns": "10..11", "times": 2}]}  # fmt: skip
    found = {fault.persistence for fault in made(table)}
    assert found == {"transient", *(Intermittent(period_ns=ns, times=2) for ns in (10, 11))}
    late = {"kind": "link", "effect": "delay", "when": AT_1,
            "delay": {"ns": "1..2", "distribution": ["fixed", "pareto"]}}  # fmt: skip
    assert len({fault.delay for fault in made(late)}) == 4


def test_distributions_are_brought_to_the_limits_of_the_field() -> None:
    table = {"kind": "clock-drift", "ppm": {"distribution": "normal", "mean": -999_990, "spread": 1000},
             "for_ns": {"distribution": "pareto", "least": 10}, "when": {"at": "time", "ns": 1}}  # fmt: skip
    drifts = made(table)
    assert min(fault.ppm for fault in drifts) == -999_999
    assert all(fault.for_ns >= 10 for fault in drifts)
    weights = {"distribution": "weighted", "values": [1, 2, 4], "weights": [0, 1, WEIGHT_MAX]}
    flips = made({"kind": "register", "register": "rax", "mask": weights, "when": {"at": "time", "ns": 1}})
    assert {fault.mask for fault in flips} == {4}


@pytest.mark.parametrize(
    ("drawn", "low", "middle", "high"),
    [
        ({"distribution": "uniform", "low": 100, "high": 199}, 100, (140, 160), 199),
        ({"distribution": "log-uniform", "low": 1, "high": 1023}, 1, (16, 64), 1023),
        ({"distribution": "normal", "mean": 5000, "spread": 10}, 4940, (4990, 5010), 5060),
        ({"distribution": "exponential", "mean": 1000}, 0, (600, 800), 32_000),
        ({"distribution": "pareto", "least": 1000}, 1000, (1300, 1500), 1_000_000),
        ("100..199", 100, (140, 160), 199),
    ],
)
def test_numbers_are_drawn_as_the_plan_says(drawn: Any, low: int, middle: tuple[int, int], high: int) -> None:
    """Their median, and how far they go."""
    times = sorted(fault.when.ns for fault in made({**KILL, "when": {"at": "time", "ns": drawn}}, count=400))
    assert low <= times[0] < times[-1] <= high
    assert middle[0] < times[200] < middle[1]


def test_nothing_happens_in_a_quiet_period() -> None:
    quiet = {"start_ns": 1000, "end_ns": 5000, "start_instructions": 100, "end_instructions": 200}
    jump = {"kind": "clock-jump", "by_ns": 1}
    for ns in ("*", "0..2_000_000", {"distribution": "normal", "mean": 2000, "spread": 900_000}):
        times = [fault.when.ns for fault in made({**jump, "when": {"at": "time", "ns": ns}}, quiet=quiet)]
        assert 1000 <= min(times) <= max(times) <= 995_000
    counts = made(
        {**jump, "target": "primary", "when": {"at": "instruction", "count": "0..5000"}}, quiet=quiet
    )
    assert {100 <= fault.when.count < 800 for fault in counts} == {True}
    exact = made({**jump, "when": {"at": "time", "ns": 5}}, quiet=quiet)
    assert {fault.when.ns for fault in exact} == {5}


def test_faults_are_moved_apart_in_the_order_of_their_times() -> None:
    jumps = [
        {"kind": "clock-jump", "by_ns": 1, "when": {"at": "time", "ns": ns}} for ns in (500, 0, 20, 1000)
    ]
    step = {"kind": "node", "effect": "kill", "when": {"at": "step", "step": "Hello"}}
    plan = plans.plan(quiet={"between_ns": 100}, fault=[*jumps, step])
    found = trial(plan, GOLDEN, 0).faults
    assert [fault.when for fault in found] == [
        *(AtTime(ns=500), AtTime(ns=0), AtTime(ns=100), AtTime(ns=1000), AtStep(step="Hello"))
    ]


FLIP = {"kind": "register", "register": "rax", "mask": 1}
ADVICE = "; give the values, or a golden run that looks for them"
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {**FLIP, "when": {"at": "instruction", "count": "*"}},
        (
            "when.count: found a golden run of 2 machines, expected one machine; "
            "say whose: node in a trigger, target in a fault"
        ),
    ),
    (
        {**FLIP, "when": {"at": "instruction", "count": "*", "node": "x"}},
        "when.count: found the machine 'x', expected one of primary, secondary",
    ),
    (
        {"kind": "data", "address": "*", "mask": 1, "target": "secondary", "when": AT_1},
        "address: found '*', expected a golden run with virtual pages that were touched" + ADVICE,
    ),
    (
        {**KILL, "when": {"at": "step", "step": "VmstateSent", "count": "*", "node": "primary"}},
        (
            "when.count: found 'VmstateSent', which the golden run did not do, "
            "expected a step that it did: Hello, VmstateSend; did you mean VmstateSend?"
        ),
    ),
    (
        {**KILL, "when": {"at": "step", "step": "*"}},
        "when.step: found no steps of the node '', expected steps of primary, secondary; say whose: node",
    ),
    (
        {**FLIP, "target": "primary", "when": {"at": "address", "address": 5, "hits": "*"}},
        "when.hits: found 0x5, which was not executed, expected an address that was; give hits",
    ),
    (
        {"kind": "clock-jump", "by_ns": 1, "when": {"at": "time", "ns": "0..10"}},
        "when.ns: found 0..10, expected a range with something outside the quiet periods",
    ),
    (
        {"kind": "disk", "effect": "lost", "first_sector": "*", "target": "vdb", "when": AT_1},
        "first_sector: found '*', expected a golden run with the size of the disk 'vdb'" + ADVICE,
    ),
]


@pytest.mark.parametrize(("table", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_what_the_golden_run_cannot_answer_is_said(table: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        made(table, quiet={"start_ns": 11})
    assert str(caught.value) == f"plan: fault[0].{message}"


@pytest.mark.parametrize("number", [-1, 5])
def test_a_trial_that_the_plan_has_not(number: int) -> None:
    plan = plans.plan(count=5, fault=[{"kind": "node", "effect": "kill", "when": {"at": "time", "ns": 1}}])
    with pytest.raises(PlanError, match=f"count: found trial {number}, expected trials 0 to 4"):
        trial(plan, GOLDEN, number)


@given(any_plans(), st.data())
def test_any_plan_of_exact_faults_gives_those(plan: plans.Plan, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, plan.head.count - 1))
    found = trial(plan, GOLDEN, number)
    assert isinstance(found, Trial)
    if plan.per_trial is None:
        assert len(found.faults) == len(plan.templates)
    assert {type(fault) for fault in found.faults} <= {template.kind for template in plan.templates}


@given(faults(GOLDEN))
def test_faults_of_a_golden_run_lie_within_it(fault: Any) -> None:
    match fault.when:
        case AtTime(ns=ns):
            assert ns <= GOLDEN.end_ns
        case AtInstruction(count=count):
            assert count < 1000
        case AtAddress(address=address):
            assert address in (0x400000, 0x400005)
        case AtStep(step=step, count=count, node=node):
            assert count <= GOLDEN.steps[node][step]
    match fault:
        case RegisterFault():
            assert fault.register in PRIMARY.registers
        case DataFault():
            assert 0x1001 <= fault.address < 0x5008
        case LinkFault():
            assert fault.target in ("", *GOLDEN.links)
        case DiskFault():
            assert fault.target in ("", "vda")
        case NodeFault() | LostInterrupt():
            assert fault.target in ("", "primary", "secondary")


def test_spans_of_pages() -> None:
    assert spans([3, 1, 2, 7, 7]) == ((0x1000, 0x4000), (0x7000, 0x8000))
    assert spans([]) == ()
