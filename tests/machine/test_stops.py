"""Exact stops: where they are, and that a machine that made some is the one that made none."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cpu.assembler import assemble
from tests.machine.journey import switched_on
from tests.machine.support import COUNT, ECHO, MS, machine, multiboot
from vmm import recording
from vmm.clock import NEVER_NS
from vmm.errors import StateError
from vmm.guest import BuiltGuest
from vmm.machine import Ended, Machine, resume
from vmm.session import Session
from vmm.state import pack

# A division faults every fourth time round, in the middle of a block; its handler steps over it.
FAULTING = """
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    mov word ptr [0], offset divided        # vector of #DE
    mov word ptr [2], ax
turn:
    inc dword ptr [0x600]
    mov cl, [0x600]
    and cl, 3
    mov ax, 12
    div cl
after:
    inc dword ptr [0x604]
    mov bx, [0x600]
    jmp turn
divided:
    push bp
    mov bp, sp
    add word ptr [bp + 2], 2
    pop bp
    iret
"""
TURNS, AFTER = 0x600, 0x604


def address_of(source: str, label: str) -> int:
    """Where ``label`` is in a boot sector."""
    return assemble(source, 0x7C00, 16)[label]


def word(pc: Machine, address: int) -> int:
    return int.from_bytes(pc.ram.read(address, 4), "little")


def state(pc: Machine) -> bytes:
    return pack(pc.cpu.state) + pc.ram.read(0x600, 16)


def to(pc: Machine, time_ns: int) -> None:
    """Leave a block, and run to the first boundary from ``time_ns`` on."""
    pc.stops.finish_block()
    pc.run(time_ns)


@pytest.mark.parametrize("patching", [False, True], ids=["plain", "patched"])
def test_one_at_a_time_or_all_at_once_is_the_same_place(patching: bool) -> None:
    with machine(FAULTING, patching=patching) as stepped:
        for number in range(1, 120):
            assert stepped.stops.step() is Ended.EXACT
            with machine(FAULTING, patching=patching) as pc:
                assert pc.stops.run_to_instruction(stepped.stops.instructions) is Ended.EXACT
                assert state(pc)[8:] == state(stepped)[8:], number


def test_steps_are_instructions() -> None:
    """Straight code: the address after n steps is that of the instruction number n."""
    lengths = (2, 2, 2, 3, 6, 3, 5, 4)
    with machine(FAULTING) as pc:
        address = 0x7C00
        for length in lengths:
            pc.stops.step()
            address += length
            assert pc.stops.address == address


@pytest.mark.parametrize("patching", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("seed", range(3))
def test_stops_under_interrupts_leave_no_trace(patching: bool, seed: int) -> None:
    """Ticks every millisecond, halts between them, and memory written in loops."""
    source = random.Random(f"{seed} lengths")
    with (
        multiboot("counter", command_line="mib=1 ms=1", patching=patching) as whole,
        multiboot("counter", command_line="mib=1 ms=1", patching=patching) as cut,
    ):
        inside = 0
        for _ in range(400):
            cut.stops.step(source.choice((1, 2, 3, 7, 50, 333)), 20 * MS)
            inside += cut.stops.inside
        assert inside > 100
        to(cut, 20 * MS)
        whole.run(cut.clock.now_ns)
        assert whole.differences(cut) == []
        assert whole.stops.instructions == cut.stops.instructions
        whole.run(25 * MS)
        cut.run(25 * MS)
        assert whole.digest == cut.digest


def test_stops_in_a_linux_guest_leave_no_trace(guest: Callable[[str], BuiltGuest]) -> None:
    """The kernel, and a shell that forks: paging, exceptions, system calls, string instructions."""
    booting = switched_on(guest("linux").info.name, patching=True)
    Session(booting).expect("~ # ", within_s=20)
    with booting.hold() as start:
        booting.close()
        whole, cut = resume(start), resume(start)
    with whole, cut:
        end = whole.clock.now_ns + 30 * MS
        for pc in (whole, cut):
            pc.serial.send(b"for i in 1 2 3; do cat /proc/uptime | md5sum; done\n")
        whole.run(end)
        source = random.Random("lengths")
        exact = 0
        while cut.clock.now_ns < end:
            exact += cut.stops.step(source.randrange(1, 10_000), end) is Ended.EXACT
        assert exact > 100
        to(cut, end)
        assert whole.differences(cut) == []
        assert whole.stops.instructions == cut.stops.instructions


@pytest.mark.parametrize("patching", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("hits", [1, 2, 3, 4, 5, 40])
def test_the_nth_execution_of_an_address(patching: bool, hits: int) -> None:
    """``after`` is in the middle of a block, which every fourth time does not get so far by itself."""
    after = address_of(FAULTING, "after")
    with machine(FAULTING, patching=patching) as pc, machine(FAULTING, patching=patching) as whole:
        pc.run(100)  # the loop was translated before
        hits_before = word(pc, AFTER)
        assert pc.stops.run_to_address(after, hits) is Ended.EXACT
        assert pc.stops.address == after
        assert word(pc, AFTER) == hits_before + hits - 1
        to(pc, 20_000)
        whole.run(20_000)
        assert whole.differences(pc) == []


def test_an_address_that_begins_a_block() -> None:
    turn = address_of(FAULTING, "turn")
    with machine(FAULTING) as pc:
        for number in range(5):
            assert pc.stops.run_to_address(turn, 1 if number == 0 else 2) is Ended.EXACT
            assert (pc.stops.address, word(pc, TURNS)) == (turn, number)


def test_an_address_that_is_in_no_instruction_never_comes() -> None:
    with machine(FAULTING) as pc:
        assert pc.stops.run_to_address(address_of(FAULTING, "after") + 1, until_ns=50_000) is Ended.TIME


def test_two_addresses_of_one_block() -> None:
    turn, after = address_of(FAULTING, "turn"), address_of(FAULTING, "after")
    came: list[tuple[str, int]] = []
    with machine(FAULTING) as pc:
        pc.stops.at_address(turn, 2, lambda ahead: came.append(("turn", word(pc, TURNS))))
        pc.stops.at_address(after, 3, lambda ahead: came.append(("after", word(pc, AFTER))))
        pc.stops.at_address(after, 1, lambda ahead: came.append(("after", word(pc, AFTER))))
        pc.run(2_000)
    assert came == [("after", 0), ("turn", 1), ("after", 2)]


@pytest.mark.parametrize("time_ns", [1, 7, 200, 201, 202, 203, 999])
def test_a_time_is_that_of_an_instruction(time_ns: int) -> None:
    """Nothing but instructions takes time here, one nanosecond each."""
    with machine("l: inc eax\n inc ebx\n inc ecx\n jmp l") as pc:
        assert pc.stops.run_to_time(time_ns) is Ended.EXACT
        assert pc.stops.instructions == time_ns


def test_a_time_while_the_guest_sleeps() -> None:
    with multiboot("counter") as pc:
        pc.run(5 * MS)
        assert pc.cpu.halted
        assert pc.stops.run_to_time(5 * MS + 100_001) is Ended.EXACT
        assert pc.clock.now_ns == 5 * MS + 100_001
        assert pc.cpu.halted


def test_inputs_wait_for_the_end_of_the_block() -> None:
    """A byte sent to a machine that stands inside a block enters where it would have entered anyway."""
    found = []
    for step in (0, 2):
        with machine(ECHO.format(idle="nop\n nop\n nop")) as pc:
            pc.run(MS)
            boundary = pc.clock.now_ns
            if step:
                pc.stops.step(step)
                assert pc.stops.inside
            to(pc, boundary + 1)
            pc.serial.send(b"x")
            pc.run(2 * MS)
            assert word(pc, COUNT) > 0
            found.append(pc.digest)
    assert found[0] == found[1]


def test_a_recording_does_not_have_the_stops(tmp_path: Path) -> None:
    with multiboot("counter", command_line="mib=1 ms=1") as pc:
        recording.start(pc, tmp_path / "log")
        for number in range(60):
            pc.stops.step(97)
            pc.stops.finish_block()
            pc.door.enter("keyboard", bytes((number,)))
            pc.stops.step(2)
        to(pc, 20 * MS)
        recording.finish(pc, "enough")
        expected = pc.digest
    with multiboot("counter", command_line="mib=1 ms=1") as twin:
        recording.follow(twin, tmp_path / "log")
        assert recording.run(twin) == "enough"
        assert twin.digest == expected


def test_a_snapshot_inside_a_block_is_refused() -> None:
    with machine(FAULTING) as pc:
        pc.stops.step(8)
        assert pc.stops.inside
        with pytest.raises(StateError, match="finish_block"):
            pc.hold()
        pc.stops.finish_block()
        with pc.hold() as held, resume(held) as twin:
            twin.run(10_000)
            pc.run(10_000)
            assert twin.differences(pc) == []


def test_what_limits_a_run_limits_a_stop() -> None:
    with machine(FAULTING) as pc:
        assert pc.stops.run_to_instruction(1_000_000, until_ns=500) is Ended.TIME
        assert pc.stops.run_to_address(0x1234, until_ns=900) is Ended.TIME
        assert 900 <= pc.clock.now_ns < 950
        pc.stop()
        assert pc.stops.step() is Ended.REQUEST
    with machine("cli\n hlt") as pc:
        assert pc.stops.step(10) is Ended.POWEROFF


def test_nothing_is_left_of_a_stop_that_did_not_come() -> None:
    with machine(FAULTING) as pc:
        pc.stops.run_to_instruction(1_000_000, until_ns=500)
        pc.stops.run_to_address(address_of(FAULTING, "after"), 1000, until_ns=900)
        block = pc.cpu.block
        assert (block["EXACT"], block["WATCH_COUNT"], block["STOP_AT"]) == (0, 0, NEVER_NS)
        patched = block["N_PATCHED"]
        pc.run(10_000)
        assert block["N_PATCHED"] > patched, "blocks that were watched are patched again"


FLAGS = """
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    mov ebx, 0x7fffffff
turn:
    add ebx, 0x10203
    {instruction}
    pushf
    pop ax
    xor [0x600], ax
    lahf
    add [0x604], ah
    rol dword ptr [0x604], 3
    jmp turn
"""


@pytest.mark.parametrize(
    "instruction",
    ["bt ebx, 3", "bts ebx, 7", "btr ebx, 9", "btc ebx, 2", "cmpxchg8b [0x608]", "lock cmpxchg8b [0x610]"],
)
def test_flags_do_not_depend_on_where_a_block_began(instruction: str) -> None:
    """All but CF (BT) or ZF (CMPXCHG8B) stay as they were, undefined or not."""
    source = FLAGS.format(instruction=instruction)
    with machine(source) as whole, machine(source) as cut:
        while cut.clock.now_ns < 3_000:
            cut.stops.step(1)
        to(cut, 3_000)
        whole.run(3_000)
        assert whole.differences(cut) == []
        assert word(cut, 0x604) != 0
