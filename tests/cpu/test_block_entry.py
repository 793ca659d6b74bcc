"""Blocks entered just before their instructions: what the engine reckons from a block's begin stays right.

Each program runs on a machine with plain and on one with patched prologues; all of RAM, the registers, the
clock and every fault must be equal.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.cpu.machine import DATA, Machine, long, page64
from vmm.cpu import layout
from vmm.cpu.control import ENV_TO_BUDGET
from vmm.cpu.cpu import Stop
from vmm.cpu.selfcheck_links import blocks, exit_of

ABSENT = 0x50000
FUNCTION = 0x20000
LINE = 64
TAKE, JLE = b"\x48\x83\xad" + struct.pack("<i", ENV_TO_BUDGET), 0x7E
"""sub qword [rbp + budget], byte; and what follows it."""


def word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def descriptors(machine: Machine) -> dict[int, int]:
    """Linear address -> block, of those in the engine's jump cache."""
    return blocks(machine.cpu.block["CPU"])


def links_of(block: int) -> list[tuple[int, int]]:
    """The exits that are linked to ``block``."""
    found = []
    link = word(block + layout.TB_INCOMING)
    while link:
        found.append((link & ~1, link & 1))
        link = word((link & ~1) + layout.TB_NEXT_INCOMING + 8 * (link & 1))
    return found


def check_entry(block: int) -> int:
    """It is entered where it is charged, and jumped to there; how many jumps there are."""
    entry = word(block + layout.TB_CODE)
    code = ctypes.string_at(entry, 9)
    assert code[:7] == TAKE, f"{word(block + layout.TB_PC):#x}: {code.hex()}"
    assert code[8] == JLE
    links = links_of(block)
    for source, number in links:
        way = exit_of(source, number)
        assert way is not None
        assert way.leads_to == entry, f"{word(source + layout.TB_PC):#x} to {word(block + layout.TB_PC):#x}"
    return len(links)


def check_entries(machine: Machine) -> int:
    """How many jumps there are to all blocks."""
    return sum(check_entry(block) for block in descriptors(machine).values())


def outcome(machine: Machine) -> tuple[Any, ...]:
    return machine.cpu.state, machine.log, machine.cpu.clock.now_ns, machine.ram.read(0, machine.ram.size)


def both(prepare: Callable[[Machine], object], slice_ns: int = 1 << 40) -> tuple[Machine, Machine]:
    """A plain and a patched machine that have run the same to the end, in slices."""
    machines = Machine(patching=False), Machine(patching=True)
    for machine in machines:
        prepare(machine)
        while machine.run(slice_ns) is Stop.DEADLINE:
            pass
    assert outcome(machines[1]) == outcome(machines[0])
    assert machines[1].cpu.block["N_PATCHED"] > 0
    return machines


def close(*machines: Machine) -> None:
    for machine in machines:
        machine.cpu.close()


LINKED = """
        mov ecx, 40
        xor ebx, ebx
    again:
        inc rbx
        test cl, 1
        jz even
        add rdx, 3
        jmp join
    even:
        add rdx, 5
    join:
        cmp rbx, 30
        ja over
        sub rsi, rdx
    over:
        dec ecx
        jnz again
        hlt
"""


def test_every_block_is_entered_there(machine: Machine, patching: bool) -> None:
    long(machine, LINKED)
    machine.finish()
    assert machine.register("rdx") == 20 * 3 + 20 * 5
    if patching:
        assert check_entries(machine) >= 8
        targets = [machine.cpu.block[name] for name in ("HOOK_ADDRESS", "FN_CHECK_EXIT")]
        for block in descriptors(machine).values():
            entry = word(block + layout.TB_CODE)
            far = sum(abs(target - entry) > 1 << 31 for target in targets)
            assert entry % LINE == far, "such a call takes a byte more"


@pytest.mark.parametrize("before", [12, 60, 131])
def test_blocks_that_are_linked_already_are_patched(before: int) -> None:
    """Prologues are left alone for a while: there are links to a block when it is patched."""
    plain, late = Machine(patching=False), Machine(patching=True)
    late.cpu.block["PATCHING"] = 0
    for machine in (plain, late):
        program = long(machine, LINKED)
        machine.run(before)
        assert machine.cpu.block["N_PATCHED"] == 0
    late.cpu.block["PATCHING"] = 1
    again = descriptors(late)[program["again"]]
    assert links_of(again)
    assert plain.finish().cpu.clock.now_ns == late.finish().cpu.clock.now_ns
    assert outcome(late) == outcome(plain)
    assert check_entry(again) == 2
    close(plain, late)


def test_a_block_linked_to_itself_is_patched() -> None:
    """Its jump is one of those to redirect and one of those whose place is reckoned from its begin."""
    machine = Machine(patching=True)
    machine.cpu.block["PATCHING"] = 0
    program = long(machine, "mov ecx, 500\n again: add rax, rcx\n dec ecx\n jnz again\n hlt")
    machine.run(300)
    assert machine.cpu.block["N_PATCHED"] == 0
    block = descriptors(machine)[program["again"]]
    assert block in [source for source, _ in links_of(block)]
    machine.cpu.block["PATCHING"] = 1
    machine.finish()
    assert machine.register("rax") == 500 * 501 // 2
    assert machine.cpu.clock.now_ns == 1 + 500 * 3 + 1
    assert check_entry(block) == 2
    close(machine)


FAULTS = {
    "page": ("mov rax, [rsi]", 14),
    "store": ("mov [rsi], rax", 14),
    "divide": ("div rbp", 0),
    "undefined": ("ud2", 6),
    "call": ("push qword ptr [rsi]", 14),
}
FLAGS = ("add r8, rsi", "shl r9, 3", "sub r10, r8", "inc r11", "xor r12, r10", "neg r13", "bt r8, 5")
"""What the flags are is worked out only where somebody asks: at the fault."""


def faulting(machine: Machine, kind: str, place: int) -> int:
    """Instruction number ``place`` of a block faults from its second run on; where it is."""
    instruction, _ = FAULTS[kind]
    before = "\n".join(FLAGS[n % len(FLAGS)] for n in range(place))
    program = long(
        machine,
        f"""
            mov ecx, 4
            mov esi, {DATA}
            mov ebp, 7
            mov r8d, 0x1234567
            mov r9d, 0x7654321
            mov r14, rsp
        again:
            mov rsp, r14
            lea r15, [next]
            xor edx, edx
            cmp rcx, r8
            jmp body
        body:
            {before}
        fault:
            {instruction}
            adc r9, r8
            jmp next
        next:
            mov esi, {ABSENT}
            xor ebp, ebp
            dec ecx
            jnz again
            hlt
        """,
    )
    page64(machine, ABSENT, 0)
    return program["fault"]


@pytest.mark.parametrize("place", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_where_they_are(kind: str, place: int) -> None:
    """The instruction and the flags are found again from the address in the block's code."""
    machines = both(lambda machine: faulting(machine, kind, place))
    address, vector = faulting(machines[1], kind, place), FAULTS[kind][1]
    expected = 4 if kind == "undefined" else 3
    assert [(entry.vector, entry.rip) for entry in machines[1].log] == [(vector, address)] * expected
    close(*machines)


def rewriting(machine: Machine, seed: int) -> None:
    """A page of small blocks that jump to each other, rewritten again and again from outside and run."""
    rng = random.Random(seed)
    count = 12
    lines = []
    for number in range(count):
        targets = [f"b{rng.randrange(count)}", f"b{(number + 1) % count}"]
        lines.append(
            f"b{number}: add rbx, {rng.randrange(1, 100)}\n dec ecx\n js done\n"
            f" test ebx, {1 << rng.randrange(4)}\n jz {targets[0]}\n jmp {targets[1]}"
        )
    steps = []
    for _ in range(40):
        target = f"b{rng.randrange(count)}"
        steps.append(f"mov byte ptr [{target} + 3], {rng.randrange(1, 100)}")
        if rng.random() < 0.7:
            steps.append(f"mov ecx, {rng.randrange(1, 60)}\n call b{rng.randrange(count)}")
    body = "\n".join(steps)
    long(
        machine,
        f"mov r8d, 6\n rounds: {body}\n dec r8d\n jnz rounds\n cli\n hlt\n .balign 4096\n"
        + "\n".join(lines)
        + "\n done: ret\n",
    )


@pytest.mark.parametrize("slice_ns", [1 << 40, 37], ids=["whole", "slices"])
@pytest.mark.parametrize("seed", range(5))
def test_linked_blocks_are_rewritten(seed: int, slice_ns: int) -> None:
    """What jumped to a block that is gone goes on by its own, and is linked to what is there now."""
    machines = both(lambda machine: rewriting(machine, seed), slice_ns)
    assert check_entries(machines[1]) > 10
    assert machines[1].register("rbx") > 1000
    close(*machines)


@pytest.mark.parametrize("seed", range(4))
def test_interrupts_come_between_the_same_blocks(seed: int) -> None:
    """The handler's log has the address and the flags that each interrupt found."""
    machines = Machine(patching=False), Machine(patching=True)
    for machine in machines:
        rewriting(machine, seed)
        machine.cpu.write_rflags(0x202)
        times = random.Random(f"{seed} interrupts")
        while machine.run(times.randrange(1, 300)) is Stop.DEADLINE:
            machine.interrupt(0x41)
    assert outcome(machines[1]) == outcome(machines[0])
    assert len(machines[1].log) == 64
    close(*machines)


def test_blocks_are_made_anew_after_a_flush(machine: Machine, patching: bool) -> None:
    long(machine, LINKED)
    while machine.run(20) is Stop.DEADLINE:
        machine.cpu.flush()
    assert machine.register("rdx") == 20 * 3 + 20 * 5
    if patching:
        check_entries(machine)
