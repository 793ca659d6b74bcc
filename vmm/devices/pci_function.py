"""What every PCI function has in common: configuration space, base address registers, the interrupt pin.

Source: PCI Local Bus Specification 3.0, chapter 6 (configuration space), 6.2.3 (status), 6.2.5 (base
address registers) and 6.7 (capabilities list).

A function says where its BARs want to be; the host bridge in ``pci.py`` decides what is decoded.
The 256 bytes of configuration space are the state, so reading is a slice and writing a masked merge.

Not modelled: multi-function devices, 64-bit and prefetchable BARs, expansion ROMs, parity and
system errors, power management.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from vmm.device import Line
from vmm.state import State, length

CONFIG_SIZE = 256
BARS_MAX = 6

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
