"""Emptying the TLB: what was filled, instead of all that there is.

The engine overwrites its whole tables with every load of CR3.  After a guest has once used much memory
they are 100 KiB and more, and stay so for as long as it is busy, while a process that is switched to fills
some dozens of entries: overwriting costs more than they do, and drives everything else out of the
processor's cache.  So the places that :mod:`vmm.cpu.tlb_fill` fills are noted, and :func:`flush_tlbs`, in
place of the engine's ``tlb_flush_by_mmuidx``, overwrites those.

The result is the same, to the last byte of the tables.  The engine also resizes them, by how full they
were and by virtual time (:func:`vmm.cpu.instructions.guest_time`).  Whenever it would do that, or begin
another period of looking at how full they are, it is asked to flush in its own way; and when too many
places were filled to be noted.  Its counts of flushes, which nobody reads, are not kept.

An entry is only ever filled by CPUClass.tlb_fill; a victim that is hit goes back to the place that it came
from.  A note that is not needed (the engine flushes single pages by itself) costs a store and no more.
Places are noted for one size of the table.  When that has changed, the engine has emptied it.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.constants import TLB_NOTES_MAX, TLB_NOTES_SIZE
from vmm.cpu.control import FN_MEMSET, FN_TLB_FLUSH, SCRATCH_CONTROL, TLB_NOTES
from vmm.cpu.jump_cache import forget_rows
from vmm.cpu.native import call2, call3, callback, i64, load16, load64, native, store16, store64, void
from vmm.cpu.ticks import now

_MODES = layout.CPU_TLB_MODES
_DESCRIPTORS, _DESCRIPTOR_SIZE = layout.CPU_TLB_DESCRIPTORS, layout.TLB_DESCRIPTOR_SIZE
_FAST, _ENTRY_SIZE = layout.CPU_TLB_FAST, layout.TLB_ENTRY_SIZE
_DIRTY = layout.CPU_TLB_DIRTY
_COUNT, _PLACES = 8, 16
"""Of a mode's notes, which begin with the table's size as the engine keeps it."""
_FULL_PERCENT = 70
_PERIOD_NS = 100_000_000
"""The engine's own limits for a larger table, and for how long it looks before it makes a smaller one."""
_US = 1000


@native
def _notes(control: int, mode: int) -> int:
    return load64(control + TLB_NOTES) + TLB_NOTES_SIZE * mode


@native
def note_filled(control: int, cpu: int, mode: int, index: int) -> None:
    """The entry with this index was filled."""
    notes = _notes(control, mode)
    size = load64(cpu + _FAST + 16 * mode)
    count = load64(notes + _COUNT)
    if load64(notes) != size:
        store64(notes, size)
        count = 0
    if count < TLB_NOTES_MAX:
        store64(notes + _PLACES + 8 * count, index)
    store64(notes + _COUNT, count + 1)


@native
def _is_plain(control: int, cpu: int, mode: int, time: int) -> bool:
    """Can this TLB stay as large as it is, and be emptied by the notes?"""
    descriptor = cpu + _DESCRIPTORS + _DESCRIPTOR_SIZE * mode
    most = max(load64(descriptor + layout.TLB_USED), load64(descriptor + layout.TLB_WINDOW_MAX))
    entries = (load64(cpu + _FAST + 16 * mode) >> layout.TLB_ENTRY_BITS) + 1
    if not 0 <= most * 100 // entries <= _FULL_PERCENT:
        return False
    if time > load64(descriptor + layout.TLB_WINDOW_BEGIN) + _PERIOD_NS:
        return False
    return load64(_notes(control, mode) + _COUNT) <= TLB_NOTES_MAX


@native
def _fill_with_ones(address: int, size: int) -> None:
    for word in range(0, size, 8):
        store64(address + word, -1)


@native
def _empty(control: int, cpu: int, mode: int) -> None:
    """As after the engine's flush of a TLB whose size stays."""
    descriptor, fast = cpu + _DESCRIPTORS + _DESCRIPTOR_SIZE * mode, cpu + _FAST + 16 * mode
    notes, table = _notes(control, mode), load64(fast + 8)
    if load64(notes) == load64(fast):
        for number in range(load64(notes + _COUNT)):
            entry = table + _ENTRY_SIZE * load64(notes + _PLACES + 8 * number)
            for word in range(0, _ENTRY_SIZE, 8):
                store64(entry + word, -1)
    if load64(descriptor + layout.TLB_VICTIM_INDEX) != 0:
        _fill_with_ones(descriptor + layout.TLB_VICTIMS, layout.TLB_VICTIM_COUNT * _ENTRY_SIZE)
    used = load64(descriptor + layout.TLB_USED)
    if used > load64(descriptor + layout.TLB_WINDOW_MAX):
        store64(descriptor + layout.TLB_WINDOW_MAX, used)
    store64(descriptor + layout.TLB_USED, 0)
    store64(descriptor + layout.TLB_LARGE_ADDRESS, -1)
    store64(descriptor + layout.TLB_LARGE_MASK, -1)
    store64(descriptor + layout.TLB_VICTIM_INDEX, 0)


@callback(void(i64, i64))
def flush_tlbs(cpu: int, modes: int) -> None:
    """tlb_flush_by_mmuidx: forget the translations of some modes, and where blocks are by linear address."""
    control = load64(cpu + SCRATCH_CONTROL)
    if control == 0:
        return  # the engine is being made, and has filled nothing
    asked = load16(cpu + _DIRTY) & modes & 0xFFFF
    time = now(control) // _US * _US
    plain = True
    for mode in range(_MODES):
        if asked >> mode & 1:
            plain = plain and _is_plain(control, cpu, mode, time)
    if plain:
        for mode in range(_MODES):
            if asked >> mode & 1:
                _empty(control, cpu, mode)
        store16(cpu + _DIRTY, load16(cpu + _DIRTY) & ~asked)
        call3(load64(control + FN_MEMSET), cpu + layout.CPU_TB_JMP_CACHE, 0, layout.TB_JMP_CACHE_SIZE)
    else:
        call2(load64(control + FN_TLB_FLUSH), cpu, modes & 0xFFFF)
    for mode in range(_MODES):
        if asked >> mode & 1:
            store64(_notes(control, mode) + _COUNT, 0)
    forget_rows(control, cpu)
