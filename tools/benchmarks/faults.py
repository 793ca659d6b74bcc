"""How fast faults are tried, and whether a second time comes to the same: ours, without what makes it fast,
and an injector on QEMU.

Everything is on one core: this process, a worker or QEMU with all its threads; so a rate is a core's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from colo.campaign.campaign import Campaign, Workers
from colo.campaign.golden import GoldenRun
from colo.campaign.planned import Planned
from colo.campaign.results import HOST_FIELDS, Row
from colo.campaign.workers import LocalWorkers
from colo.errors import ColoError
from tools.benchmarks import faults_plans, faults_qemu, faults_worlds
from tools.benchmarks.emulator import Lost
from tools.benchmarks.faults_alone import BOOT, RESUME, Alone
from tools.benchmarks.faults_results import equal, table, trials_row
from tools.benchmarks.host import Unavailable
from tools.benchmarks.qemu_injector_gdb import GdbError
from tools.benchmarks.run import Run
from vmm.errors import VmmError

ROUNDS = 1
METHOD = (
    "one bit a trial, drawn from one seed, and all on one core of the host, which the benchmark and its "
    "worker, or QEMU with all its threads, share. fork server: `colo campaign` with one worker; resume: "
    "each trial resumes the snapshot, in one process; boot: each trial boots the guest, in a process of "
    "its own. The Redis trials are the same on all sides and judged by the same code. QEMU (TCG, -icount "
    "shift=0,sleep=off, same kernel and initramfs) flips the bit through its gdb stub: after a part of "
    "the host's time that the run without a fault takes (clock), or at the first execution of the "
    "instruction where that had stopped (breakpoint). a minute: from the end of the first trial to the "
    "end of the last; set-up: all before, golden run included. twice: so many had the same outcome when "
    "they were done again (resume and boot: as with the fork server); all: and everything else that is "
    "known of them was the same too: of ours when and where the bit was flipped, what it changed, when "
    "the outcome was known, of pairs the digest of all that happened; of QEMU's the address and the first "
    "line that differs. Not the same on both sides: a moment on QEMU is a share of the same workload, not "
    "an instant; what a register or the kernel's memory holds then is QEMU's; our trials end when the "
    "state is the golden run's again or at a limit of virtual time, QEMU's at the last line or after "
    "three times the processor time of the run without a fault"
)
COUNTER, REDIS, RESUMES, BOOTS = 200, 60, 10, 4
QEMU_TRIALS, QEMU_BOOTS = 30, 3
KILLS = {"udpecho": 20, "redis": 3}
AGAIN = ("udpecho",)
"""Pairs whose kills are tried twice: a world with Redis takes seconds."""
CLIENTS = {"udpecho": "udp-echo", "redis": "redis-counter"}

__all__ = ["METHOD", "ROUNDS", "measure", "table"]


def measure(run: Run) -> None:
    with one_core():
        for _ in run.rounds():
            with apart(run, "counter"):
                tried(run, "bits in the counter", faults_plans.counter(run.scaled(COUNTER)))
            with apart(run, "Redis"):
                bits_in_redis(run)
            for guest in KILLS:
                for policy in faults_worlds.policies(run):
                    with apart(run, f"a kill, {guest}, {policy}"):
                        kills(run, guest, policy)
            with apart(run, "worlds"):
                faults_worlds.measure(run)


@contextmanager
def one_core() -> Iterator[None]:
    """For this process and all that it starts; the last core, because the first has most interrupts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def apart(run: Run, what: str) -> Iterator[None]:
    with run.apart(what):
        try:
            yield
        except (ColoError, VmmError, GdbError, Unavailable) as exc:
            raise Lost(str(exc)) from exc


def bits_in_redis(run: Run) -> None:
    what, first = faults_qemu.WHAT, directory(run)  # where its golden run will be
    plan = faults_plans.redis(run.scaled(REDIS))
    # a quick run does them again by resuming and by booting, which have to come to the same
    expected = tried(run, what, plan, again=not run.quick)
    for how, count in ((RESUME, RESUMES), (BOOT, BOOTS)):
        rows, facts = done(run, faults_plans.redis(run.scaled(count)), Alone(how))
        run.record(**trials_row(what, f"ours, {how}", **facts, **compared(rows, expected[: len(rows)])))
    with Campaign(plan, first, run.say) as campaign:
        golden, trials = campaign.golden, campaign.trials[: run.scaled(QEMU_TRIALS)]
    assert isinstance(golden, GoldenRun), "a machine's plan"
    faults_qemu.measure(run, golden.scenario, trials, run.scaled(QEMU_BOOTS))


def kills(run: Run, guest: str, policy: str) -> None:
    plan = faults_plans.kills(guest, CLIENTS[guest], policy, run.scaled(KILLS[guest]))
    tried(run, f"a kill, {guest}", plan, f"pair, {policy}", again=guest in AGAIN)


def tried(
    run: Run, what: str, plan: Planned, how: str = "ours, fork server", *, again: bool = True
) -> list[Row]:
    """A campaign, and the same one again; the rows of the first."""
    rows, facts = done(run, plan, LocalWorkers(1, run.say))
    second = done(run, plan, LocalWorkers(1, run.say))[0] if again else None
    same = {} if second is None else compared(rows, second)
    run.record(**trials_row(what, how, **facts, **same))
    return rows


def done(run: Run, plan: Planned, workers: Workers) -> tuple[list[Row], dict[str, Any]]:
    """All trials of a plan in a new directory."""
    run.say(f"{plan.name}: {plan.plan.head.count} trials")
    stamps: list[float] = []
    began = time.perf_counter()
    with Campaign(plan, directory(run), run.say) as campaign:
        found = campaign.run(workers, watch=lambda standing: stamps.append(time.perf_counter()))
    failed = next((row for row in found.rows if row.failure), None)
    if failed is not None:
        raise Lost(f"{plan.name}, trial {failed.trial}: {failed.failure}")
    facts = {
        "outcomes": [row.outcome for row in found.rows],
        "stamps": stamps,
        "set_up_s": stamps[0] - began,
        "digest": found.digest,
    }
    return found.rows, facts


def directory(run: Run) -> Path:
    """A new one: a campaign goes on where there is one."""
    number = len(list(run.directory.glob("campaign-*")))
    return run.directory / f"campaign-{number}"


def compared(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, str]:
    """Two times the same trials: how many are equal, the host's times aside."""
    host = dict.fromkeys(HOST_FIELDS)
    outcomes = ([row.outcome for row in one] for one in (rows, others))
    alike = ([{**msgspec.to_builtins(row), **host} for row in one] for one in (rows, others))
    return {"equal_outcomes": equal(*outcomes), "equal_all": equal(*alike)}
