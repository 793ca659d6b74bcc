"""The model-specific registers that exist (SDM vol. 4; AMD APM vol. 2 appendix A).

A register that the table does not name raises #GP, as on hardware; the engine's own RDMSR reads
unknown registers as zero and its WRMSR drops what it does not know.

Kinds of row:

=============  ==================================================================================
PLAIN          a field of env; ``mask`` has the bits that may be written, others raise #GP
CANONICAL      a field of env that holds an address: a non-canonical value raises #GP
IGNORED        reads ``mask``; writes are accepted and dropped (as QEMU and hypervisors do)
TSC            IA32_TIME_STAMP_COUNTER: virtual time plus an offset that a write sets
EXTENDED       IA32_EFER: LMA is read-only, LME may not change while paging is on
BOARD          belongs to a chip (the local APIC): Python answers
=============  ==================================================================================
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmm.cpu import layout

PLAIN, CANONICAL, IGNORED, TSC, EXTENDED, BOARD = range(6)

_ALL = -1
_FS_BASE, _GS_BASE = layout.FS + layout.SEGMENT_BASE, layout.GS + layout.SEGMENT_BASE
_PAT_BITS = 0x0707070707070707
_EFER_SCE, _EFER_LME, _EFER_LMA, _EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

IA32_TSC = 0x10
IA32_APIC_BASE = 0x1B
IA32_TSC_DEADLINE = 0x6E0

PERFORMANCE_COUNTERS = 4
"""AMD processors have these without a feature bit (APM vol. 2 13.2.1).  They exist and count nothing:
a guest that tests them, as Linux does, finds that a write does not stay and goes without."""

ROWS: tuple[tuple[int, int, int, int, str], ...] = (
    # register, kind, env offset, mask or value, name
    (0xC0000101, CANONICAL, _GS_BASE, _ALL, "IA32_GS_BASE"),
    (0xC0000102, CANONICAL, layout.KERNEL_GS_BASE, _ALL, "IA32_KERNEL_GS_BASE"),
    (0xC0000100, CANONICAL, _FS_BASE, _ALL, "IA32_FS_BASE"),
    (IA32_TSC_DEADLINE, BOARD, 0, 0, "IA32_TSC_DEADLINE"),
    (0xC0000080, EXTENDED, layout.EFER, _EFER_SCE | _EFER_LME | _EFER_LMA | _EFER_NXE, "IA32_EFER"),
    (IA32_TSC, TSC, layout.TSC_OFFSET, 0, "IA32_TIME_STAMP_COUNTER"),
    (IA32_APIC_BASE, BOARD, 0, 0, "IA32_APIC_BASE"),
    (0xC0000081, PLAIN, layout.STAR, _ALL, "IA32_STAR"),
    (0xC0000082, CANONICAL, layout.LSTAR, _ALL, "IA32_LSTAR"),
    (0xC0000083, CANONICAL, layout.CSTAR, _ALL, "IA32_CSTAR"),
    (0xC0000084, PLAIN, layout.FMASK, 0xFFFFFFFF, "IA32_FMASK"),
    (0xC0000103, PLAIN, layout.TSC_AUX, 0xFFFFFFFF, "IA32_TSC_AUX"),
    (0x174, PLAIN, layout.SYSENTER_CS, 0xFFFFFFFF, "IA32_SYSENTER_CS"),
    (0x175, CANONICAL, layout.SYSENTER_ESP, _ALL, "IA32_SYSENTER_ESP"),
    (0x176, CANONICAL, layout.SYSENTER_EIP, _ALL, "IA32_SYSENTER_EIP"),
    (0x277, PLAIN, layout.PAT, _PAT_BITS, "IA32_PAT"),
    (0x1A0, PLAIN, layout.MISC_ENABLE, _ALL, "IA32_MISC_ENABLE"),
    (0x8B, IGNORED, 0, 0, "IA32_BIOS_SIGN_ID"),
    (0x79, IGNORED, 0, 0, "IA32_BIOS_UPDT_TRIG"),
    (0x17, IGNORED, 0, 0, "IA32_PLATFORM_ID"),
    (0x179, IGNORED, 0, 0, "IA32_MCG_CAP"),  # no error-reporting banks
    (0x17A, IGNORED, 0, 0, "IA32_MCG_STATUS"),
    (0x1D9, IGNORED, 0, 0, "IA32_DEBUGCTL"),
    (0xC0010015, IGNORED, 0, 1 << 24, "HWCR (TscFreqSel)"),
    (0xC001001F, IGNORED, 0, 0, "NB_CFG"),
    (0xC0010055, IGNORED, 0, 0, "INT_PENDING_MSG"),
    *((0xC0010000 + n, IGNORED, 0, 0, f"PERF_CTL{n}") for n in range(PERFORMANCE_COUNTERS)),
    *((0xC0010004 + n, IGNORED, 0, 0, f"PERF_CTR{n}") for n in range(PERFORMANCE_COUNTERS)),
)
ROW_WORDS = 4


def table() -> npt.NDArray[np.int64]:
    """ROWS as the native code wants them."""
    return np.array([row[:ROW_WORDS] for row in ROWS], dtype=np.int64)
