"""From power-on to the end: every way in which a run ends, and that nothing is lost on the way."""

from __future__ import annotations

import gc
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.machine.support import MS, SECOND, machine, multiboot
from vmm import runloop
from vmm.config import CostConfig, PcConfig
from vmm.cpu.cpu import Stop
from vmm.errors import ConfigError
from vmm.machine import RESETS_MAX, Ended, Machine
from vmm.session import Session

FOREVER = "spin: jmp spin"
SLEEP = "sti\nagain: hlt\njmp again"
TRIPLE_FAULT = "lidt cs:[empty]\nud2\nempty: .word 0\n.long 0"
RESETS = {
    "port 0xCF9": "mov dx, 0xcf9\nmov al, 2\nout dx, al\nmov al, 6\nout dx, al\nspin: jmp spin",
    "port 0x92": "in al, 0x92\nor al, 1\nout 0x92, al\nspin: jmp spin",
    "8042 pulse": "mov al, 0xfe\nout 0x64, al\nspin: jmp spin",
    "triple fault": TRIPLE_FAULT,
}


def exit_with(value: int) -> str:
    return f"mov al, {value}\nout 0xf4, al\nspin: jmp spin"


# The guest's own end


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (16, 33), (127, 255)])
def test_the_debug_exit_port_gives_the_status_that_qemu_would(value: int, status: int) -> None:
    with machine(exit_with(value)) as pc:
        assert pc.run(SECOND) is Ended.DEBUG_EXIT
        assert pc.exit_code == status


def test_a_guest_that_left_does_not_go_on() -> None:
    with machine(exit_with(3)) as pc:
        pc.run()
        ended_at = pc.clock.now_ns
        assert pc.run(SECOND) is Ended.DEBUG_EXIT
        assert pc.clock.now_ns == ended_at


def test_an_exit_at_the_very_time_limit_is_not_lost() -> None:
    with machine(exit_with(3)) as pc:
        pc.run()
        limit = pc.clock.now_ns
    with machine(exit_with(3)) as pc:
        assert pc.run(limit) is Ended.DEBUG_EXIT


def test_halted_with_interrupts_off_is_off() -> None:
    with machine("cli\nhlt") as pc:
        assert pc.run() is Ended.POWEROFF
        assert pc.run() is Ended.POWEROFF


def test_soft_off_by_acpi() -> None:
    """SLP_EN with the SLP_TYP that the tables give for S5 (ACPI 6.4, 4.8.3.2.1)."""
    from vmm.boot.acpi import PM_BASE
    from vmm.devices.acpi_pm import PM1_CNT, SLP_EN, SLP_TYP_S5, SLP_TYP_SHIFT

    value = SLP_EN | SLP_TYP_S5 << SLP_TYP_SHIFT
    with machine(f"mov dx, {PM_BASE + PM1_CNT}\nmov ax, {value}\nout dx, ax\nspin: jmp spin") as pc:
        assert pc.run(SECOND) is Ended.POWEROFF
        assert pc.run(SECOND) is Ended.POWEROFF


def test_asleep_with_nothing_to_wait_for_is_idle() -> None:
    with machine(SLEEP) as pc:
        assert pc.run() is Ended.IDLE
        assert pc.run() is Ended.IDLE
        assert pc.run(SECOND) is Ended.TIME, "asleep until then is not idle"
        assert pc.clock.now_ns == SECOND


def test_a_stop_before_the_interrupt_enters_leaves_the_processor_halted() -> None:
    """The same instant, reached with and without a stop, is the same state: a replay compares the two."""
    with multiboot("counter") as pc:
        pc.run(2 * MS)
        assert pc.cpu.halted
        pc.run(pc.clock.next_deadline_ns)
        assert pc.cpu.can_take_interrupt
        before = pc.state_hash()
        pc.clock.set_limit(SECOND)
        pc.cpu.request_stop_later()
        assert pc.cpu.run() is Stop.REQUEST
        assert pc.cpu.halted
        assert pc.state_hash() == before
        pc.cpu.run()
        assert not pc.cpu.can_take_interrupt, "the interrupt entered"


# Reset


@pytest.mark.parametrize("source", RESETS.values(), ids=RESETS)
def test_a_reset_that_is_not_wanted_ends_the_run(source: str) -> None:
    with machine(source) as pc:
        pc.restart_on_reset = False
        assert pc.run(SECOND) is Ended.RESET
        ended_at = pc.clock.now_ns
        assert pc.run(SECOND) is Ended.RESET, "a machine in reset executes nothing"
        assert pc.clock.now_ns == ended_at
        pc.power_on()
        assert pc.run(pc.clock.now_ns) is Ended.TIME


@pytest.mark.parametrize("source", RESETS.values(), ids=RESETS)
def test_a_reset_starts_the_image_again(source: str) -> None:
    """Memory is empty again, so a program that counts in RAM cannot tell; one that says so can."""
    counted = "mov dx, 0x3f8\nmov al, 'b'\nout dx, al\n" + source
    with machine(counted) as pc:
        session = Session(pc)
        session.expect("bbb", within_s=1)


def test_a_guest_that_only_resets_itself_is_given_up() -> None:
    with machine(RESETS["port 0xCF9"]) as pc:
        assert pc.run() is Ended.RESET
        assert pc.clock.now_ns < RESETS_MAX * MS


def test_two_boots_are_alike() -> None:
    """What a reset leaves is what power-on left, but for the clock."""
    with multiboot("counter") as pc:
        pc.run(5 * MS)
        pc.power_on()
        again = pc.clock.now_ns
        with multiboot("counter") as fresh:
            fresh.clock.jump(again)
            fresh.power_on()
            assert pc.differences(fresh) == []
            assert pc.run(again + 20 * MS) is fresh.run(again + 20 * MS) is Ended.TIME
            assert pc.digest == fresh.digest


# From the host


def test_an_nmi_wakes_what_nothing_else_would() -> None:
    """Vector 2 (SDM vol. 3 6.3.1); in real mode its handler is at 4 * 2."""
    source = """
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7c00
        mov word ptr [4 * 2], offset handler
        mov word ptr [4 * 2 + 2], ax
        cli
        hlt
        mov al, 9
        out 0xf4, al
    spin:
        jmp spin
    handler:
        mov byte ptr [0x600], 1
        iret
    """
    with machine(source) as pc:
        assert pc.run() is Ended.POWEROFF
        pc.door.enter("nmi", b"\1")
        assert pc.run(SECOND) is Ended.DEBUG_EXIT
        assert pc.ram.read(0x600, 1) == b"\1"
        assert pc.exit_code == 19


@pytest.mark.parametrize("source", [FOREVER, "cli\n" + FOREVER, SLEEP], ids=["busy", "busy, IF=0", "asleep"])
@pytest.mark.parametrize("paced", [False, True], ids=["free", "paced"])
def test_another_thread_stops_a_run(source: str, paced: bool) -> None:
    with machine(source, paced=paced) as pc:
        limit_ns = 1 << 61  # so that a sleeping guest waits for something
        timer = threading.Timer(0.05, pc.stop)
        timer.start()
        began = time.monotonic()
        ended = pc.run(limit_ns)
        timer.join()
        if source is SLEEP and not paced:
            assert ended is Ended.TIME, "free-running sleep takes no time at all"
        else:
            assert ended is Ended.REQUEST
            assert time.monotonic() - began < 5


def test_a_stop_before_the_run_is_not_lost() -> None:
    with machine(FOREVER) as pc:
        pc.stop()
        assert pc.run() is Ended.REQUEST
        assert pc.run(MS) is Ended.TIME, "one stop ends one run"


def stopped_at_step(pc: Machine, step: int) -> Ended:
    """A run into which a stop comes before this step of the interpreter in the run loop."""
    left = step

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != runloop.__file__:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return tick

    def tick(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        left -= event == "opcode"
        if left == 0:
            left = -1
            pc.stop()
        return tick

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        return pc.run(pc.clock.now_ns + 30 * MS)
    finally:
        sys.settrace(before)


def test_a_stop_at_any_step_of_the_loop_ends_the_run() -> None:
    """Another thread, or a signal handler, may come between any two of them; this is more than one turn."""
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        pc.run(10 * MS)
        assert {stopped_at_step(pc, step) for step in range(1, 1000)} == {Ended.REQUEST}


def test_what_a_device_raises_reaches_the_caller_of_run() -> None:
    """A world that misbehaves, or a bug of ours: no exception may be lost in native frames."""

    class Broken:
        state: Any = None

        def read(self, offset: int, size: int) -> int:
            raise ConfigError("planted")

        def write(self, offset: int, size: int, value: int) -> None:
            raise AssertionError("planted")

        def reset(self) -> None:
            """Nothing is kept."""

        def restored(self) -> None:
            """Nothing is derived."""

    with machine("mov dx, 0x700\nin al, dx\njmp next\nnext: out dx, al\nspin: jmp spin") as pc:
        pc.ports.claim(0x700, 1, Broken(), "a broken device")
        with pytest.raises(ConfigError, match="planted"):
            pc.run(20 * MS)
        with pytest.raises(AssertionError, match="planted"):
            pc.run(20 * MS)
        assert pc.run(20 * MS) is Ended.TIME


# Several machines


def test_two_machines_run_in_two_threads() -> None:
    """Each as it would alone."""
    with multiboot("counter") as alone:
        alone.run(300 * MS)
        expected = alone.digest
    found: dict[int, str] = {}

    def run(number: int) -> None:
        with multiboot("counter") as pc:
            for at in range(1, 31):
                pc.run(at * 10 * MS)
            found[number] = pc.digest

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: expected, 1: expected}


def test_two_machines_take_turns_in_one_thread() -> None:
    with multiboot("counter") as one, multiboot("counter") as other:
        for at in range(1, 11):
            one.run(at * 20 * MS)
            other.run(at * 20 * MS)
        assert one.differences(other) == []


def test_a_machine_moves_to_another_thread() -> None:
    with multiboot("counter") as alone:
        alone.run(100 * MS)
        expected = alone.digest
    with multiboot("counter") as pc:
        pc.run(50 * MS)
        thread = threading.Thread(target=pc.run, args=(100 * MS,))
        thread.start()
        thread.join()
        assert pc.digest == expected


def test_closing_twice_is_closing_once() -> None:
    pc = machine(FOREVER)
    pc.run(MS)
    pc.close()
    pc.close()
    with pytest.raises(AssertionError, match="closed"):
        pc.run(2 * MS)
    pc.stop()
    with machine(FOREVER) as next_one:
        assert next_one.run(MS) is Ended.TIME, "and the next machine is not disturbed"


def test_many_machines_one_after_another_leave_nothing_open() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with machine(FOREVER) as pc:
        pc.run(MS)
    gc.collect()  # what earlier tests had left open
    before = descriptors()
    for _ in range(5):
        with machine(FOREVER) as pc:
            pc.run(MS)
    assert descriptors() == before


# Modes of time


def test_a_paced_guest_keeps_to_the_wall() -> None:
    """A guest that sleeps is as slow as the wall; it is never ahead by more than a slice."""
    with multiboot("counter", paced=True, command_line="mib=0 ms=10") as pc:
        began = time.monotonic()
        assert pc.run(200 * MS) is Ended.TIME
        assert time.monotonic() - began > 0.15


def test_a_guest_whose_time_stands_still_is_refused() -> None:
    with pytest.raises(ConfigError, match="instruction"):
        Machine(PcConfig(ram_mib=1, costs=CostConfig(instruction=0)))
