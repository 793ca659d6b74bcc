"""Recordings have the faults: a machine that follows one is hit again, at the same instructions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colo.faults.guest import ArmedFault, arm
from colo.faults.model import (
    AtInstruction,
    AtTime,
    ClockDrift,
    ClockJump,
    DataFault,
    Fault,
    InstructionFault,
    Intermittent,
    LostInterrupt,
    RegisterFault,
)
from tests.machine.journey import switched_on
from tests.machine.support import MS, multiboot
from vmm import recording
from vmm.errors import ReplayError
from vmm.guest import BuiltGuest
from vmm.machine import resume
from vmm.session import Session


def register(name: str, when: Any, operation: Any = "toggle", **options: Any) -> RegisterFault:
    return RegisterFault(when=when, register=name, operation=operation, **options)


EVERYTHING: tuple[Callable[[], Fault], ...] = (
    lambda: register("rbx", AtInstruction(count=5_003), mask=1),
    lambda: register("rflags", AtTime(ns=3 * MS + 77), mask=1),
    lambda: register("r9", AtTime(ns=4 * MS), "set1", mask=1, persistence="permanent"),
    lambda: DataFault(when=AtInstruction(count=9_001), address=0x700000, mask=0xFF, width=4),
    lambda: InstructionFault(when=AtInstruction(count=9_777), operation="overwrite", mask=0xFF, value=0x90),
    lambda: ClockJump(when=AtTime(ns=2 * MS), by_ns=12345),
    lambda: ClockDrift(when=AtTime(ns=6 * MS), ppm=5000, for_ns=2 * MS),
    lambda: LostInterrupt(when=AtTime(ns=7 * MS), line=0, times=2),
    lambda: RegisterFault(
        when=AtInstruction(count=6_000),
        register="r10",
        mask=1,
        persistence=Intermittent(period_ns=100_003, times=9),
    ),
)


def recorded(log: Path, faults: list[Fault], *, private: bool = False) -> tuple[str, list[ArmedFault]]:
    with multiboot("counter", command_line="mib=1 ms=1") as pc:
        recording.start(pc, log)
        armed = [arm(pc, fault, private=private) for fault in faults]
        for time_ms in range(1, 15):
            pc.run(time_ms * MS)
            recording.mark(pc)
        recording.finish(pc, "enough")
        return pc.digest, armed


@pytest.mark.parametrize("chosen", [*range(len(EVERYTHING)), "all"])
def test_a_recording_has_the_faults(tmp_path: Path, chosen: int | str) -> None:
    made = [make() for make in EVERYTHING] if chosen == "all" else [EVERYTHING[int(chosen)]()]
    digest, armed = recorded(tmp_path / "log", made)
    assert all(each.happened for each in armed)
    with multiboot("counter", command_line="mib=1 ms=1") as twin:
        recording.follow(twin, tmp_path / "log")
        assert recording.run(twin) == "enough"
        assert twin.digest == digest
    calm, _ = recorded(tmp_path / "calm", [])
    if chosen not in (0, 1):  # masked there
        assert calm != digest, "a fault that nobody could notice would prove nothing"


def test_a_private_fault_is_no_input(tmp_path: Path) -> None:
    recorded(tmp_path / "log", [EVERYTHING[3]()], private=True)
    with multiboot("counter", command_line="mib=1 ms=1") as twin:
        recording.follow(twin, tmp_path / "log")
        with pytest.raises(ReplayError, match="state hash"):
            recording.run(twin)


@pytest.mark.long
def test_a_linux_guest_with_faults_is_replayed(guest: Callable[[str], BuiltGuest], tmp_path: Path) -> None:
    """Wherever they hit, and whether or not the kernel survives them."""
    guest("linux")
    with switched_on("linux", patching=True) as pc:
        Session(pc).expect("~ # ", within_s=20)
        held = pc.hold()
    for trial in range(6):
        source = random.Random(f"{trial} faults")
        log = tmp_path / str(trial)
        with resume(held) as pc:
            recording.start(pc, log)
            armed = [arm(pc, fault) for fault in drawn(source)]
            pc.serial.send(b"for i in 1 2 3; do cat /proc/uptime | md5sum; done\n")
            pc.run(pc.clock.now_ns + 30 * MS)
            recording.finish(pc, "enough")
            assert any(each.happened for each in armed)
            digest = pc.digest
        with resume(held) as twin:
            recording.follow(twin, log)
            recording.run(twin)
            assert twin.digest == digest
    held.close()


def drawn(source: random.Random) -> list[Fault]:
    """A register, a byte of RAM and an instruction, at some instruction of the first milliseconds."""
    whens = [AtInstruction(count=source.randrange(1000, 500_000)) for _ in range(3)]
    return [
        register(
            source.choice(("rax", "rsp", "rip", "r12", "rflags")), whens[0], mask=1 << source.randrange(32)
        ),
        DataFault(when=whens[1], address=source.randrange(64 << 20), space="physical", width=1, mask=1),
        InstructionFault(when=whens[2], mask=1 << source.randrange(24)),
    ]
