"""Disk faults as a guest sees them: a boot sector that writes and reads by the BIOS, and a Linux guest."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from colo.faults.disk import FaultyDisk
from colo.faults.guest import arm
from colo.faults.model import AtTime, Delay, DiskFault, FaultError
from tests.cpu.assembler import assemble
from vmm.backends.disk import MemoryDisk, Overlay
from vmm.boot.source import BootSectorBoot, LinuxBoot
from vmm.config import DiskConfig, NetConfig, PcConfig, mac
from vmm.guest import BuiltGuest
from vmm.machine import Backends, Ended, Machine, resume
from vmm.session import Session

SECTOR, SECTORS = 512, 256
FIRST, COUNT = 20, 8
"""Which sectors the boot sector writes, and then reads."""
WRITTEN, READ, STATUS, STAMPS = 0x2000, 0x4000, 0x600, 0x610
PATTERN = bytes(range(1, 256)) * 17
OLD = b"\xee" * SECTOR
DRIVER = f"""
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    mov si, 0x500           # disk address packet: {COUNT} sectors from {FIRST} on
    mov word ptr [si], 0x10
    mov word ptr [si + 2], {COUNT}
    mov word ptr [si + 6], 0
    mov dword ptr [si + 8], {FIRST}
    mov dword ptr [si + 12], 0
    mov word ptr [si + 4], {WRITTEN}
    mov ah, 0x43
    call disk
    mov [{STATUS}], ah
    mov word ptr [si + 4], {READ}
    mov ah, 0x42
    call disk
    mov [{STATUS} + 1], ah
    cli
    hlt
disk:
    push ax
    rdtsc
    mov [{STAMPS}], eax
    pop ax
    mov dl, 0x80
    int 0x13
    push ax
    rdtsc
    sub eax, [{STAMPS}]
    mov [{STAMPS} + 4], eax
    pop ax
    ret
"""


@contextmanager
def driven(disk: FaultyDisk) -> Iterator[Machine]:
    """A PC whose boot sector writes and reads ``disk``."""
    code = assemble(DRIVER, 0x7C00, 16).code
    boot = BootSectorBoot(code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa", "driver")
    config = PcConfig(ram_mib=2, bios=True, disks=[DiskConfig(SECTORS, ide=True)])
    with Machine(config, boot, Backends(disks=[disk])) as pc:
        disk.attach(pc)
        pc.ram.write(WRITTEN, PATTERN[: COUNT * SECTOR])
        yield pc


def faulty() -> FaultyDisk:
    return FaultyDisk(MemoryDisk(OLD * SECTORS))


def fault(effect: str, **options: Any) -> DiskFault:
    return DiskFault(when=AtTime(ns=0), effect=effect, **options)  # type: ignore[arg-type]


class Seen:
    """What a guest saw of a disk with these faults."""

    def __init__(self, *faults: DiskFault, seed: int = 0) -> None:
        self.disk = faulty()
        with driven(self.disk) as pc:
            for number, each in enumerate(faults):
                arm(pc, each, source=random.Random(f"{seed} {number}"))
            assert pc.run(10**12) is Ended.POWEROFF
            self.write_status, self.read_status = pc.ram.read(STATUS, 2)
            self.read = pc.ram.read(READ, COUNT * SECTOR)
            self.read_ns = int.from_bytes(pc.ram.read(STAMPS + 4, 4), "little")
            self.ended_ns = pc.clock.now_ns

    @property
    def good(self) -> list[bool]:
        """Which sectors were read as they were written."""
        parts = range(0, COUNT * SECTOR, SECTOR)
        return [self.read[at : at + SECTOR] == PATTERN[at : at + SECTOR] for at in parts]


def test_without_a_fault() -> None:
    seen = Seen()
    assert (seen.write_status, seen.read_status, all(seen.good)) == (0, 0, True)
    assert seen.disk.struck == {}


def test_eio() -> None:
    seen = Seen(fault("eio", requests="read"))
    assert seen.write_status == 0
    assert seen.read_status != 0
    seen = Seen(fault("eio", times=2))
    assert seen.write_status != 0
    assert seen.read_status != 0
    assert seen.disk.read(FIRST, 1) == OLD, "what failed was not stored"


def test_full_until_there_is_room_again() -> None:
    seen = Seen(fault("full", for_ns=1000))
    assert seen.write_status == 0, "it was over before the guest had begun"
    seen = Seen(fault("full", persistence="permanent"))
    assert (seen.write_status != 0, seen.read_status) == (True, 0)
    assert seen.read == OLD * COUNT


def test_slow_is_virtual_time() -> None:
    calm, slow = Seen(), Seen(fault("slow", requests="read", delay=Delay(ns=30_000_000)))
    assert slow.read_ns - calm.read_ns == 30_000_000
    assert slow.ended_ns - calm.ended_ns == 30_000_000
    assert all(slow.good)


def test_lost_and_torn_writes_say_that_they_succeeded() -> None:
    lost = Seen(fault("lost"))
    assert (lost.write_status, lost.read_status, lost.read) == (0, 0, OLD * COUNT)
    torn = [Seen(fault("torn"), seed=seed).good for seed in range(4)]
    for good in torn:
        assert good == sorted(good, reverse=True), "a part from the beginning on"
        assert not all(good)
    assert len({sum(good) for good in torn}) > 1, "where it tears is drawn"


def test_misdirected_damages_another_place_too() -> None:
    seen = Seen(fault("misdirected", by_sectors=16))
    assert seen.write_status == 0
    assert seen.read == OLD * COUNT
    assert seen.disk.read(FIRST + 16, COUNT) == PATTERN[: COUNT * SECTOR]
    assert Seen(fault("misdirected", by_sectors=3)).good == [False] * COUNT


def test_rot_is_stored() -> None:
    seen = Seen(fault("rot", bits=3, first_sector=FIRST + 2, sectors=1))
    assert seen.read_status == 0
    assert [not good for good in seen.good] == [False, False, True, False, False, False, False, False]
    assert seen.disk.read(FIRST, COUNT) == seen.read
    wrong = zip(seen.read, PATTERN[: COUNT * SECTOR], strict=True)
    assert sum((one ^ other).bit_count() for one, other in wrong) == 3


def test_only_its_sectors_and_its_requests() -> None:
    assert Seen(fault("eio", first_sector=FIRST + COUNT, persistence="permanent")).read_status == 0
    assert Seen(fault("eio", first_sector=0, sectors=FIRST, persistence="permanent")).read_status == 0
    assert Seen(fault("eio", first_sector=0, sectors=FIRST + 1, persistence="permanent")).read_status != 0
    assert Seen(fault("eio", probability=0.0, persistence="permanent")).read_status == 0


def test_the_same_seed_does_the_same_damage() -> None:
    faults = fault("rot", bits=9), fault("torn", probability=0.5)
    assert Seen(*faults, seed=3).read == Seen(*faults, seed=3).read
    assert len({Seen(*faults, seed=seed).read for seed in range(5)}) > 1


def test_damage_is_in_a_snapshot_and_the_fault_is_not() -> None:
    seen = Seen(fault("rot", bits=5))
    with driven(seen.disk) as pc, pc.hold() as held:
        twin_disk = faulty()
        with resume(held, Backends(disks=[twin_disk])):
            assert twin_disk.read(FIRST, COUNT) == seen.read


def test_a_disk_that_cannot_have_faults_is_refused() -> None:
    config = PcConfig(ram_mib=1, disks=[DiskConfig(8)])
    backends = Backends(disks=[MemoryDisk(8 * SECTOR)])
    with Machine(config, backends=backends) as pc, pytest.raises(FaultError, match="FaultyDisk"):
        arm(pc, fault("eio"))


def test_linux_reports_what_its_disk_does(guest: Callable[[str], BuiltGuest]) -> None:
    """ext4 on virtio-blk: an unreadable place is an error in a program, and in the kernel's log."""
    built = guest("linux-disk")
    assert built.initrd is not None
    assert built.disk is not None
    with closing(Overlay(str(built.disk))) as image:
        disk = FaultyDisk(image)
        config = PcConfig(built.info.ram_mib, nets=[NetConfig(mac(0))], disks=[DiskConfig(disk.sectors)])
        boot = LinuxBoot(built.kernel.read_bytes(), built.cmdline, built.initrd.read_bytes())
        with Machine(config, boot, Backends(disks=[disk])) as pc:
            disk.attach(pc)
            session = Session(pc)
            session.expect("~ # ", within_s=30)
            arm(pc, fault("eio", first_sector=100_000, sectors=8, persistence="permanent"))
            said = session.command("dd if=/dev/vda bs=512 skip=100003 count=1 of=/tmp/x")
            assert "Input/output error" in said
            assert "I/O error, dev vda, sector 100000" in session.command("dmesg | tail -n 5")
            assert "1+0 records in" in session.command("dd if=/dev/vda bs=512 skip=90000 count=1 of=/tmp/x")
            assert disk.struck["eio"] > 0
