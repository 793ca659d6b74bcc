"""Real-address mode: SDM vol. 3 ch. 20 (interrupt vector table, INT n, exceptions, IRET)."""

from __future__ import annotations

import pytest

from tests.cpu.machine import Machine, real
from vmm.cpu.cpu import Stop


def vector(machine: Machine, number: int, address: int) -> None:
    machine.poke(4 * number, address, 4)


def test_software_interrupt_and_return(machine: Machine) -> None:
    # 20.1.4: INT pushes FLAGS, CS, IP and clears IF and TF; IRET brings them back.
    program = real(
        machine,
        """
        sti
        stc
        int 0x21
        setc al
        pushf
        pop dx
        hlt
    handler:
        pushf
        pop cx
        clc
        mov bx, sp
        mov si, [bx]
        mov di, [bx+4]
        iret
        """,
    )
    vector(machine, 0x21, program["handler"])
    machine.finish()
    assert machine.register("rax") & 0xFF == 1, "carry was restored"
    assert machine.register("rcx") & 0x200 == 0, "IF is clear in the handler"
    assert machine.register("rdx") & 0x200, "and set after IRET"
    assert machine.register("rsi") == 0x7C00 + 4, "the address after INT"
    assert machine.register("rdi") & 0x201 == 0x201
    assert machine.register("rsp") == 0x7C00


@pytest.mark.parametrize(
    ("number", "instructions", "length"),
    [
        (0, "xor cx, cx; div cl", 2),  # #DE, a fault: the saved IP is the DIV
        (6, "ud2", 2),  # #UD
        (5, "mov bx, offset limits; mov ax, 9; bound ax, [bx]", 2),  # #BR
        (4, "mov al, 0x7f; add al, 1; into", 0),  # #OF, a trap: the IP after it
        (3, "int3", 0),  # #BP, a trap
    ],
)
def test_exceptions(machine: Machine, number: int, instructions: str, length: int) -> None:
    program = real(
        machine,
        f"""
        {instructions.replace(";", chr(10))}
    after:
        hlt
    limits: .word 0, 4
    handler:
        mov bp, sp
        mov si, [bp]
        hlt
        """,
    )
    vector(machine, number, program["handler"])
    machine.finish()
    assert machine.register("rsi") == program["after"] - length


def test_port_access_and_clock(machine: Machine) -> None:
    program = real(machine, "in al, 0x60\n out 0x61, al\n in ax, 0x62\n in eax, 0x64\n hlt")
    machine.ports.answers = [0x1FF, 0x12345, 0x1_2345_6789]
    machine.finish()
    assert machine.ports.log == [(0x60, 1), (0x61, 1, 0xFF), (0x62, 2), (0x64, 4)]
    assert machine.register("rax") == 0x2345_6789
    assert machine.cpu.clock.now_ns == 5 + 4 * 1000, "an instruction is 1 ns, an access 1 us"
    assert machine.cpu.rip == program.origin + len(program.code)


def test_unclaimed_ports_read_ones(machine: Machine) -> None:
    real(machine, "mov dx, 0x5678\n in eax, dx\n mov ebx, eax\n in al, dx\n out dx, al\n hlt")
    machine.finish()
    assert machine.register("rbx") == 0xFFFF_FFFF


def test_a20_off_wraps_at_one_mib(machine: Machine) -> None:
    # SDM vol. 3 8.7.13.4, A20M: address bit 20 reads as zero.
    real(machine, "mov ax, 0xffff\n mov ds, ax\n mov al, [0x10]\n hlt")
    machine.ram.write(0, b"\x11")
    machine.ram.write(1 << 20, b"\x22")
    before = machine.cpu.state
    machine.finish()
    assert machine.register("rax") & 0xFF == 0x22
    machine.cpu.state = before
    machine.cpu.set_a20(False)
    machine.finish()
    assert machine.register("rax") & 0xFF == 0x11
    assert not machine.cpu.state.a20


def test_halt_with_interrupts_off_is_dead(machine: Machine) -> None:
    real(machine, "cli\n hlt")
    assert machine.run() is Stop.HALT
    assert machine.cpu.halted
    assert machine.cpu.is_dead
    machine.interrupt(0x41)
    assert not machine.can_take_interrupt()


def test_halt_ends_with_an_interrupt(machine: Machine) -> None:
    program = real(machine, "sti\n hlt\n mov al, 7\n cli\n hlt\nhandler: inc bl\n iret")
    vector(machine, 0x41, program["handler"])
    machine.finish()
    assert not machine.cpu.is_dead
    assert not machine.can_take_interrupt()
    machine.interrupt(0x41)
    assert machine.can_take_interrupt()
    machine.finish()
    assert machine.register("rbx") == 1
    assert machine.register("rax") & 0xFF == 7


def test_repeated_string_ports(machine: Machine) -> None:
    # INS and OUTS store and load at ES:DI and DS:SI and charge each item.
    real(
        machine,
        "cld; mov dx, 0x60; mov di, 0x500; mov cx, 5; rep insw; mov si, 0x500; mov cx, 3; rep outsb; hlt",
    )
    machine.ports.answers = [0x1111, 0x2222, 0x3333, 0x4444, 0x5555]
    machine.finish()
    assert machine.ram.read(0x500, 10) == bytes.fromhex("11112222333344445555")
    assert machine.ports.log == [(0x60, 2)] * 5 + [(0x60, 1, 0x11), (0x60, 1, 0x11), (0x60, 1, 0x22)]
    assert machine.register("rdi") == 0x50A
    assert machine.register("rcx") == 0


def test_triple_fault_is_shutdown(machine: Machine) -> None:
    # SDM vol. 3 6.15: a fault while delivering a double fault.  The IDT's limit stops every vector.
    real(machine, "lidt [table]\n ud2\ntable: .word 0\n .long 0")
    assert machine.run() is Stop.SHUTDOWN
