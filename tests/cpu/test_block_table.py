"""Blocks are found again after CR3 was loaded, and never one that is not what the guest would execute."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

import pytest

from tests.cpu.machine import PRESENT, TABLES, USER, WRITABLE, Machine, long, page64
from vmm.cpu.cpu import Stop

FUNCTION = 0x20000
"""Code in a page, and in a page behind it, that differ between two address spaces."""
OTHER_TABLES = 0x90000
ACCESSED = 1 << 5
OPEN = PRESENT | WRITABLE | USER
ADD = b"\x48\x81\xc3"
"""add rbx, imm32"""
RET = b"\xc3"

SWITCHING = """
        mov ecx, {rounds}
        mov eax, {function:#x}
        mov esi, {first:#x}
        mov edi, {second:#x}
    again:
        mov cr3, rsi
        call rax
        mov cr3, rdi
        call rax
        dec ecx
        jnz again
        hlt
"""


def second_space(machine: Machine, moved: dict[int, int]) -> None:
    """Page tables like those at TABLES, but with these pages elsewhere."""
    level = 0x1000
    for number in range(4):
        table = machine.ram.read(TABLES + number * level, level)
        machine.ram.write(OTHER_TABLES + number * level, table)
        if number < 3:
            machine.poke(OTHER_TABLES + number * level, OTHER_TABLES + (number + 1) * level | OPEN)
    for linear, physical in moved.items():
        machine.poke(OTHER_TABLES + 3 * level + 8 * (linear >> 12), physical | OPEN)


def switching(machine: Machine, rounds: int, function: int = FUNCTION) -> None:
    long(machine, SWITCHING.format(rounds=rounds, function=function, first=TABLES, second=OTHER_TABLES))


def adding(value: int) -> bytes:
    return ADD + struct.pack("<i", value) + RET


def watch_lookups(machine: Machine) -> tuple[list[tuple[int, ...]], object]:
    """What the engine's own table of blocks is asked from now on, while the second value is kept."""
    block = machine.cpu.block
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)
    engine = kind(block["FN_TB_LOOKUP"])
    asked: list[tuple[int, ...]] = []

    def lookup(*arguments: int) -> int:
        asked.append(arguments)
        return int(engine(*arguments))

    counting = kind(lookup)
    block["FN_TB_LOOKUP"] = ctypes.cast(counting, ctypes.c_void_p).value or 0
    return asked, counting


@pytest.mark.parametrize("across", [False, True], ids=["one page", "two pages"])
def test_each_address_space_has_its_own_code(machine: Machine, across: bool) -> None:
    """The same virtual address, with another page (or another second page) behind it."""
    function = FUNCTION + 0x1000 - len(ADD) if across else FUNCTION
    switching(machine, 50, function)
    moved = FUNCTION + 0x1000 if across else FUNCTION
    second_space(machine, {moved: moved + 0x4000})
    machine.ram.write(function, adding(1))
    if across:
        machine.ram.write(moved + 0x4000, struct.pack("<i", 1000) + RET)
    else:
        machine.ram.write(moved + 0x4000, adding(1000))
    machine.finish()
    assert machine.register("rbx") == 50 * 1001


@pytest.mark.parametrize("function", [FUNCTION, FUNCTION + 0x1000 - len(ADD)], ids=["one page", "two pages"])
def test_more_switches_ask_the_engine_no_more(new: Callable[..., Machine], function: int) -> None:
    """With patched prologues; the plain block hook asks for itself."""
    asked = []
    for rounds in (10, 300):
        machine = new(patching=True)
        switching(machine, rounds, function)
        second_space(machine, {})
        machine.ram.write(function, adding(1))
        lookups, kept = watch_lookups(machine)
        machine.finish()
        del kept
        assert machine.register("rbx") == 2 * rounds
        asked.append(len(lookups))
    assert 0 < asked[0] == asked[1]


def test_code_that_was_written_is_not_found(machine: Machine) -> None:
    """The guest changes the function before each call; its linear address stays."""
    long(
        machine,
        f"""
        mov ecx, 40
        mov eax, {FUNCTION:#x}
        mov rsi, cr3
    again:
        mov [rax + {len(ADD)}], ecx
        mov cr3, rsi
        call rax
        call rax
        dec ecx
        jnz again
        hlt
        """,
    )
    machine.ram.write(FUNCTION, adding(0))
    machine.finish()
    assert machine.register("rbx") == 2 * sum(range(41))


def test_nothing_survives_a_flush(machine: Machine) -> None:
    """Blocks are made anew where old ones were; the table must not lead there."""
    switching(machine, 400)
    second_space(machine, {FUNCTION: FUNCTION + 0x4000})
    machine.ram.write(FUNCTION, adding(1))
    machine.ram.write(FUNCTION + 0x4000, adding(1000))
    stops = 0
    while machine.run(700) is Stop.DEADLINE:
        stops += 1
        machine.cpu.flush()
        machine.ram.write(FUNCTION, adding(1 + stops % 2))
        machine.cpu.invalidate(FUNCTION, 16)
    assert stops > 3
    thousands, ones = divmod(machine.register("rbx"), 1000)
    assert thousands == 400
    assert 400 < ones < 800


def test_a_page_of_code_is_marked_as_accessed_again(machine: Machine) -> None:
    """Knowing the block does not spare the walk: the guest sees which pages were executed."""
    entry = TABLES + 0x3000 + 8 * (FUNCTION >> 12)
    long(
        machine,
        f"""
        mov ecx, 5
        mov eax, {FUNCTION:#x}
        mov edi, {entry:#x}
        mov rsi, cr3
    again:
        call rax
        mov rdx, [rdi]
        and edx, {ACCESSED}
        add r8, rdx
        and byte ptr [rdi], {0xFF ^ ACCESSED}
        mov cr3, rsi
        dec ecx
        jnz again
        hlt
        """,
    )
    page64(machine, FUNCTION, FUNCTION | OPEN)
    machine.ram.write(FUNCTION, adding(1))
    machine.finish()
    assert machine.register("rbx") == 5
    assert machine.register("r8") == 5 * ACCESSED
    assert machine.word(entry) & ACCESSED == 0
