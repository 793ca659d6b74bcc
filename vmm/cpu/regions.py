"""Which memory region an address belongs to: RAM answered at once.

The engine asks this on every access that leaves its fast path, through a pointer in its uc_struct,
and searches its flat view each time.  Nearly every answer is the first piece of RAM.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import (
    FN_FIND_REGION,
    LOW_END,
    LOW_REGION,
    SCRATCH_CONTROL,
)
from vmm.cpu.native import call2, callback, i64, load64


@callback(i64(i64, i64))
def find_region(uc: int, address: int) -> int:
    """uc_struct.memory_mapping: the MemoryRegion at a physical address, or 0."""
    control = load64(load64(uc + layout.UC_CPU) + SCRATCH_CONTROL)
    if 0 <= address < load64(control + LOW_END):
        return load64(control + LOW_REGION)
    return call2(load64(control + FN_FIND_REGION), uc, address)
