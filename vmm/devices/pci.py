"""The host bridge: PCI configuration mechanism #1, and one bus of 32 slots behind it.

Sources: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (mechanism #1); Intel 82441FX data sheet
(290549), section 3.1 (CONFADD, CONFDATA) for the bridge, which sits in slot 0 as 8086:1237.

A base address register (BAR) is decoded while the command register enables its space and its
address lies in the window that the host bridge forwards and collides with nothing.  What is
decoded is always computed from the configuration spaces of all functions, in slot order, never
from the order in which registers were written: a restored machine has the same map as the one
that was saved.

Not modelled: further buses and bridges, the 82441FX's own DRAM and PAM registers (read as 0).
Linux needs neither, and firmware that would is not part of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vmm.device import all_ones
from vmm.devices.pci_function import Bar, Identity, PciFunction, PciState, Registers
from vmm.errors import ConfigError
from vmm.state import State, field, u32

CONFADD, CONFDATA = 0, 4
"""Offsets from 0xCF8 of the address and data registers."""
RESET_CONTROL = 1
"""A byte access here (0xCF9) is the south bridge's reset control register."""
CONFADD_ENABLE = 1 << 31
CONFADD_MASK = 0x80FF_FFFC

SLOTS = 32
IO_WINDOW = range(0xC000, 0x1_0000)
MEMORY_WINDOW = range(0xE000_0000, 0xFEC0_0000)
"""What the host bridge forwards; all else belongs to RAM, ISA and the interrupt controllers."""
INTA_IRQS = (10, 11)
"""The board wires INTA of the even and the odd slots to these interrupt request lines."""


class Decoder(Protocol):
    """An address map that claims can come and go on; refuses an overlap with ConfigError."""

    def claim(self, base: int, length: int, device: Any, what: str) -> Any: ...

    def release(self, claim: Any) -> None: ...


class Decoding:
    """What the functions have claimed on the buses: nothing but a consequence of their registers."""

    __slots__ = ("_claims", "_io", "_mmio", "_registers")

    def __init__(self, io: Decoder, mmio: Decoder) -> None:
        self._io = io
        self._mmio = mmio
        self._claims: list[tuple[Decoder, Any]] = []
        self._registers: list[bytes] = []

    def update(self, functions: list[PciFunction]) -> None:
        """Make the buses say what the configuration spaces say.

        Everything is released first: a claim kept from before would make the outcome of a
        collision depend on who came first, which is not in any register.
        """
        registers = [function.decoding() for function in functions]
        if registers == self._registers:
            return
        self._registers = registers
        for decoder, claim in self._claims:
            decoder.release(claim)
        self._claims.clear()
        for function in functions:
            for bar in function.bars:
                self._decode(bar, function.address(bar))

    def _decode(self, bar: Bar, base: int | None) -> None:
        window = IO_WINDOW if bar.io else MEMORY_WINDOW
        if base is None or base not in window or base + bar.size > window.stop:
            return
        decoder = self._io if bar.io else self._mmio
        try:
            claim = decoder.claim(base, bar.size, bar.registers, bar.what)
        except ConfigError:  # a collision: the guest's doing, and the earlier slot keeps the address
            return
        self._claims.append((decoder, claim))


class PciHostState(State):
    """CONFADD, and the bridge as a function of its own bus."""

    address: u32 = 0
    bridge: PciState = field(default_factory=PciState)


class PciHost:
    """The 82441FX as seen from the CPU: eight ports at 0xCF8, and bus 0 behind them.

    CONFADD answers only whole double words; narrower accesses to its ports go elsewhere.  The one
    that somebody owns, the byte at 0xCF9, is passed on to ``reset_control`` when there is one.
    """

    __slots__ = ("_decoding", "_reset_control", "_slots", "bridge", "state")

    def __init__(self, io: Decoder, mmio: Decoder, reset_control: Registers | None = None) -> None:
        self._decoding = Decoding(io, mmio)
        self._reset_control = reset_control
        self._slots: list[PciFunction | None] = [None] * SLOTS
        self.bridge = PciFunction(Identity(vendor=0x8086, device=0x1237, revision=2, class_code=0x06_00_00))
        self.plug(0, self.bridge)
        self.reset()

    # Guest side.

    def read(self, offset: int, size: int) -> int:
        if offset == CONFADD and size == 4:
            return self.state.address
        if offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            return self._reset_control.read(0, 1)
        if CONFDATA <= offset and offset + size <= CONFDATA + 4:
            function = self._addressed()
            if function is not None:
                register = self.state.address & 0xFC | offset - CONFDATA
                return function.config_read(register, size)
        return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == CONFADD and size == 4:
            self.state.address = value & CONFADD_MASK
        elif offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            self._reset_control.write(0, 1, value)
        elif CONFDATA <= offset and offset + size <= CONFDATA + 4:
            function = self._addressed()
            if function is not None:
                register = self.state.address & 0xFC | offset - CONFDATA
                function.config_write(register, size, value & all_ones(size))

    # Board side.

    def plug(self, slot: int, function: PciFunction) -> None:
        """Put ``function`` in ``slot``; made once, while the board is built."""
        if not 0 <= slot < SLOTS:
            raise ConfigError(f"PCI slot {slot}: bus 0 has slots 0 to {SLOTS - 1}")
        if self._slots[slot] is not None:
            raise ConfigError(f"PCI slot {slot} is taken: give every function a slot of its own")
        self._slots[slot] = function
        function.plugged(self._remap)

    def assign(
        self,
        io_base: int = IO_WINDOW.start,
        mmio_base: int = MEMORY_WINDOW.start,
        irqs: Sequence[int] = INTA_IRQS,
    ) -> None:
        """Firmware's part, before the guest runs: BARs, interrupt lines, decoding enabled."""
        for slot, function in enumerate(self._slots):
            if function is None or function is self.bridge:
                continue
            addresses = {}
            for bar in function.bars:
                base = io_base if bar.io else mmio_base
                base = (base + bar.size - 1) & -bar.size
                addresses[bar.index] = base
                if bar.io:
                    io_base = base + bar.size
                else:
                    mmio_base = base + bar.size
            function.program(addresses, irqs[slot % len(irqs)])
        if io_base > IO_WINDOW.stop or mmio_base > MEMORY_WINDOW.stop:
            raise ConfigError(
                f"PCI windows are full: I/O up to {io_base:#x} of {IO_WINDOW.stop:#x},"
                f" memory up to {mmio_base:#x} of {MEMORY_WINDOW.stop:#x}; plug fewer functions"
            )

    # Life cycle.

    def reset(self) -> None:
        self.bridge.reset()
        self.state = PciHostState(bridge=self.bridge.state)
        self.restored()

    def restored(self) -> None:
        self.bridge.state = self.state.bridge
        self._remap()

    def _addressed(self) -> PciFunction | None:
        """The function that CONFADD selects: bus 0, function 0 of an occupied slot."""
        address = self.state.address
        if not address & CONFADD_ENABLE or address & 0xFF_0700:
            return None
        return self._slots[address >> 11 & 0x1F]

    def _remap(self) -> None:
        self._decoding.update([function for function in self._slots if function is not None])
