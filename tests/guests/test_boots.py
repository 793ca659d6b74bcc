"""Every guest of the manifest boots: image, limit and expected text are data, and stand there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vmm
import vmm.guest
from vmm.guest import BuiltGuest
from vmm.machine import Ended

GUESTS = {status.info.name: status.info for status in vmm.guest.list_guests()}
LINUX = [name for name, info in GUESTS.items() if info.kind == "linux"]
QUICK = 0.7
"""A guest that needs less of its limit than this has a limit that says something."""


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_says_that_it_is_up_in_time(name: str, guest: Callable[[str], BuiltGuest]) -> None:
    guest(name)
    info = GUESTS[name]
    with vmm.start(name) as pc:
        pc.expect(info.expect, within_s=info.within_ms / 1000)
        assert pc.now_s * 1000 < QUICK * info.within_ms, "raise within_ms in guests/manifest.toml"
        if name == "bootsector":
            assert any(info.expect in line for line in pc.screen)


@pytest.mark.parametrize(
    "name", [name if name == "linux" else pytest.param(name, marks=pytest.mark.long) for name in LINUX]
)
def test_linux_is_at_home(name: str, guest: Callable[[str], BuiltGuest]) -> None:
    """Its own drivers found what the board has, nothing went wrong, and it switches itself off."""
    guest(name)
    info = GUESTS[name]
    with vmm.start(name) as pc:
        pc.expect("~ # ", within_s=10)
        complaints = pc.command("dmesg | grep -i -E 'unable|oops|bug:|warning|call trace|fatal|timed out'")
        assert complaints == ""
        clocks = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert pc.command(f"cat {clocks}").startswith("tsc"), "first as tsc-early, seconds later as tsc"
        if "net" in info.devices:
            assert "10.77.0.2/24" in pc.command("ip addr show dev eth0")
        if "rng" in info.devices:
            assert "virtio" in pc.command("cat /sys/class/misc/hw_random/rng_current")
        if "disk" in info.devices:
            assert "/dev/vda" in pc.command("cat /proc/mounts")
        pc.send("poweroff\n")
        assert pc.run_for(20) is Ended.POWEROFF


@pytest.mark.long
def test_linux_reboots(guest: Callable[[str], BuiltGuest]) -> None:
    guest("linux")
    with vmm.start("linux") as pc:
        pc.expect("~ # ", within_s=10)
        pc.send("reboot\n")
        pc.expect("~ # ", within_s=30)
    with vmm.start("linux", reboot=False) as pc:
        pc.expect("~ # ", within_s=10)
        pc.send("reboot\n")
        assert pc.run_for(30) is Ended.RESET


def test_linux_disk_keeps_what_it_wrote(guest: Callable[[str], BuiltGuest]) -> None:
    """It counts its boots on its disk: a reset of the machine leaves the disk alone."""
    guest("linux-disk")
    with vmm.start("linux-disk") as pc:
        pc.expect("boot 1", within_s=20)
        pc.expect("~ # ", within_s=10)
        pc.send("reboot\n")
        pc.expect("boot 2", within_s=30)


def test_the_counter_rewrites_one_word_of_every_page_it_is_told(guest: Callable[[str], BuiltGuest]) -> None:
    """Words added to its command line count, and its load is exactly what they say."""
    guest("counter")
    area, page = 4 << 20, 4096
    with vmm.start("counter", ram_mib=16, append="mib=2 ms=50 fill=8") as pc:
        pc.expect("GUEST-READY counter mib=2 ms=50", within_s=1)
        pc.run_for(0.04)
        before = pc.machine.ram.array.copy()
        pc.run_for(0.05)
        changed = pc.machine.ram.array != before
    assert all(before[address : address + 4].any() for address in range(area + page, area + (8 << 20), page))
    assert not before[area + (8 << 20) :].any()
    pages = changed[area:].reshape(-1, page)
    assert pages[:, :4].any(axis=1).nonzero()[0].tolist() == list(range(512))
    assert not pages[:, 4:].any()
