"""Saving, restoring and determinism: the same program, cut differently, is the same to the bit."""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.cpu.machine import DATA, Machine, long
from vmm.cpu import engine, layout, registers
from vmm.cpu.cpu import Stop
from vmm.cpu.engine import Costs
from vmm.cpu.registers import CpuState
from vmm.state import diff, pack, unpack

BUSY = f"""
    finit
    fldpi
    mov ecx, 400
    mov ebx, {DATA:#x}
    mov rsi, 0x123456789abcdef
    movq xmm1, rsi
    pshufd xmm2, xmm1, 0x1b
    sti
again:
    imul rsi, rsi, 0x19660d
    add rsi, rcx
    mov [rbx + rcx*8], rsi
    fld1
    faddp
    fsqrt
    addps xmm2, xmm1
    pxor xmm3, xmm2
    cvtsi2sd xmm4, rcx
    sqrtsd xmm4, xmm4
    mulsd xmm5, xmm4
    test cl, 7
    jnz skip
    in al, 0x60
    out 0x61, al
skip:
    mov rdx, rcx
    shl rdx, 61
    adc rdi, 0
    test cl, 15
    jnz next
    mov byte ptr [rip + patch + 1], cl
patch:
    mov al, 0
    movzx r9, al
    add r10, r9
    push rcx
    rdtsc
    pop rcx
    add r11, rax
    int3
next:
    dec ecx
    jnz again
    hlt
"""
"""Lazy flags live across blocks (SHL before ADC), x87, SSE, stores, ports, exceptions, own code changed."""


def prepare(machine: Machine) -> Machine:
    long(machine, "mov r15, -1\n" + BUSY)
    return machine


def outcome(machine: Machine) -> tuple[CpuState, str, list[Any]]:
    return (
        machine.cpu.state,
        hashlib.sha256(machine.ram.read(0, machine.ram.size)).hexdigest(),
        machine.ports.log,
    )


@pytest.fixture(scope="module")
def reference() -> tuple[CpuState, str, list[Any]]:
    machine = prepare(Machine(patching=False))
    result = outcome(machine.finish())
    machine.cpu.close()
    assert len(machine.log) == 25
    return result


def same(machine: Machine, reference: tuple[CpuState, str, list[Any]]) -> None:
    found = outcome(machine)
    assert list(diff(reference[0], found[0])) == []
    assert found[1:] == reference[1:]


def test_plain_and_patched_agree(machine: Machine, reference: Any, patching: bool) -> None:
    same(prepare(machine).finish(), reference)
    assert bool(machine.cpu.block["N_PATCHED"]) == patching
    if patching:
        # What is left is the one-instruction blocks that step over a store to their own page.
        assert machine.cpu.block["N_UNPATCHED"] <= 25


@pytest.mark.parametrize("quantum", [1, 7, 100, 1 << 40])
def test_the_quantum_changes_nothing(new: Callable[..., Machine], reference: Any, quantum: int) -> None:
    same(prepare(new(costs=Costs(quantum=quantum))).finish(), reference)


@pytest.mark.parametrize("seed", range(4))
def test_slices_change_nothing(machine: Machine, reference: Any, seed: int) -> None:
    prepare(machine)
    chance = random.Random(seed)
    while machine.run(chance.choice([1, 10, 100, 1000, 10_000])) is Stop.DEADLINE:
        if chance.random() < 0.2:
            machine.cpu.flush()
        if chance.random() < 0.2:
            machine.cpu.flush_tlb()
    same(machine, reference)


def test_stopping_at_every_block_changes_nothing(machine: Machine, reference: Any) -> None:
    """Also between a store into its own block and the store's second run, where the engine must not stop."""
    prepare(machine)
    while machine.run(1) is Stop.DEADLINE:
        pass
    same(machine, reference)


def test_stop_requests_change_nothing(machine: Machine, reference: Any) -> None:
    prepare(machine)
    machine.ports.on_write = machine.cpu.request_stop
    stops = 0
    while machine.run() is Stop.REQUEST:
        stops += 1
    assert stops == 50
    same(machine, reference)


def test_a_small_code_buffer_changes_nothing(
    new: Callable[..., Machine], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TCG_BUFFER", 1 << 20)
    same(prepare(new()).finish(), reference)


def test_two_machines_do_not_disturb_each_other(new: Callable[..., Machine], reference: Any) -> None:
    first, second = prepare(new()), prepare(new(patching=False))
    running = [first, second]
    while running:
        running = [machine for machine in running if machine.run(3_000) is Stop.DEADLINE]
    same(first, reference)
    same(second, reference)


@pytest.mark.parametrize("after_ns", [1_000, 20_011, 61_234])
def test_a_restored_machine_continues_identically(
    new: Callable[..., Machine], reference: Any, after_ns: int
) -> None:
    """State through its bytes, RAM by copy, into a machine that has run something else."""
    original, copy = prepare(new()), new()
    assert original.run(after_ns) is Stop.DEADLINE
    long(copy, "mov eax, 5\nl: dec eax\n jnz l\n hlt")
    copy.finish()
    copy.ram.write(0, original.ram.read(0, original.ram.size))
    copy.cpu.state = unpack(CpuState, pack(original.cpu.state))
    copy.cpu.restored()
    assert list(diff(original.cpu.state, copy.cpu.state)) == []
    copy.ports.log += original.ports.log
    same(original.finish(), reference)
    same(copy.finish(), reference)


def test_reading_state_does_not_disturb(machine: Machine, reference: Any) -> None:
    prepare(machine)
    while machine.run(777) is Stop.DEADLINE:
        machine.cpu.state = machine.cpu.state
    same(machine, reference)


def test_debug_registers_are_restored(new: Callable[..., Machine]) -> None:
    source = """
        lea rax, [rip + at]
        mov dr1, rax
        mov eax, 0x404
        mov dr7, rax
        hlt
        nop
    at: inc ebx
        hlt
    """
    first, second = new(), new()
    program = long(first, source)
    first.finish()
    long(second, source)
    second.cpu.state = first.cpu.state
    second.cpu.restored()
    second.run()
    assert [(entry.vector, entry.rip) for entry in second.log] == [(1, program["at"])]


def test_reset_is_power_on(machine: Machine) -> None:
    prepare(machine).run(10_000)
    now = machine.cpu.clock.now_ns
    machine.cpu.reset()
    assert list(diff(CpuState(now_ns=now), machine.cpu.state)) == []


def test_every_byte_of_the_engines_state_is_accounted_for() -> None:
    known = [*registers.covered(), *registers.SCRATCH]
    missing = [
        at for at in range(layout.ENV_STATE_SIZE) if not any(start <= at < end for start, end in known)
    ]
    assert missing == []


def test_state_survives_writing_and_reading(machine: Machine) -> None:
    """Every field, with a value of its own, comes back (flags that the processor defines aside)."""
    chance = random.Random(1)
    state = machine.cpu.state
    state.general = [chance.getrandbits(64) for _ in range(16)]
    state.xmm = [chance.randbytes(16) for _ in range(16)]
    state.fpu.registers = b"".join(chance.randbytes(10) + bytes(6) for _ in range(8))
    state.fpu.tags, state.fpu.top = bytes([0, 1] * 4), 3
    state.rflags = 0x47ED7 & ~0x28 | 2
    state.debug[0] = chance.getrandbits(47)
    for name in ("star", "lstar", "cstar", "fmask", "kernel_gs_base", "tsc_aux", "pat", "tsc_offset"):
        setattr(state, name, chance.getrandbits(64))
    for segment in (*state.segments, state.ldt, state.tr, state.gdt, state.idt):
        segment.selector, segment.base = chance.getrandbits(16), chance.getrandbits(64)
        segment.limit, segment.flags = chance.getrandbits(32), chance.getrandbits(24)
    machine.cpu.state = state
    assert list(diff(state, machine.cpu.state)) == []


def test_env_is_where_state_is(machine: Machine) -> None:
    long(machine, "mov rax, 0x1122334455667788\n hlt")
    machine.finish()
    assert ctypes.c_uint64.from_address(machine.cpu.env + layout.RAX).value == 0x1122_3344_5566_7788
