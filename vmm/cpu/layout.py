"""Where the engine keeps its state: offsets of the one engine build that we know.

The stock ``unicorn==2.1.4`` wheel for Linux x86-64 carries QEMU 5.0.1's CPU core.  Offsets are
those of its structures ``uc_struct``, ``CPUState``, ``TranslationBlock`` and ``CPUX86State``
(*env*); field names are theirs.  The build is recognised by its ELF build id, and
:mod:`vmm.cpu.selfcheck` verifies the offsets against the running engine by writing through the
public API and peeking, so that a wrong table is refused instead of believed.
"""

from __future__ import annotations

ENGINE_VERSION = "2.1.4"
BUILD_IDS = {"44285d3e80527122e9e361928189385906ec813e": "unicorn 2.1.4, manylinux x86_64 wheel"}

# uc_struct
UC_MEMORY_MAPPING = 288
"""Pointer to the function that finds the region of an address."""
UC_CPU = 440
UC_NO_EXIT_REQUEST = 2034
UC_INIT_DONE = 2035
UC_TCG_CONTEXT = 0x300

# TCGContext
TCG_EPILOGUE = 0x98
"""Pointer to the code that returns 0 to the engine's main loop."""
EPILOGUE_BEGINS = b"\x33\xc0"
"""xor eax, eax"""
TCG_CODE_END = 0xC0
"""``code_gen_ptr``: where the next block goes."""
TCG_FLUSHES = 0x98D0
"""How often all translated code was dropped."""
TCG_UC = 0x9970
"""Pointer to the uc_struct."""

# CPUState, which precedes env by ENV_FROM_CPU
ENV_FROM_CPU = 0x8A50
CPU_CFLAGS_NEXT = 24
"""cflags of the next block that the main loop looks up; NO_CFLAGS: as always."""
NO_CFLAGS = 0xFFFFFFFF
CPU_SCRATCH = 64
"""``jmp_env``: 200 bytes that this engine does not use; ours (see vmm.cpu.control)."""
CPU_SCRATCH_SIZE = 200
CPU_ENV_PTR = 296
CPU_TB_JMP_CACHE, TB_JMP_CACHE_SIZE = 312, 0x8000
CPU_HALTED = 33176
CPU_EXCEPTION_INDEX = 33184
CPU_CLASS = 33200
CLASS_TLB_FILL = 72
"""In CPUClass: pointer to the function that translates an address and fills a TLB entry."""

CPU_TLB_DIRTY = 33216
CPU_TLB_MODES = 3
CPU_TLB_DESCRIPTORS = 33248
TLB_DESCRIPTOR_SIZE = 696
TLB_LARGE_ADDRESS, TLB_LARGE_MASK = 0, 8
TLB_WINDOW_BEGIN, TLB_WINDOW_MAX, TLB_USED, TLB_VICTIM_INDEX = 16, 24, 32, 40
TLB_VICTIMS, TLB_VICTIM_IO, TLB_IO = 48, 560, 688
CPU_TLB_FAST = 35344
"""Per mode: (entries - 1) << TLB_ENTRY_BITS, and the table's address."""
TLB_ENTRY_BITS = 6
TLB_ENTRY_SIZE, TLB_IO_SIZE, TLB_VICTIM_COUNT = 64, 16, 8
TLB_ADDR_READ, TLB_ADDR_WRITE, TLB_ADDR_CODE, TLB_PHYSICAL, TLB_ADDEND = 0, 8, 16, 24, 32

# TranslationBlock
TB_PC, TB_CS_BASE, TB_FLAGS = 0, 8, 16
TB_SIZE = 20
TB_ICOUNT = 22
TB_CFLAGS = 24
TB_COUNT_MASK = 0x7FFF
"""cflags: longest block to make; 1 for one that steps over a store to its own code."""
TB_CODE = 32
TB_CODE_SIZE = 40
TB_PAGE, TB_SECOND_PAGE = 72, 80
"""RAM addresses of the pages that it was translated from; -1: no second one."""
TB_EXIT_UNLINKED, TB_EXIT_JUMP = 88, 96
"""Its two exits to other blocks, two bytes and eight bytes each, from the begin of its code: where the exit
goes on while it leads nowhere (NO_EXIT: there is none), and the operand of its jump."""
NO_EXIT = 0xFFFF
TB_INCOMING, TB_NEXT_INCOMING = 112, 120
"""The exits that jump to it, as a list: block | exit, and there eight bytes for each exit."""

# CPUX86State
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (8 * n for n in range(8))
R11 = 88
EIP = 128
EFLAGS = 136
DF = 172
"""The direction flag as a step, 1 or -1: 32 bits."""
HFLAGS = 176
HFLAGS2 = 180
SEGMENTS = 184
SEGMENT_SIZE = 24
SEGMENT_BASE, SEGMENT_LIMIT, SEGMENT_FLAGS = 8, 16, 20
ES, CS, SS, DS, FS, GS = (SEGMENTS + SEGMENT_SIZE * n for n in range(6))
LDT, TR, GDT, IDT = 328, 352, 376, 400
CR0 = 424
CR2, CR3, CR4 = CR0 + 16, CR0 + 24, CR0 + 32
A20_MASK = 496
EFER = 592
MXCSR = 816
XMM = 824
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 4800, 4808, 4816
STAR, LSTAR, CSTAR, FMASK = 4824, 4840, 4848, 4856
KERNEL_GS_BASE = 4864
TSC_AUX = 4896
MISC_ENABLE = 4920
PAT = 5280
ERROR_CODE, EXCEPTION_IS_INT, EXCEPTION_NEXT_EIP = 5384, 5388, 5392
DR = 5400
OLD_EXCEPTION = 5496
TSC_OFFSET = 5512
ENV_STATE_SIZE = 5568
"""Bytes of env that are machine state; what follows is configuration."""
CPUID_LEVEL, CPUID_VENDOR = 5604, 5616
FEATURES = 5632
"""Feature words, 8 bytes each: what the translator accepts."""
FEATURE_1_EDX, FEATURE_1_ECX, FEATURE_7_EBX, FEATURE_7_ECX = 0, 1, 2, 3
FEATURE_EXT_EDX, FEATURE_EXT_ECX = 6, 7

# hflags (hidden flags: what of the mode the translator depends on)
HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32, HF_SS32, HF_ADDSEG = 1 << 4, 1 << 5, 1 << 6
HF_LMA, HF_CS64 = 1 << 14, 1 << 15
HF_SMM, HF_SMAP = 1 << 19, 1 << 23
HF2_NMI_MASKED, HF2_NPT = 1 << 2, 1 << 6

EFLAGS_AC = 1 << 18
TB_FLAGS_FROM_EFLAGS = 0x73100
"""IOPL, TF, RF, VM, AC: the eflags bits that are part of a translation block's key."""
TB_CFLAGS_DEFAULT = 0xFF000000
"""curr_cflags() of a single CPU: cluster index -1, nothing else."""
