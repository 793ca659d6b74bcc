"""A trial is the same, whether its child left the golden run late or it went the whole way by itself."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

import vmm.guest
from colo.campaign import golden
from colo.campaign.golden import GoldenRun
from colo.campaign.injection import SLACK_NS, arm, not_before_ns
from colo.campaign.outcome import Judge
from colo.campaign.scenario import Input, Scenario
from colo.campaign.subject import Subject
from colo.campaign.trial import Report, follow
from colo.campaign.walker import Walker
from colo.faults.model import (
    AtAddress,
    AtInstruction,
    AtText,
    AtTime,
    DiskFault,
    Fault,
    InstructionFault,
    Outcome,
    RegisterFault,
    Trial,
)
from colo.faults.triggers import Intermittent
from tests.campaign.subjects import COUNTER, LINE_NS, TIMER_LOOP, alone

BIT = {"register": "rsi", "mask": 1}
"""The counter keeps how many rounds it has made in esi."""
RAISED = 960_000_000

FAULTS: dict[str, Fault] = {
    "time": RegisterFault(when=AtTime(ns=RAISED), **BIT),
    "address": RegisterFault(when=AtAddress(address=TIMER_LOOP + 1, hits=970), **BIT),
    "text": RegisterFault(when=AtText(text="second "), **BIT),
    "instruction": RegisterFault(when=AtInstruction(count=2_500_000), **BIT),
    "an instruction": InstructionFault(when=AtTime(ns=RAISED), mask=1, address=TIMER_LOOP + 3),
    "stuck": RegisterFault(when=AtTime(ns=RAISED), persistence="permanent", operation="set1", **BIT),
    "twice": RegisterFault(
        when=AtTime(ns=RAISED), persistence=Intermittent(period_ns=5_000_000, times=2), **BIT
    ),
}


def from_the_start(run: GoldenRun, trial: Trial) -> Report:
    with Subject(COUNTER) as subject:
        return follow(subject, run, Judge(run), arm(subject, trial))


@pytest.mark.parametrize("name", FAULTS)
def test_leaving_late_makes_no_difference(walker: Walker, counter_run: GoldenRun, name: str) -> None:
    trial = alone(FAULTS[name])
    forked = walker.run(trial)
    whole = from_the_start(counter_run, trial)
    assert forked.failure == ""
    assert msgspec.structs.replace(forked, forked_ns=0, wall_ms=0.0) == whole
    assert len(forked.happened) == (2 if name == "twice" else 1)
    assert not any(each.failed for each in forked.happened)


def test_it_happens_where_it_was_asked_for(walker: Walker) -> None:
    (at_time,) = walker.run(alone(FAULTS["time"])).happened
    assert RAISED <= at_time.ns < RAISED + 20
    (at_address,) = walker.run(alone(FAULTS["address"])).happened
    assert at_address.address == TIMER_LOOP + 1
    (at_text,) = walker.run(alone(FAULTS["text"])).happened
    assert at_text.ns < LINE_NS


def test_a_trial_leaves_shortly_before(counter_run: GoldenRun) -> None:
    assert not_before_ns(alone(FAULTS["time"]), counter_run) == RAISED - SLACK_NS
    late = not_before_ns(alone(FAULTS["instruction"]), counter_run)
    mark = next(each for each in counter_run.marks if each.instructions > 2_500_000)
    assert mark.ns - 2 * COUNTER.interval_ns < late < mark.ns
    assert 0 < not_before_ns(alone(FAULTS["text"]), counter_run) < LINE_NS
    assert not_before_ns(alone(FAULTS["address"]), counter_run) == 0, "executions count from the start"


def test_two_that_cancel_out_rejoin(walker: Walker, counter_run: GoldenRun) -> None:
    report = walker.run(alone(FAULTS["time"], FAULTS["time"]))
    assert (report.outcome, report.rejoined) == (Outcome.MASKED, True)
    assert len(report.happened) == 2


def test_what_lasts_never_counts_as_rejoined(walker: Walker) -> None:
    """A bit that is stuck at what it is already: the state is the golden run's, its future need not be."""
    fault = RegisterFault(
        when=AtTime(ns=RAISED), persistence="permanent", operation="set0", register="r9", mask=1
    )
    report = walker.run(alone(fault))
    assert (report.outcome, report.rejoined) == (Outcome.MASKED, False)


def test_what_no_machine_has_is_a_failure(walker: Walker) -> None:
    from colo.faults.model import NodeFault

    report = walker.run(alone(NodeFault(when=AtTime(ns=RAISED), effect="kill")))
    assert report.outcome is None
    assert "a fault of one machine" in report.failure


def test_a_disk_that_fails_is_a_machines_fault(guest: Callable[[str], vmm.guest.BuiltGuest]) -> None:
    guest("linux-disk")
    read = b"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=4096 count=4\n"
    scenario = Scenario(
        guest="linux-disk",
        inputs=(Input(at_ns=1_000_000, data=read),),
        span_ns=60_000_000,
        limit_ns=0,
        marks=6,
        ignore=("bytes .* copied",),
        detected=("I/O error",),
    )
    with Subject(scenario) as subject:
        run = golden.record(subject)
    assert run.facts().disks[""] > 8
    failing = DiskFault(when=AtTime(ns=0), effect="eio", persistence="permanent")
    disk_walker = Walker(run)
    report = disk_walker.run(alone(failing))
    disk_walker.close()
    assert (report.outcome, report.why) == (Outcome.DETECTED, "the console says 'I/O error'")
