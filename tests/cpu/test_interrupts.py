"""When interrupts enter, and what holds them back (SDM vol. 3 6.6 to 6.8, 6.14), HLT, NMI, #DB."""

from __future__ import annotations

from tests.cpu.machine import DATA, EXIT_VECTOR, HANDLERS, STACK0, Machine, long, real, set_gate
from vmm.cpu.cpu import Stop

NEVER = "mov r15, -1\n"
"""Handlers go on where the exception left off."""


def test_interrupt_enters_at_a_boundary(machine: Machine) -> None:
    """The line rises in a port write; the next block is preceded by the handler."""
    program = long(machine, "sti\n nop\n out 0x60, al\n inc ebx\n jmp next\nnext: inc ebx\n hlt")
    machine.ports.on_write = lambda: machine.interrupt(0x41)
    machine.finish()
    (entry,) = machine.log
    assert (entry.vector, entry.rip) == (0x41, program["next"])
    assert entry.rflags & 0x200
    assert machine.register("rbx") == 2
    assert machine.register("rsp") == STACK0


def test_interrupts_wait_for_if(machine: Machine) -> None:
    program = long(machine, "inc ebx\n jmp a\na: inc ebx\n sti\n nop\nb: jmp c\nc: hlt")
    machine.interrupt(0x41, 0x42)
    machine.finish()
    assert machine.vectors_seen == [0x41, 0x42]
    assert machine.log[0].rip >= program["a"] + 3, "not before STI"
    assert machine.register("rbx") == 2


def test_sti_shadow(machine: Machine) -> None:
    """SDM vol. 2 STI: the instruction after STI runs first; sti; hlt cannot lose a wake-up."""
    program = long(machine, "cli\n sti\nh: hlt\nafter: inc ebx\n cli\n hlt")
    machine.interrupt(0x41)
    assert machine.run() is Stop.HALT
    assert machine.cpu.rip == program["after"], "HLT ran in STI's shadow"
    assert machine.log == []
    assert machine.can_take_interrupt()
    machine.finish()
    assert machine.log[0].rip == program["after"]
    assert machine.register("rbx") == 1


def test_sti_cli_opens_no_window(machine: Machine) -> None:
    long(machine, "mov ecx, 50\nl: sti\n cli\n loop l\n hlt")
    machine.interrupt(0x41)
    machine.finish()
    assert machine.log == []


def test_mov_ss_shadow(machine: Machine) -> None:
    # SDM vol. 3 6.8.3: nothing comes between MOV SS and the stack pointer's load.
    program = real(
        machine,
        "sti\n nop\n mov ax, 0x100\n out 0x60, al\n mov ss, ax\na: mov sp, 0x800\nb: jmp c\n"
        "c: cli\n hlt\nhandler: mov bx, sp\n iret",
    )
    machine.poke(4 * 0x41, program["handler"], 4)
    machine.ports.on_write = lambda: machine.interrupt(0x41)
    machine.finish()
    assert machine.register("rbx") == 0x800 - 6
    assert machine.word(0x1000 + 0x800 - 6, 2) >= program["b"]


def test_acknowledge_may_answer_nothing(machine: Machine) -> None:
    """A spurious request: the line was high, the controller has no vector any more."""
    long(machine, "sti\n nop\n jmp a\na: jmp b\nb: cli\n hlt")
    machine.cpu.interrupt_line.set(True)
    machine.finish()
    assert machine.log == []


def test_interrupts_in_a_tight_loop(machine: Machine) -> None:
    """A loop that is one patched block: every interrupt enters, none twice, and the loop's work is whole."""
    long(machine, "mov ecx, 100000\n sti\nl: inc rbx\n dec ecx\n jnz l\n cli\n hlt")
    clock = machine.cpu.clock
    timer = clock.timer("test", lambda: None)
    taken = 0
    timer.arm(10_000)
    while True:
        clock.set_limit(20_000_000)
        if machine.cpu.run() is Stop.HALT:
            break
        assert clock.now_ns >= timer.deadline_ns
        taken += 1
        machine.interrupt(0x41)
        timer.arm(10_000 * (taken + 1))
    assert machine.register("rbx") == 100000
    assert machine.word(0x6000, 4) == taken == 30


def test_nmi_is_masked_until_iret(machine: Machine) -> None:
    """6.7.1: a second NMI waits until the handler's IRET."""
    program = long(
        machine,
        """
        mov ebx, 0
        out 0x60, al
        jmp a
    a:  inc ebx
        hlt
    nmi:
        inc esi
        cmp esi, 1
        jne second
        out 0x60, al
        jmp b
    b:  mov edi, ebx
        mov ebp, esi
        iretq
    second:
        iretq
        """,
    )
    set_gate(machine, 2, program["nmi"])
    machine.ports.on_write = machine.cpu.raise_nmi
    machine.finish()
    assert machine.register("rsi") == 2, "both came"
    assert machine.register("rbp") == 1, "the second not inside the first"
    assert machine.register("rbx") == 1


def test_nmi_ends_a_halt_with_interrupts_off(machine: Machine) -> None:
    program = long(machine, "cli\n hlt\n inc ebx\n hlt\nnmi: inc esi\n iretq")
    set_gate(machine, 2, program["nmi"])
    machine.finish()
    assert machine.cpu.is_dead
    assert not machine.can_take_interrupt()
    machine.cpu.raise_nmi()
    assert machine.can_take_interrupt()
    assert machine.cpu.state.nmi_pending
    machine.finish()
    assert (machine.register("rsi"), machine.register("rbx")) == (1, 1)
    assert not machine.cpu.state.nmi_pending


def test_nmi_before_interrupt(machine: Machine) -> None:
    """6.9: of two pending at one boundary the NMI has priority."""

    def both() -> None:
        machine.interrupt(0x41)
        machine.cpu.raise_nmi()

    machine.ports.on_write = both
    program = long(
        machine,
        "sti\n out 0x60, al\n jmp a\na: jmp b\nb: cli\n hlt\nnmi: mov ebx, ds:[0x6000]\n inc esi\n iretq",
    )
    set_gate(machine, 2, program["nmi"])
    machine.finish()
    assert machine.vectors_seen == [0x41]
    assert (machine.register("rsi"), machine.register("rbx")) == (1, 0)


def test_single_step(machine: Machine) -> None:
    """17.3.1.4: #DB after each instruction while TF is set, with DR6.BS."""
    program = long(
        machine,
        f"""
        {NEVER}
        pushfq
        or dword ptr [rsp], 0x100
        popfq
    a:  nop
    b:  mov eax, 5
    c:  pushfq
    d:  and dword ptr [rsp], 0xfffffeff
    e:  popfq
    f:  mov rbx, dr6
        hlt
        """,
    )
    machine.finish()
    assert [(e.vector, e.rip) for e in machine.log] == [(1, program[label]) for label in "bcdef"]
    assert machine.register("rbx") & 0x4000


def test_single_step_over_syscall_like_int(machine: Machine) -> None:
    """INT clears TF in the handler; the trap comes after IRET's next instruction."""
    long(
        machine,
        f"{NEVER} pushfq\n or dword ptr [rsp], 0x100\n popfq\n int 0x41\n nop\n pushfq\n"
        f"and dword ptr [rsp], 0xfffffeff\n popfq\n hlt",
    )
    machine.finish()
    assert machine.vectors_seen[:2] == [0x41, 1]


def test_data_breakpoints_never_hit(machine: Machine) -> None:
    """A limit of the engine: it keeps DR0 to DR3 and DR7 (17.2), and checks instruction fetches only."""
    long(
        machine,
        f"""
        mov eax, {DATA:#x}
        mov dr0, rax
        mov eax, {1 << 1 | 3 << 16 | 3 << 18 | 0x400:#x}
        mov dr7, rax
        mov dword ptr [{DATA:#x}], 1
        mov rbx, dr7
        hlt
        """,
    )
    machine.finish()
    assert machine.log == []
    assert machine.register("rbx") == 0xF0402
    assert machine.cpu.state.debug[0] == DATA


def test_instruction_breakpoint(machine: Machine) -> None:
    """17.3.1.1: a fault before the instruction; RF in the frame lets it run."""
    program = long(
        machine,
        f"""
        lea rax, [rip + at]
        mov dr3, rax
        mov eax, {1 << 7 | 0x400:#x}
        mov dr7, rax
        xor ebx, ebx
    at: inc ebx
        hlt
    db: inc esi
        mov rcx, dr6
        mov r8, [rsp]
        or dword ptr [rsp + 16], 0x10000
        iretq
        """,
    )
    set_gate(machine, 1, program["db"])
    machine.finish()
    assert (machine.register("rbx"), machine.register("rsi")) == (1, 1)
    assert machine.register("rcx") & 0xF == 8
    assert machine.register("r8") == program["at"]


def test_int1(machine: Machine) -> None:
    """SDM vol. 2 INT1: #DB as a trap."""
    program = long(machine, "nop\n .byte 0xf1\nafter: hlt")
    machine.finish()
    assert [(entry.vector, entry.rip) for entry in machine.log] == [(1, program["after"])]


def test_interrupt_during_repeated_string_instruction(machine: Machine) -> None:
    """SDM vol. 2 REP: interrupts come between iterations, and the instruction goes on afterwards."""
    long(machine, f"sti\n mov ecx, 40\n mov edi, {DATA:#x}\n mov edx, 0x60\n cld\n rep insb\n cli\n hlt")
    machine.ports.answers = list(range(40))
    machine.ports.on_read = lambda: machine.interrupt(0x41) if len(machine.ports.log) == 10 else None
    machine.finish()
    assert machine.ram.read(DATA, 40) == bytes(range(40))
    assert machine.vectors_seen == [0x41]
    assert len(machine.ports.log) == 40


def test_handler_is_the_guests(machine: Machine) -> None:
    """An interrupt during ring 0 with IST 0 pushes onto the current, aligned stack (6.14.2)."""
    long(machine, "sti\n lea rsp, [rsp - 24]\n out 0x60, al\n jmp a\na: cli\n hlt")
    machine.ports.on_write = lambda: machine.interrupt(0x41)
    machine.finish()
    assert machine.log[0].rsp == STACK0 - 24
    assert HANDLERS > machine.log[0].rip
    assert EXIT_VECTOR not in machine.vectors_seen
