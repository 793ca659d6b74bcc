"""The processor: one engine, its native callbacks, and the clock that it drives.

The board gives it RAM, a port map, a memory map and four answers (which interrupt, the board's MSRs,
the task priority); everything else is inside.  ``run`` executes the guest until it halts, until the
clock's next deadline, or until someone asks for a stop, and always returns at a block boundary.

Several machines may live in one process; each has its own engine.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmm.boot.entry import Entry
from vmm.bus import Bus
from vmm.clock import NEVER_NS
from vmm.cpu import control, detour, layout, library, registers, selfcheck
from vmm.cpu.answers import Answers
from vmm.cpu.control import ControlBlock
from vmm.cpu.cpu_clock import CpuClock
from vmm.cpu.dma import Dma
from vmm.cpu.engine import DEFAULT_COSTS, Costs, Engine
from vmm.cpu.entry_state import state_of
from vmm.cpu.local_apic import LocalApic
from vmm.cpu.parts import Parts
from vmm.cpu.registers import CpuState
from vmm.cpu.ring import Rings
from vmm.errors import EngineError
from vmm.ram import HIGH_BASE, PAGE_SIZE, Ram

_DOUBLE_FAULT = 8
_REASON, _REST, _STAGE, _POLL_FD = map(control.index, ("REASON", "REST", "STAGE", "POLL_FD"))


class Stop(Enum):
    """Why :meth:`Cpu.run` returned."""

    HALT = "halt"
    DEADLINE = "deadline"
    REQUEST = "request"
    HOST_INPUT = "host input"
    SHUTDOWN = "shutdown"
    """Triple fault (SDM vol. 3 6.15, shutdown state)."""
    PLACE = "place"
    """A place that was asked for is so many instructions ahead (:meth:`vmm.cpu.parts.Parts.take_place`)."""
    PART = "part"
    """The part of a block that was asked for has run, or has been left by an exception."""


_REASONS = {
    control.STOPPED_HALT: Stop.HALT,
    control.STOPPED_DEADLINE: Stop.DEADLINE,
    control.STOPPED_REQUEST: Stop.REQUEST,
    control.STOPPED_HOST: Stop.HOST_INPUT,
    control.STOPPED_PLACE: Stop.PLACE,
    control.STOPPED_PART: Stop.PART,
}


class Questions(NamedTuple):
    """What the processor asks of the board."""

    ports: Bus
    mmio: Bus
    acknowledge: Callable[[], int]
    read_msr: Callable[[int], int]
    write_msr: Callable[[int, int], bool]
    read_tpr: Callable[[], int]
    write_tpr: Callable[[int], None]


class _InterruptLine:
    """INTR: the processor's interrupt pin."""

    __slots__ = ("_block",)

    def __init__(self, block: ControlBlock) -> None:
        self._block = block

    def set(self, level: bool) -> None:
        block = self._block
        if block["INTR"] != level:
            block["INTR"] = level
            if level:
                block.look_now()


@lru_cache(maxsize=1)
def verdict() -> selfcheck.Verdict:
    """The engine's self-check, once a process: EngineError when it is not what we know.

    When only the rewriting of prologues misbehaves, machines use the plain hook: the same clock,
    slower; the reason is said on standard error.
    """
    ram = Ram(1)
    engine = Engine(ram, DEFAULT_COSTS, patching=True)
    try:
        found = selfcheck.verify(engine)
    finally:
        engine.close()
    if not found.patching:
        print(f"colo: the block clock is not inlined here: {found.reason}", file=sys.stderr)
    return found


class Cpu:
    """One x86-64 processor attached to ``ram``."""

    def __init__(self, ram: Ram, costs: Costs = DEFAULT_COSTS, *, patching: bool = True) -> None:
        self._engine = Engine(ram, costs, patching=patching and verdict().patching)
        self.library = self._engine.library
        self._start = self.library.uc_emu_start
        self._ram = ram
        self._invalidate = self.library.tb_invalidate_phys_range_x86_64
        self._code_pages = self._engine.code_pages.data
        self._low_end = ram.regions[0][2]
        self.env = self._engine.env
        self._rip = ctypes.c_uint64.from_address(self.env + layout.EIP)
        self._flags = ctypes.c_uint64.from_address(self.env + layout.EFLAGS)
        self._old_exception = ctypes.c_int32.from_address(self.env + layout.OLD_EXCEPTION)
        self.block = self._engine.block
        self.clock = CpuClock(self.block, NEVER_NS)
        self.clock.rearmed()
        self.interrupt_line = _InterruptLine(self.block)
        self.local_apic = LocalApic(self.block, self._engine.callbacks)
        self.parts = Parts(self._engine, self._rip)
        self._answers = Answers(self.block, self.request_stop)
        self._acknowledge: Callable[[], int] = lambda: -1
        self._invalidations = 0
        self.halted = False
        ram.on_write = self.invalidate
        ram.dma = Dma(ram, self._engine.callbacks, self.block.address)
        ram.rings = Rings(ram, self._engine.callbacks, self.block.address)

    def attach(self, board: Questions) -> None:
        """Connect the board; once, before the first run."""
        ports, mmio = board.ports, board.mmio

        def tpr(writing: int, value: int, _: int) -> int:
            if not writing:
                return board.read_tpr()
            board.write_tpr(value)
            return 0

        answers = self._answers
        answers.read("PY_PORT_IN", ports.read)
        answers.read("PY_MMIO_READ", mmio.read)
        answers.read("PY_MSR_READ", lambda register, _: board.read_msr(register))
        answers.write("PY_PORT_OUT", ports.write)
        answers.write("PY_MMIO_WRITE", mmio.write)
        answers.answer("PY_MSR_WRITE", lambda register, _, value: int(board.write_msr(register, value)))
        answers.answer("PY_TPR", tpr)
        self._acknowledge = board.acknowledge
        self.filter_interrupts(None)
        self._engine.map_holes(self._ram)

    def hear(self, take: Callable[[], bool]) -> None:
        """Ask ``take`` between two blocks, when what is polled has an event, whether the guest may go on.

        It may change RAM and devices.  When it overwrites code the run stops: the next block may be that.
        """

        def heard(_a: int, _b: int) -> int:
            before = self._invalidations
            return take() and self._invalidations == before

        self._answers.read("PY_HEAR", heard)

    def filter_interrupts(self, keep: Callable[[int], bool] | None) -> None:
        """Ask ``keep`` whether an interrupt that was acknowledged reaches the processor; None: all do."""
        acknowledge = self._acknowledge
        self.local_apic.filter(keep is not None)

        def filtered(_a: int, _b: int) -> int:
            vector = acknowledge()
            return vector if keep is None or keep(vector) else -1

        self._answers.read("PY_ACKNOWLEDGE", filtered if keep else lambda _a, _b: acknowledge())

    def close(self) -> None:
        """Give the engine's memory back; nothing else may be called afterwards."""
        self._ram.on_write = self._ram.dma = self._ram.rings = None
        detour.running.leave(self.block.address)
        self._engine.close()

    # Running

    def run(self) -> Stop:
        """Execute until something of :class:`Stop` happens, and raise what a device raised."""
        assert self._engine.uc, "this machine was closed"
        block, words = self.block, self.block.words
        words[_REASON] = control.STOPPED_HALT
        halted, self.halted, began_ns = self.halted, False, block.now_ns
        thread = threading.get_ident()
        detour.running.enter(block.address, thread)
        if words[_REST]:
            self.parts.resume()
        outer = self._answers.keep_lost(thread)
        try:
            error = self._start(self._engine.uc, self._rip.value, 0, 0, 0)
        finally:
            if outer is not None:
                sys.unraisablehook = outer
        if words[_STAGE]:
            self.parts.drop()
        self._answers.raise_kept()
        if error:
            reason = self.library.uc_strerror(error).decode()
            raise EngineError(f"the engine stopped at rip {self.rip:#x}: {reason} (error {error})")
        if block.now_ns == began_ns:
            self.halted = halted  # stopped before the interrupt entered: nothing has woken it yet
        return self._stop_reason()

    def _stop_reason(self) -> Stop:
        reason = _REASONS[self.block.words[_REASON]]
        if reason is Stop.REQUEST:
            self.block["STOP_REQUEST"] = 0
        elif reason is Stop.HALT:
            if self._old_exception.value == _DOUBLE_FAULT:
                return Stop.SHUTDOWN
            self.halted = True
        return reason

    def request_stop(self) -> None:
        """Stop at the next block.  For the machine's own thread; others use request_stop_later."""
        self.block["STOP_REQUEST"] = 1
        self.block.look_now()

    def request_stop_later(self) -> None:
        """Stop within a quantum; safe from any thread and from signal handlers."""
        self.block["STOP_REQUEST"] = 1

    def poll(self, descriptor: int) -> None:
        """While running, stop when this epoll descriptor has an event (-1: do not look)."""
        self.block.words[_POLL_FD] = descriptor

    def raise_nmi(self) -> None:
        """Latch a non-maskable interrupt."""
        self.block["NMI"] = 1
        self.block.look_now()

    @property
    def tsc_offset_address(self) -> int:
        """Where the engine keeps what the guest added to its time stamp counter."""
        return self.env + layout.TSC_OFFSET

    @property
    def drift_ns(self) -> int:
        """How far the time stamp counter has drifted (:mod:`vmm.inject`)."""
        block = self.block
        return (block.now_ns - block["DRIFT_FROM"]) * block["DRIFT_PPM"] // 1_000_000

    def read_tsc_offset(self) -> int:
        """How far the guest's time stamp counter is ahead of virtual time."""
        return ctypes.c_int64.from_address(self.tsc_offset_address).value + self.drift_ns

    @property
    def can_take_interrupt(self) -> bool:
        """Would a pending interrupt end a halt?"""
        if self.block["NMI"]:
            return True
        return bool(self.block["INTR"]) and bool(self._flags.value & _IF)

    @property
    def is_dead(self) -> bool:
        """Halted with interrupts disabled: nothing but a non-maskable interrupt wakes it."""
        return self.halted and not self._flags.value & _IF

    # Memory

    def invalidate(self, address: int, size: int) -> None:
        """RAM changed behind the engine's back: forget code translated from there, if there is any."""
        offset = address if address < self._low_end else address - HIGH_BASE + self._low_end
        first, last = offset >> 12, (offset + size - 1) >> 12
        if self._code_pages[first] or (first != last and any(self._code_pages[first : last + 1])):
            self._invalidations += 1
            self._invalidate(self._engine.uc, address, address + size)

    def invalidate_pages(self, pages: npt.NDArray[np.uint32]) -> None:
        """The same of many pages of the RAM mapping (:mod:`vmm.ram`)."""
        with_code = np.frombuffer(self._code_pages, np.uint8)[pages] != 0
        for page in pages[with_code].tolist():
            self.invalidate(self._ram.address(page * PAGE_SIZE), PAGE_SIZE)

    def flush(self) -> None:
        """Forget all translated code and all address translations."""
        self.library.ctl(self._engine.uc, library.UC_CTL_TB_FLUSH)
        self.flush_tlb()

    def flush_tlb(self) -> None:
        """Forget address translations and how many there were: the TLB is as small as it can be.

        What is saved goes on exactly like what is loaded, so both begin from here.
        """
        cpu = self._engine.cpu
        ctypes.c_uint16.from_address(cpu + layout.CPU_TLB_DIRTY).value = (1 << layout.CPU_TLB_MODES) - 1
        for mode in range(layout.CPU_TLB_MODES):
            descriptor = cpu + layout.CPU_TLB_DESCRIPTORS + layout.TLB_DESCRIPTOR_SIZE * mode
            ctypes.c_int64.from_address(descriptor + layout.TLB_WINDOW_BEGIN).value = -NEVER_NS
            ctypes.c_uint64.from_address(descriptor + layout.TLB_WINDOW_MAX).value = 0
            ctypes.c_uint64.from_address(descriptor + layout.TLB_USED).value = 0
        detour.running.enter(self.block.address, threading.get_ident())
        self.library.tlb_flush_x86_64(cpu)

    def set_a20(self, enabled: bool) -> None:
        """Address line 20: off wraps at 1 MiB as on an 8086."""
        detour.running.enter(self.block.address, threading.get_ident())
        self.library.x86_cpu_set_a20_x86_64(self._engine.cpu, int(enabled))

    # State

    @property
    def rip(self) -> int:
        return self._rip.value

    @property
    def rflags(self) -> int:
        raw = self._flags.value
        return int(self.library.helper_read_eflags_x86_64(self.env)) | (raw & registers.EFLAGS_RF_VM)

    def write_rflags(self, value: int) -> None:
        """Replace all flags; not while the processor runs."""
        registers.write_flags(self.env, value)

    @property
    def state(self) -> CpuState:
        """All registers, read from the engine."""
        assert self._engine.uc, "this machine was closed"
        state = registers.read(self.env, self.rflags)
        state.now_ns = self.block.now_ns
        state.halted = self.halted
        state.nmi_pending = bool(self.block["NMI"])
        return state

    @state.setter
    def state(self, state: CpuState) -> None:
        self.library.cpu_x86_update_dr7_x86_64(self.env, 0x400)
        registers.write(self.env, state)
        self.library.cpu_x86_update_dr7_x86_64(self.env, state.debug[7] & 0xFFFFFFFF)
        self.block["NMI"] = int(state.nmi_pending)
        self.parts.leave_block()
        self.block.now_ns = state.now_ns
        self.halted = state.halted

    def restored(self) -> None:
        """Registers were replaced: no address translation of the old ones may survive.

        Translated code is by physical address and outlives them; who changed RAM says so
        (:meth:`invalidate`, :meth:`flush`).
        """
        self.flush_tlb()
        self.clock.rearmed()

    def reset(self) -> None:
        """Power-on registers; the clock goes on."""
        self.block["INTR"] = 0
        self.state = CpuState(now_ns=self.block.now_ns)
        self.flush()

    def enter(self, entry: Entry) -> None:
        """Registers as a loader wants them (:mod:`vmm.boot.entry`)."""
        self.state = state_of(entry, self.block.now_ns)
        ctypes.c_uint32.from_address(self.env + layout.HFLAGS).value = 0
        self.library.cpu_x86_update_cr0_x86_64(self.env, entry.cr0 & 0xFFFFFFFF)
        self.library.cpu_x86_update_cr4_x86_64(self.env, entry.cr4)
        self.library.x86_update_hflags_x86_64(self.env)
        self.flush()


_IF = 0x200
