"""REP STOS and REP MOVS: many elements at once are what they would be one by one.

Each program runs on a machine that does them one by one, whose prologues are not patched, and on one that
takes many together; all of RAM, the registers, the clock and every interrupt and fault must be equal.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest

from tests.cpu.machine import DATA, TABLES, Machine, long, page64
from vmm.cpu import layout

FORMS = ("stosb", "stosd", "stosq", "movsb", "movsd", "movsq", "stosw", "movsw")
"""The last two are the engine's alone."""
AREA = 0x100000
PAGES = 16
READ_ONLY, ABSENT = AREA + 5 * 4096, AREA + 11 * 4096
PROGRAMS, STEPS = 12, 30
UPPER = 0xFFFF_FFFF_8000_0000


def place(rng: random.Random) -> int:
    """Somewhere in the area, often near the end of a page, often not aligned."""
    page = AREA + 4096 * rng.randrange(PAGES)
    return page + rng.choice((0, 8, 1, 4088, 4095, rng.randrange(4096)))


def step(rng: random.Random) -> str:
    """One instruction and its operands; now and then upwards and overlapping, or downwards."""
    to, count = place(rng), rng.choice((0, 1, 31, 32, 33, rng.randrange(3000), rng.randrange(200)))
    come = to - rng.choice((1, 8, 64, 5000)) if rng.random() < 0.3 else place(rng)
    direction = "std" if rng.random() < 0.1 else "cld"
    value = rng.getrandbits(64)
    return (
        f"mov rax, {value}\n mov edi, {to}\n mov esi, {come}\n mov ecx, {count}\n {direction}\n"
        f" rep {rng.choice(FORMS)}\n"
    )


def run(machine: Machine, seed: int, alarms: bool) -> tuple[Any, ...]:
    """Everything that can be seen afterwards."""
    rng = random.Random(seed)
    machine.ram.write(AREA, rng.randbytes(4096 * PAGES))
    # A fault ends the instruction: r15 is where the handler goes on, once.
    steps = "".join(f"lea r15, [s{number}]\n{step(rng)}s{number}:\n" for number in range(STEPS))
    long(machine, f"sti\n{steps} cli\n hlt")
    page64(machine, READ_ONLY, READ_ONLY | 5)
    page64(machine, ABSENT, 0)
    times = random.Random(f"{seed} alarms")
    alarm = machine.cpu.clock.timer("test", lambda: machine.interrupt(0x41))
    stops = []
    for _ in range(400):
        if alarms:
            alarm.arm(machine.cpu.clock.now_ns + times.randrange(1, 3000))
        stop = machine.run(times.randrange(1, 4000) if alarms else 10_000_000)
        stops.append((stop, machine.cpu.rip, machine.cpu.clock.now_ns, machine.register("rcx")))
        machine.cpu.clock.fire_due()
        if stop.value == "halt":
            break
    return stops, machine.log, machine.cpu.state, machine.ram.read(0, 2 << 20)


@pytest.mark.parametrize("alarms", [False, True], ids=["undisturbed", "disturbed"])
@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_many_at_once_are_as_one_by_one(seed: int, alarms: bool) -> None:
    one_by_one, many = Machine(patching=False), Machine(patching=True)
    assert run(many, seed, alarms) == run(one_by_one, seed, alarms)
    one_by_one.cpu.close()
    many.cpu.close()


@pytest.mark.parametrize("form", FORMS[:6])
def test_it_is_many_at_once(form: str) -> None:
    """All but one at each page's begin, which fills the TLB, and those that cross.

    The program runs in the upper half, as kernels do: there the prologue has room wherever the heap is.
    """
    machine = Machine(patching=True)
    long(
        machine,
        f"lea rax, [high]\n mov rbx, {UPPER}\n add rax, rbx\n jmp rax\n"
        f"high: mov edi, {DATA}\n mov esi, {DATA + 0x8000}\n mov ecx, 3000\n rep {form}\n hlt",
    )
    machine.poke(TABLES + 8 * 511, TABLES + 0x1000 | 7)
    machine.poke(TABLES + 0x1000 + 8 * 510, TABLES + 0x2000 | 7)
    machine.finish()
    assert machine.register("rcx") == 0
    assert machine.cpu.block["N_REPEATED"] > 2900
    machine.cpu.close()


def test_the_direction_is_where_we_look() -> None:
    machine = Machine()
    for name, step in (("std", -1), ("cld", 1)):
        long(machine, f"{name}\n hlt")
        machine.finish()
        assert ctypes.c_int32.from_address(machine.cpu.env + layout.DF).value == step
    machine.cpu.close()


def test_code_that_is_overwritten_is_forgotten(machine: Machine) -> None:
    """A page with code is not plain RAM: every store to it is looked at, not the first alone."""
    machine.ram.write(AREA + 16, b"\xff\xc3\xc3")  # inc ebx; ret
    long(
        machine,
        f"mov esi, {AREA + 16}\n call rsi\n mov edi, {AREA}\n mov ecx, 40\n mov al, 0x90\n rep stosb\n"
        f" mov byte ptr [{AREA + 40}], 0xC3\n call rsi\n hlt",
    )
    machine.finish()
    assert machine.register("rbx") == 1
