"""PCI: configuration mechanism #1, one bus of 32 slots, and what every function has in common.

Sources: PCI Local Bus Specification 3.0, chapter 6 (configuration space) and section 3.2.2.3.2
(mechanism #1); Intel 82441FX data sheet (290549), section 3.1 (CONFADD, CONFDATA) for the host
bridge, which sits in slot 0 as 8086:1237.

A base address register (BAR) is decoded while the command register enables its space and its
address lies in the window that the host bridge forwards and collides with nothing.  What is
decoded is always computed from the configuration spaces of all functions, in slot order, never
from the order in which registers were written: a restored machine has the same map as the one
that was saved.

Not modelled: further buses and bridges, multi-function devices, 64-bit and prefetchable BARs,
expansion ROMs, parity and system errors, the 82441FX's own DRAM and PAM registers (read as 0).
Linux needs none of them, and firmware that would is not part of this machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from vmm.device import Line, all_ones
from vmm.errors import ConfigError
from vmm.state import State, field, length, u32

CONFADD, CONFDATA = 0, 4
"""Offsets from 0xCF8 of the address and data registers."""
RESET_CONTROL = 1
"""A byte access here (0xCF9) is the south bridge's reset control register."""
CONFADD_ENABLE = 1 << 31
CONFADD_MASK = 0x80FF_FFFC

SLOTS = 32
CONFIG_SIZE = 256
BARS_MAX = 6
IO_WINDOW = range(0xC000, 0x1_0000)
MEMORY_WINDOW = range(0xE000_0000, 0xFEC0_0000)
"""What the host bridge forwards; all else belongs to RAM, ISA and the interrupt controllers."""
INTA_IRQS = (10, 11)
"""The board wires INTA of the even and the odd slots to these interrupt request lines."""

COMMAND, STATUS = 0x04, 0x06
CACHE_LINE_SIZE, LATENCY_TIMER = 0x0C, 0x0D
BAR0 = 0x10
SUBSYSTEM = 0x2C
CAPABILITIES_POINTER = 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
HEADER_END = 0x40

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER = 1 << 0, 1 << 1, 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
STATUS_INTERRUPT, STATUS_CAPABILITIES = 1 << 3, 1 << 4
BAR_IO = 1
INTA = 1


class Registers(Protocol):
    """What answers at offsets from an address that somebody else chooses."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class Window:
    """Registers made of two functions: one face of a device that has several."""

    __slots__ = ("read", "write")

    def __init__(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        self.read = read
        self.write = write


class Decoder(Protocol):
    """An address map that claims can come and go on; refuses an overlap with ConfigError."""

    def claim(self, base: int, length: int, device: Any, what: str) -> Any: ...

    def release(self, claim: Any) -> None: ...


@dataclass(frozen=True)
class Identity:
    """The read-only identification registers of a function."""

    vendor: int
    device: int
    revision: int
    class_code: int
    subsystem_vendor: int = 0
    subsystem: int = 0

    def header(self) -> bytearray:
        """A configuration space in which only these registers are not zero."""
        space = bytearray(CONFIG_SIZE)
        struct.pack_into("<HH", space, 0x00, self.vendor, self.device)
        struct.pack_into("<I", space, 0x08, self.class_code << 8 | self.revision)
        struct.pack_into("<HH", space, SUBSYSTEM, self.subsystem_vendor, self.subsystem)
        return space


@dataclass(frozen=True)
class Bar:
    """One base address register: ``size`` (a power of two) addresses answered by ``registers``."""

    index: int
    io: bool
    size: int
    registers: Registers
    what: str


class PciState(State):
    """The part of every function's state that PCI defines."""

    config: Annotated[bytes, length(CONFIG_SIZE)] = bytes(CONFIG_SIZE)


class PciFunction:
    """Configuration space, BARs and the interrupt pin of one single-function device.

    Subclasses add BARs and capabilities in their constructor, which ends with ``self.reset()``.
    """

    __slots__ = ("_free", "_irq", "_last_capability", "_moved", "_power_on", "_writable", "bars", "state")

    state: PciState

    def __init__(self, identity: Identity, irq: Line | None = None) -> None:
        self._irq = irq
        self._moved: Callable[[], None] = _not_plugged
        self.bars: list[Bar] = []
        self._power_on = identity.header()
        self._power_on[INTERRUPT_PIN] = INTA if irq is not None else 0
        self._writable = bytearray(CONFIG_SIZE)
        self._free = HEADER_END
        self._last_capability = CAPABILITIES_POINTER
        self._let_write(COMMAND, (COMMAND_MASTER | COMMAND_INTX_DISABLE).to_bytes(2, "little"))
        for register in (CACHE_LINE_SIZE, LATENCY_TIMER, INTERRUPT_LINE):
            self._let_write(register, b"\xff")

    # Guest side: the configuration space.

    def config_read(self, offset: int, size: int) -> int:
        """What the registers hold; the host bridge lets no access leave its double word."""
        return int.from_bytes(self.state.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Change the writable bits; move BARs and the interrupt pin accordingly."""
        old = int.from_bytes(self.state.config[offset : offset + size], "little")
        mask = int.from_bytes(self._writable[offset : offset + size], "little")
        new = old & ~mask | value & mask
        if new == old:
            return
        self._patch(offset, new.to_bytes(size, "little"))
        self._drive_irq()
        if offset < BAR0 + 4 * BARS_MAX:
            self._moved()
        self._config_written(offset)

    # Board side.

    def plugged(self, moved: Callable[[], None]) -> None:
        """Called once by the host bridge; ``moved`` is to be called when decoding may change."""
        assert self._moved is _not_plugged, "a function sits in one slot"
        self._moved = moved

    def decoding(self) -> bytes:
        """The registers that decide what is decoded: command to the last BAR."""
        return self.state.config[COMMAND : BAR0 + 4 * BARS_MAX]

    def address(self, bar: Bar) -> int | None:
        """Where ``bar`` is to be decoded, or None while the command register disables its space."""
        config = self.state.config
        if not config[COMMAND] & (COMMAND_IO if bar.io else COMMAND_MEMORY):
            return None
        at = BAR0 + 4 * bar.index
        return int.from_bytes(config[at : at + 4], "little") & -bar.size

    def program(self, addresses: dict[int, int], interrupt_line: int) -> None:
        """What firmware does: give each BAR an address, tell the line, enable everything."""
        for index, base in addresses.items():
            self.config_write(BAR0 + 4 * index, 4, base)
        self.config_write(INTERRUPT_LINE, 1, interrupt_line)
        self.config_write(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)

    # Life cycle.

    def reset(self) -> None:
        self.state = self._fresh()
        self.restored()

    def restored(self) -> None:
        self._drive_irq()
        self._moved()

    # For subclasses.

    def _fresh(self) -> PciState:
        """The power-on state; a subclass with more state says so here."""
        return PciState(config=bytes(self._power_on))

    def _config_written(self, offset: int) -> None:
        """A configuration register at or after ``offset`` changed."""

    def _add_bar(self, bar: Bar) -> None:
        assert bar.size & (bar.size - 1) == 0, bar
        assert bar.size >= (4 if bar.io else 16), bar
        at = BAR0 + 4 * bar.index
        self.bars.append(bar)
        self._power_on[at : at + 4] = (BAR_IO if bar.io else 0).to_bytes(4, "little")
        self._let_write(at, (-bar.size & 0xFFFF_FFFF).to_bytes(4, "little"))
        self._writable[COMMAND] |= COMMAND_IO if bar.io else COMMAND_MEMORY

    def _add_capability(self, capability_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; ``body`` and ``writable`` follow its two header bytes.  Its offset."""
        at = self._free
        self._free = (at + 2 + len(body) + 3) & ~3
        assert self._free <= CONFIG_SIZE, "configuration space is full"
        self._power_on[at : at + 2 + len(body)] = bytes((capability_id, 0)) + body
        self._power_on[self._last_capability] = at
        self._power_on[STATUS] |= STATUS_CAPABILITIES
        self._let_write(at + 2, writable)
        self._last_capability = at + 1
        return at

    def _set_intx(self, level: bool) -> None:
        """Raise or lower our interrupt request; the pin follows unless it is disabled."""
        status = self.state.config[STATUS]
        wanted = status | STATUS_INTERRUPT if level else status & ~STATUS_INTERRUPT
        if wanted != status:
            self._patch(STATUS, bytes((wanted,)))
            self._drive_irq()

    @property
    def is_master(self) -> bool:
        """May this function read and write memory, and send messages?"""
        return bool(self.state.config[COMMAND] & COMMAND_MASTER)

    def _let_write(self, offset: int, mask: bytes) -> None:
        self._writable[offset : offset + len(mask)] = mask

    def _patch(self, offset: int, data: bytes) -> None:
        config = self.state.config
        self.state.config = config[:offset] + data + config[offset + len(data) :]

    def _drive_irq(self) -> None:
        if self._irq is not None:
            config = self.state.config
            disabled = config[COMMAND + 1] << 8 & COMMAND_INTX_DISABLE
            self._irq.set(bool(config[STATUS] & STATUS_INTERRUPT) and not disabled)


def _not_plugged() -> None:
    """A function in no slot decodes nothing."""


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
