"""The processor as a loader leaves it (:mod:`vmm.boot.entry`), in the words of its declared state."""

from __future__ import annotations

from vmm.boot.entry import Entry
from vmm.cpu import registers
from vmm.cpu.registers import CpuState, SegmentState


def state_of(entry: Entry, now_ns: int) -> CpuState:
    state = CpuState(now_ns=now_ns, rip=entry.ip, rflags=entry.rflags, efer=entry.efer)
    for index, name in enumerate(registers.GENERAL):
        state.general[index] = entry.registers.get(name, 0)
    for index, name in enumerate(registers.SEGMENT_NAMES):
        state.segments[index] = _segment(entry, name)
    state.ldt, state.tr = _segment(entry, "ldt"), _segment(entry, "tr")
    state.gdt = SegmentState(base=entry.gdt[0], limit=entry.gdt[1])
    state.idt = SegmentState(base=entry.idt[0], limit=entry.idt[1])
    state.control[0], state.control[3], state.control[4] = entry.cr0, entry.cr3, entry.cr4
    return state


def _segment(entry: Entry, name: str) -> SegmentState:
    loaded = entry.segments[name]
    return SegmentState(loaded.selector, loaded.base, loaded.limit, loaded.flags)
