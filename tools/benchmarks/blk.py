"""virtio-blk: sequential and random, O_DIRECT in the guest, a raw image on the host.

``blkload.c``, a static program, is added to the initramfs of guest `linux` as a second archive, which
the kernel unpacks over the first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tools.benchmarks.emulator import PROMPT, Board, Emulator, Lost
from tools.benchmarks.host import HERE, compiled
from tools.benchmarks.measure import SIDES
from tools.benchmarks.run import Run
from vmm.guest import initramfs
from vmm.guest.tree import Tree

METHOD = (
    "guest `linux` with a raw image on virtio-blk (QEMU: cache=writeback, as ours: the host's page cache); "
    "a program in the guest does O_DIRECT requests one at a time, timed on the host from command to prompt"
)
DISK_MIB = 128
SMALL = 4096


@dataclass(frozen=True)
class Load:
    """Arguments of blkload."""

    name: str
    action: str
    order: str
    block: int
    count: int


LOADS = (
    Load("sequential read, 1 MiB", "read", "seq", 1 << 20, 512),
    Load("sequential write, 1 MiB", "write", "seq", 1 << 20, 512),
    Load("sequential read, 4 KiB", "read", "seq", 4096, 8000),
    Load("random read, 4 KiB", "read", "rand", 4096, 8000),
    Load("random write, 4 KiB", "write", "rand", 4096, 8000),
)


def measure(run: Run) -> None:
    board = with_blkload(run, run.linux("linux"))
    rates = {}
    used = {}
    for load in LOADS:
        unit = "MB/s" if load.block > SMALL else "/s"
        rates[load] = run.measure(load.name, unit, more_is_better=True, goal=1.0)
        used[load] = run.measure("  CPU time a request", "us", goal=1.0)
    for _ in run.rounds():
        for side in SIDES:
            with Emulator.start(side, board) as emulator:
                emulator.expect("GUEST-READY linux")
                emulator.expect(PROMPT)
                for load in LOADS:
                    count = run.scaled(load.count)
                    seconds, cpu_seconds = transfer(emulator, load, count)
                    rates[load].add(side, rate(load, count, seconds))
                    used[load].add(side, cpu_seconds / count * 1e6)


def transfer(emulator: Emulator, load: Load, count: int) -> tuple[float, float]:
    """Wall and CPU seconds, after a twentieth of it to warm up."""
    line = f"blkload /dev/vda {load.action} {load.order} {load.block}"
    emulator.command(f"{line} {max(1, count // 20)}")
    before = emulator.cpu_seconds()
    said, seconds = emulator.command(f"{line} {count}")
    if f"done {count}" not in said:
        raise Lost(f"blkload in the guest: {said}")
    return seconds, emulator.cpu_seconds() - before


def rate(load: Load, count: int, seconds: float) -> float:
    """MB/s of large blocks, requests a second of small ones."""
    return count * load.block / seconds / 1e6 if load.block > SMALL else count / seconds


def with_blkload(run: Run, board: Board) -> Board:
    program = compiled(HERE / "blkload.c", ["-std=c11", "-O2", "-static", "-s"], "blkload")
    tree = Tree()
    tree.add_file("/usr/bin/blkload", program.read_bytes(), 0o755)
    assert board.initrd is not None
    archive = run.directory / "initrd-with-blkload"
    archive.write_bytes(board.initrd.read_bytes() + initramfs.write(tree))
    return replace(board, initrd=archive, disk=image(run.directory / "disk.raw"))


def image(path: Path) -> Path:
    """A file without holes, in the page cache."""
    with path.open("wb") as file:
        for _ in range(DISK_MIB):
            file.write(os.urandom(1 << 20))
    return path
