"""Looking into the engine's TLBs: one for each kind of access (QEMU's MMU modes), each a table by page."""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.native import load32, load64, native


@native
def present_mode(env: int) -> int:
    """Which TLB the processor uses now: 1 in ring 3; 0 in the kernel while it may not touch user pages; 2."""
    hidden = load32(env + layout.HFLAGS)
    if hidden & layout.HF_CPL == layout.HF_CPL:
        return 1
    if hidden & layout.HF_SMAP == 0 or load64(env + layout.EFLAGS) & layout.EFLAGS_AC != 0:
        return 2
    return 0


@native
def present_entry(env: int, address: int) -> int:
    """Where that TLB has what it knows of the page at a linear address, if anything."""
    fast = env - layout.ENV_FROM_CPU + layout.CPU_TLB_FAST + 16 * present_mode(env)
    index = address >> 12 & load64(fast) >> layout.TLB_ENTRY_BITS
    return load64(fast + 8) + layout.TLB_ENTRY_SIZE * index
