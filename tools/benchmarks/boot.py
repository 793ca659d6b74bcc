"""From the start of the process to a shell that answers: cold, and from a snapshot.

QEMU is started twice: with the bzImage, whose decompressor then runs inside the guest, and with the
ELF kernel that is packed in it (its PVH entry), because we too unpack on the host.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tools.benchmarks.emulator import PROMPT, Board, Emulator
from tools.benchmarks.measure import OURS, QEMU, SIDES
from tools.benchmarks.run import Run
from vmm.boot.bzimage import KernelImage

METHOD = (
    "seconds from starting the process to the shell prompt of guest `linux` arriving on the console; "
    "QEMU (bzImage) unpacks the kernel in the guest, QEMU (ELF) enters the unpacked one as we do; "
    "from a snapshot: to the answer to a command"
)
READY = "GUEST-READY linux"


def measure(run: Run) -> None:
    board = run.linux("linux")
    assert board.kernel is not None
    unpacked = run.directory / "vmlinux"
    image = KernelImage.parse(board.kernel.read_bytes(), board.kernel.name)
    unpacked.write_bytes(b"".join(image.pieces()))
    whole = run.measure("cold boot, QEMU from the bzImage", "s", goal=1.0)
    used = run.measure("  of CPU time", "s")
    inner = run.measure("cold boot, QEMU from the ELF kernel", "s", goal=1.0)
    inner_used = run.measure("  of CPU time", "s")
    resumed = run.measure("from a booted snapshot", "s", goal=0.7)
    with tempfile.TemporaryDirectory(dir=run.directory) as directory:
        snapshot = booted_snapshot(run, board, Path(directory))
        for _ in run.rounds():
            for side in SIDES:
                seconds, cpu_seconds = cold(board, side)
                whole.add(side, seconds)
                used.add(side, cpu_seconds)
            inner.add(OURS, whole.samples[OURS][-1])
            seconds, cpu_seconds = cold(replace(board, kernel=unpacked), QEMU)
            inner.add(QEMU, seconds)
            inner_used.add(OURS, used.samples[OURS][-1])
            inner_used.add(QEMU, cpu_seconds)
            resumed.add(OURS, warm(snapshot))


def cold(board: Board, side: str) -> tuple[float, float]:
    """Wall and CPU seconds from the start to the prompt."""
    with Emulator.start(side, board) as emulator:
        emulator.expect(READY)
        seconds = emulator.expect(PROMPT)[1] - emulator.started
        return seconds, emulator.cpu_seconds()


def warm(snapshot: Path) -> float:
    command = [sys.executable, "-m", "tools.benchmarks.ours", "--load", str(snapshot)]
    with Emulator(command) as emulator:
        emulator.send("echo awa''ke\n")
        return emulator.expect("awake")[1] - emulator.started


def booted_snapshot(run: Run, board: Board, directory: Path) -> Path:
    path = directory / "booted.snapshot"
    run.finish([*board.command(OURS), "--save-at", PROMPT, "--save", str(path)])
    return path
