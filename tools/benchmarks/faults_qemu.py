"""The Redis plan's trials on QEMU (:mod:`tools.benchmarks.qemu_injector`), in three ways, two of them twice.

``loadvm, clock`` and ``loadvm, breakpoint``: one QEMU, which goes back to its snapshot before each trial.  A
breakpoint is where the clock stopped the trial of the same number.  ``boot, clock``: a QEMU for each trial.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import vmm.guest
from colo.campaign.scenario import Scenario
from colo.faults.model import AtTime, Trial
from tools.benchmarks import faults_plans
from tools.benchmarks.faults_results import equal, trials_row
from tools.benchmarks.qemu_injector import AtAddress, AtClock, Injected, Injector
from tools.benchmarks.qemu_injector_machine import Qemu, started
from tools.benchmarks.run import Run

READY, LAST = "GUEST-READY redis", "DONE\r\n"
WHAT = "bits in Redis"
Moment = Callable[[int], AtClock | AtAddress]
"""Of the trial with this index."""


def measure(run: Run, scenario: Scenario, trials: Sequence[Trial], boots: int) -> None:
    asyncio.run(_measure(run, scenario, trials, boots))


async def _measure(run: Run, scenario: Scenario, trials: Sequence[Trial], boots: int) -> None:
    guest = vmm.guest.open(scenario.guest).build(run.say)
    began = time.perf_counter()
    async with started(guest) as qemu:
        injector = Injector(qemu, scenario)
        await _stand(injector)
        await qemu.make_store(run.directory / "store.qcow2")
        await qemu.save()
        await injector.golden(LAST)
        set_up_s = time.perf_counter() - began

        def by_clock(index: int) -> AtClock:
            return AtClock(injector.golden_s * _part(trials[index]))

        found = await _twice(run, qemu, injector, trials, "QEMU, loadvm, clock", set_up_s, by_clock)
        where = [each.address for each in found]
        reached = [trial for trial, address in zip(trials, where, strict=True) if address is not None]
        addresses = [address for address in where if address is not None]
        await _twice(
            run,
            qemu,
            injector,
            reached,
            "QEMU, loadvm, breakpoint",
            set_up_s,
            lambda index: AtAddress(addresses[index]),
        )
    booted, stamps = [], [time.perf_counter()]
    for index in range(boots):
        run.say(f"QEMU, boot: trial {index + 1} of {boots}")
        async with started(guest) as fresh:
            alone = Injector(fresh, scenario)
            alone.judge_as(injector)
            await _stand(alone)
            booted.append(await alone.trial(trials[index].faults[0], by_clock(index)))
        stamps.append(time.perf_counter())
    _record(run, "QEMU, boot, clock", booted, stamps, 0.0)


async def _stand(injector: Injector) -> None:
    await injector.begin(READY, faults_plans.TYPED, faults_plans.ECHOED)


def _part(trial: Trial) -> float:
    """Of the time from the echo to the last line."""
    when = trial.faults[0].when
    assert isinstance(when, AtTime)
    return (when.ns - faults_plans.BEGIN_NS) / (faults_plans.END_NS - faults_plans.BEGIN_NS)


async def _twice(
    run: Run,
    qemu: Qemu,
    injector: Injector,
    trials: Sequence[Trial],
    how: str,
    set_up_s: float,
    moment: Moment,
) -> list[Injected]:
    """All trials, and again; what the first time came to."""
    rounds: list[list[Injected]] = []
    stamps = [time.perf_counter()]
    for number in (1, 2):
        run.say(f"{how}: {len(trials)} trials, time {number}")
        rounds.append([])
        for index, trial in enumerate(trials):
            await qemu.load()
            rounds[-1].append(await injector.trial(trial.faults[0], moment(index)))
            stamps.append(time.perf_counter())
    _record(run, how, rounds[0], stamps, set_up_s, again=rounds[1])
    return rounds[0]


def _record(
    run: Run,
    how: str,
    found: Sequence[Injected],
    stamps: Sequence[float],
    set_up_s: float,
    again: Sequence[Injected] = (),
) -> None:
    more = {}
    if again:
        outcomes = ([each.outcome for each in one] for one in (found, again))
        more = {"equal_outcomes": equal(*outcomes), "equal_all": equal(found, again)}
    run.record(**trials_row(WHAT, how, [each.outcome for each in found], stamps, set_up_s, **more))
