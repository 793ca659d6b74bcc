"""Faults of one machine: each kind as a program sees it, each trigger where it says, and all of it again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from colo.faults.guest import Start, arm
from colo.faults.model import (
    AtAddress,
    AtInstruction,
    AtStep,
    AtText,
    AtTime,
    ClockDrift,
    ClockJump,
    DataFault,
    Fault,
    FaultError,
    InstructionFault,
    Intermittent,
    LostInterrupt,
    NodeFault,
    RegisterFault,
)
from tests.cpu.assembler import assemble
from tests.machine.journey import switched_on
from tests.machine.support import MS, machine, multiboot
from vmm.guest import BuiltGuest
from vmm.machine import Ended, Machine
from vmm.session import Session

RESULT = 0x600
SUM = """
    xor ax, ax
    mov ds, ax
    mov fs, ax
    xor ebx, ebx
    mov ecx, 1000
    rdtsc
    mov [0x608], eax
turn:
    add ebx, ecx
stored:
    mov [0x600], ebx
    dec ecx
decided:
    jnz turn
ended:
    rdtsc
    sub eax, [0x608]
    mov [0x60c], eax
    mov eax, cr2
    mov [0x610], eax
    mov eax, fs:[0x600]
    mov [0x614], eax
    cli
    hlt
"""
"""Adds the numbers from 1000 down to 1: a turn is a block of four instructions."""
TOTAL = 500_500


def at(label: str, hits: int = 1) -> AtAddress:
    return AtAddress(address=assemble(SUM, 0x7C00, 16)[label], hits=hits)


def word(pc: Machine, address: int = RESULT) -> int:
    return int.from_bytes(pc.ram.read(address, 4), "little")


class Summed:
    """What came of the sum with these faults."""

    def __init__(self, *faults: Fault, patching: bool = True) -> None:
        with machine(SUM, patching=patching) as pc:
            self.armed = [arm(pc, fault) for fault in faults]
            self.ended = pc.run(100_000)
            self.total, self.spent_ns = word(pc), word(pc, 0x60C)
            self.cr2, self.by_fs = word(pc, 0x610), word(pc, 0x614)
            self.code = pc.ram.read(0x7C00, 128)

    @property
    def happened(self) -> list[str]:
        return [each.changed or each.failed for armed in self.armed for each in armed.happened]


def register(name: str, when: Any, operation: Any = "toggle", **options: Any) -> RegisterFault:
    return RegisterFault(when=when, register=name, operation=operation, **options)


# Registers


@pytest.mark.parametrize("patching", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("label", ["turn", "stored", "decided"])
@pytest.mark.parametrize("hits", [1, 2, 777])
def test_a_bit_of_a_register(label: str, hits: int, patching: bool) -> None:
    """Bit 20 is above the sum: from then on it is there."""
    seen = Summed(register("rbx", at(label, hits), mask=1 << 20), patching=patching)
    assert seen.total == TOTAL + (1 << 20)
    (happened,) = seen.armed[0].happened
    assert happened.address == at(label).address
    before = sum(range(1001 - hits, 1001)) if label != "turn" else sum(range(1002 - hits, 1001))
    assert happened.changed == f"rbx: {before:#x} -> {before + (1 << 20):#x}"


def test_operations() -> None:
    when = at("stored", 1000)
    assert Summed(register("rbx", when, "set1", mask=0xF)).total == TOTAL | 0xF
    assert Summed(register("rbx", when, "set0", mask=0xFFF)).total == TOTAL & ~0xFFF
    assert Summed(register("rbx", when, "overwrite", mask=0xFF, value=0x5A)).total == TOTAL & ~0xFF | 0x5A


def test_flags_and_the_instruction_pointer() -> None:
    assert Summed(register("rflags", at("decided", 3), mask=1 << 6)).total == 1000 + 999 + 998
    end = assemble(SUM, 0x7C00, 16)["ended"]
    assert Summed(register("rip", at("stored", 3), "overwrite", mask=(1 << 64) - 1, value=end)).total == 1999


def test_control_registers_and_segments() -> None:
    assert Summed(register("cr2", at("decided"), "set1", mask=0x1230)).cr2 == 0x1230
    seen = Summed(register("cr0", at("turn", 2), mask=1), register("cr0", at("turn", 2), mask=1))
    assert seen.total == TOTAL, "protected mode, and back"
    with machine(SUM) as pc:
        from vmm.inject import Injection, Register

        pc.stops.run_to_address(at("ended").address)
        pc.stops.finish_block()
        pc.injector.enter(Injection(Register("fs.base", toggle=8)))
        pc.injector.enter(Injection(Register("xmm3.high", toggle=5)))
        assert pc.cpu.state.xmm[3] == bytes(8) + (5).to_bytes(8, "little")
        assert pc.cpu.state.segments[4].base == 8


@pytest.mark.parametrize("patching", [False, True], ids=["plain", "patched"])
def test_a_stuck_bit_of_a_register(patching: bool) -> None:
    """Forced before every block, which is every turn."""
    seen = Summed(register("rbx", at("turn"), "set0", mask=1, persistence="permanent"), patching=patching)
    expected = 0
    for number in range(1000, 0, -1):
        expected = (expected & ~1) + number
    assert seen.total == expected != TOTAL


# Memory and code


@pytest.mark.parametrize("space", ["physical", "virtual"])
def test_data_in_memory(space: Any) -> None:
    fault = DataFault(when=at("decided", 1000), address=RESULT + 1, space=space, width=2, mask=0x8001)
    assert Summed(fault).total == TOTAL ^ 0x8001 << 8


def test_memory_that_is_not_there() -> None:
    seen = Summed(DataFault(when=at("stored"), address=1 << 30, mask=1))
    assert seen.total == TOTAL
    assert "not RAM" in seen.happened[0]


def test_memory_that_holds_translated_code() -> None:
    """ADD becomes SUB for the turns that are left, though the block has run before."""
    code = at("turn").address + 1
    fault = DataFault(when=at("decided", 500), address=code, width=1, mask=0x28)
    assert Summed(fault).total == sum(range(501, 1001)) - sum(range(1, 501))


def test_a_stuck_bit_of_memory() -> None:
    fault = DataFault(
        when=AtTime(ns=50), address=RESULT, width=4, operation="set1", mask=1, persistence="permanent"
    )
    assert Summed(fault).total == TOTAL | 1


@pytest.mark.parametrize("patching", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("address", [None, at("turn").address])
def test_one_execution_of_an_instruction(address: int | None, patching: bool) -> None:
    """SUB in place of ADD, once: twice the number is missing; and the code is as it was."""
    fault = InstructionFault(when=at("turn", 500), address=address, mask=0x2800)
    seen = Summed(fault, patching=patching)
    assert seen.total == TOTAL - 2 * 501
    assert seen.code == assemble(SUM, 0x7C00, 16).code.ljust(128, b"\0")[:128]


def test_an_instruction_in_the_middle_of_a_block() -> None:
    """DEC becomes INC once, so two numbers are added twice."""
    decrement = at("stored").address + 5
    seen = Summed(InstructionFault(when=at("turn", 10), address=decrement, mask=0x0800))
    assert seen.total == TOTAL + 991 + 992
    assert seen.armed[0].happened[0].address == decrement


def test_an_instruction_that_is_invalid_once() -> None:
    """#UD in the second turn, and the vector table is empty: the program is lost."""
    seen = Summed(
        InstructionFault(when=at("turn", 2), operation="overwrite", mask=(1 << 24) - 1, value=0x0B0F66)
    )
    assert (seen.total, seen.spent_ns) == (1000, 0)


def test_a_stuck_instruction() -> None:
    fault = InstructionFault(when=at("turn", 500), mask=0x2800, operation="set1", persistence="permanent")
    assert Summed(fault).total == sum(range(502, 1001)) - sum(range(1, 502))


# Time


@pytest.mark.parametrize("by_ns", [1_000_000, -123, 1 << 40, -(1 << 40)])
def test_a_clock_that_jumps(by_ns: int) -> None:
    calm = Summed().spent_ns
    seen = Summed(ClockJump(when=at("decided", 5), by_ns=by_ns))
    assert seen.spent_ns == (calm + by_ns) % (1 << 32)


@pytest.mark.parametrize("ppm", [100_000, -250_000])
def test_a_clock_that_drifts(ppm: int) -> None:
    calm = Summed().spent_ns
    seen = Summed(ClockDrift(when=AtTime(ns=0), ppm=ppm, persistence="permanent"))
    assert abs(seen.spent_ns - (calm + calm * ppm // 1_000_000)) <= 10
    for_a_while = Summed(ClockDrift(when=at("turn", 100), ppm=ppm, for_ns=1000))
    assert abs(for_a_while.spent_ns - (calm + 1000 * ppm // 1_000_000)) <= 10


def test_alarms_by_a_counter_that_is_before_its_zero() -> None:
    """IA32_TSC_DEADLINE is compared with a counter that wraps (SDM vol. 3, "TSC-Deadline Mode")."""
    deadline, lvt_timer, deadline_mode = 0x6E0, 0x320, 2 << 17
    with machine(SUM) as pc:
        pc.run(1000)
        arm(pc, ClockJump(when=AtTime(ns=0), by_ns=-5 * MS))
        pc.run(1001)
        msrs, counter = pc.board.questions(), (pc.clock.now_ns - 5 * MS) % (1 << 64)
        pc.devices["lapic"].write(lvt_timer, 4, deadline_mode | 0x40)
        assert msrs.write_msr(deadline, counter + 2 * MS)
        assert pc.devices["lapic"].tsc_deadline == pc.clock.now_ns + 2 * MS
        assert msrs.read_msr(deadline) == counter + 2 * MS
        assert pc.state_hash()
        assert msrs.write_msr(deadline, counter - 1)
        pc.clock.fire_due()
        assert pc.devices["lapic"].state.irr[8] == 1, "it is past: vector 40H at once"


def ticks_until_second(*faults: Fault) -> int:
    """When the counter has counted a second's worth of ticks, in milliseconds."""
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        for fault in faults:
            arm(pc, fault)
        while "second 1" not in pc.console.text:
            assert pc.run(pc.clock.now_ns + MS) is Ended.TIME
        return pc.clock.now_ns // MS


@pytest.mark.parametrize(
    "lost", [{"line": 0, "times": 7}, {"vector": 0x20, "times": 7}, {"line": 4, "times": 7}]
)
def test_interrupts_that_are_lost(lost: dict[str, int]) -> None:
    calm = ticks_until_second()
    expected = calm if lost.get("line") == 4 else calm + 7
    assert ticks_until_second(LostInterrupt(when=AtTime(ns=50 * MS), **lost)) == expected  # type: ignore[arg-type]


def test_lost_interrupts_of_the_local_apic(guest: Callable[[str], BuiltGuest]) -> None:
    """Linux programs each alarm when it has had the one before: when one is lost it sleeps for ever."""
    guest("linux")
    with switched_on("linux", patching=True) as pc:
        session = Session(pc)
        session.expect("~ # ", within_s=20)
        session.command("sleep 1")
        arm(pc, LostInterrupt(when=AtTime(ns=0), vector=0xEC, persistence="permanent"))
        session.send("sleep 1; echo awake\n")
        pc.run(pc.clock.now_ns + 20_000 * MS)
        assert pc.console.text.endswith("echo awake\r\n")


# Triggers


def test_counts_begin_at_the_start() -> None:
    with machine(SUM) as pc:
        pc.run(500)
        start = Start(pc.clock.now_ns, pc.stops.instructions)
        pc.run(700)
        armed = [
            arm(pc, register("rdx", AtInstruction(count=321), mask=1), start=start),
            arm(pc, register("rdx", AtTime(ns=333), mask=1), start=start),
        ]
        pc.run(10_000)
        assert armed[0].happened[0].instructions == start.instructions + 321
        assert armed[1].happened[0].instructions == start.instructions + 333
        assert all(each.finished for each in armed)


def test_text_on_the_console() -> None:
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        armed = arm(pc, register("r15", AtText(text="second", count=2), mask=1))
        pc.run(1_900 * MS)
        assert not armed.finished
        pc.run(2_200 * MS)
        assert armed.finished
        assert "second 2" not in pc.console.text[: pc.console.text.rindex("second") + 6]


def test_a_step_is_told() -> None:
    with machine(SUM) as pc:
        armed = arm(pc, register("rbx", AtStep(step="VmstateReceived"), mask=1 << 20))
        pc.run(1000)
        assert (armed.happened, armed.finished) == ([], False)
        armed.fire()
        armed.fire()
        pc.run()
        assert word(pc) == TOTAL + (1 << 20)
        assert len(armed.happened) == 1


def test_intermittent() -> None:
    seen = Summed(register("rdx", at("turn"), mask=1, persistence=Intermittent(period_ns=100, times=5)))
    times = [each.ns for each in seen.armed[0].happened]
    assert len(times) == 5
    assert all(100 <= later - earlier < 110 for earlier, later in pairwise(times))


def test_two_equal_faults_are_two() -> None:
    fault = register("rbx", at("stored", 3), mask=1 << 20)
    seen = Summed(fault, fault)
    assert seen.total == TOTAL
    assert [len(each.happened) for each in seen.armed] == [1, 1]


def test_disarmed() -> None:
    with machine(SUM) as pc:
        armed = arm(pc, register("rbx", at("turn", 100), mask=1 << 20))
        pc.run(100)
        armed.disarm()
        pc.run()
        assert (word(pc), armed.happened, armed.wanted) == (TOTAL, [], "")


def test_faults_that_no_machine_has() -> None:
    with machine(SUM) as pc:
        with pytest.raises(FaultError, match="node"):
            arm(pc, NodeFault(when=AtTime(ns=0), effect="kill"))
        with pytest.raises(FaultError, match="stuck"):
            arm(pc, register("rip", AtTime(ns=0), "set1", mask=1, persistence="permanent"))
