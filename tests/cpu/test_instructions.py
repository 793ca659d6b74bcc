"""Instructions that leave the generated code: CPUID, TSC, PAUSE, MSRs, control registers, MMIO."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.cpu.machine import DATA, EXIT_VECTOR, MMIO, STACK0, Machine, long, protected, real, to_user
from vmm.cpu import cpuid, msr_table
from vmm.cpu.engine import DEFAULT_COSTS

EXIT = f"int {EXIT_VECTOR}"
RESUME = "lea r15, [rip + after]\n"
GP, UD = 13, 6


def faults(machine: Machine, instruction: str, before: str = "") -> int | None:
    """Vector that ``instruction`` raises in ring 0, None if none."""
    program = long(machine, f"{before}\n {RESUME} at: {instruction}\n mov r14d, 1\nafter: hlt")
    machine.finish()
    if machine.register("r14"):
        assert machine.log == []
        return None
    (entry,) = machine.log
    assert entry.rip == program["at"], "a fault reports the instruction's own address"
    if entry.vector == GP:
        assert entry.error == 0
    return entry.vector


# CPUID


def test_cpuid_gives_the_table(machine: Machine) -> None:
    rows = cpuid.rows()
    queries = [(leaf, 0 if subleaf < 0 else subleaf) for leaf, subleaf, *_ in rows]
    queries += [(0xB, 0), (0x7, 1), (0x8000_0009, 0), (0x4000_0001, 0), (0xFFFF_FFFF, 0)]
    source = "".join(
        f"mov eax, {leaf:#x}\n mov ecx, {subleaf}\n cpuid\n"
        + "".join(
            f"mov [{DATA + 16 * n + 4 * k:#x}], {register}\n"
            for k, register in enumerate(("eax", "ebx", "ecx", "edx"))
        )
        for n, (leaf, subleaf) in enumerate(queries)
    )
    long(machine, source + "hlt")
    machine.finish()
    found = [struct.unpack("<4I", machine.ram.read(DATA + 16 * n, 16)) for n in range(len(queries))]
    assert found[: len(rows)] == [tuple(row[2:]) for row in rows]
    assert set(found[len(rows) :]) == {(0, 0, 0, 0)}


def test_brand_and_vendor_are_text() -> None:
    rows = {row[0]: row[2:] for row in cpuid.rows()}
    brand = b"".join(struct.pack("<4I", *rows[0x8000_0002 + n]) for n in range(3))
    assert brand.rstrip(b"\0") == cpuid.BRAND
    _, b, c, d = rows[0]
    assert struct.pack("<3I", b, d, c) == cpuid.VENDOR


ABSENT = {
    "RDRAND": "rdrand eax",
    "RDSEED": "rdseed eax",
    "XSAVE": "xgetbv",
    "AVX": "vaddps ymm0, ymm1, ymm2",
    "BMI1": "andn eax, ebx, ecx",
    "BMI2": "pdep eax, ebx, ecx",
    "ADX": "adcx eax, ebx",
    "SMAP": "stac",
    "MONITOR": "monitor",
    "SVM": "vmrun",
    "VMX": ".byte 0x0f,0x01,0xc1",  # vmcall
    "3DNow!": "femms",
    "FMA": "vfmadd132ps xmm0, xmm1, xmm2",
    "CLFLUSHOPT": "clflushopt [rbx]",
    "FXSAVE with VEX (XSAVES)": "xsaves [rbx]",
    "CLWB": ".byte 0x66,0x0f,0xae,0x33",
    "RDPID": "rdpid rax",
}


@pytest.mark.parametrize("feature", sorted(ABSENT))
def test_features_not_announced_are_undefined(machine: Machine, feature: str) -> None:
    assert faults(machine, ABSENT[feature], f"mov ebx, {DATA:#x}\n mov eax, ebx\n xor ecx, ecx") == UD


PRESENT = {
    "SSE3": "addsubps xmm0, xmm1",
    "PCLMULQDQ": "pclmulqdq xmm0, xmm1, 0",
    "SSSE3": "pabsb xmm0, xmm1",
    "SSE4.1": "pmulld xmm0, xmm1",
    "SSE4.2": "crc32 eax, ebx",
    "POPCNT": "popcnt eax, ebx",
    "ABM": "lzcnt eax, ebx",
    "AES": "aesenc xmm0, xmm1",
    "MOVBE": "movbe eax, [rbx]",
    "CX16": "cmpxchg16b [rbx]",
    "CLFSH": "clflush [rbx]",
    "FXSR": "fxsave [rbx]",
    "FSGSBASE": "rdfsbase rax",
    "RDTSCP": "rdtscp",
    "LAHF": "lahf",
    "CMOV": "cmovz eax, ebx",
    "MMX": "paddb mm0, mm1",
    "NOP hint": "endbr64",
}


@pytest.mark.parametrize("feature", sorted(PRESENT))
def test_features_announced_work(machine: Machine, feature: str) -> None:
    enable = "mov rax, cr4\n or eax, 1 << 16\n mov cr4, rax\n"
    assert (
        faults(machine, PRESENT[feature], f"{enable} mov ebx, {DATA:#x}\n xor eax, eax\n xor edx, edx")
        is None
    )


# Time


def test_tsc_is_virtual_time(machine: Machine) -> None:
    long(machine, "rdtsc\n mov ebx, eax\n in al, 0x60\n rdtsc\n sub eax, ebx\n hlt")
    machine.finish()
    cost = DEFAULT_COSTS
    # One block: its instructions were charged before the first of them.
    assert machine.register("rbx") == 6 + cost.tsc
    assert machine.register("rax") == cost.access + cost.tsc


def test_tsc_write_and_aux(machine: Machine) -> None:
    long(
        machine,
        """
        mov ecx, 0x10
        mov eax, 0x1000
        mov edx, 0x77
        wrmsr
        mov ecx, 0xc0000103
        mov eax, 0x1234
        xor edx, edx
        wrmsr
        rdtscp
        mov esi, ecx
        mov ecx, 0x10
        mov ebx, edx
        rdmsr
        hlt
        """,
    )
    machine.finish()
    assert machine.register("rsi") == 0x1234
    assert machine.register("rbx") == machine.register("rdx") == 0x77
    assert 0x1000 <= machine.register("rax") < 0x1000 + 100


@pytest.mark.parametrize("instruction", ["rdtsc", "rdtscp"])
def test_tsd_keeps_ring_3_out(machine: Machine, instruction: str) -> None:
    source = f"""
        mov rax, cr4
        or eax, 4
        mov cr4, rax
        {instruction}
        {to_user("user")}
    user: {RESUME}
    at: {instruction}
        hlt
    after: {EXIT}
    """
    program = long(machine, source)
    machine.finish()
    assert [e[:3] for e in machine.log[:1]] == [(GP, 0, program["at"])]


def test_pause_costs_time_and_nothing_else(machine: Machine) -> None:
    real(machine, "mov cx, 10\nl: pause\n loop l\n hlt")
    machine.finish()
    assert machine.cpu.clock.now_ns == 1 + 20 + 1 + 10 * DEFAULT_COSTS.pause


def test_pause_in_64_bit_high_addresses(machine: Machine) -> None:
    # rip is advanced by hand: it must not be cut to 32 bits.
    high = 0xFFFF_8000_0000_0000
    program = long(
        machine,
        f"mov rax, {high:#x}\n lea rbx, [rip + here]\n add rax, rbx\n jmp rax\nhere: pause\n"
        f"lea rcx, [rip]\n hlt",
    )
    machine.poke(0x80000 + 8 * 256, machine.word(0x80000))
    machine.finish()
    assert machine.register("rcx") == high + program["here"] + 2 + 7


# Model-specific registers


def test_every_msr_of_the_table_reads(machine: Machine) -> None:
    reads = "".join(
        f"mov ecx, {row[0]:#x}\n rdmsr\n shl rdx, 32\n or rax, rdx\n mov [{DATA + 8 * n:#x}], rax\n"
        for n, row in enumerate(msr_table.ROWS)
    )
    long(machine, reads + "hlt")
    machine.finish()
    found = {row[4]: machine.word(DATA + 8 * n) for n, row in enumerate(msr_table.ROWS)}
    assert found["IA32_EFER"] == 0xD01
    assert found["IA32_APIC_BASE"] == 0xFEE00900
    assert found["IA32_PAT"] == 0x0007_0406_0007_0406
    assert found["HWCR (TscFreqSel)"] == 1 << 24
    assert 0 < found["IA32_TIME_STAMP_COUNTER"] < 1000


@pytest.mark.parametrize("register", [0, 0x9F, 0xFE, 0x600, 0xC0000104, 0xC0010117, 0x4B564D00, 0xFFFFFFFF])
@pytest.mark.parametrize("instruction", ["rdmsr", "wrmsr"])
def test_unknown_msr_faults(machine: Machine, register: int, instruction: str) -> None:
    assert faults(machine, instruction, f"mov ecx, {register:#x}\n xor eax, eax\n xor edx, edx") == GP


@pytest.mark.parametrize(
    ("register", "value", "vector"),
    [
        (0xC0000082, 0xFFFF_8000_0000_0000, None),
        (0xC0000082, 0x0000_8000_0000_0000, GP),  # not canonical
        (0xC0000100, 0x0001_0000_0000_0000, GP),
        (0xC0000101, 0x0000_7FFF_FFFF_FFFF, None),
        (0xC0000080, 0xD01, None),
        (0xC0000080, 0x901, None),  # LMA is read-only: its bit is ignored
        (0xC0000080, 0xC01, GP),  # LME cannot be cleared while paging is on
        (0xC0000080, 0x4D01, GP),  # FFXSR is not announced
        (0x277, 0x0007_0406_0007_0406, None),
        (0x277, 0x0807_0406_0007_0406, GP),
        (0x277, 0x0002_0406_0007_0406, GP),  # 2 is a reserved memory type (SDM vol. 3 table 11-10)
        (0xC0000103, 1 << 32, GP),
        (0x1B, 0xFEE0_0900, None),
        (0x1B, 0xBAD, GP),  # the board refused
        (0x8B, 5, None),
    ],
)
def test_msr_writes(machine: Machine, register: int, value: int, vector: int | None) -> None:
    before = f"mov ecx, {register:#x}\n mov rax, {value:#x}\n mov rdx, rax\n shr rdx, 32\n"
    assert faults(machine, "wrmsr", before) == vector
    if register == 0xC0000080:
        assert machine.cpu.state.efer == 0xD01


# Control registers


@pytest.mark.parametrize(
    ("instruction", "value", "vector"),
    [
        ("mov cr0, rax", 0x8001_0033, None),
        ("mov cr0, rax", 0x8001_0032, GP),  # PG without PE
        ("mov cr0, rax", 0xA001_0033, GP),  # NW without CD
        ("mov cr0, rax", 0x0001_0033, GP),  # no way out of 64-bit mode
        ("mov cr0, rax", 0x1_8001_0033, GP),
        ("mov cr4, rax", 0x0600, GP),  # PAE is needed in long mode
        ("mov cr4, rax", 0x0620 | 1 << 18, GP),  # OSXSAVE is not announced
        ("mov cr4, rax", 0x0620 | 1 << 21, GP),  # SMAP
        ("mov cr4, rax", 0x0620 | 1 << 17, GP),  # PCIDE
        ("mov cr4, rax", 0x0620 | 1 << 13, GP),  # VMXE
        ("mov cr4, rax", 0x0620 | 1 << 20, None),  # SMEP
        ("mov cr3, rax", 0x80000, None),
        ("mov cr3, rax", 1 << 40, GP),
        ("mov cr8, rax", 0xF, None),
        ("mov cr8, rax", 0x10, GP),
        ("mov cr2, rax", 0x1234_5678_9ABC_DEF0, None),
        ("mov cr1, rax", 0, UD),
        ("mov cr5, rax", 0, UD),
        ("mov rax, cr1", 0, UD),
        ("mov cr9, rax", 0, UD),
    ],
)
def test_control_register_writes(machine: Machine, instruction: str, value: int, vector: int | None) -> None:
    low_page_is_supervisor = ""  # SMEP: the program runs from user pages
    if "cr4" in instruction and value & 1 << 20:
        low_page_is_supervisor = "and dword ptr ds:[0x80000], -5\n mov rax, cr3\n mov cr3, rax\n"
    assert faults(machine, instruction, f"{low_page_is_supervisor} mov rax, {value:#x}") == vector


def test_task_priority_is_the_boards(machine: Machine) -> None:
    long(machine, "mov eax, 9\n mov cr8, rax\n mov rbx, cr8\n hlt")
    machine.finish()
    assert machine.register("rbx") == machine.tpr == 9


def test_smsw_lmsw_clts(machine: Machine) -> None:
    long(
        machine,
        "mov rax, cr0\n or eax, 8\n mov cr0, rax\n mov rbx, cr0\n clts\n mov rcx, cr0\n smsw edx\n hlt",
    )
    machine.finish()
    assert machine.register("rbx") & 8
    assert not machine.register("rcx") & 8
    assert machine.register("rdx") & 0xFFFF == machine.register("rcx") & 0xFFFF


def test_device_not_available(machine: Machine) -> None:
    # CR0.TS: #NM at the first x87 or SSE instruction.
    assert faults(machine, "addps xmm0, xmm1", "mov rax, cr0\n or eax, 8\n mov cr0, rax") == 7


# Memory-mapped registers


@pytest.mark.parametrize(
    ("instruction", "size"),
    [("mov al, [rbx]", 1), ("mov ax, [rbx]", 2), ("mov eax, [rbx]", 4), ("mov rax, [rbx]", 8)],
)
def test_mmio_read(machine: Machine, instruction: str, size: int) -> None:
    long(machine, f"mov ebx, {MMIO + 0x10:#x}\n {instruction}\n hlt")
    value = 0xFEDC_BA98_7654_3210
    words = [value & 0xFFFF_FFFF, value >> 32] if size == 8 else [value & (1 << 8 * size) - 1]
    machine.mmio.answers = list(words)
    machine.finish()
    assert machine.register("rax") == value & (1 << 8 * size) - 1
    assert sum(entry[1] for entry in machine.mmio.log) == size
    assert machine.mmio.log[0][0] == 0x10


@pytest.mark.parametrize(
    ("instruction", "size"),
    [("mov [rbx], al", 1), ("mov [rbx], ax", 2), ("mov [rbx], eax", 4), ("mov [rbx], rax", 8)],
)
def test_mmio_write(machine: Machine, instruction: str, size: int) -> None:
    value = 0xFEDC_BA98_7654_3210
    long(machine, f"mov ebx, {MMIO + 0x20:#x}\n mov rax, {value:#x}\n {instruction}\n hlt")
    machine.finish()
    got = b"".join(v.to_bytes(s, "little") for _, s, v in machine.mmio.log)
    assert got == value.to_bytes(8, "little")[:size]


def test_mmio_read_modify_write_and_strings(machine: Machine) -> None:
    long(machine, f"mov edi, {MMIO:#x}\n or dword ptr [rdi], 0x10\n mov al, 7\n mov ecx, 3\n rep stosb\n hlt")
    machine.mmio.answers = [0x21]
    machine.finish()
    assert machine.mmio.log == [(0, 4), (0, 4, 0x31), (0, 1, 7), (1, 1, 7), (2, 1, 7)]


@pytest.mark.parametrize("address", [4 << 20, MMIO + 0x1000, 0xFFFF_FFF0])
def test_nothing_there_reads_ones(machine: Machine, address: int) -> None:
    long(machine, f"mov ebx, {address:#x}\n mov dword ptr [rbx], 0\n mov rax, [rbx]\n mov cl, [rbx]\n hlt")
    machine.finish()
    assert machine.register("rax") == 0xFFFF_FFFF_FFFF_FFFF
    assert machine.register("rcx") == 0xFF


def test_access_across_the_end_of_ram(machine: Machine) -> None:
    end = 4 << 20
    long(machine, f"mov dword ptr [{end - 4:#x}], 0x11223344\n mov rax, [{end - 4:#x}]\n hlt")
    machine.finish()
    assert machine.register("rax") == 0xFFFF_FFFF_1122_3344


def test_code_beyond_ram_runs_into_a_fault_not_a_crash(machine: Machine) -> None:
    # All ones decode as an undefined instruction (FF /7).
    long(machine, f"mov ebx, {8 << 20:#x}\n {RESUME} jmp rbx\nafter: hlt")
    machine.finish()
    assert machine.vectors_seen == [UD]


# Self-modifying code and code changed from outside


def test_self_modifying_code(machine: Machine) -> None:
    """The store changes an instruction of the very block that runs; SDM vol. 3 8.1.3."""
    long(
        machine,
        """
        mov ecx, 3
    again:
        mov byte ptr [rip + here + 1], cl
        nop
    here:
        mov al, 0x55
        shl ebx, 8
        mov bl, al
        dec ecx
        jnz again
        hlt
        """,
    )
    machine.finish()
    assert machine.register("rbx") == 0x030201


@pytest.mark.parametrize("make", [long, protected], ids=["long", "protected"])
def test_code_changed_by_the_host(machine: Machine, make: Callable[..., object]) -> None:
    program = make(machine, "again: mov eax, 1\n hlt\n jmp again")
    machine.finish()
    machine.ram.write(0x10001, b"\x02")  # the immediate, as a DMA would
    machine.finish()
    assert machine.register("rax") == 2
    assert program is not None
    assert machine.register("rsp") == STACK0
