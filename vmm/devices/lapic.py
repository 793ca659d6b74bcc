"""Local APIC of the one processor, in xAPIC mode.

Source: Intel SDM volume 3A, "Advanced Programmable Interrupt Controller (APIC)" (chapter 11; the
section titles quoted below stay when chapters are renumbered), and MP Specification 1.4 §3.6.2 for
virtual wire mode.

What decides whether ``output`` is high:

    8259A ──LINT0── LVT (ExtINT) ────────────────────────────┐
    IOAPIC, MSI, self IPI, timer, LINTn (fixed) ── IRR ── priority > PPR ── output ── CPU
                                                    └─ acknowledge() ─▶ ISR ─▶ EOI

A processor may have compiled code for what happens on every interrupt (lapic_registers.Core); what is
said here is then what that code does.

ExtINT passes by the priority logic, as the SDM says ("Interrupt, Task, and Processor Priority"
governs fixed interrupts only), and is served first when both wait.

The registers are in lapic_registers.py, the timer in lapic_timer.py.

Not modelled, and why:
* other processors: IPIs to anybody else, INIT and start-up IPIs go nowhere, and ``deliver`` has no
  destination because there is one processor that an interrupt can be meant for;
* x2APIC mode and a register window anywhere but at FEE00000H: the board's map is fixed, so a
  write to IA32_APIC_BASE that asks for either is refused (#GP), as it is for reserved bits;
* thermal and performance-counter interrupts: their LVT entries can be written and never fire;
* SMI, focus processor checking, EOI-broadcast suppression (the version register denies it), and
  delivery status, which is always idle because delivery takes no time.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.device import Clock, Line, all_ones
from vmm.devices import lapic_registers as reg
from vmm.devices.lapic_timer import LapicTimer


class _Pin:
    """A local interrupt pin as a Line."""

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[bool], None]) -> None:
        self._changed = changed

    def set(self, level: bool) -> None:
        self._changed(level)


class Lapic:
    """``external`` runs the 8259A's acknowledge cycle, ``eoi`` hears of level-triggered EOIs."""

    __slots__ = ("_core", "_eoi", "_external", "_nmi", "_output", "_timer", "lint0", "lint1", "state")

    def __init__(
        self,
        clock: Clock,
        output: Line,
        external: Callable[[], int],
        nmi: Callable[[], None],
        eoi: Callable[[int], None] | None = None,
        core: reg.Core | None = None,
    ) -> None:
        self.state = reg.LapicState()
        self._core = core
        self._output = output
        self._external = external
        self._nmi = nmi
        self._eoi = eoi
        self._share()
        self._timer = LapicTimer(clock, self.state.timer, self._timer_fired)
        self.lint0: Line = _Pin(self._lint0_changed)
        self.lint1: Line = _Pin(self._lint1_changed)

    # Guest side: registers

    def read(self, offset: int, size: int) -> int:
        """Any bytes of one 32-bit register; the 12 bytes after each are reserved and read 0."""
        if not self.state.base & reg.BASE_ENABLE:
            return all_ones(size)
        lane = offset & 15
        if lane >= 4:
            return 0
        return self._register(offset - lane) >> 8 * lane & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Only aligned 32-bit writes are defined; others are ignored."""
        s = self.state
        if offset & 15 or size != 4 or not s.base & reg.BASE_ENABLE:
            return
        if offset == reg.EOI:
            self._end_of_interrupt()
        elif offset == reg.TIMER_INITIAL:
            self._timer.write_initial(value)
        elif offset == reg.TPR:
            self.set_tpr(value & 0xFF)
        elif offset == reg.ICR_LOW:
            s.icr_low = value & 0xC_CFFF
            self._send(s.icr_low)
        elif reg.LVT <= offset < reg.LVT_END:
            self._write_lvt((offset - reg.LVT) >> 4, value)
        else:
            self._write_rare(offset, value)

    def _write_rare(self, offset: int, value: int) -> None:
        s = self.state
        if offset == reg.SVR:
            self._write_svr(value)
        elif offset == reg.ICR_HIGH:
            s.icr_high = value & 0xFF00_0000
        elif offset == reg.LVT_TIMER:
            self._write_lvt_timer(value)
        elif offset == reg.TIMER_DIVIDE:
            self._timer.write_divide(value)
        elif offset == reg.ESR:
            s.esr, s.errors = s.errors, 0
        elif offset == reg.ID:
            s.id = value >> 24
        elif offset == reg.LDR:
            s.ldr = value & 0xFF00_0000
        elif offset == reg.DFR:
            s.dfr = value | 0x0FFF_FFFF
        elif reg.stored(self.state, offset) is None:
            self._error(reg.ESR_REGISTER)

    def _register(self, offset: int) -> int:
        if offset == reg.TIMER_CURRENT:
            return self._timer.current()
        value = reg.stored(self.state, offset)
        if value is None:
            self._error(reg.ESR_REGISTER)
            return 0
        return value

    # Processor side: CR8 and model-specific registers

    @property
    def tpr(self) -> int:
        """Task priority register, 8 bits; CR8 is its upper four."""
        return self.state.tpr

    def set_tpr(self, value: int) -> None:
        self.state.tpr = value & 0xFF
        self._update()

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.state.base

    def write_apic_base(self, value: int) -> bool:
        """Write IA32_APIC_BASE; False when the processor must raise #GP instead.

        Disabling resets every register ("Local APIC Status and Location"): enabling again finds the
        power-on state.
        """
        if value & ~(reg.BASE_ENABLE | reg.BASE_BSP) != reg.BASE_DEFAULT & ~(reg.BASE_ENABLE | reg.BASE_BSP):
            return False
        s = self.state
        if s.base & reg.BASE_ENABLE and not value & reg.BASE_ENABLE:
            self.state = reg.LapicState(lint0=s.lint0, lint1=s.lint1)
        self.state.base = value
        self.restored()
        return True

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 when not armed or in another timer mode."""
        return self._timer.deadline()

    def write_tsc_deadline(self, value: int) -> None:
        """Ignored in the other timer modes; 0 disarms; a deadline in the past fires at once."""
        self._timer.write_deadline(value)

    def acknowledge(self) -> int:
        """The processor takes an interrupt: its vector, or the spurious one if there is none."""
        s = self.state
        if self._lint0_is_extint() and (s.lint0 or not s.base & reg.BASE_ENABLE):
            return self._external()
        if s.extint:
            s.extint = False
            self._update()
            return self._external()
        vector = reg.deliverable(s)
        if vector < 0:
            return s.svr & 0xFF
        at, bit = vector >> 3, 1 << (vector & 7)
        s.irr[at] ^= bit
        s.isr[at] |= bit
        self._update()
        return vector

    # Board side: interrupt messages and virtual wire mode

    def deliver(self, vector: int, level: bool, mode: int = reg.FIXED) -> None:
        """An interrupt message from the IOAPIC or a device (MSI); ``level``: it wants an EOI."""
        s = self.state
        if not s.base & reg.BASE_ENABLE:
            return
        if mode in (reg.FIXED, reg.LOWEST_PRIORITY):
            if s.svr & reg.SVR_ENABLE:
                self._accept(vector, level)
        elif mode == reg.NMI:
            self._nmi()
        elif mode == reg.EXTINT:
            s.extint = True
            self._update()

    def message(self, address: int, data: int) -> None:
        """A write by MSI (SDM, "Message Signalled Interrupts"): address 0xFEExxxxx, the rest in the data."""
        if address >> 20 == 0xFEE:
            self.deliver(data & 0xFF, data & 0x8000 != 0, data >> 8 & 7)

    def virtual_wire(self) -> None:
        """What a BIOS programs before it boots: 8259A interrupts through LINT0, NMI on LINT1."""
        self._write_svr(reg.SVR_ENABLE | 0xFF)
        self._write_lvt(reg.LINT0, reg.LVT_EXTINT)
        self._write_lvt(reg.LINT1, reg.LVT_NMI)

    # Life cycle

    def reset(self) -> None:
        self.state = reg.LapicState()
        self.restored()

    def restored(self) -> None:
        self._share()
        self._timer.state = self.state.timer
        self._timer.arm()
        self._update()

    def _share(self) -> None:
        if self._core is not None:
            self._core.share(self.state.isr, self.state.tmr, self.state.irr)

    # Priority, acceptance, EOI

    def _update(self) -> None:
        """Something changed that ``output`` depends on, besides what :meth:`_accept` looks at itself."""
        s = self.state
        external = s.extint or (s.lint0 and self._lint0_is_extint())
        if self._core is not None:
            self._core.depends(s.tpr, external or not s.base & reg.BASE_ENABLE)
        self._output.set(external or reg.deliverable(s) >= 0)

    def _accept(self, vector: int, level: bool) -> None:
        """Put a fixed interrupt in IRR ("Interrupt Acceptance for Fixed Interrupts")."""
        if vector < reg.VECTOR_MIN:
            self._error(reg.ESR_RECEIVE_ILLEGAL)
            return
        if self._core is not None:
            self._core.accept(vector, level)
            return
        s = self.state
        at, bit = vector >> 3, 1 << (vector & 7)
        s.irr[at] |= bit
        if level:
            s.tmr[at] |= bit
        else:
            s.tmr[at] &= ~bit
        if vector >> 4 > reg.priority(s) >> 4:
            self._output.set(True)

    def _end_of_interrupt(self) -> None:
        s = self.state
        vector = reg.highest(s.isr)
        if vector >= 0:
            at, bit = vector >> 3, 1 << (vector & 7)
            s.isr[at] ^= bit
            if s.tmr[at] & bit:
                self._level_ended(vector)
        self._update()

    def _level_ended(self, vector: int) -> None:
        """A level-triggered interrupt was served: LINT0 or the IOAPIC may ask again."""
        lint0 = self.state.lvt[reg.LINT0]
        if lint0 & reg.LVT_REMOTE_IRR and lint0 & 0xFF == vector:
            self.state.lvt[reg.LINT0] = lint0 & ~reg.LVT_REMOTE_IRR
            self._sample_lint0()
        if self._eoi is not None:
            self._eoi(vector)

    def _error(self, bit: int) -> None:
        """Note an error; the LVT error entry fires once until ESR is written."""
        s = self.state
        if not s.errors & bit:
            s.errors |= bit
            self._local(reg.ERROR)

    # Local vector table, local pins

    def _local(self, entry: int) -> None:
        """The source behind an LVT entry fires (an edge)."""
        value = self.state.lvt[entry]
        if value & reg.LVT_MASKED:
            return
        mode = value & reg.LVT_MODE
        if mode == reg.LVT_NMI:
            self._nmi()
        elif mode == reg.FIXED:
            self._accept(value & 0xFF, False)

    def _lint0_is_extint(self) -> bool:
        """LINT0 leads to the processor's INTR pin, through the LVT or because there is no APIC."""
        s = self.state
        return (
            s.lvt[reg.LINT0] & (reg.LVT_MASKED | reg.LVT_MODE) == reg.LVT_EXTINT
            or not s.base & reg.BASE_ENABLE
        )

    def _lint0_changed(self, level: bool) -> None:
        s = self.state
        if s.lint0 == level:
            return
        s.lint0 = level
        if level and s.lvt[reg.LINT0] & (reg.LVT_MODE | reg.LVT_LEVEL) != reg.LVT_LEVEL:
            self._local(reg.LINT0)
        self._sample_lint0()
        self._update()

    def _sample_lint0(self) -> None:
        """LINT0 as a level-triggered fixed interrupt: ask once, then wait for EOI."""
        s = self.state
        wanted = reg.LVT_MASKED | reg.LVT_MODE | reg.LVT_LEVEL | reg.LVT_REMOTE_IRR
        if s.lint0 and s.lvt[reg.LINT0] & wanted == reg.LVT_LEVEL:
            s.lvt[reg.LINT0] |= reg.LVT_REMOTE_IRR
            self._accept(s.lvt[reg.LINT0] & 0xFF, True)

    def _lint1_changed(self, level: bool) -> None:
        s = self.state
        if s.lint1 == level:
            return
        s.lint1 = level
        if level and not s.base & reg.BASE_ENABLE:
            self._nmi()
        elif level:
            self._local(reg.LINT1)

    def _write_lvt(self, entry: int, value: int) -> None:
        s = self.state
        value &= reg.LVT_WRITABLE[entry]
        if not s.svr & reg.SVR_ENABLE:
            value |= reg.LVT_MASKED
        kept = reg.LVT_REMOTE_IRR if value & reg.LVT_LEVEL else 0
        s.lvt[entry] = value | (s.lvt[entry] & kept)
        self._sample_lint0()
        self._update()

    def _write_lvt_timer(self, value: int) -> None:
        masked = 0 if self.state.svr & reg.SVR_ENABLE else reg.LVT_MASKED
        self._timer.write_lvt(value & reg.LVT_TIMER_WRITABLE | masked)

    def _timer_fired(self) -> None:
        self._accept(self.state.timer.lvt & 0xFF, False)

    def _write_svr(self, value: int) -> None:
        """Software disable masks the whole LVT; what is already in IRR and ISR stays."""
        s = self.state
        s.svr = value & 0x1FF
        if not value & reg.SVR_ENABLE:
            s.lvt = [entry | reg.LVT_MASKED for entry in s.lvt]
            self._timer.write_lvt(s.timer.lvt | reg.LVT_MASKED)
        self._update()

    # Inter-processor interrupts to ourselves

    def _send(self, command: int) -> None:
        """ICR was written ("Interrupt Command Register"); IPIs are edge-triggered."""
        if not self._is_target(command):
            return
        mode, vector = command >> 8 & 7, command & 0xFF
        if mode in (reg.FIXED, reg.LOWEST_PRIORITY):
            if vector < reg.VECTOR_MIN:
                self._error(reg.ESR_SEND_ILLEGAL)
            else:
                self.deliver(vector, False)
        elif mode == reg.NMI:
            self._nmi()

    def _is_target(self, command: int) -> bool:
        shorthand = command & reg.ICR_SHORTHAND
        if shorthand:
            return shorthand in (reg.ICR_SELF, reg.ICR_ALL)
        s = self.state
        destination = s.icr_high >> 24
        if not command & reg.ICR_LOGICAL:
            return destination in (s.id, reg.BROADCAST)
        own = s.ldr >> 24
        if s.dfr >> 28 == 0xF:  # flat model: one bit a processor
            return destination & own != 0
        # cluster model: cluster number, then one bit a processor in it
        return destination >> 4 in (own >> 4, 0xF) and destination & own & 0xF != 0
