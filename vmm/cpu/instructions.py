"""Instructions that leave the generated code: native replacements of the engine's helpers.

The engine's own helpers for these either report to Unicorn hooks (which cost a walk through a list)
or lack what a machine needs.  :mod:`vmm.cpu.detour` points them here.  Each function has the
helper's C arguments, then ``back``, the return address into generated code: with it
``FN_RESTORE_STATE`` makes rip exact before a fault is raised.

======================  ==================================================================
IN, OUT                 SDM vol. 1 ch. 19: I/O permission, then the board's port map
RDTSC, RDTSCP           SDM vol. 3 17.17: virtual time plus the guest's offset; CR4.TSD honoured
CPUID                   a table (:mod:`vmm.cpu.cpuid`): nothing of the host shows through
PAUSE                   costs virtual time, so that a waiting loop waits in few instructions
MOV to/from CRn         reserved bits and mode rules fault as SDM vol. 2 says; CR8 is the TPR
RDMSR, WRMSR            :mod:`vmm.cpu.msr`
SYSCALL, SYSENTER       :mod:`vmm.cpu.syscall`
CMPXCHG8B, CMPXCHG16B   the engine's own, after the flags that they keep were made exact
INT n, INT3             SDM vol. 3 6.12: a fault on the way leaves rip at the instruction
======================  ==================================================================
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.apic_kernel import EOI_ADDRESS, end_of_interrupt
from vmm.cpu.constants import CPUID_ANY_SUBLEAF, CPUID_ROW_WORDS, PHYSICAL_BITS
from vmm.cpu.control import (
    COST_ACCESS,
    COST_PAUSE,
    COST_TSC,
    CPU,
    CPUID_COUNT,
    CPUID_ROWS,
    ENV_TO_CONTROL,
    FN_CHECK_IO1,
    FN_CHECK_IO2,
    FN_CHECK_IO4,
    FN_DO_INTERRUPT,
    FN_LOOP_EXIT,
    FN_RAISE,
    FN_RESTORE_STATE,
    FN_UPDATE_CR0,
    FN_UPDATE_CR3,
    FN_UPDATE_CR4,
    N_CPUID,
    N_EXCEPTIONS,
    N_GENERAL_PROTECTION,
    N_MMIO,
    N_PORT,
    N_TSC,
    PY_MMIO_READ,
    PY_MMIO_WRITE,
    PY_MSR_READ,
    PY_PORT_IN,
    PY_PORT_OUT,
    PY_TPR,
)
from vmm.cpu.native import (
    call1,
    call2,
    call3,
    call4,
    callback,
    i64,
    load32,
    load64,
    native,
    store32,
    store64,
    u32,
    void,
)
from vmm.cpu.ticks import charge_ns, count, now, time_stamp

_RAX, _RCX, _RDX, _RBX = layout.RAX, layout.RCX, layout.RDX, layout.RBX
_EIP, _EFLAGS, _HFLAGS = layout.EIP, layout.EFLAGS, layout.HFLAGS
_CR0, _CR4, _EFER = layout.CR0, layout.CR4, layout.EFER
_CPL, _CS64 = layout.HF_CPL, layout.HF_CS64
_TSC_AUX = layout.TSC_AUX
_CR0_PE, _CR0_NW, _CR0_CD, _CR0_PG = 1, 1 << 29, 1 << 30, 1 << 31
_CR4_TSD, _CR4_PAE = 1 << 2, 1 << 5
_CR4_VALID = 0x1107FF
"""VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT, FSGSBASE, SMEP: what CPUID announces."""
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_EXTENDED_FEATURES, _CPUID_APIC = 0x80000001, 1 << 9
_IA32_APIC_BASE, _APIC_ENABLED = 0x1B, 1 << 11
_LOW32 = 0xFFFFFFFF
GENERAL_PROTECTION = 13


@native
def control_of(env: int) -> int:
    """The control block of the machine whose state ``env`` is."""
    return load64(env + ENV_TO_CONTROL)


@native
def restore_state(control: int, back: int) -> None:
    """Make env exact for the instruction that called (rip and lazy flags)."""
    call3(load64(control + FN_RESTORE_STATE), load64(control + CPU), back, 0)


@native
def general_protection(control: int, env: int, back: int) -> None:
    """Raise #GP(0) at the calling instruction; does not return."""
    count(control, N_GENERAL_PROTECTION)
    call4(load64(control + FN_RAISE), env, GENERAL_PROTECTION, 0, back)


# Ports


@native
def _may_access_port(control: int, env: int) -> bool:
    return (load32(env + _HFLAGS) & _CPL) <= ((load64(env + _EFLAGS) >> 12) & 3)


@native
def _enter_port(control: int, env: int, port: int, check: int, back: int) -> None:
    count(control, N_PORT)
    if not _may_access_port(control, env):
        restore_state(control, back)
        call2(load64(control + check), env, port)  # raises #GP unless the TSS bitmap permits
    charge_ns(control, load64(control + COST_ACCESS))


@callback(i64(i64, i64, i64))
def in_byte(env: int, port: int, back: int) -> int:
    """IN, 8 bits."""
    control = control_of(env)
    _enter_port(control, env, port & 0xFFFF, FN_CHECK_IO1, back)
    return call3(load64(control + PY_PORT_IN), port & 0xFFFF, 1, 0) & 0xFF


@callback(i64(i64, i64, i64))
def in_word(env: int, port: int, back: int) -> int:
    """IN, 16 bits."""
    control = control_of(env)
    _enter_port(control, env, port & 0xFFFF, FN_CHECK_IO2, back)
    return call3(load64(control + PY_PORT_IN), port & 0xFFFF, 2, 0) & 0xFFFF


@callback(i64(i64, i64, i64))
def in_long(env: int, port: int, back: int) -> int:
    """IN, 32 bits."""
    control = control_of(env)
    _enter_port(control, env, port & 0xFFFF, FN_CHECK_IO4, back)
    return call3(load64(control + PY_PORT_IN), port & 0xFFFF, 4, 0) & _LOW32


@callback(void(i64, i64, i64, i64))
def out_byte(env: int, port: int, value: int, back: int) -> None:
    """OUT, 8 bits."""
    control = control_of(env)
    _enter_port(control, env, port & 0xFFFF, FN_CHECK_IO1, back)
    call3(load64(control + PY_PORT_OUT), port & 0xFFFF, 1, value & 0xFF)


@callback(void(i64, i64, i64, i64))
def out_word(env: int, port: int, value: int, back: int) -> None:
    """OUT, 16 bits."""
    control = control_of(env)
    _enter_port(control, env, port & 0xFFFF, FN_CHECK_IO2, back)
    call3(load64(control + PY_PORT_OUT), port & 0xFFFF, 2, value & 0xFFFF)


@callback(void(i64, i64, i64, i64))
def out_long(env: int, port: int, value: int, back: int) -> None:
    """OUT, 32 bits."""
    control = control_of(env)
    _enter_port(control, env, port & 0xFFFF, FN_CHECK_IO4, back)
    call3(load64(control + PY_PORT_OUT), port & 0xFFFF, 4, value & _LOW32)


# Memory-mapped registers: one engine region a hole; ``control`` and the hole's base are user data


@native
def _mmio_address(region: int, offset: int) -> int:
    return load64(region + 8) + offset


@callback(i64(i64, i64, u32, i64))
def mmio_read(uc: int, offset: int, size: int, region: int) -> int:
    """Read from a hole in RAM; ``region`` points to (control, base address)."""
    control = load64(region)
    count(control, N_MMIO)
    charge_ns(control, load64(control + COST_ACCESS))
    return call3(load64(control + PY_MMIO_READ), _mmio_address(region, offset), i64(size), 0)


@callback(void(i64, i64, u32, i64, i64))
def mmio_write(uc: int, offset: int, size: int, value: int, region: int) -> None:
    """Write to a hole in RAM."""
    control = load64(region)
    count(control, N_MMIO)
    charge_ns(control, load64(control + COST_ACCESS))
    if size < 8:
        value &= (1 << (8 * i64(size))) - 1
    address = _mmio_address(region, offset)
    if address == EOI_ADDRESS and size == 4 and end_of_interrupt(control):
        return
    call3(load64(control + PY_MMIO_WRITE), address, i64(size), value)


# Time


@native
def _read_tsc(env: int, back: int) -> int:
    control = control_of(env)
    count(control, N_TSC)
    if load64(env + _CR4) & _CR4_TSD and load32(env + _HFLAGS) & _CPL:
        general_protection(control, env, back)
    charge_ns(control, load64(control + COST_TSC))
    tsc = time_stamp(control, env)
    store64(env + _RAX, tsc & _LOW32)
    store64(env + _RDX, (tsc >> 32) & _LOW32)
    return control


@callback(void(i64, i64))
def rdtsc(env: int, back: int) -> None:
    """RDTSC: EDX:EAX."""
    _read_tsc(env, back)


@callback(void(i64, i64))
def rdtscp(env: int, back: int) -> None:
    """RDTSCP: EDX:EAX and IA32_TSC_AUX in ECX."""
    _read_tsc(env, back)
    store64(env + _RCX, load64(env + _TSC_AUX) & _LOW32)


@callback(void(i64, i64, i64))
def pause(env: int, length: int, back: int) -> None:
    """PAUSE: charge a wait and go on with the next instruction in a new block."""
    control = control_of(env)
    charge_ns(control, load64(control + COST_PAUSE))
    store64(env + _EIP, load64(env + _EIP) + (length & _LOW32))
    call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))  # the engine expects no return


# Identification


@callback(void(i64, i64))
def cpuid(env: int, back: int) -> None:
    """CPUID: the row for (EAX, ECX), or zeros.

    The APIC bit follows IA32_APIC_BASE: a processor whose local APIC is switched off says that it has
    none (SDM vol. 3 11.4.3; AMD APM vol. 3 repeats the bit in leaf 80000001H).
    """
    control = control_of(env)
    count(control, N_CPUID)
    leaf = load64(env + _RAX) & _LOW32
    subleaf = load64(env + _RCX) & _LOW32
    eax, ebx, ecx, edx = i64(0), i64(0), i64(0), i64(0)
    row = load64(control + CPUID_ROWS)
    for _ in range(load64(control + CPUID_COUNT)):
        wanted = load64(row + 8)
        if load64(row) == leaf and (wanted == CPUID_ANY_SUBLEAF or wanted == subleaf):
            eax, ebx, ecx, edx = load64(row + 16), load64(row + 24), load64(row + 32), load64(row + 40)
            break
        row += 8 * CPUID_ROW_WORDS
    if leaf == 1 or leaf == _EXTENDED_FEATURES:
        enabled = call3(load64(control + PY_MSR_READ), _IA32_APIC_BASE, 0, 0) & _APIC_ENABLED
        edx &= ~(0 if enabled else _CPUID_APIC)
    store64(env + _RAX, eax)
    store64(env + _RBX, ebx)
    store64(env + _RCX, ecx)
    store64(env + _RDX, edx)


# Control registers


@native
def _write_cr0(control: int, env: int, value: int, back: int) -> None:
    """SDM vol. 2 MOV to control register, vol. 3 2.5 and 9.8.5."""
    old = load64(env + _CR0)
    paging = value & _CR0_PG != 0
    bad = value >> 32 != 0
    bad |= paging and not value & _CR0_PE
    bad |= value & _CR0_NW != 0 and not value & _CR0_CD
    if paging and not old & _CR0_PG and load64(env + _EFER) & _EFER_LME:
        bad |= not load64(env + _CR4) & _CR4_PAE
    if not paging and old & _CR0_PG:
        bad |= load32(env + _HFLAGS) & _CS64 != 0
    if bad:
        general_protection(control, env, back)
    call2(load64(control + FN_UPDATE_CR0), env, value)


@native
def _write_cr3(control: int, env: int, value: int, back: int) -> None:
    if load64(env + _EFER) & _EFER_LMA and (value >> PHYSICAL_BITS) != 0:
        general_protection(control, env, back)
    call2(load64(control + FN_UPDATE_CR3), env, value)


@native
def _write_cr4(control: int, env: int, value: int, back: int) -> None:
    leaves_pae = load64(env + _EFER) & _EFER_LMA != 0 and not value & _CR4_PAE
    if value & ~_CR4_VALID or leaves_pae:
        general_protection(control, env, back)
    call2(load64(control + FN_UPDATE_CR4), env, value)


@callback(void(i64, i64, i64, i64))
def write_control_register(env: int, number: int, value: int, back: int) -> None:
    """MOV to CR0, CR3, CR4, CR8 (CR2 is a plain store in generated code or here)."""
    control = control_of(env)
    number &= 0xF
    if number == 0:
        _write_cr0(control, env, value, back)
    elif number == 3:
        _write_cr3(control, env, value, back)
    elif number == 4:
        _write_cr4(control, env, value, back)
    elif number == 8:
        if value & ~0xF:
            general_protection(control, env, back)
        call3(load64(control + PY_TPR), 1, value, 0)
    else:
        store64(env + _CR0 + 8 * number, value)


@callback(i64(i64, i64, i64))
def read_control_register(env: int, number: int, back: int) -> int:
    """MOV from CRn."""
    number &= 0xF
    if number == 8:
        return call3(load64(control_of(env) + PY_TPR), 0, 0, 0)
    return load64(env + _CR0 + 8 * number)


# Software interrupts


@callback(void(i64, i64, i64, i64))
def software_interrupt(env: int, number: int, length: int, back: int) -> None:
    """INT n and INT3.  rip and flags are exact here; after UC_HOOK_INTR's detour rip would be past it."""
    control = control_of(env)
    count(control, N_EXCEPTIONS)
    store32(load64(control + CPU) + layout.CPU_EXCEPTION_INDEX, number)
    store32(env + layout.ERROR_CODE, 0)
    store32(env + layout.EXCEPTION_IS_INT, 1)
    store64(env + layout.EXCEPTION_NEXT_EIP, load64(env + _EIP) + (length & _LOW32))
    call1(load64(control + FN_DO_INTERRUPT), load64(control + CPU))
    call1(load64(control + FN_LOOP_EXIT), load64(control + CPU))  # longjmp: does not return


# Flags


@callback(void(i64, i64))
def settle_flags(env: int, back: int) -> None:
    """Before CMPXCHG8B and CMPXCHG16B, which keep all flags but ZF.

    Their helpers take the flags from how env says that they are to be computed, which generated code has
    not brought up to date: what they kept was wrong, and different in a block that began elsewhere.
    """
    restore_state(control_of(env), back)


# The engine's one look at the host's clock (vmm.cpu.detour)


@callback(i64(i64, i64, i64))
def guest_time(timeval: int, zone: int, threads: int) -> int:
    """gettimeofday(2) in virtual time.

    ``threads`` points to: the address of pthread_self, a count, and that many pairs of (thread,
    control block of the machine that it runs).  A thread that runs no machine is at the epoch.
    """
    me = call1(load64(threads), 0)
    time = i64(0)
    for index in range(load64(threads + 8)):
        pair = threads + 16 + 16 * index
        if load64(pair) == me:
            time = now(load64(pair + 8))
    store64(timeval, time // 1_000_000_000)
    store64(timeval + 8, time % 1_000_000_000 // 1000)
    return 0
