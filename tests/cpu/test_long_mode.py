"""64-bit mode: system calls, privilege, page faults, interrupt stacks (SDM vol. 3 ch. 4 to 6)."""

from __future__ import annotations

import pytest

from tests.cpu.machine import (
    DATA,
    EXIT_VECTOR,
    GDT,
    HANDLERS,
    IDT,
    IST1,
    KERNEL_CODE,
    KERNEL_DATA,
    NX,
    PRESENT,
    STACK0,
    STACK3,
    USER,
    USER_CODE32,
    USER_CODE64,
    USER_DATA,
    WRITABLE,
    Machine,
    allow_port,
    long,
    page64,
    set_gate,
    to_user,
)
from vmm.cpu.cpu import Stop

EXIT = f"int {EXIT_VECTOR}"
RESUME = "lea r15, [rip + after]\n"
NON_CANONICAL = 0x8000_0000_0000


def write_msr(number: int, value: str) -> str:
    return f"mov ecx, {number:#x}\n mov rax, {value}\n mov rdx, rax\n shr rdx, 32\n wrmsr\n"


STAR = write_msr(0xC0000081, f"{(USER_CODE32 & ~3) << 48 | KERNEL_CODE << 32:#x}")
LSTAR = write_msr(0xC0000082, "offset kernel")
FMASK = write_msr(0xC0000084, "0x200")


@pytest.mark.parametrize("prefix", ["", "0x66,", "0xf3,", "0x66,0xf3,", "0x48,"])
def test_syscall_and_sysret(machine: Machine, prefix: str) -> None:
    """SYSCALL saves RIP and RFLAGS in RCX and R11, whatever prefixes stand before it."""
    program = long(
        machine,
        f"""
        {STAR} {LSTAR} {FMASK}
        {to_user("user", flags=0x203)}
    user:
        .byte {prefix}0x0f,0x05
    after:
        pushfq
        pop rbp
        mov si, cs
        mov di, ss
        {EXIT}
    kernel:
        pushfq
        pop rbx
        mov r8, rcx
        mov r9, r11
        mov r10w, cs
        mov r12w, ss
        sysretq
        """,
    )
    machine.finish()
    assert machine.register("r8") == program["after"]
    assert machine.register("r9") & 0x201 == 0x201
    assert machine.register("rbx") & 0x201 == 0x001, "FMASK cleared IF, nothing else"
    assert machine.register("r10") == KERNEL_CODE
    assert machine.register("r12") == KERNEL_DATA
    assert machine.register("rbp") & 0x201 == 0x201, "SYSRET restores RFLAGS from R11"
    assert machine.register("rsi") & 0xFFFF == USER_CODE64
    assert machine.register("rdi") & 0xFFFF == USER_DATA


def test_syscall_without_sce_is_undefined(machine: Machine) -> None:
    program = long(machine, write_msr(0xC0000080, "0x500") + RESUME + "at: syscall\n hlt\nafter: hlt")
    machine.finish()
    assert [(e.vector, e.rip) for e in machine.log] == [(6, program["at"])]


def test_syscall_from_compatibility_mode_uses_cstar(machine: Machine) -> None:
    long(
        machine,
        f"""
        {STAR} {write_msr(0xC0000083, "offset compat")}
        {to_user("user", code=USER_CODE32)}
        .code32
    user:
        mov esi, 5
        syscall
        int {EXIT_VECTOR}
        .code64
    compat:
        inc esi
        mov r10w, cs
        sysretd
        """,
    )
    machine.finish()
    assert machine.register("rsi") == 6
    assert machine.register("r10") == KERNEL_CODE
    assert machine.log[-1].cs == USER_CODE32


def test_sysenter_in_long_mode_is_undefined(machine: Machine) -> None:
    """As on AMD processors; CPUID says AuthenticAMD."""
    program = long(machine, write_msr(0x174, "8") + RESUME + "at: sysenter\n hlt\nafter: hlt")
    machine.finish()
    assert [(e.vector, e.rip) for e in machine.log] == [(6, program["at"])]


def test_swapgs(machine: Machine) -> None:
    long(
        machine,
        f"""
        {write_msr(0xC0000101, f"{DATA:#x}")}
        {write_msr(0xC0000102, f"{DATA + 8:#x}")}
        mov rbx, gs:[0]
        swapgs
        mov rsi, gs:[0]
        mov ecx, 0xc0000102
        rdmsr
        hlt
        """,
    )
    machine.poke(DATA, 0x1111)
    machine.poke(DATA + 8, 0x2222)
    machine.finish()
    assert (machine.register("rbx"), machine.register("rsi")) == (0x1111, 0x2222)
    assert machine.register("rax") == DATA


def test_swapgs_in_ring_3_faults(machine: Machine) -> None:
    long(machine, f"{to_user('user')}\nuser: {RESUME} swapgs\n hlt\nafter: {EXIT}")
    machine.finish()
    assert [(e.vector, e.error) for e in machine.log] == [(13, 0), (EXIT_VECTOR, 0)]


READ, WRITE, FETCH = "mov rax, [rbx]", "mov [rbx], rax", "call rbx"


@pytest.mark.parametrize(
    ("entry", "access", "ring", "error"),
    [
        (0, READ, 0, 0),
        (0, WRITE, 0, 2),
        (DATA | PRESENT | USER, WRITE, 0, 3),  # CR0.WP
        (0, READ, 3, 4),
        (DATA | PRESENT | WRITABLE, READ, 3, 5),
        (0, WRITE, 3, 6),
        (DATA | PRESENT | USER, WRITE, 3, 7),
        (DATA | PRESENT | WRITABLE | USER | NX, FETCH, 0, 0x11),
        (DATA | PRESENT | WRITABLE | USER | NX, FETCH, 3, 0x15),
        (DATA | PRESENT | USER | 1 << 45, READ, 0, 9),  # reserved: beyond MAXPHYADDR
    ],
)
def test_page_fault(machine: Machine, entry: int, access: str, ring: int, error: int) -> None:
    """SDM vol. 3 4.7: P, W/R, U/S, RSVD, I/D in the error code, the address in CR2."""
    program = long(
        machine,
        f"""
        mov ebx, {DATA + 8:#x}
        {to_user("start") if ring else ""}
    start:
        {RESUME}
    at: {access}
        hlt
    after: {EXIT}
        """,
    )
    page64(machine, DATA, entry)
    machine.finish()
    fault = machine.log[0]
    assert (fault.vector, fault.error, fault.cr2) == (14, error, DATA + 8)
    assert fault.rip == (DATA + 8 if access == FETCH else program["at"])
    assert fault.cs & 3 == ring
    assert machine.vectors_seen == [14, EXIT_VECTOR]


def test_smep_and_user_page(machine: Machine) -> None:
    # CR4.SMEP: a fetch from a user page in ring 0 (SDM vol. 3 4.6.1); the whole map is user's, so
    # the page with the program becomes the supervisor's first.
    program = long(
        machine,
        f"mov rax, cr4\n or eax, 1 << 20\n mov ebx, {DATA:#x}\n {RESUME} mov cr4, rax\n"
        f"call rbx\nafter: {EXIT}",
    )
    for address in (program.origin, HANDLERS, HANDLERS + 0x1000):
        page64(machine, address, address | PRESENT | WRITABLE)
    for table in (0x80000, 0x81000, 0x82000):
        machine.poke(table, machine.word(table))
    machine.ram.write(DATA, b"\xc3")
    machine.finish()
    assert machine.log[0][:2] == (14, 0x11)


def test_accessed_and_dirty_bits(machine: Machine) -> None:
    # 4.8: a read sets A, a write sets D too.
    long(machine, f"mov rax, [{DATA:#x}]\n mov [{DATA + 0x1000:#x}], rax\n hlt")
    machine.finish()
    flags = [machine.word(0x83000 + 8 * ((DATA >> 12) + n)) & 0x60 for n in range(3)]
    assert flags == [0x20, 0x60, 0]


def test_page_tables_changed_and_invlpg(machine: Machine) -> None:
    entry_at = 0x83000 + 8 * (DATA >> 12)
    long(
        machine,
        f"""
        mov rax, [{DATA:#x}]
        mov qword ptr [{entry_at:#x}], {DATA + 0x1007:#x}
        invlpg [{DATA:#x}]
        mov rbx, [{DATA:#x}]
        mov qword ptr [{entry_at:#x}], {DATA + 0x2007:#x}
        mov rcx, cr3
        mov cr3, rcx
        mov rcx, [{DATA:#x}]
        hlt
        """,
    )
    for n in range(3):
        machine.poke(DATA + 0x1000 * n, 7 + n)
    machine.finish()
    assert [machine.register(name) for name in ("rax", "rbx", "rcx")] == [7, 8, 9]


@pytest.mark.parametrize(
    "access", ["mov rax, [rbx]", "mov [rbx], rax", "jmp rbx", "lea rsp, [rbx + 64]\n push rax"]
)
def test_non_canonical_addresses(machine: Machine, access: str) -> None:
    """SDM vol. 1 3.3.7.1: #GP(0), never #PF.  (Hardware raises #SS(0) for the push, the engine #GP.)"""
    long(machine, f"mov rbx, {NON_CANONICAL:#x}\n mov rbp, rsp\n {RESUME} {access}\n hlt\nafter: {EXIT}")
    set_gate(machine, 13, HANDLERS + 16 * 13, ist=1)
    machine.finish()
    assert machine.log[0][:2] == (13, 0)


def test_interrupt_stack_table(machine: Machine) -> None:
    # 6.14.5: IST replaces the stack even without a change of privilege; RSP is aligned to 16.
    program = long(machine, f"lea rsp, [rsp - 40]\n {RESUME} ud2\nafter: mov rbx, rsp\n hlt")
    set_gate(machine, 6, HANDLERS + 16 * 6, ist=1)
    machine.finish()
    assert machine.log[0].rsp == STACK0 - 40
    assert machine.log[0].rip == program["after"] - 2
    assert machine.word(IST1 - 40) == program["after"], "the frame was on the IST stack"
    assert machine.register("rbx") == STACK0 - 40


def test_ring_3_and_back(machine: Machine) -> None:
    long(machine, f"{to_user('user', flags=0x202)}\nuser: mov rbx, rsp\n {EXIT}")
    machine.finish()
    (entry,) = machine.log
    assert (entry.cs, entry.ss, entry.rsp) == (USER_CODE64, USER_DATA, STACK3)
    assert machine.register("rbx") == STACK3
    assert entry.rflags & 0x200


@pytest.mark.parametrize(
    ("instruction", "error"),
    [
        ("hlt", 0), ("cli", 0), ("sti", 0), ("mov rax, cr0", 0), ("mov cr3, rax", 0), ("rdmsr", 0),
        ("wrmsr", 0), ("invlpg [rax]", 0), ("lgdt [rbx]", 0), ("lidt [rbx]", 0), ("mov rax, dr7", 0),
        ("wbinvd", 0), ("clts", 0), ("lmsw ax", 0), ("ltr ax", 0), ("int 0x40", 0x40 * 8 + 2), ("sysretq", 0),
    ],
)  # fmt: skip
def test_privileged_instructions(machine: Machine, instruction: str, error: int) -> None:
    program = long(
        machine,
        f"{to_user('user')}\nuser: mov ebx, {DATA:#x}\n mov ecx, 0x10\n mov eax, {TASK_SELECTOR}\n {RESUME}"
        f"at: {instruction}\n nop\nafter: {EXIT}",
    )
    machine.finish()
    assert [e[:3] for e in machine.log[:1]] == [(13, error, program["at"])]
    assert machine.vectors_seen == [13, EXIT_VECTOR]


TASK_SELECTOR = 0x30


@pytest.mark.parametrize(
    "instruction", ["in al, 0x61", "out 0x61, al", "in ax, 0x60", "in eax, dx", "insb", "rep outsb"]
)
def test_ports_in_ring_3(machine: Machine, instruction: str) -> None:
    """SDM vol. 1 19.5.2: above IOPL every byte of the access must be clear in the TSS's bitmap."""
    program = long(
        machine,
        f"""
        {to_user("user")}
    user:
        mov edx, 0x61
        mov edi, {DATA:#x}
        mov esi, edi
        mov ecx, 1
        {RESUME}
    at: {instruction}
        nop
    after: {EXIT}
        """,
    )
    machine.finish()
    assert [e[:3] for e in machine.log] == [(13, 0, program["at"]), (EXIT_VECTOR, 0, program["after"] + 2)]
    assert machine.ports.log == []


@pytest.mark.parametrize("how", ["iopl", "bitmap"])
def test_ports_in_ring_3_when_allowed(machine: Machine, how: str) -> None:
    flags = 0x3002 if how == "iopl" else 0x0002
    long(machine, f"{to_user('user', flags=flags)}\nuser: in ax, 0x60\n out 0x61, al\n {EXIT}")
    if how == "bitmap":
        allow_port(machine, 0x60)
        allow_port(machine, 0x61)
    machine.finish()
    assert machine.vectors_seen == [EXIT_VECTOR]
    assert [entry[:2] for entry in machine.ports.log] == [(0x60, 2), (0x61, 1)]


def test_double_fault(machine: Machine) -> None:
    # 6.15: #PF while delivering #GP is a double fault; here the #GP gate's handler is there, its
    # stack is not.
    long(
        machine,
        "xor esp, esp\n mov rsp, 0x40000000000\n mov ds:[0], eax\n"
        "mov rax, 0x8000000000000000\n mov [rax], al",
    )
    set_gate(machine, 8, HANDLERS + 16 * 8, ist=1)
    machine.finish()
    assert [e[:2] for e in machine.log] == [(8, 0)]


def test_triple_fault(machine: Machine) -> None:
    long(machine, "mov rsp, 0x40000000000\n ud2")
    assert machine.run() is Stop.SHUTDOWN


def test_not_present_gate(machine: Machine) -> None:
    # The error code of #NP names the vector with EXT=0, IDT=1 (6.13).
    program = long(machine, f"{RESUME}at: int 0x60\nafter: hlt")
    machine.poke(IDT + 16 * 0x60, 0x0E00 << 32)
    machine.finish()
    assert machine.log[0][:3] == (11, 0x60 * 8 + 2, program["at"])


def test_not_present_segment(machine: Machine) -> None:
    long(machine, f"mov eax, 0x40\n {RESUME} mov es, eax\nafter: hlt")
    machine.finish()
    assert machine.log[0][:2] == (11, 0x40)
    assert machine.word(GDT + 0x40) >> 47 & 1 == 0


def test_far_return_to_compatibility_mode_and_back(machine: Machine) -> None:
    """L=0 code runs as 32-bit code: the same bytes, 40 is INC EAX and not a REX prefix."""
    long(
        machine,
        f"""
        mov word ptr [{GDT + 0x40:#x}], 0xffff
        mov dword ptr [{GDT + 0x44:#x}], 0x00cf9b00
        mov dword ptr [{GDT + 0x40:#x}], 0x0000ffff
        xor eax, eax
        push 0x40
        push offset compat
        retfq
        .code32
    compat:
        .byte 0x40
        mov ebx, eax
        .byte 0xea
        .long back
        .word {KERNEL_CODE}
        .code64
    back:
        mov rcx, rsp
        hlt
        """,
    )
    machine.finish()
    assert machine.register("rbx") == 1
    assert machine.register("rcx") == STACK0
