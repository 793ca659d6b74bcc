"""virtio-blk: sequential and random, O_DIRECT in the guest, a raw image on the host.

``blkload.c``, a static program, is added to the initramfs of guest `linux` as a second archive, which
the kernel unpacks over the first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tools.benchmarks.emulator import PROMPT, Board, Emulator
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
    measures = {
        load.name: run.measure(
            load.name,
            "MB/s" if load.block > 4096 else "/s",
            more_is_better=True,
            goal=1.0,
        )
        for load in LOADS
    }
    for _ in run.rounds():
        for side in SIDES:
            with Emulator.start(side, board) as emulator:
                emulator.expect("GUEST-READY linux")
                emulator.expect(PROMPT)
                for load in LOADS:
                    amount = transfer(run, emulator, load)
                    measures[load.name].add(side, amount)


def transfer(run: Run, emulator: Emulator, load: Load) -> float:
    """MB/s of large blocks, requests a second of small ones."""
    count = run.scaled(load.count)
    line = f"blkload /dev/vda {load.action} {load.order} {load.block}"
    emulator.command(f"{line} {max(1, count // 20)}")
    said, seconds = emulator.command(f"{line} {count}")
    if f"done {count}" not in said:
        raise RuntimeError(f"blkload in the guest: {said}")
    return count * load.block / seconds / 1e6 if load.block > 4096 else count / seconds


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
