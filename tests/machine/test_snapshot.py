"""A machine that was saved and one that was not stopped are one machine from there on."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmm
from tests.machine.support import ECHO, MS, SECOND, machine, multiboot
from vmm import snapshot
from vmm.backends.disk import MemoryDisk
from vmm.config import DiskConfig, PcConfig
from vmm.errors import SnapshotError, StateError
from vmm.guest import BuiltGuest
from vmm.machine import Backends, Ended, Machine, resume
from vmm.session import Session
from vmm.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
LONG_WORK = "mib=8 ms=2"
INSTRUCTIONS = 200_000_000
"""How many the continuing and the resumed machine must execute alike."""


def elsewhere(path: Path, until_ns: int) -> str:
    """The hash of a machine resumed in another process."""
    command = [sys.executable, "-m", "tests.machine.continue_from", str(path), str(until_ns)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_resumed_in_another_process_after_200_million_instructions(tmp_path: Path) -> None:
    """One instruction is one nanosecond here, and the program computes without a pause."""
    source = """
        xor ax, ax
        mov ds, ax
        mov es, ax
        xor esi, esi
    turn:
        imul esi, esi, 1664525
        add esi, 1013904223
        mov ebx, esi
        shr ebx, 17
        mov [bx + 0x8000], esi
        rdtsc
        xor [0x600], eax
        jmp turn
    """
    with machine(source) as pc:
        pc.run(10 * MS)
        pc.save(tmp_path / "computing")
        until = pc.clock.now_ns + INSTRUCTIONS * 4
        pc.run(until)
        assert elsewhere(tmp_path / "computing", until) == f"{pc.clock.now_ns} {pc.digest}"


def test_a_machine_with_interrupts_resumes_in_another_process(tmp_path: Path) -> None:
    with multiboot("counter", command_line=LONG_WORK) as pc:
        pc.run(333 * MS + 777)
        pc.save(tmp_path / "counting")
        until = pc.clock.now_ns + 250 * MS
        pc.run(until)
        assert elsewhere(tmp_path / "counting", until) == f"{pc.clock.now_ns} {pc.digest}"


def test_linux_resumes_in_another_process(guest: Callable[[str], BuiltGuest], tmp_path: Path) -> None:
    """Saved in the middle of work: a pipe between two processes, timers, a card, dirty pages."""
    guest("linux")
    with vmm.start("linux") as pc:
        pc.expect("~ # ")
        pc.send("dd if=/dev/zero bs=64k count=400 2>/dev/null | sha256sum; date\n")
        pc.run_for(0.02)
        pc.save(tmp_path / "linux")
        until = pc.machine.clock.now_ns + 250 * MS
        pc.machine.run(until)
        found = elsewhere(tmp_path / "linux", until)
        assert found == f"{pc.machine.clock.now_ns} {pc.hash}"


@pytest.mark.parametrize("at_ns", [1, 100 * 1000, 1 * MS, 1 * MS + 1, 17 * MS + 12_345, 50 * MS])
def test_a_fork_goes_on_like_its_origin(at_ns: int) -> None:
    """Anywhere: at an interrupt, before one, asleep, at work."""
    with multiboot("counter", command_line="mib=2 ms=1") as pc:
        pc.run(at_ns)
        with pc.hold() as held, resume(held) as one, resume(held) as other:
            assert pc.differences(one) == []
            for later_ns in (1000, 20_000, 1 * MS, 20 * MS):
                for each in (pc, one, other):
                    each.run(at_ns + later_ns)
                assert pc.differences(one) == []
                assert pc.differences(other) == []
            assert pc.digest == one.digest == other.digest


def test_flags_and_the_direction_flag_are_carried_over() -> None:
    """Each block leaves flags for the next one: a fork at every boundary must see them (SDM vol. 1 3.4.3)."""
    source = """
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7c00
    turn:
        add ecx, 0x61c88647
        jmp one
    one:
        pushfd
        pop edx
        rol ebx, 3
        xor ebx, edx
        std
        jmp two
    two:
        mov di, 0x2004
        stosd
        jmp three
    three:
        adc ebx, edi
        cld
        jmp four
    four:
        rcl ebx, 1
        mov [0x600], ebx
        jmp turn
    """
    with machine(source) as pc:
        pc.run(100)
        for _ in range(24):
            pc.run(pc.clock.now_ns + 1)
            with pc.hold() as held, resume(held) as fork:
                for each in (pc, fork):
                    each.run(pc.clock.now_ns + 40 if each is pc else pc.clock.now_ns)
                assert pc.differences(fork) == []


def test_forks_do_not_share_what_they_write() -> None:
    with multiboot("counter") as pc:
        pc.run(20 * MS)
        with pc.hold() as held, resume(held) as one:
            one.ram.write(0x500, b"mine")
            assert pc.ram.read(0x500, 4) == bytes(4)
            with resume(held) as other:
                assert other.ram.read(0x500, 4) == bytes(4)


def test_a_used_machine_takes_another_state_over() -> None:
    """What replication does: sections and pages into a machine that has a past, code and all.

    The used machine ran another program at the same addresses, with timers armed and lines high.
    """
    with multiboot("counter", command_line="mib=2 ms=3") as origin, multiboot("hello") as used:
        used.run(SECOND)
        assert used.exit_code == 1
        origin.run(77 * MS)
        sections = origin.sections()
        origin.cpu.flush_tlb()
        used.ram.write(0, origin.ram.read(0, origin.ram.size))
        used.load_sections(sections)
        assert origin.differences(used) == []
        for at in (78, 90, 140):
            assert origin.run(at * MS) is used.run(at * MS) is Ended.TIME
            assert origin.digest == used.digest


def test_going_back_in_time_and_again() -> None:
    """The same machine, restored to its own past: what follows is what followed."""
    with multiboot("counter", command_line="mib=1 ms=1") as pc:
        pc.run(30 * MS)
        pc.cpu.flush_tlb()
        sections, ram = pc.sections(), pc.ram.read(0, pc.ram.size)
        pc.run(60 * MS)
        expected = pc.digest
        for _ in range(3):
            pc.ram.write(0, ram)
            pc.load_sections(sections)
            assert pc.run(60 * MS) is Ended.TIME
            assert pc.digest == expected


def test_saving_twice_gives_the_same_file(tmp_path: Path) -> None:
    with multiboot("counter") as pc:
        pc.run(20 * MS)
        pc.save(tmp_path / "one")
        with resume(tmp_path / "one") as again:
            again.save(tmp_path / "two")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_input_that_waited_is_not_typed_into_the_past() -> None:
    """What the host has typed ahead belongs to the host: after a load it goes to the new state, on time."""
    with machine(ECHO.format(idle="hlt")) as pc:
        session = Session(pc)
        pc.run(MS)
        start = pc.sections(), pc.ram.read(0, pc.ram.size)
        pc.run(500 * MS)
        session.send("x" * 40)  # more than the FIFO takes: 24 bytes wait
        pc.ram.write(0, start[1])
        pc.load_sections(start[0])
        session.expect("x" * 24, within_s=0.1)


def test_what_was_changed_on_a_disk_goes_along(tmp_path: Path) -> None:
    def disk() -> MemoryDisk:
        return MemoryDisk(1 << 20)

    config = PcConfig(ram_mib=1, disks=[DiskConfig(disk().sectors)])
    medium = disk()
    with Machine(config, None, Backends(disks=[medium])) as pc:
        medium.write(7, b"changed!" * 64)
        pc.save(tmp_path / "with-disk")
    again = disk()
    with resume(tmp_path / "with-disk", Backends(disks=[again])):
        assert again.read(7, 1) == b"changed!" * 64
    other = MemoryDisk(b"another image".ljust(1 << 20))
    with pytest.raises(StateError, match="another base"):
        resume(tmp_path / "with-disk", Backends(disks=[other]))


# Refusals


def damaged(path: Path, offset: int) -> Path:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    bad = path.with_suffix(".bad")
    bad.write_bytes(data)
    return bad


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with multiboot("counter") as pc:
        pc.run(20 * MS)
        pc.save(tmp_path / "saved")
    return tmp_path / "saved"


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("offset", [0, 100, 2000, -4096 * 16 + 5])
def test_a_refused_snapshot_leaves_nothing_behind(saved: Path, offset: int) -> None:
    resume(saved).close()
    bad = damaged(saved, offset)
    before = descriptors()
    with pytest.raises(SnapshotError):
        resume(bad)
    assert descriptors() == before


def test_a_snapshot_of_another_engine_is_refused_with_advice(saved: Path) -> None:
    with Snapshot.open(saved) as opened:
        about = snapshot.About(
            opened.about.layout_digest, "another engine", opened.about.config, opened.about.virtual_ns
        )
        snapshot.write(saved, about, opened.sections, opened.ram())
    before = descriptors()
    with pytest.raises(SnapshotError, match="engine that ran it"):
        resume(saved)
    assert descriptors() == before


def test_a_refused_state_leaves_the_machine_as_it_was() -> None:
    """One field out of range, in the component that is unpacked last."""
    with multiboot("counter") as pc:
        pc.run(20 * MS)
        before = pc.digest
        sections = pc.sections()
        last = list(sections)[-1]
        with pytest.raises(StateError):
            pc.load_sections({**sections, last: sections[last] + b"\0"})
        with pytest.raises(StateError, match="one side only"):
            pc.load_sections({name: data for name, data in sections.items() if name != "pit"})
        with pytest.raises(StateError, match="lacks"):
            pc.load_sections({**sections, "medium0": b""})
        assert pc.digest == before


# Differences


def test_planted_differences_are_reported_exactly() -> None:
    """A register, a device field, a page: these three and nothing else."""
    with multiboot("counter") as pc:
        pc.run(20 * MS)
        with pc.hold() as held, resume(held) as other:
            assert pc.differences(other) == []
            state = other.cpu.state
            state.general[3] ^= 1 << 40
            other.cpu.state = state
            other.devices["pit"].state.counters[0].count ^= 1
            other.devices["rtc"].state.cmos[0x40] ^= 0xFF
            other.ram.write(0x12345, b"\xa5")
            found = pc.differences(other)
            assert [line.split(":")[0] for line in found] == [
                "cpu.general[3]",
                "pit.counters[0].count",
                "rtc.cmos[0x40",
                "ram[0x12340] (1 bytes of page 0x12000)",
            ]
