"""One machine's way through boot, a Redis session and more, as hashes of its whole state.

    python -m tests.machine.journey GUEST [--slice NS] [--plain] [--save FILE] [--load FILE] [--leg NAME]

Run as a process of its own by ``test_determinism.py``, in surroundings that differ in everything but
the guest.  Prints one line a point: its name, the virtual time, the hash.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vmm.boot.source import LinuxBoot
from vmm.config import NetConfig, PcConfig, mac
from vmm.guest import open as open_guest
from vmm.machine import Machine, resume
from vmm.session import Session

POINTS_MS = (60, 180, 300, 420, 540)
"""Points of the first leg: decompressed and set up, chips found, drivers, user space."""
COMMANDS = {
    "redis": (
        "redis-cli set planet earth",
        'redis-cli eval \'for i=1,3000 do redis.call("incr", "n") end return redis.call("get", "n")\' 0',
        "redis-cli lpush queue a b c",
        "redis-cli save; redis-cli info persistence | grep -c rdb",
        "dd if=/bin/busybox bs=4096 2>/dev/null | sha256sum",
    ),
    "linux": (
        "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo $i",
        "for i in 1 2 3 4 5; do /bin/true; done; cat /proc/uptime",
        "dd if=/bin/busybox bs=4096 2>/dev/null | sha256sum",
        "head -c 16 /dev/urandom | hexdump -C",
        "sleep 2; date",
    ),
}


def switched_on(name: str, patching: bool) -> Machine:
    built = open_guest(name).build()
    initrd = built.initrd.read_bytes() if built.initrd else b""
    config = PcConfig(ram_mib=built.info.ram_mib, nets=[NetConfig(mac(0))])
    return Machine(config, LinuxBoot(built.kernel.read_bytes(), built.cmdline, initrd), patching=patching)


def point(machine: Machine, name: str) -> None:
    print(name, machine.clock.now_ns, machine.digest, flush=True)


def first_leg(machine: Machine, slice_ns: int) -> None:
    """Through the boot in slices, to the shell; the last slice is cut at the point."""
    session = Session(machine)
    for at_ms in POINTS_MS:
        end_ns = at_ms * 1_000_000
        while machine.clock.now_ns < end_ns:
            machine.run(min(machine.clock.now_ns + (slice_ns or end_ns), end_ns))
        point(machine, f"boot-{at_ms}-ms")
    session.expect("~ # ", within_s=20)


def second_leg(machine: Machine, commands: tuple[str, ...]) -> None:
    session = Session(machine)
    for number, command in enumerate(commands):
        session.command(command, within_s=30)
        point(machine, f"command-{number}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("guest", choices=sorted(COMMANDS))
    parser.add_argument("--slice", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--leg", choices=("first", "both"), default="both")
    args = parser.parse_args()
    if args.load is not None:
        machine = resume(args.load)
    else:
        machine = switched_on(args.guest, patching=not args.plain)
        first_leg(machine, args.slice)
        if args.save is not None:
            machine.save(args.save)
    if args.leg == "both":
        second_leg(machine, COMMANDS[args.guest])
    machine.close()


if __name__ == "__main__":
    main()
