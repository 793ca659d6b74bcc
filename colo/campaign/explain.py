"""Where a trial parts from the golden run: the first time, the first register, page and packet.

Both machines run side by side in one process.  A search needs to go back: a step of a millisecond showed
that they have parted, and somewhere within it is the first block that did it.  A deterministic machine could
be run again from the start; forking is cheaper.  Before each step a copy of the process is put aside
(:class:`_Copy`).  If the step finds them together still, the copy is dismissed; if not, it is the copy that
goes on, from before the step, with a step that is :data:`PIECES` times shorter, and so on until a step is one
block.  What it finds it sends through a pipe.

*Path* and *state* are two questions.  A flipped register differs from the start, which is no news; the path
parts when the guest executes other instructions, or the same ones at another time.  The state is compared
where the path parts, and at the end.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from typing import NoReturn

import msgspec

from colo.campaign.golden import GoldenRun
from colo.campaign.injection import Armed, arm
from colo.campaign.outcome import Judge
from colo.campaign.subject import Say, Subject
from colo.campaign.trial import Report
from colo.errors import ColoError
from colo.faults.model import REGISTERS, Trial
from vmm.api import Pc

PIECES = 32
_NUMBERED = re.compile(r"^cpu\.general\[(\d+)\]")
"""A register as the state has it, by its number in an instruction's encoding (SDM vol. 2, 2.1.5)."""
COUNTED = ("exceptions", "interrupts", "syscalls", "port", "mmio")
DIFFERENCES_MAX = 40
"""That are told; a machine that went astray differs everywhere."""


class Parting(msgspec.Struct, frozen=True, kw_only=True):
    """The first time at which two runs were seen apart, to a block."""

    ns: int
    golden_rip: int
    trial_rip: int
    differences: tuple[str, ...]
    """Device fields, registers and pages, the golden run's value first."""


class Beside:
    """A trial and the golden run, at the same virtual time.  Use it in a ``with`` statement."""

    def __init__(self, golden: GoldenRun, trial: Trial, say: Say = lambda text: None) -> None:
        self.golden = Subject(golden.scenario, say)
        self.trial = Subject(golden.scenario, say)
        self.run = golden
        if self.golden.state() != golden.start:
            self.close()
            raise ColoError(
                f"guest {golden.scenario.guest} does not start where its golden run did: expected the build"
                " that the campaign was made with"
            )
        self.armed: Armed = arm(self.trial, trial)

    @property
    def now_ns(self) -> int:
        """How far both have come; an ended guest waits for the other one."""
        return max(self.golden.now_ns, self.trial.now_ns)

    def advance(self, until_ns: int) -> None:
        for each in (self.golden, self.trial):
            each.advance(until_ns)

    def after_fork(self) -> None:
        for each in (self.golden, self.trial):
            each.machine.after_fork()

    def differences(self) -> list[str]:
        """Of the two states as they are now."""
        found = self.golden.machine.differences(self.trial.machine)
        return [_NUMBERED.sub(lambda match: f"cpu.{REGISTERS[int(match[1])]}", each) for each in found]

    def close(self) -> None:
        self.golden.close()
        self.trial.close()

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def other_path(pair: Beside) -> bool:
    """Is the trial elsewhere, or there at another time?"""
    return _trace(pair.golden) != _trace(pair.trial)


def _trace(subject: Subject) -> tuple[object, ...]:
    """Where a guest is, and how much it did: two that wait at one place may have come there differently."""
    counters = subject.machine.counters()
    done = tuple(counters[name] for name in COUNTED)
    return (subject.now_ns, subject.ended, rip(subject), subject.instructions, len(subject.said), *done)


def rip(subject: Subject) -> int:
    return Pc(subject.machine).registers["rip"]


def first(pair: Beside, apart: Callable[[Beside], bool], end_ns: int) -> Parting | None:
    """The first block after which ``apart`` holds, before ``end_ns``; ``pair`` is somewhere later then."""
    step = max(1, (end_ns - pair.now_ns) // PIECES)
    while pair.now_ns < end_ns:
        if step == 1:
            pair.advance(pair.now_ns + 1)
            if apart(pair):
                return _parting(pair)
            continue
        copy = _Copy(pair, apart)
        wanted_ns = min(pair.now_ns + step, end_ns)
        pair.advance(wanted_ns)  # and perhaps further: one block may be longer than many steps
        if apart(pair):
            return copy.look(wanted_ns)
        copy.dismiss()
        if pair.golden.ended is not None and pair.trial.ended is not None:
            return None
    return None


def _parting(pair: Beside) -> Parting:
    found = pair.differences()
    if len(found) > DIFFERENCES_MAX:
        found = [*found[:DIFFERENCES_MAX], f"... and {len(found) - DIFFERENCES_MAX} more"]
    return Parting(
        ns=pair.now_ns, golden_rip=rip(pair.golden), trial_rip=rip(pair.trial), differences=tuple(found)
    )


class _Copy:
    """This process as it was, put aside: it waits to be told to look closer, or to go."""

    def __init__(self, pair: Beside, apart: Callable[[Beside], bool]) -> None:
        order, self._order = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._order)
            os.close(self._answer)
            _wait(pair, apart, order, answer)
        os.close(order)
        os.close(answer)

    def look(self, end_ns: int) -> Parting:
        """It finds what happens before ``end_ns``."""
        os.write(self._order, b"%d\n" % end_ns)
        said = bytearray()
        while piece := os.read(self._answer, 1 << 16):
            said += piece
        self.dismiss()
        if not said:
            raise ColoError("the search for the first difference failed; standard error has the reason")
        return msgspec.msgpack.decode(bytes(said), type=Parting)

    def dismiss(self) -> None:
        os.close(self._order)
        os.close(self._answer)
        os.waitpid(self._pid, 0)


def _wait(pair: Beside, apart: Callable[[Beside], bool], order: int, answer: int) -> NoReturn:
    """The copy's life: an end of input is the word to go."""
    status = 1
    try:
        word = os.read(order, 64)
        if word:
            pair.after_fork()
            found = first(pair, apart, int(word))
            assert found is not None, "a copy does what its original did"
            data = msgspec.msgpack.encode(found)
            while data:
                data = data[os.write(answer, data) :]
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def story(pair: Beside, path: Parting | None, report: Report) -> list[str]:
    """For people: what happened, in the order in which it did."""
    lines = [f"injected  at {each.ns:,} ns, before {each.address:#x}: {each}" for each in report.happened]
    if not lines:
        lines = ["injected  nothing: what the faults wait for did not happen"]
    if path is None:
        lines.append("path      never leaves the golden run's")
    else:
        where = f"rip {path.trial_rip:#x}, the golden run is at {path.golden_rip:#x}"
        if path.trial_rip == path.golden_rip:
            where = f"rip {path.trial_rip:#x}, at another time"
        lines.append(f"path      leaves the golden run's at {path.ns:,} ns: {where}")
        lines += [f"          {each}" for each in path.differences]
    difference = Judge(pair.run).first_difference(pair.trial.said)
    lines.append(f"output    {difference or 'nothing that the golden run does not say'}")
    return lines
