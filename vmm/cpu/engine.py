"""One engine instance: opened, told what it may translate, wired to a control block and to memory."""

from __future__ import annotations

import ctypes
import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vmm.cpu import compile as native
from vmm.cpu import cpuid, detour, layout, library, msr_table
from vmm.cpu.constants import (
    BLOCK_ROW_SIZE,
    BLOCK_ROWS,
    FIRST_GENERATION,
    JUMP_LINE_SIZE,
    JUMP_LINES,
    JUMP_PAGES_SIZE,
    TLB_NOTES_SIZE,
)
from vmm.cpu.control import SCRATCH_GENERATION, SCRATCH_ROWS, ControlBlock
from vmm.errors import EngineError
from vmm.ram import HIGH_BASE, PAGE_SIZE, Ram

PHYSICAL_END = 1 << 40
"""MAXPHYADDR as CPUID gives it; everything below that is not RAM is a device or nothing."""
TCG_BUFFER = 256 << 20
POLL_EVENT_SIZE = 64

_FUNCTIONS = {
    "FN_DO_INTERRUPT": "x86_cpu_do_interrupt_x86_64",
    "FN_DO_HARDIRQ": "do_interrupt_x86_hardirq_x86_64",
    "FN_LOOP_EXIT": "cpu_loop_exit_noexc_x86_64",
    "FN_RAISE": "raise_exception_err_ra_x86_64",
    "FN_RESTORE_STATE": "cpu_restore_state_x86_64",
    "FN_READ_EFLAGS": "helper_read_eflags_x86_64",
    "FN_WRITE_EFLAGS": "helper_write_eflags_x86_64",
    "FN_CHECK_IO1": "helper_check_iob_x86_64",
    "FN_CHECK_IO2": "helper_check_iow_x86_64",
    "FN_CHECK_IO4": "helper_check_iol_x86_64",
    "FN_UPDATE_CR0": "cpu_x86_update_cr0_x86_64",
    "FN_UPDATE_CR3": "cpu_x86_update_cr3_x86_64",
    "FN_UPDATE_CR4": "cpu_x86_update_cr4_x86_64",
    "FN_TB_LOOKUP": "tb_htable_lookup_x86_64",
    "FN_TLB_FLUSH": "tlb_flush_by_mmuidx_all_cpus_x86_64",
    "FN_CODE_PAGE": "get_page_addr_code_x86_64",
    "FN_CHECK_EXIT": "helper_check_exit_request_x86_64",
    "FN_EMU_STOP": "uc_emu_stop",
    "FN_LOAD_CODE": "cpu_ldub_code_x86_64",
    "FN_INVALIDATE_RANGE": "tb_invalidate_phys_range_x86_64",
}


class Costs(NamedTuple):
    """What the virtual clock is charged, in nanoseconds."""

    instruction: int = 1
    access: int = 1000
    pause: int = 400
    tsc: int = 20
    quantum: int = 50_000
    """Longest time that a stop request or host input goes unseen while the guest runs."""


DEFAULT_COSTS = Costs()


@lru_cache(maxsize=1)
def _loaded() -> tuple[library.Library, dict[str, int], int]:
    """The process's engine library with our callbacks in place, and the function they wrap."""
    engine, callbacks = library.load(), native.callbacks()
    return engine, callbacks, detour.install(engine, callbacks)


@lru_cache(maxsize=1)
def describe() -> str:
    """Digest of what a guest's execution depends on besides its state: engine build and processor."""
    made = hashlib.blake2b(digest_size=16)
    made.update(library.load().build_id.encode())
    made.update(repr(cpuid.rows()).encode())
    made.update(repr(msr_table.ROWS).encode())
    made.update(repr((sorted(detour.PATCHES.items()), sorted(detour.PRECEDED))).encode())
    return made.hexdigest()


class Engine:
    """A running Unicorn with its control block.  ``uc``, ``cpu`` and ``env`` are host addresses."""

    __slots__ = ("_keep", "block", "callbacks", "code_pages", "cpu", "env", "library", "patching", "uc")

    def __init__(self, ram: Ram, costs: Costs, *, patching: bool) -> None:
        self.library, self.callbacks, wrapped = _loaded()
        self.block = ControlBlock()
        self.block["FN_INVALIDATE"] = wrapped
        self.patching = int(patching)
        self._keep: list[object] = []
        self._open()
        self._give_jump_rows()
        self._fill_block(costs)
        self._map_ram(ram)
        self._shortcut_low_ram(ram)
        self._take_over_tlb_fill()
        self._give_block_table()
        for kind, name in (
            (library.UC_HOOK_BLOCK, "on_block"),
            (library.UC_HOOK_INTR, "on_exception"),
            (library.UC_HOOK_INSN_INVALID, "on_invalid"),
            (library.UC_HOOK_MEM_FETCH_PROT, "on_fetch"),
        ):
            self.library.hook(self.uc, kind, self.callbacks[name], self.block.address)

    def _open(self) -> None:
        handle = ctypes.c_void_p()
        opened = self.library.uc_open(library.UC_ARCH_X86, library.UC_MODE_64, ctypes.byref(handle))
        self.library.check("uc_open", opened)
        assert handle.value is not None
        self.uc = handle.value
        self.library.ctl(self.uc, library.UC_CTL_CPU_MODEL, library.UC_CPU_X86_QEMU64)
        self.library.ctl(self.uc, library.UC_CTL_TCG_BUFFER_SIZE, TCG_BUFFER)
        # No stop check after every load and store: stops happen at block boundaries only.
        ctypes.c_uint8.from_address(self.uc + layout.UC_NO_EXIT_REQUEST).value = 1
        self.library.ctl(self.uc, library.UC_CTL_USE_EXITS, 1)
        self.library.ctl(self.uc, library.UC_CTL_TB_FLUSH)  # initialises the engine
        self.cpu = ctypes.c_uint64.from_address(self.uc + layout.UC_CPU).value
        self.env = ctypes.c_uint64.from_address(self.cpu + layout.CPU_ENV_PTR).value
        if self.env - self.cpu != layout.ENV_FROM_CPU:
            raise EngineError(f"env lies {self.env - self.cpu:#x} after CPUState; {library.supported()}")
        if ctypes.c_uint32.from_address(self.cpu + layout.CPU_CFLAGS_NEXT).value != layout.NO_CFLAGS:
            raise EngineError(f"CPUState.cflags_next_tb is not where it was; {library.supported()}")
        for word, features in cpuid.FEATURE_WORDS.items():
            ctypes.c_uint64.from_address(self.env + layout.FEATURES + 8 * word).value = features

    def _fill_block(self, costs: Costs) -> None:
        block = self.block
        block["UC"], block["CPU"], block["ENV"] = self.uc, self.cpu, self.env
        block["COST_INSTRUCTION"], block["COST_ACCESS"] = costs.instruction, costs.access
        block["COST_PAUSE"], block["COST_TSC"], block["QUANTUM"] = costs.pause, costs.tsc, costs.quantum
        block["PATCHING"] = self.patching
        block["HOOK_ADDRESS"] = self.callbacks["on_block"]
        for word, symbol in _FUNCTIONS.items():
            block[word] = self.library.address(symbol)
        block["FN_EPOLL_WAIT"] = ctypes.cast(ctypes.CDLL(None).epoll_wait, ctypes.c_void_p).value or 0
        libc = ctypes.CDLL(None)
        for word, function in (("FN_MEMSET", libc.memset), ("FN_MEMMOVE", libc.memmove)):
            block[word] = ctypes.cast(function, ctypes.c_void_p).value or 0
        events = ctypes.create_string_buffer(POLL_EVENT_SIZE)
        block["POLL_EVENTS"] = ctypes.addressof(events)
        identification, model_registers = cpuid.table(), msr_table.table()
        block["CPUID_ROWS"], block["CPUID_COUNT"] = identification.ctypes.data, len(identification)
        block["MSR_ROWS"], block["MSR_COUNT"] = model_registers.ctypes.data, len(model_registers)
        notes = np.zeros(layout.CPU_TLB_MODES * TLB_NOTES_SIZE, np.uint8)
        block["TLB_NOTES"] = notes.ctypes.data
        self._keep += [events, identification, model_registers, notes]
        block.attach(self.cpu)

    def _map_ram(self, ram: Ram) -> None:
        self.code_pages = code_pages = np.zeros(ram.size // PAGE_SIZE, np.uint8)
        self.block["CODE_PAGES"], self.block["CODE_PAGES_COUNT"] = code_pages.ctypes.data, len(code_pages)
        self._keep += [code_pages, ram]  # the engine holds bare pointers to both
        for address, offset, size in ram.regions:
            host = ctypes.c_void_p(ram.host_address + offset)
            mapped = self.library.uc_mem_map_ptr(self.uc, address, size, library.UC_PROT_ALL, host)
            self.library.check("uc_mem_map_ptr", mapped)

    def _shortcut_low_ram(self, ram: Ram) -> None:
        """Answer the engine's question for the region of low RAM natively."""
        pointer = ctypes.c_uint64.from_address(self.uc + layout.UC_MEMORY_MAPPING)
        find = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64)(pointer.value)
        region = find(self.uc, 0)
        if not region:
            raise EngineError(f"the engine does not find the RAM it was given; {library.supported()}")
        self.block["FN_FIND_REGION"], self.block["LOW_REGION"] = pointer.value, region
        self.block["LOW_END"], self.block["LOW_HOST"] = ram.regions[0][2], ram.host_address
        pointer.value = self.callbacks["find_region"]

    def _take_over_tlb_fill(self) -> None:
        """The class of this processor object is its own, so nobody else's pointer changes."""
        own_class = ctypes.c_uint64.from_address(self.cpu + layout.CPU_CLASS).value
        pointer = ctypes.c_uint64.from_address(own_class + layout.CLASS_TLB_FILL)
        if pointer.value != self.library.address("x86_cpu_tlb_fill_x86_64"):
            raise EngineError(f"CPUClass.tlb_fill is not where it was; {library.supported()}")
        self.block["FN_TLB_FILL"] = pointer.value
        pointer.value = self.callbacks["fill"]

    def _give_block_table(self) -> None:
        """Rows for :mod:`vmm.cpu.block_table`, and where the engine counts its flushes."""
        translator = ctypes.c_uint64.from_address(self.uc + layout.UC_TCG_CONTEXT).value
        flushes = ctypes.c_uint32.from_address(translator + layout.TCG_FLUSHES)
        if flushes.value != 1:  # that of _open
            raise EngineError(f"the engine does not count flushes where it did; {library.supported()}")
        epilogue = ctypes.c_uint64.from_address(translator + layout.TCG_EPILOGUE).value
        begins = ctypes.string_at(epilogue, len(layout.EPILOGUE_BEGINS))
        if begins != layout.EPILOGUE_BEGINS:
            raise EngineError(f"the epilogue begins with {begins.hex()}; {library.supported()}")
        table = np.zeros(BLOCK_ROWS * BLOCK_ROW_SIZE, np.uint8)
        self._keep.append(table)
        self.block["BLOCK_TABLE"], self.block["EPILOGUE"] = table.ctypes.data, epilogue
        self.block["FN_FIND_CODE"] = self.callbacks["find_code"]
        self.block["FLUSHES"], self.block["FLUSHES_SEEN"] = ctypes.addressof(flushes), flushes.value

    def _give_jump_rows(self) -> None:
        """Rows for :mod:`vmm.cpu.jump_cache`, then its notes: before anything is forgotten."""
        rows = np.full(JUMP_LINE_SIZE * (JUMP_LINES + 1) + JUMP_PAGES_SIZE, 0xFF, np.uint8)
        self._keep.append(rows)
        first = -(-rows.ctypes.data // JUMP_LINE_SIZE) * JUMP_LINE_SIZE
        self.block["FN_RENEW_ROW"] = self.callbacks["renew_row"]
        ctypes.c_uint64.from_address(self.cpu + SCRATCH_ROWS).value = first
        ctypes.c_uint64.from_address(self.cpu + SCRATCH_GENERATION).value = FIRST_GENERATION

    def map_holes(self, ram: Ram) -> None:
        """Everything that is not RAM goes to the MMIO callbacks."""
        (_, _, low), *high = ram.regions
        top = HIGH_BASE + (high[0][2] if high else 0)
        for start, end in ((low, HIGH_BASE), (top, PHYSICAL_END)):
            region = np.array([self.block.address, start], dtype=np.int64)
            self._keep.append(region)
            data = ctypes.c_void_p(region.ctypes.data)
            read, write = (ctypes.c_void_p(self.callbacks[name]) for name in ("mmio_read", "mmio_write"))
            mapped = self.library.uc_mmio_map(self.uc, start, end - start, read, data, write, data)
            self.library.check("uc_mmio_map", mapped)

    def close(self) -> None:
        if self.uc:
            self.library.uc_close(self.uc)
            self.uc = 0
