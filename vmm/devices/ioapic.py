"""I/O APIC: 24 interrupt pins turned into messages to the local APIC.

Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller data sheet (290566-001), §3.1
(memory-mapped registers) and §3.2 (IOAPIC registers).  Version 11H: there is no EOI register at
offset 40H; the local APIC's EOI message clears Remote IRR.

Power-on differs from the data sheet in one place: the ID register holds IOAPIC_ID, as a BIOS leaves
it and as the MP table says, and not 0.

Not modelled, and why:
* destinations: stored and read back, never compared, because there is one processor;
* polarity: stored; the board's lines say "asserted", not a voltage;
* SMI and INIT delivery: nothing is sent;
* a message that the local APIC does not accept (software-disabled) is not sent again; a guest that
  finds Remote IRR stuck clears it as on the chip, by making the entry edge-triggered for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from vmm.device import Line, all_ones
from vmm.state import State, field, length, u8, u32, u64

PIN_COUNT = 24
IOAPIC_ID = 1

# §3.1 memory-mapped registers
IOREGSEL, IOWIN = 0x00, 0x10

# §3.2 registers behind the window
IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x00, 0x01, 0x02, 0x10
VERSION_VALUE = (PIN_COUNT - 1) << 16 | 0x11
ID_SHIFT, ID_WRITABLE = 24, 0x0F00_0000

# §3.2.4 redirection table entry
REMOTE_IRR, LEVEL, MASKED = 1 << 14, 1 << 15, 1 << 16
LOW_WRITABLE = 0x1_AFFF
HIGH_WRITABLE = 0xFF00_0000
FIXED, LOWEST_PRIORITY, NMI, EXTINT = 0, 1, 4, 7
"""Delivery modes, bits 10:8."""
NOT_FIXED = 0x600
"""Set in every mode but fixed and lowest priority."""


def _all_masked() -> list[int]:
    return [MASKED] * PIN_COUNT


class IoApicState(State):
    select: u8 = 0
    id: u32 = IOAPIC_ID << ID_SHIFT
    arbitration: u32 = IOAPIC_ID << ID_SHIFT  # loaded whenever the ID is written
    redirection: Annotated[list[u64], length(PIN_COUNT)] = field(default_factory=_all_masked)
    asserted: u32 = 0  # the pins, one bit each


class _Pin:
    """One interrupt input as a Line."""

    __slots__ = ("_ioapic", "_pin")

    def __init__(self, ioapic: IoApic, pin: int) -> None:
        self._ioapic = ioapic
        self._pin = pin

    def set(self, level: bool) -> None:
        self._ioapic.pin_changed(self._pin, level)


class IoApic:
    """``deliver(vector, level_triggered, mode)`` sends one interrupt message."""

    __slots__ = ("_deliver", "_pins", "state")

    def __init__(self, deliver: Callable[[int, bool, int], None]) -> None:
        self.state = IoApicState()
        self._deliver = deliver
        self._pins = tuple(_Pin(self, pin) for pin in range(PIN_COUNT))

    # Guest side

    def read(self, offset: int, size: int) -> int:
        """Any bytes of the two 32-bit registers; nothing else answers."""
        lane = offset & 3
        register = offset - lane
        if register not in (IOREGSEL, IOWIN) or lane + size > 4:
            return all_ones(size)
        value = self.state.select if register == IOREGSEL else self._window()
        return value >> 8 * lane & all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Registers are written as 32 bits (§3.1); the index may be written as a byte too."""
        if offset == IOREGSEL:
            self.state.select = value & 0xFF
        elif offset == IOWIN and size == 4:
            self._write_window(value)

    # Board side

    def line(self, pin: int) -> Line:
        """The interrupt input ``pin``, 0 to 23."""
        return self._pins[pin]

    def pin_changed(self, pin: int, level: bool) -> None:
        s = self.state
        bit = 1 << pin
        if bool(s.asserted & bit) == level:
            return
        s.asserted ^= bit
        if level:
            entry = s.redirection[pin]
            if not entry & MASKED:
                self._request(pin, entry)

    def eoi(self, vector: int) -> None:
        """EOI message: level-triggered entries with this vector may ask again."""
        s = self.state
        ended = REMOTE_IRR | vector
        for pin, entry in enumerate(s.redirection):
            if entry & (REMOTE_IRR | 0xFF) == ended:
                s.redirection[pin] = entry & ~REMOTE_IRR
                self._sample(pin)

    # Life cycle

    def reset(self) -> None:
        self.state = IoApicState()
        self.restored()

    def restored(self) -> None:
        """Nothing to drive: a message is sent once, and Remote IRR remembers that it was."""

    # Private

    def _window(self) -> int:
        s = self.state
        if s.select == IOAPICID:
            return s.id
        if s.select == IOAPICVER:
            return VERSION_VALUE
        if s.select == IOAPICARB:
            return s.arbitration
        pin, high = divmod(s.select - IOREDTBL, 2)
        if not 0 <= pin < PIN_COUNT:
            return all_ones(4)
        return s.redirection[pin] >> 32 * high & all_ones(4)

    def _write_window(self, value: int) -> None:
        s = self.state
        if s.select == IOAPICID:
            s.id = s.arbitration = value & ID_WRITABLE
            return
        pin, high = divmod(s.select - IOREDTBL, 2)
        if not 0 <= pin < PIN_COUNT:
            return
        entry = s.redirection[pin]
        if high:
            s.redirection[pin] = entry & all_ones(4) | (value & HIGH_WRITABLE) << 32
            return
        kept = ~all_ones(4) | (REMOTE_IRR if value & LEVEL else 0)
        s.redirection[pin] = entry & kept | value & LOW_WRITABLE
        self._sample(pin)

    def _sample(self, pin: int) -> None:
        """A level-triggered entry may have become deliverable; edges missed while masked are lost."""
        s = self.state
        entry = s.redirection[pin]
        if s.asserted >> pin & 1 and entry & (MASKED | LEVEL | NOT_FIXED) == LEVEL:
            self._request(pin, entry)

    def _request(self, pin: int, entry: int) -> None:
        """Send the message of an unmasked entry, once until EOI if it is level-triggered."""
        mode, vector = entry >> 8 & 7, entry & 0xFF
        if mode in (FIXED, LOWEST_PRIORITY):
            level = bool(entry & LEVEL)
            if level:
                if entry & REMOTE_IRR:
                    return
                self.state.redirection[pin] = entry | REMOTE_IRR
            self._deliver(vector, level, mode)
        elif mode in (NMI, EXTINT):  # edges whatever the entry says (§3.2.4)
            self._deliver(vector, False, mode)
