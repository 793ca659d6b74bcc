"""The first difference of a trial and its golden run: the block, the register, the page, the output."""

from __future__ import annotations

from pathlib import Path

from colo.campaign import explain
from colo.campaign.explain import Beside
from colo.campaign.golden import GoldenRun
from colo.campaign.injection import not_before_ns
from colo.campaign.outcome import Judge
from colo.campaign.trial import follow
from colo.faults.model import AtAddress, AtTime, RegisterFault, Trial
from tests.campaign.subjects import TIMER_LOOP, UNUSED, WORD_SECOND, alone, flip

AT = 980_000_000
AFTER_HLT = TIMER_LOOP + 2


def parted(run: GoldenRun, trial: Trial) -> tuple[explain.Parting | None, list[str]]:
    with Beside(run, trial) as pair:
        pair.advance(not_before_ns(trial, run))
        path = explain.first(pair, explain.other_path, run.span_ns)
        report = follow(pair.trial, run, Judge(run), pair.armed)
        return path, explain.story(pair, path, report)


def test_a_register_that_decides_a_branch(counter_run: GoldenRun) -> None:
    """ebx is the tick of the next round: far in the future, the round that is due is left out."""
    fault = RegisterFault(
        when=AtTime(ns=AT), register="rbx", operation="overwrite", mask=0xFFFF_FFFF, value=1 << 30
    )
    path, story = parted(counter_run, alone(fault))
    assert path is not None
    with Beside(counter_run, alone(fault)) as pair:
        pair.advance(path.ns)
        injected = pair.armed.happened[0]
    assert injected.ns <= path.ns < injected.ns + 2_000_000, "within a tick or two"
    assert path.golden_rip != path.trial_rip or path.differences
    assert any(each.startswith("cpu.r") for each in path.differences)
    assert story[0].startswith(f"injected  at {injected.ns:,} ns")
    assert story[1].startswith(f"path      leaves the golden run's at {path.ns:,} ns")


def test_a_parting_is_found_to_the_block(counter_run: GoldenRun) -> None:
    """rip itself is changed, at a known instruction: the block after it is the first that is elsewhere."""
    fault = RegisterFault(
        when=AtAddress(address=AFTER_HLT, hits=3),
        register="rip",
        operation="overwrite",
        mask=(1 << 64) - 1,
        value=TIMER_LOOP,
    )
    trial = alone(fault)
    with Beside(counter_run, trial) as pair:
        path = explain.first(pair, explain.other_path, counter_run.span_ns)
        assert path is not None
        (injected,) = pair.armed.happened
    assert injected.address == AFTER_HLT
    assert injected.ns <= path.ns
    with Beside(counter_run, trial) as pair:
        pair.advance(path.ns - 1)
        assert pair.now_ns >= path.ns or not explain.other_path(pair), "a block earlier they were together"


def test_what_only_data_shows_never_leaves_the_path(counter_run: GoldenRun) -> None:
    path, story = parted(counter_run, alone(flip(AT, UNUSED)))
    assert path is None
    assert story[1:] == [
        "path      never leaves the golden run's",
        "output    nothing that the golden run does not say",
    ]


def test_other_output_on_the_same_path(counter_run: GoldenRun) -> None:
    path, story = parted(counter_run, alone(flip(AT, WORD_SECOND)))
    assert path is None
    assert "'recond 1 rounds 1000', not 'second 1 rounds 1000'" in story[-1]


def test_a_search_leaves_no_process_behind(counter_run: GoldenRun) -> None:
    before = children()
    parted(counter_run, alone(flip(AT, WORD_SECOND)))
    assert children() <= before


def children() -> set[str]:
    """Processes of this one's, zombies included (proc(5), /proc/PID/task/TID/children)."""
    return set(Path("/proc/thread-self/children").read_text().split())


def test_no_fault_is_no_difference(counter_run: GoldenRun) -> None:
    path, story = parted(counter_run, Trial(seed=1))
    assert path is None
    assert story[0] == "injected  nothing: what the faults wait for did not happen"
