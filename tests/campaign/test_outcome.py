"""Outcomes, against faults that were planted because what they do is known."""

from __future__ import annotations

import pytest

from colo.campaign.golden import GoldenRun
from colo.campaign.outcome import Judge, console_text
from colo.campaign.subject import Said
from colo.campaign.walker import Walker
from colo.faults.model import DataFault, Outcome
from tests.campaign.subjects import (
    LINE_NS,
    REWRITTEN,
    TIMER_LOOP,
    UNUSED,
    WORD_SECOND,
    alone,
    flip,
    overwrite,
)

AT = 960_000_000
JUMP_TO_ITSELF, CLI, UNDEFINED, DEBUG_EXIT = b"\xeb\xfe", b"\xfa", b"\x0f\x0b", b"\xe6\xf4"

PLANTED = {
    "overwritten": (flip(AT, REWRITTEN), Outcome.MASKED, "the same state"),
    "unused": (flip(AT, UNUSED), Outcome.MASKED, "the same output"),
    "other text": (flip(AT, WORD_SECOND), Outcome.SDC, "other output"),
    "says so": (overwrite(AT, WORD_SECOND, b"BUG: \0"), Outcome.DETECTED, "the console says 'BUG:'"),
    "exit": (overwrite(AT, TIMER_LOOP, DEBUG_EXIT), Outcome.DETECTED, "exit code"),
    "endless": (overwrite(AT, TIMER_LOOP, JUMP_TO_ITSELF), Outcome.HANG, "output is missing"),
    "halts": (overwrite(AT, TIMER_LOOP, CLI), Outcome.CRASH, "the guest ended: poweroff"),
    "undefined": (overwrite(AT, TIMER_LOOP, UNDEFINED), Outcome.CRASH, "the guest ended"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found(walker: Walker, name: str) -> None:
    fault, outcome, why = PLANTED[name]
    report = walker.run(alone(fault))
    assert (report.outcome, report.failure) == (outcome, "")
    assert why in report.why
    assert len(report.happened) == 1


def test_a_trial_that_is_the_golden_run_again_ends_there(walker: Walker, counter_run: GoldenRun) -> None:
    report = walker.run(alone(flip(AT, REWRITTEN)))
    assert report.rejoined
    assert not report.latent
    assert report.ended_ns == counter_run.marks[counter_run.mark_after(AT)].ns


def test_an_error_that_stays_is_latent(walker: Walker) -> None:
    report = walker.run(alone(flip(AT, UNUSED)))
    assert (report.rejoined, report.latent) == (False, True)


def test_the_first_difference_is_told(walker: Walker) -> None:
    report = walker.run(alone(flip(AT, WORD_SECOND)))
    assert report.difference == f"com1 at {LINE_NS} ns: 'recond 1 rounds 1000', not 'second 1 rounds 1000'"


def test_a_fault_of_every_kind_in_any_order(walker: Walker) -> None:
    """One walker, whose children do not disturb each other."""
    order = [*PLANTED, *reversed(PLANTED)]
    faults: list[DataFault] = [PLANTED[name][0] for name in order]
    walker.prepare(alone(faults[0]))
    walks = walker.walks
    found = [walker.run(alone(each)).outcome for each in faults]
    assert found == [PLANTED[name][1] for name in order]
    assert walker.walks == walks


def test_lines_that_may_differ_are_left_out(counter_run: GoldenRun) -> None:
    import msgspec

    said = [each for each in counter_run.said if each.ns > 100_000]
    other = [*counter_run.said[:-1], Said(said[0].ns, "com1", b"it is Monday\r\n"), said[0]]
    assert Judge(counter_run).first_difference(other) is not None
    ignoring = msgspec.structs.replace(counter_run.scenario, ignore=("^it is ",))
    judge = Judge(msgspec.structs.replace(counter_run, scenario=ignoring))
    assert judge.first_difference(other) is None


def test_a_console_is_text_whatever_its_bytes() -> None:
    assert console_text([Said(0, "com1", b"\xff\n"), Said(1, "net0", b"frame")], b"end") == "\ufffd\nend"
