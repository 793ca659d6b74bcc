"""What the engine's decoder and flags get wrong and the processor puts right: ICEBP, RF, CPUID's APIC bit."""

from __future__ import annotations

import pytest

from tests.cpu.machine import EXIT_VECTOR, Machine, long, protected, to_user
from vmm.cpu.msr_table import PERFORMANCE_COUNTERS

DB, UD, TF, RF = 1, 6, 1 << 8, 1 << 16
ON = "mov r15, -1\n"
APIC = 1 << 9
SINGLE_STEP = """
    pushf
    or qword ptr [rsp], 0x100
    popf
"""


@pytest.mark.parametrize("prefixes", ["", "0x2e,", "0x26,0x64,0x66,0x67,0xf2,0xf3,0x48,"])
def test_icebp_is_a_trap(machine: Machine, prefixes: str) -> None:
    """SDM vol. 2 INT1: #DB with rip after the instruction, and DR6 as it was."""
    program = long(machine, f"{ON} .byte {prefixes}0xf1\nafter: hlt")
    machine.finish()
    (seen,) = machine.log
    assert (seen.vector, seen.rip, seen.error) == (DB, program["after"], 0)
    assert machine.cpu.state.debug[6] == 0xFFFF_0FF0


def test_icebp_in_protected_mode(machine: Machine) -> None:
    program = protected(machine, "mov edi, -1\n .byte 0x3e, 0xf1\nafter: hlt")
    machine.finish()
    assert [(entry.vector, entry.rip) for entry in machine.log] == [(DB, program["after"])]


def test_icebp_needs_no_privilege(machine: Machine) -> None:
    """The gate's DPL is 0: INT 1 is refused to ring 3, INT1 is not (SDM vol. 2 INT n, "Operation")."""
    program = long(machine, f"{ON} {to_user('user')} user: .byte 0xf1\nafter: int {EXIT_VECTOR}")
    machine.finish()
    assert [(entry.vector, entry.rip) for entry in machine.log[:1]] == [(DB, program["after"])]
    assert machine.log[0].cs & 3 == 3


def test_icebp_and_single_steps(machine: Machine) -> None:
    """One #DB for ICEBP under TF, not two (SDM vol. 3 17.3.1.4: the flag is cleared on entry)."""
    program = long(machine, f"{ON} {SINGLE_STEP} first: .byte 0xf1\nsecond: nop\nthird: hlt")
    machine.finish()
    assert [entry.rip for entry in machine.log[:2]] == [program["second"], program["third"]]


@pytest.mark.parametrize("code", ["0xf0, 0xf1", "0x0f, 0x0b", "0x2e, 0x0f, 0x0b"])
def test_other_undefined_opcodes_stay_faults(machine: Machine, code: str) -> None:
    program = long(machine, f"lea r15, [rip + after]\nbad: .byte {code}\nafter: hlt")
    machine.finish()
    assert [(entry.vector, entry.rip) for entry in machine.log] == [(UD, program["bad"])]


def test_prefixes_at_the_end_of_ram(machine: Machine) -> None:
    """The instruction goes on where nothing is: an undefined opcode, found once and not for ever."""
    end = 4 << 20
    machine.ram.write(end - 2, b"\x2e\x66")
    long(machine, f"lea r15, [rip + after]\n mov ebx, {end - 2:#x}\n jmp rbx\nafter: hlt")
    machine.finish()
    assert machine.vectors_seen == [UD]


def test_pushf_does_not_show_rf(machine: Machine) -> None:
    """SDM vol. 2 PUSHF: "the VM and RF flags are not copied".  IRET loads RF; a jump keeps it here."""
    long(
        machine,
        f"""
        mov rbx, rsp
        push {0x10}
        push rbx
        push {RF | 2}
        push {0x08}
        lea rax, [rip + there]
        push rax
        iretq
    there:
        pushf
        pop rax
        hlt
        """,
    )
    machine.finish()
    assert machine.register("rax") & RF == 0


@pytest.mark.parametrize("leaf", [1, 0x8000_0001])
@pytest.mark.parametrize("enabled", [True, False])
def test_cpuid_tells_whether_the_apic_is_on(machine: Machine, leaf: int, enabled: bool) -> None:
    """SDM vol. 3 11.4.3: with IA32_APIC_BASE.EN clear, CPUID says that there is no local APIC."""
    machine.msrs[0x1B] = 0xFEE0_0100 | (1 << 11 if enabled else 0)
    long(machine, f"mov eax, {leaf:#x}\n cpuid\n hlt")
    machine.finish()
    assert bool(machine.register("rdx") & APIC) == enabled


@pytest.mark.parametrize("register", [0xC001_0000, 0xC001_0000 + 2 * PERFORMANCE_COUNTERS - 1, 0x179, 0x17A])
def test_registers_that_exist_and_do_nothing(machine: Machine, register: int) -> None:
    """APM vol. 2 13.2.1: no feature bit, so a kernel for AMD processors touches these unasked."""
    long(machine, f"mov ecx, {register:#x}\n mov eax, 5\n xor edx, edx\n wrmsr\n rdmsr\n hlt")
    machine.finish()
    assert machine.vectors_seen == []
    assert machine.register("rax") == machine.register("rdx") == 0
