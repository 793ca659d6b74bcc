"""32-bit protected mode: segments, paging, privilege changes (SDM vol. 3 ch. 4 to 7)."""

from __future__ import annotations

import pytest

from tests.cpu.machine import (
    ABSENT,
    DATA,
    EXIT_VECTOR,
    GATE,
    GDT,
    KERNEL_CODE,
    KERNEL_DATA,
    STACK0,
    STACK3,
    USER_CODE32,
    USER_DATA,
    Machine,
    allow_port,
    protected,
    real,
    to_user,
)
from vmm.cpu.cpu import Stop

EXIT = f"int {EXIT_VECTOR}"
RESUME = "mov edi, offset after\n"
USER = to_user("user", bits=32)


def test_enter_from_real_mode(machine: Machine) -> None:
    """SDM vol. 3 9.9.1: LGDT, CR0.PE, far jump."""
    real(
        machine,
        """
        cli
        lgdt [table]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0xea
        .word start, 8
    table: .word 23
        .long gdt
    gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
        .code32
    start:
        mov ax, 0x10
        mov ds, ax
        mov dword ptr ds:[0x300000], 0x12345678
        mov ebx, ds:[0x300000]
        hlt
        """,
    )
    machine.finish()
    assert machine.register("rbx") == 0x1234_5678


@pytest.mark.parametrize(
    ("instruction", "vector", "error"),
    [
        ("mov eax, 0x28f0\n mov ds, eax", 13, 0x28F0),  # beyond the GDT's limit
        (f"mov eax, {ABSENT}\n mov ds, eax", 11, ABSENT),
        (f"mov eax, {ABSENT}\n mov ss, eax", 13, ABSENT),  # 0x40 is code or data: DPL 0 but not present
        ("xor eax, eax\n mov ss, eax", 13, 0),
        ("int 0x70", 13, 0x70 * 8 + 2),
        ("xor edx, edx\n xor ecx, ecx\n div ecx", 0, 0),
        ("ud2", 6, 0),
    ],
)
def test_faults(machine: Machine, instruction: str, vector: int, error: int) -> None:
    protected(machine, f"{RESUME}{instruction}\nafter: {EXIT}")
    machine.finish()
    if instruction.startswith(f"mov eax, {ABSENT}\n mov ss"):
        vector = 12  # SDM vol. 2 MOV: SS with a segment that is not present is #SS(selector)
    assert machine.log[0][:2] == (vector, error)
    assert machine.vectors_seen == [vector, EXIT_VECTOR]


@pytest.mark.parametrize("paging", ["off", "32", "pae"])
def test_ring_3_and_back_through_the_tss(machine: Machine, paging: str) -> None:
    protected(machine, f"{USER}\nuser: mov ebx, esp\n mov cx, cs\n {EXIT}", paging)
    machine.finish()
    (entry,) = machine.log
    assert entry.cs & 0xFFFF == USER_CODE32
    assert entry.ss & 0xFFFF == USER_DATA
    assert entry.rsp == STACK3 == machine.register("rbx")
    assert machine.register("rcx") & 0xFFFF == USER_CODE32


@pytest.mark.parametrize("paging", ["32", "pae"])
@pytest.mark.parametrize(
    ("bits", "access", "ring", "error"),
    [
        (0, "mov eax, [ebx]", 0, 0),
        (0, "mov [ebx], eax", 0, 2),
        (5, "mov [ebx], eax", 0, 3),
        (0, "mov eax, [ebx]", 3, 4),
        (3, "mov eax, [ebx]", 3, 5),
        (0, "mov [ebx], eax", 3, 6),
        (5, "mov [ebx], eax", 3, 7),
    ],
)
def test_page_faults(machine: Machine, paging: str, bits: int, access: str, ring: int, error: int) -> None:
    program = protected(
        machine,
        f"mov ebx, {DATA + 4:#x}\n {to_user('start', bits=32) if ring else ''}\n"
        f"start: {RESUME}\nat: {access}\n nop\nafter: {EXIT}",
        paging,
    )
    table, size = (0x81000, 4) if paging == "32" else (0x82000, 8)
    machine.poke(table + size * (DATA >> 12), (DATA | bits) if bits else 0, size)
    machine.finish()
    fault = machine.log[0]
    assert (fault.vector, fault.error, fault.rip, fault.cr2) == (14, error, program["at"], DATA + 4)


def test_no_execute_with_pae(machine: Machine) -> None:
    protected(machine, f"mov ebx, {DATA:#x}\n {RESUME} call ebx\nafter: {EXIT}", "pae")
    machine.poke(0x82000 + 8 * (DATA >> 12), 1 << 63 | DATA | 7)
    machine.finish()
    assert machine.log[0][:3] == (14, 0x11, DATA)


def test_four_mib_page(machine: Machine) -> None:
    protected(machine, "mov dword ptr ds:[0x812345], 7\n mov eax, ds:[0x12345]\n hlt", "32")
    machine.poke(0x80000 + 4 * 2, 0x0000_0087, 4)  # linear 8 MiB is physical 0
    machine.finish()
    assert machine.register("rax") == 7
    assert machine.word(0x80000 + 8, 4) & 0x60 == 0x60, "accessed and dirty"


def test_sysenter_and_sysexit(machine: Machine) -> None:
    """SDM vol. 2 SYSENTER, SYSEXIT: flat segments from IA32_SYSENTER_CS, no stack, IF cleared."""
    protected(
        machine,
        f"""
        xor edx, edx
        mov ecx, 0x174
        mov eax, {KERNEL_CODE}
        wrmsr
        mov ecx, 0x175
        mov eax, {STACK0}
        wrmsr
        mov ecx, 0x176
        mov eax, offset kernel
        wrmsr
        {to_user("user", flags=0x202, bits=32)}
    user:
        mov ecx, esp
        mov edx, offset back
        sysenter
    back:
        mov bx, cs
        {EXIT}
    kernel:
        mov esi, esp
        pushfd
        pop ebp
        mov ax, cs
        shl eax, 16
        mov ax, ss
        sysexit
        """,
    )
    machine.finish()
    assert machine.register("rsi") == STACK0
    assert machine.register("rbp") & 0x200 == 0
    assert machine.register("rax") == KERNEL_CODE << 16 | KERNEL_DATA
    assert machine.register("rbx") & 0xFFFF == USER_CODE32
    assert machine.log[-1].rsp == STACK3


def test_sysenter_without_a_segment_faults(machine: Machine) -> None:
    program = protected(machine, f"{RESUME}at: sysenter\n hlt\nafter: {EXIT}")
    machine.finish()
    assert machine.log[0][:3] == (13, 0, program["at"])


def test_call_gate(machine: Machine) -> None:
    """5.8.4: from ring 3 through a gate onto the TSS's stack, and back with RETF."""
    program = protected(
        machine,
        f"""
        {USER}
    user:
        .byte 0x9a
        .long 0
        .word {GATE | 3}
        {EXIT}
    gate:
        mov ebx, esp
        mov cx, cs
        retf
        """,
    )
    at = program["gate"]
    machine.poke(GDT + GATE, (at & 0xFFFF) | KERNEL_CODE << 16 | ((at & 0xFFFF0000) | 0xEC00) << 32)
    machine.finish()
    assert machine.vectors_seen == [EXIT_VECTOR]
    assert machine.register("rbx") == STACK0 - 16
    assert machine.register("rcx") & 0xFFFF == KERNEL_CODE
    assert machine.log[0].rsp == STACK3


def test_ports_in_ring_3(machine: Machine) -> None:
    program = protected(machine, f"{USER}\nuser: in al, 0x60\n {RESUME}\nat: in al, 0x61\nafter: {EXIT}")
    allow_port(machine, 0x60)
    machine.finish()
    assert [entry[:3] for entry in machine.log[:1]] == [(13, 0, program["at"])]
    assert [entry[:2] for entry in machine.ports.log] == [(0x60, 1)]


@pytest.mark.parametrize(
    "access",
    [
        "xor eax, eax\n mov es, eax\n mov al, es:[0]",
        "mov byte ptr cs:[0x500], 1",
        "mov eax, 0x40\n mov es, eax\n mov al, es:[16]",
    ],
)
def test_segments_are_not_checked_on_access(machine: Machine, access: str) -> None:
    """A limit of the engine: null selectors, types and limits (5.3 to 5.5) are checked when a segment
    is loaded, not when it is used."""
    protected(machine, f"{RESUME}{access}\nafter: {EXIT}")
    machine.poke(GDT + 0x40, 0x0040_9304_0000_000F)
    machine.finish()
    assert machine.vectors_seen == [EXIT_VECTOR]


def test_segment_base(machine: Machine) -> None:
    protected(machine, "mov eax, 0x40\n mov es, eax\n mov eax, es:[4]\n hlt")
    machine.poke(GDT + 0x40, 0x0040_9304_0000_000F)
    machine.poke(DATA + 4, 0x77, 4)
    machine.finish()
    assert machine.register("rax") == 0x77


def test_triple_fault(machine: Machine) -> None:
    protected(machine, "push 0\n push 0\n lidt [esp]\n int3")
    assert machine.run() is Stop.SHUTDOWN
