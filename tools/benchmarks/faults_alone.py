"""Trials without a fork server: each has a machine of its own, from the snapshot or from power-on.

    python -m tools.benchmarks.faults_alone resume
    python -m tools.benchmarks.faults_alone boot

It is a worker of a campaign (:mod:`colo.campaign.worker`: the same messages, faults, rules and results), but
for where a trial's machine comes from.  ``resume``: one process, which resumes the booted snapshot for each
trial.  ``boot``: a process for each trial, which boots the guest until it says that it is ready, as the
snapshot was made.  Both then execute everything up to the fault, which a fork server's child inherits.

A machine is deterministic: every way has to come to the same results, field by field.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec

import vmm.guest
from colo.campaign.golden import GoldenRun
from colo.campaign.injection import arm, not_before_ns
from colo.campaign.outcome import Judge
from colo.campaign.subject import Say, Subject
from colo.campaign.trial import Report, follow
from colo.campaign.wire import Channel, Done, Job, Numbered
from colo.cli.conduct import Conditions, Conductor
from colo.errors import ColoError
from colo.faults.model import Trial
from tools.benchmarks.emulator import usual_environment
from tools.benchmarks.host import ROOT, Unavailable
from vmm.launch import LaunchOptions, launch
from vmm.machine import Machine

RESUME, BOOT = "resume", "boot"


class Booted(Subject):
    """A guest that has just been booted, instead of resumed."""

    def _launched(self, say: Say) -> Machine:
        wanted = self.scenario
        options = LaunchOptions(
            guest=wanted.guest, append=wanted.append, ram_mib=wanted.ram_mib, nets=("none",), paced=False
        )
        machine = self._opened.enter_context(launch(options, say=say)).machine
        Conductor(machine, Conditions(exit_on=vmm.guest.open(wanted.guest).info.expect)).run()
        machine.restart_on_reset = False
        machine.serial.show()
        machine.serial.restart()  # what the guest has said of a line is no part of a snapshot
        self._before = machine.console.total
        return machine

    @property
    def tail(self) -> bytes:
        """Without what it said while it booted."""
        self._lines_bytes += self._before
        try:
            return super().tail
        finally:
            self._lines_bytes -= self._before


def perform(golden: GoldenRun, trial: Trial, kind: type[Subject]) -> Report:
    """A trial from the start state on."""
    with kind(golden.scenario) as subject:
        if (found := subject.state()) != golden.start:
            raise ColoError(
                f"guest {golden.scenario.guest} starts in state {found.hex()}, the golden run in"
                f" {golden.start.hex()}: expected the same build"
            )
        left_ns = not_before_ns(trial, golden)
        report = follow(subject, golden, Judge(golden), arm(subject, trial))
        return msgspec.structs.replace(report, forked_ns=left_ns)


class Alone:
    """Such a worker, for :meth:`colo.campaign.campaign.Campaign.run`: one trial after the other."""

    def __init__(self, way: str) -> None:
        self._way = way

    def run(self, job: Job, trials: Sequence[Numbered]) -> Iterator[Done]:
        if self._way == BOOT:
            for each in trials:
                yield from _asked(self._way, job, [each])
        else:
            yield from _asked(self._way, job, trials)


def _asked(way: str, job: Job, trials: Sequence[Numbered]) -> Iterator[Done]:
    """Of one process."""
    command = [sys.executable, "-m", "tools.benchmarks.faults_alone", way]
    environment = {**usual_environment(), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        channel = Channel(process.stdout.fileno(), process.stdin.fileno())
        try:
            channel.send(job)
            for each in trials:
                channel.send(each)
                data = channel.receive()
                if data is None:
                    raise Unavailable(f"trial {each.number}, {way}: its process ended; it says why above")
                yield msgspec.msgpack.decode(data, type=Done)
        except BaseException:
            process.kill()
            raise


def serve(way: str, channel: Channel) -> None:
    data = channel.receive()
    assert data is not None
    golden = msgspec.msgpack.decode(data, type=Job).golden
    assert isinstance(golden, GoldenRun)
    while (data := channel.receive()) is not None:
        wanted = msgspec.msgpack.decode(data, type=Numbered)
        report = perform(golden, wanted.trial, Booted if way == BOOT else Subject)
        channel.send(Done(wanted.number, report, way))


def main() -> int:
    write = os.dup(1)
    os.dup2(2, 1)  # nothing that prints may end up among the messages
    serve(sys.argv[1], Channel(0, write))
    return 0


if __name__ == "__main__":
    sys.exit(main())
