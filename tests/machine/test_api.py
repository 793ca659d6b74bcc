"""The Python interface, and the texts that show it."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmm
from tests.machine.support import ECHO, SECOND, machine
from vmm.api import Pc
from vmm.backends.disk import MemoryDisk
from vmm.errors import BackendError, BadAddress, ConfigError
from vmm.guest import BuiltGuest
from vmm.machine import Ended

ROOT = Path(__file__).parents[2]


def test_the_package_docstring_does_what_it_says() -> None:
    failures, tried = doctest.testmod(vmm, verbose=False)
    assert tried >= 10
    assert failures == 0


def test_the_readme_does_what_it_says() -> None:
    """Its Python block is the docstring's session, as a program."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "README.md shows no Python"
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, check=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, vmm; print([m for m in ('numpy', 'numba', 'msgspec', 'ctypes') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", vmm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(vmm, name) is not None
    assert name in dir(vmm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vmm.nonsense  # noqa: B018


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="ram_mb"):
        vmm.start("hello", ram_mb=8)


def test_a_guest_that_leaves_tells_its_status() -> None:
    with vmm.start("hello") as pc:
        assert pc.expect("hello, world") == "hello, world"
        assert pc.run_for(1) is Ended.DEBUG_EXIT
        assert pc.exit_code == 1
        assert pc.console == "hello, world\r\n"


def test_a_boot_sector_shows_on_the_screen() -> None:
    with vmm.start("bootsector") as pc:
        pc.expect("hello from the boot sector")
        pc.run_for(0.1)
        assert any("hello from the boot sector" in line for line in pc.screen)


def test_virtual_memory_without_paging_is_physical() -> None:
    with vmm.start("counter") as pc:
        pc.run_for(0.05)
        assert pc.registers["cr0"] >> 31 == 0
        assert pc.read_virtual(0x100000, 5000) == pc.read_physical(0x100000, 5000)
        with pytest.raises(BadAddress):
            pc.read_virtual(0x1_0000_0000 - 16, 16)


def test_a_fork_is_the_same_and_then_its_own() -> None:
    with vmm.start("counter", ram_mib=16) as pc:
        pc.run_for(0.1)
        with pc.fork() as twin, twin.fork() as third:
            for each in (pc, twin, third):
                each.run_for(0.1)
            assert pc.hash == twin.hash == third.hash
            twin.run_for(0.01)
            assert pc.differences(twin) != []
            assert pc.differences(third) == []


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    with vmm.start("counter", ram_mib=16) as pc:
        pc.run_for(0.1)
        pc.save(tmp_path / "counter.snapshot")
        with vmm.load(tmp_path / "counter.snapshot") as loaded:
            assert loaded.now_s == pc.now_s
            pc.run_until(0.3)
            loaded.run_until(0.3)
            assert loaded.hash == pc.hash


def test_a_recording_is_replayed(tmp_path: Path) -> None:
    def fresh() -> Pc:
        return Pc(machine(ECHO.format(idle="hlt")))

    with fresh() as pc:
        pc.record(tmp_path / "run.log")
        pc.run_for(0.001)
        pc.send("abc\n")
        pc.expect("abc")
        pc.send("q")
        assert pc.machine.run(SECOND) is Ended.POWEROFF
        pc.stop_recording("it said goodbye")
        expected = pc.hash
    with fresh() as twin:
        assert twin.replay(tmp_path / "run.log") == "it said goodbye"
        assert twin.hash == expected


def test_a_pc_whose_disk_is_a_file_does_not_fork(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with vmm.start("hello", disks=(str(image),)) as pc, pytest.raises(ConfigError, match="overlay"):
        pc.fork()


def test_what_a_disk_holds_is_part_of_a_fork() -> None:
    """Changes kept in memory go along; they are not shared afterwards."""
    from vmm.config import DiskConfig, PcConfig
    from vmm.machine import Backends, Machine

    disk = MemoryDisk(64 << 10)
    config = PcConfig(ram_mib=1, disks=[DiskConfig(disk.sectors)])
    with Pc(Machine(config, None, Backends(disks=[disk]))) as pc:
        disk.write(3, b"x" * 512)
        with pc.fork() as twin:
            (copy,) = twin.machine.disks
            assert copy.read(3, 1) == b"x" * 512
            copy.write(3, b"y" * 512)
            assert disk.read(3, 1) == b"x" * 512


def test_a_log_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_bytes(b"")
    with vmm.start("counter") as pc, pytest.raises(BackendError, match="exists"):
        pc.record(tmp_path / "run.log")


def test_linux_is_looked_into(guest: Callable[[str], BuiltGuest]) -> None:
    """Page tables of 64-bit Linux: the kernel's text is mapped twice, and its banner is found by address."""
    guest("linux")
    with vmm.start("linux") as pc:
        pc.expect("~ # ")
        address = int(pc.command("grep ' linux_banner$' /proc/kallsyms").split()[0], 16)
        banner = pc.read_virtual(address, 64)
        assert banner.startswith(b"Linux version ")
        physical = pc.translate(address)
        assert physical is not None
        assert pc.read_physical(physical, 64) == banner
        assert pc.command("head -c 13 /proc/version; echo") == "Linux version\n"
