"""Our side of a benchmark: one machine in one process, its serial console on standard input and output.

    python -m tools.benchmarks.ours --kernel FILE --initrd FILE --append TEXT [--tap NAME] [--disk FILE]
    python -m tools.benchmarks.ours --multiboot FILE --marks
    python -m tools.benchmarks.ours --load SNAPSHOT
    python -m tools.benchmarks.ours --kernel ... --save-at TEXT --save FILE

It does what ``colo run`` does and nothing besides, so that what is measured is the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vmm.backends.console import Terminal
from vmm.backends.disk import RawFile
from vmm.backends.tap import Tap
from vmm.boot.source import BootSource, LinuxBoot, MultibootBoot, read_image
from vmm.config import DiskConfig, NetConfig, PcConfig, mac
from vmm.machine import Backends, Machine, resume


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ours")
    parser.add_argument("--kernel")
    parser.add_argument("--initrd")
    parser.add_argument("--append", default="")
    parser.add_argument("--multiboot")
    parser.add_argument("--load")
    parser.add_argument("--ram", type=int, default=256)
    parser.add_argument("--tap")
    parser.add_argument("--disk")
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--marks", action="store_true", help="hand on every byte at the moment it is said")
    parser.add_argument("--save-at", help="text on the console at which --save is written and we leave")
    parser.add_argument("--save")
    return parser.parse_args()


def boot_source(given: argparse.Namespace) -> BootSource:
    if given.multiboot:
        return MultibootBoot(read_image(given.multiboot))
    initrd = read_image(given.initrd) if given.initrd else b""
    return LinuxBoot(read_image(given.kernel), given.append, initrd)


def powered_on(given: argparse.Namespace, backends: Backends) -> Machine:
    config = PcConfig(ram_mib=given.ram)
    if given.tap:
        backends.nets = [Tap(given.tap)]
        config.nets = [NetConfig(mac(0), offloads=True)]
    if given.disk:
        disk = RawFile(given.disk)
        backends.disks = [disk]
        config.disks = [DiskConfig(disk.sectors)]
    return Machine(config, boot_source(given), backends, paced=given.paced)


def save_at(machine: Machine, text: str, path: str) -> None:
    """Run until the console has said ``text`` and all is quiet, then write the snapshot."""
    from vmm.session import Session

    Session(machine).expect(text)
    machine.run(machine.clock.now_ns + 1_000_000_000)
    machine.save(Path(path))


def mark(byte: int) -> None:
    os.write(1, bytes((byte,)))


def main() -> int:
    given = options()
    if given.marks:
        machine = powered_on(given, Backends())
        machine.serial.watch = mark
        machine.run()
        return 0
    if given.save:
        save_at(powered_on(given, Backends()), given.save_at, given.save)
        return 0
    with Terminal() as terminal:
        backends = Backends(consoles=[terminal])
        machine = resume(given.load, backends) if given.load else powered_on(given, backends)
        machine.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
