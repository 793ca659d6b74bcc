"""Filling the TLB: 4-level paging walked here when nothing but reading is needed.

A guest that switches between processes misses its TLB hundreds of times a switch, because the engine
forgets all of it with every load of CR3.  The engine reads each page table entry through its memory
API, which searches the memory map every time: more than the walk itself.  :func:`fill` reads them from
the RAM mapping and writes the same TLB entry as the engine would (QEMU's ``handle_mmu_fault`` and
``tlb_set_page_with_attrs``), with the same victims, counts and large-page bounds, so that everything a
guest can tell - when an accessed bit is set again, which store is slow - stays as it was.

Source: Intel SDM vol. 3 4.5 (4-level paging), 4.6 (access rights).

Whatever is more than that is left to the engine's own function: other paging modes, an accessed or
dirty bit to be set, a reserved bit, a right that is missing, tables or pages outside the first piece of
RAM, the 21st address line held low.  It decides before this has changed anything.

The engine marks every writable entry as watched for code (NOTDIRTY).  Here that mark is left on pages
with code only (:mod:`vmm.cpu.code_pages`).
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.code_pages import has_code
from vmm.cpu.control import FN_TLB_FILL, LOW_END, LOW_HOST, SCRATCH_CONTROL
from vmm.cpu.native import (
    call7,
    callback,
    i64,
    load16,
    load32,
    load64,
    native,
    store16,
    store32,
    store64,
)
from vmm.cpu.tlb_flush import note_filled

_DESCRIPTORS, _DESCRIPTOR_SIZE = layout.CPU_TLB_DESCRIPTORS, layout.TLB_DESCRIPTOR_SIZE
_FAST, _ENTRY_BITS = layout.CPU_TLB_FAST, layout.TLB_ENTRY_BITS
_ENTRY_SIZE, _IO_SIZE, _VICTIM_COUNT = layout.TLB_ENTRY_SIZE, layout.TLB_IO_SIZE, layout.TLB_VICTIM_COUNT
_READ, _WRITE, _CODE = layout.TLB_ADDR_READ, layout.TLB_ADDR_WRITE, layout.TLB_ADDR_CODE
_PHYSICAL, _ADDEND = layout.TLB_PHYSICAL, layout.TLB_ADDEND
_LARGE_ADDRESS, _LARGE_MASK = layout.TLB_LARGE_ADDRESS, layout.TLB_LARGE_MASK
_USED, _VICTIM_INDEX = layout.TLB_USED, layout.TLB_VICTIM_INDEX
_VICTIMS, _VICTIM_IO, _IO = layout.TLB_VICTIMS, layout.TLB_VICTIM_IO, layout.TLB_IO

_PAGE = -4096
_INVALID, _NOTDIRTY = 0x800, 0x400
_NOT_RAM = _INVALID | 0x200 | 0x40
"""Invalid, memory-mapped, or writes are discarded."""

_PRESENT, _WRITABLE, _USER = 1 << 0, 1 << 1, 1 << 2
_ACCESSED, _DIRTY, _LARGE = 1 << 5, 1 << 6, 1 << 7
_PAT_OF_LARGE = 1 << 12
_FRAME = 0x000F_FFFF_FFFF_F000
_CR0_PG, _CR0_WP = 1 << 31, 1 << 16
_CR4_PAE, _CR4_LA57, _CR4_SMEP, _CR4_PKE = 1 << 5, 1 << 12, 1 << 20, 1 << 22
_EFER_NXE = 1 << 11
_HF_LMA, _HF_SMM, _HF2_NPT = layout.HF_LMA, layout.HF_SMM, layout.HF2_NPT
_A20_ON = 0xFFFF_FFFF
_MODE_SMAP, _MODE_USER = 0, 1
"""TLBs of the kernel while it may not touch user pages, and of ring 3."""
_MAY_READ, _MAY_WRITE, _MAY_EXECUTE = 1, 2, 4
"""Rights; bit n is access n: load, store, fetch."""
_STORE = 1


# The walk


@native
def _is_four_level(env: int) -> bool:
    """Paging as this file knows it, and no further translation under it."""
    if load64(env + layout.CR0) & _CR0_PG == 0 or load32(env + layout.A20_MASK) != _A20_ON:
        return False
    if load64(env + layout.CR4) & (_CR4_PAE | _CR4_LA57 | _CR4_PKE) != _CR4_PAE:
        return False
    return (
        load32(env + layout.HFLAGS) & (_HF_LMA | _HF_SMM) == _HF_LMA
        and load32(env + layout.HFLAGS2) & _HF2_NPT == 0
    )


@native
def _rights(env: int, granted: int, forbidden: int, mode: int) -> int:
    """What may be done with a page: ``granted`` by every entry on the way, ``forbidden`` (XD) by one."""
    user_page = granted & _USER != 0
    if mode == _MODE_USER and not user_page:
        return 0
    rights = 0
    if mode != _MODE_SMAP or not user_page:
        rights |= _MAY_READ
        unprotected = mode != _MODE_USER and load64(env + layout.CR0) & _CR0_WP == 0
        if granted & _WRITABLE != 0 or unprotected:
            rights |= _MAY_WRITE
    kept_out = mode != _MODE_USER and user_page and load64(env + layout.CR4) & _CR4_SMEP != 0
    if forbidden >= 0 and not kept_out:  # bit 63 is XD
        rights |= _MAY_EXECUTE
    return rights


@native
def _walk(control: int, env: int, address: int, access: int, mode: int) -> tuple[int, int, int]:
    """(rights, physical page, page size); no rights: the engine must see to it."""
    host, end = load64(control + LOW_HOST), load64(control + LOW_END)
    table = load64(env + layout.CR3) & _FRAME
    granted, forbidden, shift = i64(-1), i64(0), 39
    if not -1 <= address >> 47 <= 0:
        return 0, 0, 0
    while True:
        if table >= end:
            return 0, 0, 0
        entry = load64(host + table + ((address >> shift & 0x1FF) << 3))
        if entry & (_PRESENT | _ACCESSED) != _PRESENT | _ACCESSED:
            return 0, 0, 0
        granted &= entry
        forbidden |= entry
        if shift == 12 or entry & _LARGE != 0:
            break
        table = entry & _FRAME
        shift -= 9
    size = i64(1) << shift
    reserved = entry & _FRAME & (size - 1) & ~_PAT_OF_LARGE
    page = (entry & _FRAME & -size) + (address & (size - 1)) & _PAGE
    if shift == 39 or reserved != 0 or page >= end:
        return 0, 0, 0
    if forbidden < 0 and load64(env + layout.EFER) & _EFER_NXE == 0:
        return 0, 0, 0
    rights = _rights(env, granted, forbidden, mode)
    if rights >> access & 1 == 0 or (access == _STORE and entry & _DIRTY == 0):
        return 0, 0, 0
    if entry & _DIRTY == 0:
        rights &= ~_MAY_WRITE  # until a store sets the bit
    return rights, page, size


# The entry


@native
def _is_for(entry: int, address: int) -> bool:
    """Does this TLB entry translate the page at ``address`` for any access?"""
    valid = _PAGE | _INVALID
    return (
        load64(entry + _READ) & valid == address
        or load64(entry + _WRITE) & valid == address
        or load64(entry + _CODE) & valid == address
    )


@native
def _add_large_page(descriptor: int, address: int, size: int) -> None:
    """Widen the bounds in which an invalidated page means that all of the TLB is forgotten."""
    first, mask = load64(descriptor + _LARGE_ADDRESS), -size
    if first == -1:
        first = address
    else:
        mask &= load64(descriptor + _LARGE_MASK)
        while (first ^ address) & mask != 0:
            mask <<= 1
    store64(descriptor + _LARGE_ADDRESS, first & mask)
    store64(descriptor + _LARGE_MASK, mask)


@native
def _count_used(descriptor: int, change: int) -> None:
    store64(descriptor + _USED, load64(descriptor + _USED) + change)


@native
def _forget_victim(descriptor: int, address: int) -> None:
    """No victim may translate the page that is about to be filled in."""
    if load64(descriptor + _VICTIM_INDEX) == 0:
        return  # none since the last flush, which emptied them
    for index in range(_VICTIM_COUNT):
        victim = descriptor + _VICTIMS + _ENTRY_SIZE * index
        if _is_for(victim, address):
            for word in range(0, _ENTRY_SIZE, 8):
                store64(victim + word, -1)
            _count_used(descriptor, i64(-1))


@native
def _evict(descriptor: int, entry: int, io: int) -> None:
    """What the entry held goes to the victims."""
    index = load64(descriptor + _VICTIM_INDEX)
    store64(descriptor + _VICTIM_INDEX, index + 1)
    index &= _VICTIM_COUNT - 1
    victim, victim_io = (
        descriptor + _VICTIMS + _ENTRY_SIZE * index,
        descriptor + _VICTIM_IO + _IO_SIZE * index,
    )
    for word in range(0, _ENTRY_SIZE, 8):
        store64(victim + word, load64(entry + word))
    for word in range(0, _IO_SIZE, 8):
        store64(victim_io + word, load64(io + word))
    _count_used(descriptor, i64(-1))


@native
def _set_entry(control: int, entry: int, address: int, page: int, rights: int) -> None:
    write = i64(-1)
    if rights & _MAY_WRITE != 0:
        write = address | _NOTDIRTY if has_code(control, page) else address
    store64(entry + _READ, address if rights & _MAY_READ != 0 else i64(-1))
    store64(entry + _WRITE, write)
    store64(entry + _CODE, address if rights & _MAY_EXECUTE != 0 else i64(-1))
    store64(entry + _PHYSICAL, page)
    store64(entry + _ADDEND, load64(control + LOW_HOST) + page - address)


@native
def _install(control: int, cpu: int, mode: int, address: int, rights: int, page: int, size: int) -> None:
    """Write the TLB entry; ``address`` is a page's."""
    descriptor = cpu + _DESCRIPTORS + _DESCRIPTOR_SIZE * mode
    fast = cpu + _FAST + 16 * mode
    index = address >> 12 & load64(fast) >> _ENTRY_BITS
    entry, io = load64(fast + 8) + _ENTRY_SIZE * index, load64(descriptor + _IO) + _IO_SIZE * index
    if size > -_PAGE:
        _add_large_page(descriptor, address, size)
    store16(cpu + layout.CPU_TLB_DIRTY, load16(cpu + layout.CPU_TLB_DIRTY) | 1 << mode)
    _forget_victim(descriptor, address)
    unused = load64(entry + _READ) & load64(entry + _WRITE) & load64(entry + _CODE) == -1
    if not unused and not _is_for(entry, address):
        _evict(descriptor, entry, io)
    store64(io, page - address)
    store32(io + 8, 0)  # attributes of the access
    _set_entry(control, entry, address, page, rights)
    _count_used(descriptor, i64(1))


# The engine's way


@native
def _unwatch(control: int, cpu: int, address: int, mode: int) -> None:
    """The engine filled an entry: it keeps NOTDIRTY only if its page has code."""
    fast = cpu + _FAST + 16 * mode
    index = address >> 12 & load64(fast) >> _ENTRY_BITS
    entry = load64(fast + 8) + _ENTRY_SIZE * index
    write = load64(entry + _WRITE)
    if write & (_NOT_RAM | _NOTDIRTY) == _NOTDIRTY:
        io = load64(cpu + _DESCRIPTORS + _DESCRIPTOR_SIZE * mode + _IO) + _IO_SIZE * index
        if not has_code(control, (write & _PAGE) + load64(io)):
            store64(entry + _WRITE, write & ~_NOTDIRTY)


@native
def _note(control: int, cpu: int, address: int, mode: int) -> None:
    index = address >> 12 & load64(cpu + _FAST + 16 * mode) >> _ENTRY_BITS
    note_filled(control, cpu, mode, index)


@callback(i64(i64, i64, i64, i64, i64, i64, i64))
def fill(cpu: int, address: int, size: int, access: int, mode: int, probe: int, back: int) -> int:
    """CPUClass.tlb_fill: translate and fill a TLB entry.

    Faults leave the engine's function by longjmp, as they always did.
    """
    control = load64(cpu + SCRATCH_CONTROL)
    env = cpu + layout.ENV_FROM_CPU
    if _is_four_level(env):
        rights, page, extent = _walk(control, env, address, access & 0xFF, mode & 0xFF)
        if rights != 0:
            _install(control, cpu, mode & 0xFF, address & _PAGE, rights, page, extent)
            _note(control, cpu, address, mode & 0xFF)
            return 1
    filled = call7(load64(control + FN_TLB_FILL), cpu, address, size, access, mode, probe, back)
    if filled & 0xFF != 0:
        _unwatch(control, cpu, address, mode & 0xFF)
        _note(control, cpu, address, mode & 0xFF)
    return filled
