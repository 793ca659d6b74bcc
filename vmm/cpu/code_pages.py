"""Which pages hold translated code, and the write protection that keeps it true.

A store to a page must reach the engine's invalidation as long as code translated from that page
exists, whatever virtual address the store uses.  The engine's TLB marks such entries NOTDIRTY, but
this engine marks them by virtual address only and clears the mark of entries that cannot be
executed after their first store.  A guest that writes code through another mapping than the one it
executes (every kernel that fills a page through its linear map) would go on executing the old code.
It also scans the whole TLB for every block that it translates, and sends every store to an
executable page down the slow path for ever.

These functions replace five of the engine's (:mod:`vmm.cpu.detour`) by what QEMU does, with one byte
a page that says "code was translated from here":

* the first block of a page sets the byte and marks every TLB entry of that *physical* page;
* when the last one goes the byte is cleared;
* an entry of a page without code is ordinary from the moment it is filled, executable or not
  (:mod:`vmm.cpu.tlb_fill`).

Offsets are into the RAM mapping (:mod:`vmm.ram`), which is what the engine calls a RAM address.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import (
    CODE_PAGES,
    CODE_PAGES_COUNT,
    FN_INVALIDATE,
    SCRATCH_CONTROL,
)
from vmm.cpu.native import call5, callback, i64, load8, load64, native, store8, store64, void

_MODES = layout.CPU_TLB_MODES
_DESCRIPTORS, _DESCRIPTOR_SIZE = layout.CPU_TLB_DESCRIPTORS, layout.TLB_DESCRIPTOR_SIZE
_FAST = layout.CPU_TLB_FAST
_VICTIMS, _VICTIM_IO, _IO = layout.TLB_VICTIMS, layout.TLB_VICTIM_IO, layout.TLB_IO
_ENTRY_SIZE, _IO_SIZE, _VICTIM_COUNT = layout.TLB_ENTRY_SIZE, layout.TLB_IO_SIZE, layout.TLB_VICTIM_COUNT
_ENTRY_BITS = layout.TLB_ENTRY_BITS
_ADDR_WRITE = layout.TLB_ADDR_WRITE
_PAGE = -4096
_NOTDIRTY = 0x400
_NOT_RAM = 0x800 | 0x200 | 0x40
"""Invalid, memory-mapped, or writes are discarded."""


@native
def _mark_if(entry: int, io: int, page: int) -> None:
    write = load64(entry + _ADDR_WRITE)
    if write & (_NOT_RAM | _NOTDIRTY) == 0 and (write & _PAGE) + load64(io) == page:
        store64(entry + _ADDR_WRITE, write | _NOTDIRTY)


@native
def _unmark_if(entry: int, io: int, page: int) -> None:
    write = load64(entry + _ADDR_WRITE)
    if write & (_NOT_RAM | _NOTDIRTY) == _NOTDIRTY and (write & _PAGE) + load64(io) == page:
        store64(entry + _ADDR_WRITE, write & ~_NOTDIRTY)


@native
def _entries(cpu: int, mode: int) -> int:
    return (load64(cpu + _FAST + 16 * mode) >> _ENTRY_BITS) + 1


@native
def _mark(cpu: int, page: int) -> None:
    """Every TLB entry of ``page`` gets NOTDIRTY."""
    for mode in range(_MODES):
        table = load64(cpu + _FAST + 16 * mode + 8)
        descriptor = cpu + _DESCRIPTORS + _DESCRIPTOR_SIZE * mode
        io = load64(descriptor + _IO)
        for index in range(_entries(cpu, mode)):
            _mark_if(table + _ENTRY_SIZE * index, io + _IO_SIZE * index, page)
        for index in range(_VICTIM_COUNT):
            victim = descriptor + _VICTIMS + _ENTRY_SIZE * index
            _mark_if(victim, descriptor + _VICTIM_IO + _IO_SIZE * index, page)


@native
def _unmark(cpu: int, page: int) -> None:
    """Every TLB entry of ``page`` loses NOTDIRTY."""
    for mode in range(_MODES):
        table = load64(cpu + _FAST + 16 * mode + 8)
        io = load64(cpu + _DESCRIPTORS + _DESCRIPTOR_SIZE * mode + _IO)
        for index in range(_entries(cpu, mode)):
            _unmark_if(table + _ENTRY_SIZE * index, io + _IO_SIZE * index, page)


@native
def _control_of_cpu(cpu: int) -> int:
    return load64(cpu + SCRATCH_CONTROL)


@native
def has_code(control: int, page: int) -> bool:
    """Was code translated from this page?  Yes for what is not RAM."""
    index = page >> 12
    return index >= load64(control + CODE_PAGES_COUNT) or load8(load64(control + CODE_PAGES) + index) != 0


@native
def _set_code(control: int, page: int, value: int) -> None:
    index = page >> 12
    if index < load64(control + CODE_PAGES_COUNT):
        store8(load64(control + CODE_PAGES) + index, value)


@callback(void(i64, i64))
def protect_code(uc: int, address: int) -> None:
    """tlb_protect_code: the first block was translated from this page."""
    cpu = load64(uc + layout.UC_CPU)
    control = _control_of_cpu(cpu)
    _set_code(control, address, i64(1))
    _mark(cpu, address & _PAGE)


@callback(void(i64, i64))
def unprotect_code(uc: int, address: int) -> None:
    """tlb_unprotect_code: no block of this page is left."""
    _set_code(_control_of_cpu(load64(uc + layout.UC_CPU)), address, i64(0))


@callback(void(i64, i64, i64))
def reset_dirty_by_address(cpu: int, start: int, size: int) -> None:
    """tlb_reset_dirty_by_vaddr, called for every block: protect_code did it for the page."""
    return


@callback(void(i64, i64))
def set_dirty(cpu: int, address: int) -> None:
    """tlb_set_dirty, after a store to a NOTDIRTY entry: what is NOTDIRTY here has code and stays so."""
    return


@callback(void(i64, i64, i64, i64, i64))
def written_page(uc: int, pages: int, address: int, size: int, back: int) -> None:
    """tb_invalidate_phys_page_fast: a store to a NOTDIRTY page.

    The engine invalidates what the store touches; when that was the last code of the page, the page
    needs no watching any more.
    """
    cpu = load64(uc + layout.UC_CPU)
    control = _control_of_cpu(cpu)
    page = address & _PAGE
    call5(load64(control + FN_INVALIDATE), uc, pages, address, size & 0xFFFFFFFF, back)
    if not has_code(control, page):
        _unmark(cpu, page)
