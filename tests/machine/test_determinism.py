"""The same start and the same inputs give the same machine, bit for bit, whatever surrounds it.

Ten points through boot, a session and a snapshot in the middle are hashed in processes that differ in
hash seed, environment size, host load, slicing, thread count and the way in which the clock is charged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machine.support import COUNT, ECHO, MS, machine, multiboot
from vmm.guest import BuiltGuest

ROOT = Path(__file__).parents[2]
POINTS = 10
TIMEOUT_S = 240


def started(*arguments: str, hash_seed: int, room: int = 0) -> subprocess.Popen[str]:
    """A journey in a process of its own; ``room`` bytes of environment move its stack."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "VMM_TEST_ROOM": "x" * room}
    command = [sys.executable, "-m", "tests.machine.journey", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def points(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    return output.splitlines()


@contextmanager
def busy_host() -> Iterator[None]:
    """A process beside us that computes as fast as it can."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def compare(guest: str, folder: Path, slice_ns: int) -> None:
    """One journey in one process against one that is interrupted, sliced, plain and disturbed."""
    with busy_host():
        whole = started(guest, "--save", str(folder / "whole"), hash_seed=1)
        parts = started(
            *(guest, "--slice", str(slice_ns), "--plain", "--leg", "first", "--save", str(folder / "half")),
            hash_seed=2,
            room=3000,
        )
        expected, first = points(whole), points(parts)
    second = points(started(guest, "--load", str(folder / "half"), hash_seed=3))
    assert len(expected) == POINTS
    assert first + second == expected


def test_a_redis_session_with_a_snapshot_in_the_middle(
    guest: Callable[[str], BuiltGuest], tmp_path: Path
) -> None:
    guest("redis")
    compare("redis", tmp_path, slice_ns=7_333_333)


@pytest.mark.long
@pytest.mark.parametrize("slice_ns", [77_777, 1_000_003, 250_000_001])
def test_linux_in_odd_slices(guest: Callable[[str], BuiltGuest], tmp_path: Path, slice_ns: int) -> None:
    guest("linux")
    compare("linux", tmp_path, slice_ns)


@given(st.lists(st.integers(1, 3 * MS), min_size=1, max_size=20))
@settings(max_examples=15)
def test_where_a_run_is_cut_leaves_no_trace(cuts: list[int]) -> None:
    """Interrupts come every millisecond and memory is written: any cut is near one of them."""
    with (
        multiboot("counter", command_line="mib=1 ms=1") as whole,
        multiboot("counter", command_line="mib=1 ms=1") as cut,
    ):
        for length in cuts:
            cut.run(cut.clock.now_ns + length)
        whole.run(cut.clock.now_ns)
        assert whole.differences(cut) == []


def test_patched_and_plain_prologues_keep_one_time() -> None:
    with multiboot("counter") as patched, multiboot("counter", patching=False) as plain:
        for at in range(1, 21):
            patched.run(at * 17 * MS)
            plain.run(at * 17 * MS)
            assert patched.clock.now_ns == plain.clock.now_ns
        assert patched.differences(plain) == []
        assert patched.digest == plain.digest


def test_requests_from_another_thread_leave_no_trace() -> None:
    """A run that is stopped at moments which the host chose goes on as if it had not been."""
    end = 300 * MS
    with multiboot("counter") as calm, multiboot("counter") as disturbed:
        calm.run(end)
        over = threading.Event()

        def disturb() -> None:
            while not over.wait(0.0005):
                disturbed.stop()

        thread = threading.Thread(target=disturb)
        thread.start()
        while disturbed.clock.now_ns < end:
            disturbed.run(end)
        over.set()
        thread.join()
        assert calm.differences(disturbed) == []


def test_hashing_and_looking_leave_no_trace() -> None:
    """Everything that only reads: hash, states, sections, console, registers, screen."""
    from vmm.api import Pc

    with multiboot("counter") as calm, multiboot("counter") as watched:
        calm.run(100 * MS)
        pc = Pc(watched)
        for at in range(1, 101):
            watched.run(at * MS)
            assert pc.hash
            assert pc.registers["cs"] != 0
            assert pc.console.startswith("GUEST-READY")
            assert len(pc.screen) == 25
            pc.read_virtual(0x100000, 64)
        assert calm.differences(watched) == []


def test_the_date_of_the_host_is_not_seen() -> None:
    """The RTC starts from the configured epoch, so the same boot gives the same date."""
    source = """
        mov al, 0x32            # century, year, month, day of the month
        out 0x70, al
        in al, 0x71
        mov bh, al
        mov al, 9
        out 0x70, al
        in al, 0x71
        mov bl, al
        xor ax, ax
        mov ds, ax
        mov [0x600], bx
        cli
        hlt
    """
    with machine(source) as pc:
        pc.run()
        assert pc.ram.read(0x600, 2) == b"\x26\x20", "2026, in BCD"


def test_the_time_of_an_input_is_part_of_the_state() -> None:
    """The tests above would prove nothing if a guest could not tell when something came."""
    digests = set()
    for late_ns in (0, 1000):
        with machine(ECHO.format(idle="")) as pc:
            pc.run(MS + late_ns)
            pc.serial.send(b"x")
            pc.run(2 * MS)
            assert pc.ram.read(COUNT, 4) != bytes(4)
            digests.add(pc.digest)
    assert len(digests) == 2
