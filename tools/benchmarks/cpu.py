"""Guest CPU work in Debian's kernel and BusyBox, timed from sending the command to the next prompt."""

from __future__ import annotations

from dataclasses import dataclass

from tools.benchmarks.emulator import PROMPT, Emulator
from tools.benchmarks.measure import SIDES
from tools.benchmarks.run import Run

METHOD = (
    "one boot of guest `linux` on each side and round; each command once to warm up and once timed on the "
    "host, from sending the line to the next prompt; CPU time is what the emulator's process used, which "
    "other load on the host hardly changes"
)


@dataclass(frozen=True)
class Work:
    """A shell command that does something ``count`` times."""

    name: str
    command: str
    count: int


WORKS = (
    Work("sha256sum of busybox", "for n in $(seq {n}); do sha256sum /bin/busybox; done >/dev/null", 4),
    Work("gzip of busybox", "gzip -c /bin/busybox >/dev/null", 1),
    Work("shell loop", "i=0; while [ $i -lt {n} ]; do i=$((i+1)); done", 20_000),
    Work("fork and exec", "i=0; while [ $i -lt {n} ]; do /bin/true; i=$((i+1)); done", 100),
    Work("memory copy, 1 MiB blocks", "dd if=/dev/zero of=/dev/null bs=1M count={n} 2>/dev/null", 600),
    Work("system calls, 1 byte each", "dd if=/dev/zero of=/dev/null bs=1 count={n} 2>/dev/null", 100_000),
    Work("lines through a pipe", "seq {n} | cat >/dev/null", 5_000),
)


def measure(run: Run) -> None:
    board = run.linux("linux")
    wall = {}
    used = {}
    for work in WORKS:
        wall[work] = run.measure(work.name, "s", goal=1.0)
        used[work] = run.measure("  of CPU time", "s", goal=1.0)
    for _ in run.rounds():
        for side in SIDES:
            with Emulator.start(side, board) as emulator:
                emulator.expect("GUEST-READY linux")
                emulator.expect(PROMPT)
                for work in WORKS:
                    command = work.command.format(n=run.scaled(work.count))
                    emulator.command(command)
                    before = emulator.cpu_seconds()
                    wall[work].add(side, emulator.command(command)[1])
                    used[work].add(side, emulator.cpu_seconds() - before)
