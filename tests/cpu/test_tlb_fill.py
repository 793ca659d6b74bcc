"""TLBs are filled and emptied as the engine does it, to the last victim and accessed bit (selfcheck_tlb)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu.machine import DATA, PRESENT, TABLES, WRITABLE, Machine, long, page64
from vmm.cpu import layout, selfcheck, selfcheck_tlb
from vmm.cpu.control import ControlBlock
from vmm.cpu.engine import DEFAULT_COSTS, Engine
from vmm.cpu.selfcheck_tlb import CR0_PAGING, CR0_WP, CR4_PAE, CR4_SMEP, Access
from vmm.errors import EngineError
from vmm.ram import Ram

ACCESSED, DIRTY = 1 << 5, 1 << 6
PAGES = 3 * 512
"""Linear pages of selfcheck_tlb's tables that are worth asking for."""


def open_engine() -> Iterator[Engine]:
    ram = Ram(1)
    engine = Engine(ram, DEFAULT_COSTS, patching=True)
    yield engine
    engine.close()
    del ram


spare = pytest.fixture(open_engine)
shared = pytest.fixture(open_engine, scope="module")

pages = st.one_of(
    st.integers(0, PAGES << 12),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([page << 12 for page in range(0, PAGES, 64)]),  # in the same place of a TLB
)
accesses = st.lists(st.tuples(pages, st.integers(0, 2), st.integers(0, 2)), max_size=300)


@settings(max_examples=60)
@given(accesses, st.integers(0, 63), st.booleans(), st.booleans(), st.integers(1, 200))
def test_it_is_what_the_engine_does(
    shared: Engine, asked: list[Access], offset: int, wp: bool, smep: bool, every: int
) -> None:
    cr0 = CR0_PAGING | CR0_WP * wp
    cr4 = CR4_PAE | CR4_SMEP * smep
    theirs, ours = selfcheck_tlb.compare(shared, selfcheck_tlb.tables(offset), asked, cr0, cr4, every)
    assert theirs == ours


@pytest.mark.parametrize(("every", "grows"), [(60, False), (400, True), (4000, True)])
def test_flushes_that_resize_and_more_places_than_are_noted(shared: Engine, every: int, grows: bool) -> None:
    """The engine is asked when a TLB is to become larger, and when not all that was filled is known."""
    block = shared.block
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint16)
    own, flushes = kind(block["FN_TLB_FLUSH"]), []

    def flush(cpu: int, modes: int) -> None:
        flushes.append(modes)
        own(cpu, modes)

    counting = kind(flush)
    before, block["FN_TLB_FLUSH"] = block["FN_TLB_FLUSH"], ctypes.cast(counting, ctypes.c_void_p).value or 0
    asked = [(n * 397 % PAGES << 12, n % 7 % 3, n % 11 % 3) for n in range(12_000)]
    mode = (CR0_PAGING | CR0_WP, CR4_PAE | CR4_SMEP)
    theirs, ours = selfcheck_tlb.compare(shared, selfcheck_tlb.tables(0), asked, *mode, every)
    block["FN_TLB_FLUSH"] = before
    assert theirs == ours
    by_itself, at_the_start = len(asked) // every, 2
    assert (len(flushes) > by_itself + at_the_start) is grows


def watch_calls(block: ControlBlock) -> tuple[list[tuple[int, ...]], object]:
    """How the engine's own function is called from now on, while the second value is kept."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 7)
    own = kind(block["FN_TLB_FILL"])
    calls: list[tuple[int, ...]] = []

    def fill(*arguments: int) -> int:
        calls.append(arguments)
        return int(own(*arguments))

    counting = kind(fill)
    block["FN_TLB_FILL"] = ctypes.cast(counting, ctypes.c_void_p).value or 0
    return calls, counting


def open_pages(machine: Machine, flags: int) -> None:
    """Every entry on the way to DATA has been used, and that of the page has these flags."""
    for level in range(3):
        entry = machine.word(TABLES + 0x1000 * level)
        machine.poke(TABLES + 0x1000 * level, entry | ACCESSED)
    for page in range(0x100):
        page64(machine, page << 12, page << 12 | PRESENT | WRITABLE | ACCESSED | DIRTY)
    page64(machine, DATA, DATA | flags)


RELOADING = f"""
        mov ecx, {{rounds}}
        mov esi, {DATA:#x}
        mov rdi, cr3
    again:
        mov cr3, rdi
        {{access}}
        dec ecx
        jnz again
        hlt
"""


@pytest.mark.parametrize("access", ["add rax, [rsi]", "mov [rsi], ecx"])
def test_pages_in_use_are_not_the_engines_business(new: Callable[..., Machine], access: str) -> None:
    calls = []
    for rounds in (10, 200):
        machine = new()
        long(machine, RELOADING.format(rounds=rounds, access=access))
        open_pages(machine, PRESENT | WRITABLE | ACCESSED | DIRTY)
        called, kept = watch_calls(machine.cpu.block)
        machine.finish()
        del kept
        calls.append(len(called))
    assert calls[0] == calls[1]


def test_a_store_marks_the_page_dirty(machine: Machine) -> None:
    """A load first fills an entry that may not be written, so that the store is seen."""
    long(machine, RELOADING.format(rounds=3, access="add rax, [rsi]\n mov [rsi], ecx"))
    open_pages(machine, PRESENT | WRITABLE)
    machine.finish()
    assert machine.word(TABLES + 0x3000 + 8 * (DATA >> 12)) == DATA | PRESENT | WRITABLE | ACCESSED | DIRTY


def test_a_filling_that_differs_is_refused(spare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 7)
    ours = kind(spare.callbacks["fill"])

    def wrong(cpu: int, *arguments: int) -> int:
        used = cpu + layout.CPU_TLB_DESCRIPTORS + layout.TLB_USED
        ctypes.c_int64.from_address(used).value += 1
        return int(ours(cpu, *arguments))

    filling = kind(wrong)
    monkeypatch.setitem(spare.callbacks, "fill", ctypes.cast(filling, ctypes.c_void_p).value)
    with pytest.raises(EngineError, match=r"tlbs differ .*pip install unicorn=="):
        selfcheck.verify(spare)
