"""Save, load and hash of a 256 MiB machine; QEMU has nothing to compare that with."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.benchmarks.emulator import PROMPT, RAM_MIB
from tools.benchmarks.measure import OURS
from tools.benchmarks.run import Run
from vmm.boot.source import LinuxBoot, read_image
from vmm.config import PcConfig
from vmm.machine import Machine, resume
from vmm.session import Session

METHOD = (
    "in one process: guest `linux` at its prompt, and the same machine with all of its RAM filled; save waits"
    " for the disk (fsync), load checks every page and gives a machine that is ready to run"
)


def measure(run: Run) -> None:
    board = run.linux("linux")
    assert board.kernel is not None
    assert board.initrd is not None
    boot = LinuxBoot(read_image(board.kernel), board.append, read_image(board.initrd))
    with Machine(PcConfig(ram_mib=RAM_MIB), boot) as machine:
        Session(machine).expect(PROMPT)
        measure_all(run, machine, "booted")
        view = machine.ram.array.view("uint64")
        view[view == 0] = 1  # it will not run again
        measure_all(run, machine, "full")


def measure_all(run: Run, machine: Machine, how: str) -> None:
    names = ("hash", "hash again", "save", "hold in memory", "load", "load without checking")
    measures = {name: run.measure(f"{name}, {how}", "ms") for name in names}
    size = run.measure(f"file on disk, {how}", "MiB")
    with tempfile.TemporaryDirectory(dir=run.directory) as directory:
        path = Path(directory) / "snapshot"
        actions: dict[str, Callable[[], object]] = {
            "hash": machine.state_hash,
            "hash again": machine.state_hash,
            "save": lambda: machine.save(path),
            "hold in memory": machine.hold,
            "load": lambda: resume(path),
            "load without checking": lambda: resume(path, verify=False),
        }
        machine.state_hash()  # compiles its kernel, once on a host
        for _ in run.rounds():
            for name, action in actions.items():
                started = time.perf_counter()
                result = action()
                measures[name].add(OURS, (time.perf_counter() - started) * 1e3)
                if isinstance(result, Machine):
                    result.close()
            size.add(OURS, path.stat().st_blocks * 512 / (1 << 20))
