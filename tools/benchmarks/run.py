"""One run of the benchmarks: settings, what was measured, progress."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vmm.guest
from tools.benchmarks.emulator import Board, Lost
from tools.benchmarks.figures import Figure
from tools.benchmarks.host import ROOT, Unavailable
from tools.benchmarks.measure import Measure
from vmm.errors import GuestBuildError


@dataclass
class Run:
    """What a section is given."""

    count: int
    """Rounds; in each, both sides are measured once."""
    quick: bool
    """A fraction of the work: to see that everything runs, not to measure."""
    directory: Path
    """For files that live as long as the run."""
    section: str = ""
    measures: list[Measure] = field(default_factory=list)
    """Beside QEMU's TCG, in one run."""
    figures: list[Figure] = field(default_factory=list)
    """Of protected guests."""
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By section: everything that was seen, a row each, ready to be plotted."""

    failures: list[str] = field(default_factory=list)
    """Of this section: what was begun and could not be measured."""

    def measure(self, name: str, unit: str, **more: Any) -> Measure:
        self.measures.append(Measure(self.section, name, unit, **more))
        return self.measures[-1]

    def figure(self, name: str, unit: str, **more: Any) -> Figure:
        self.figures.append(Figure(self.section, name, unit, **more))
        return self.figures[-1]

    def record(self, **row: Any) -> None:
        self.records.setdefault(self.section, []).append(row)

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """One of several things in a section: when it cannot be measured, the others still are."""
        try:
            yield
        except Lost as exc:
            self.failures.append(f"{what}: {exc}")
            self.say(self.failures[-1])

    def rounds(self) -> Iterator[int]:
        for number in range(1, self.count + 1):
            self.say(f"{self.section}: round {number} of {self.count}")
            yield number

    def scaled(self, amount: int) -> int:
        return max(1, amount // 20) if self.quick else amount

    def linux(self, name: str) -> Board:
        """A Linux guest, built if it is not in the cache yet."""
        try:
            built = vmm.guest.open(name).build(lambda text: self.say(f"guest {name}: {text}"))
        except GuestBuildError as exc:
            raise Unavailable(f"guest {name}: {exc}") from None
        return Board(kernel=built.kernel, initrd=built.initrd, append=built.cmdline)

    def finish(self, command: list[str]) -> str:
        """Run a program to its end; its output."""
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            raise Unavailable(f"{' '.join(command[:4])} ...: {(done.stderr or done.stdout)[-2000:].strip()}")
        return done.stdout

    def say(self, what: str) -> None:
        print(f"   {what}", file=sys.stderr, flush=True)
