"""Rows of the jump cache are believed as long as the guest would execute what they lead to, and no longer."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

import pytest

from tests.cpu.machine import LARGE, PRESENT, TABLES, USER, WRITABLE, Machine, long, page64
from vmm.cpu import layout
from vmm.cpu.constants import FIRST_GENERATION, JUMP_LINE_BITS
from vmm.cpu.control import SCRATCH_GENERATION

pytestmark = pytest.mark.usefixtures("checked")

FUNCTION, OTHER, ALIAS = 0x20000, 0x24000, 0x28000
OPEN = PRESENT | WRITABLE | USER
ENTRY = TABLES + 0x3000 + 8 * (FUNCTION >> 12)
"""The page table entry of FUNCTION's page."""
ADD = b"\x48\x81\xc3"
"""add rbx, imm32"""
RET = b"\xc3"


def adding(value: int) -> bytes:
    return ADD + struct.pack("<i", value) + RET


@pytest.mark.parametrize("across", [False, True], ids=["one page", "second page"])
@pytest.mark.parametrize("before", ["", "mov rdx, cr3\n mov cr3, rdx"], ids=["new rows", "renewed rows"])
def test_a_page_that_was_remapped(machine: Machine, across: bool, before: str) -> None:
    """INVLPG of the page, after that of others."""
    function = FUNCTION + 0x1000 - len(ADD) if across else FUNCTION
    page, entry = (FUNCTION + 0x1000, ENTRY + 8) if across else (FUNCTION, ENTRY)
    long(
        machine,
        f"""
        mov ebp, 30
        mov eax, {function:#x}
        mov edi, {entry:#x}
        mov esi, {page:#x}
    again:
        call rax
        {before}
        call rax
        call rax
        xor dword ptr [rdi], {page ^ OTHER:#x}
        invlpg [rsi + 0x10000]
        invlpg [rsi]
        dec ebp
        jnz again
        hlt
        """,
    )
    machine.ram.write(function, adding(1))
    machine.ram.write(OTHER, struct.pack("<i", 1000) + RET if across else adding(1000))
    machine.finish()
    assert machine.register("rbx") == 45 * 1001


def test_a_page_that_was_remapped_without_saying_so(machine: Machine) -> None:
    """The TLB has the old page until CR3 is loaded."""
    long(
        machine,
        f"""
        mov ecx, 20
        mov eax, {FUNCTION:#x}
        mov edi, {ENTRY:#x}
        mov rsi, cr3
    again:
        call rax
        xor dword ptr [rdi], {FUNCTION ^ OTHER:#x}
        call rax
        mov cr3, rsi
        dec ecx
        jnz again
        hlt
        """,
    )
    machine.ram.write(FUNCTION, adding(1))
    machine.ram.write(OTHER, adding(1000))
    machine.finish()
    assert machine.register("rbx") == 10 * 2002


def test_a_large_page_is_invalidated_by_any_of_its_addresses(new: Callable[..., Machine]) -> None:
    """SDM vol. 3 4.10.4.1: INVLPG forgets the page's translation, which is one for all of a large page."""
    machine = new(ram_mib=8)
    linear, first, second = 0x200000, 0x200000, 0x400000
    entry = TABLES + 0x2000 + 8
    long(
        machine,
        f"""
        mov ecx, 20
        mov eax, {linear + 0x5000:#x}
        mov edi, {entry:#x}
        mov esi, {linear + 0x1F000:#x}
    again:
        call rax
        call rax
        xor dword ptr [rdi], {first ^ second:#x}
        invlpg [rsi]
        dec ecx
        jnz again
        hlt
        """,
    )
    assert machine.word(entry) == linear | LARGE | OPEN
    machine.ram.write(first + 0x5000, adding(1))
    machine.ram.write(second + 0x5000, adding(1000))
    machine.finish()
    assert machine.register("rbx") == 20 * 1001


def test_two_addresses_of_a_page(machine: Machine) -> None:
    """Each has its own row, and a store through either ends both."""
    long(
        machine,
        f"""
        mov ecx, 30
        mov eax, {FUNCTION:#x}
        mov edx, {ALIAS:#x}
    again:
        mov [rdx + {len(ADD)}], ecx
        call rax
        call rdx
        add ecx, 1000
        mov [rax + {len(ADD)}], ecx
        call rax
        call rdx
        sub ecx, 1001
        jnz again
        hlt
        """,
    )
    page64(machine, ALIAS, FUNCTION | OPEN)
    machine.ram.write(FUNCTION, adding(0))
    machine.finish()
    assert machine.register("rbx") == sum(2 * n + 2 * (n + 1000) for n in range(1, 31))


@pytest.mark.parametrize("reload", ["", "mov cr3, rsi"], ids=["at once", "after a flush"])
def test_code_in_two_pages_that_changes(machine: Machine, reload: str) -> None:
    function = FUNCTION + 0x1000 - 1
    long(
        machine,
        f"""
        mov ecx, 40
        mov eax, {function:#x}
        mov rsi, cr3
    again:
        call rax
        call rax
        mov [rax + {len(ADD)}], ecx
        {reload}
        dec ecx
        jnz again
        hlt
        """,
    )
    machine.ram.write(function, adding(41))
    machine.finish()
    assert machine.register("rbx") == 2 * sum(range(2, 42))


def line(address: int) -> int:
    """Which line of the jump cache has the rows for an address."""
    return (address * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 64 - JUMP_LINE_BITS


def test_both_rows_of_a_line(machine: Machine) -> None:
    """Three functions whose rows are in one line; one changes while another was called since."""
    first = FUNCTION
    second, third = [at for at in range(first + 16, first + 0x40000, 16) if line(at) == line(first)][:2]
    long(
        machine,
        f"""
        mov ecx, 40
        mov eax, {first:#x}
        mov edx, {second:#x}
        mov edi, {third:#x}
    again:
        mov [rax + {len(ADD)}], ecx
        call rax
        call rdx
        call rax
        call rdx
        mov [rax + {len(ADD)}], edi
        call rdx
        call rax
        call rdi
        dec ecx
        jnz again
        hlt
        """,
    )
    for number, function in enumerate((first, second, third)):
        machine.ram.write(function, adding(number * 1_000_000))
    machine.finish()
    assert machine.register("rbx") == 2 * sum(range(41)) + 40 * (third + 5_000_000)


def test_a_block_that_became_invalid_while_another_space_was_in_use(machine: Machine) -> None:
    """The row is of an earlier generation, and its page is where it was when the guest comes back."""
    other = 0x90000
    long(
        machine,
        f"""
        mov ecx, 30
        mov eax, {FUNCTION:#x}
        mov esi, {TABLES:#x}
        mov edi, {other:#x}
    again:
        call rax
        call rax
        mov cr3, rdi
        mov [{ALIAS + len(ADD)}], ecx
        mov cr3, rsi
        dec ecx
        jnz again
        hlt
        """,
    )
    page64(machine, ALIAS, FUNCTION | OPEN)
    machine.ram.write(other, machine.ram.read(TABLES, 0x1000))
    machine.ram.write(FUNCTION, adding(31))
    machine.finish()
    assert machine.register("rbx") == 2 * sum(range(2, 32))


def test_all_code_was_dropped(machine: Machine) -> None:
    """What is translated next lies where the rows led to."""
    program = """
        mov ecx, 400
        mov eax, {function:#x}
    again:
        call rax
        dec ecx
        jnz again
        hlt
    """
    long(machine, program.format(function=FUNCTION))
    machine.ram.write(FUNCTION, adding(1))
    machine.finish()
    machine.cpu.flush()
    long(machine, program.format(function=OTHER))
    machine.ram.write(OTHER, adding(1000))
    machine.finish()
    assert machine.register("rbx") == 400 * 1000
    long(machine, program.format(function=FUNCTION))
    machine.finish()
    assert machine.register("rbx") == 400


def test_generations_that_are_counted_anew(machine: Machine) -> None:
    """A row of the first generation is nothing when the number comes again."""
    generation = ctypes.c_uint64.from_address(machine.cpu.env - layout.ENV_FROM_CPU + SCRATCH_GENERATION)

    def last() -> None:
        generation.value = (1 << 64) - FIRST_GENERATION

    machine.ports.on_write = last
    again = "out 0x80, al\n mov cr3, rsi\n call rcx\n call rcx\n"
    long(
        machine,
        f"""
        mov rsi, cr3
        mov ecx, {FUNCTION:#x}
        mov edi, {ENTRY:#x}
        call rcx
        {again}
        xor dword ptr [rdi], {FUNCTION ^ OTHER:#x}
        {again}
        hlt
        """,
    )
    machine.ram.write(FUNCTION, adding(1))
    machine.ram.write(OTHER, adding(1000))
    machine.finish()
    assert (generation.value, machine.register("rbx")) == (0, 2003)


def test_more_blocks_than_rows(machine: Machine) -> None:
    """Each pair of functions differs; their rows are used again and again, and by turns."""
    count, first = 12_000, 0x100000
    long(
        machine,
        f"""
        mov ecx, 3
    again:
        mov eax, {first:#x}
    next:
        call rax
        add eax, 16
        cmp eax, {first + 16 * count:#x}
        jb next
        dec ecx
        jnz again
        hlt
        """,
    )
    for number in range(count):
        machine.ram.write(first + 16 * number, adding(number))
    machine.finish()
    assert machine.register("rbx") == 3 * sum(range(count))
