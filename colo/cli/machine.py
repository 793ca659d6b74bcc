"""The words that describe a machine on the command line, for every command that makes one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.launch import LaunchOptions


def epoch(text: str) -> int:
    """A date of the real-time clock, or seconds since 1970."""
    if text.isdecimal():
        value = int(text)
    else:
        from datetime import UTC, datetime

        try:
            value = int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
        except ValueError:
            value = -1
    if not 0 <= value < 1 << 32:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date (2026-01-31T12:00:00) nor seconds since 1970"
        )
    return value


def mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of MiB")
    return int(text)


def add_boot(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("guest", nargs="?", metavar="GUEST", help="a guest by name: colo guest list")
    add("--kernel", metavar="FILE", help="a Linux bzImage or vmlinux")
    add("--initrd", metavar="FILE", help="its initial RAM disk")
    add("--multiboot", metavar="FILE", help="a Multiboot kernel (ELF)")
    add(
        "--module", metavar="FILE", action="append", default=[], help="a boot module; 'FILE WORDS' adds words"
    )
    add(
        "--boot-sector",
        metavar="FILE",
        help="a disk image that starts with a boot sector; also the first IDE disk",
    )
    add("--append", metavar="STR", help="the kernel's command line; after a guest's own, with GUEST")
    add("--load", metavar="SNAPSHOT", help="go on from a snapshot; its disks and cards are given again")


def add_board(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--ram", metavar="MIB", type=mebibytes, help="default 256, or what the guest wants")
    add(
        "--disk",
        metavar="FILE[,ro][,ide][,overlay]",
        action="append",
        default=[],
        help="a raw image on virtio-blk, or ide; overlay keeps changes in memory and in snapshots",
    )
    add(
        "--net",
        metavar="WHERE",
        action="append",
        default=[],
        help="a network card: tap=NAME, stream=PATH[,server], hub=DIRECTORY, or none (plugged into nothing)",
    )
    add(
        "--pcap",
        metavar="FILE",
        action="append",
        default=[],
        help="capture the card's frames; again for the next card",
    )
    add("--seed", metavar="TEXT", help="of the random numbers that the guest gets")
    add("--epoch", metavar="DATE", type=epoch, help="the real-time clock at power-on; default 2026-01-01")
    add("--no-reboot", action="store_true", help="a reset ends the run (a Linux panic resets with panic=-1)")


def launch_options(given: argparse.Namespace, **more: Any) -> LaunchOptions:
    """What these words ask for; ``more`` are further fields of LaunchOptions."""
    from vmm.launch import LaunchOptions

    return LaunchOptions(
        guest=given.guest,
        kernel=given.kernel,
        initrd=given.initrd,
        multiboot=given.multiboot,
        modules=tuple(given.module),
        boot_sector=given.boot_sector,
        append=given.append,
        load=given.load,
        ram_mib=given.ram,
        seed=None if given.seed is None else given.seed.encode(),
        epoch_s=given.epoch,
        disks=tuple(given.disk),
        nets=tuple(given.net),
        pcaps=tuple(given.pcap),
        reboot=not given.no_reboot,
        **more,
    )
