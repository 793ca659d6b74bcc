"""MSI-X: interrupts as memory writes, one programmable address and datum per vector.

Source: PCI Local Bus Specification 3.0, section 6.8.2 (capability, table, pending bit array).

The table and the pending bits lie in a memory BAR of the function; Message Control lies in its
configuration space, which owns it, so it is read through a callable and kept nowhere else.  What
becomes of a message is the sink's business: on a PC, addresses 0xFEExxxxx reach the local APIC.

Not modelled: per-vector masking by other functions, MSI (without X), steering tags.  Accesses to
the table that are not aligned double or quad words are undefined by the specification; here they
read as all ones and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from vmm.device import all_ones
from vmm.state import State, field, length, u8, u32

CAPABILITY_ID = 0x11
CONTROL_ENABLE, CONTROL_FUNCTION_MASK = 0x80, 0x40
"""In the upper byte of Message Control."""
CONTROL_WRITABLE = bytes((0x00, CONTROL_ENABLE | CONTROL_FUNCTION_MASK))

TABLE_OFFSET, PBA_OFFSET = 0x000, 0x800
BAR_SIZE = 0x1000
ENTRY_SIZE = 16
VECTOR_MASKED = 1
VECTORS_MAX = 8
"""Table entries that are stored; no function of the board has more queues than that."""


def _all_masked() -> list[int]:
    """Every vector is masked after reset."""
    return [0, 0, 0, VECTOR_MASKED] * VECTORS_MAX


class MsixState(State):
    """Table entries as address, upper address, data, vector control; and the pending bits."""

    table: Annotated[list[u32], length(4 * VECTORS_MAX)] = field(default_factory=_all_masked)
    pending: u8 = 0


class Msix:
    """The table and pending bits of a function with ``vectors`` vectors."""

    __slots__ = ("_control", "_msi", "state", "vectors")

    def __init__(self, vectors: int, control: Callable[[], int], msi: Callable[[int, int], None]) -> None:
        assert 1 <= vectors <= VECTORS_MAX, vectors
        self.vectors = vectors
        self._control = control
        self._msi = msi
        self.state = MsixState()

    def capability(self, bar_index: int) -> bytes:
        """The capability after its two header bytes, with table and pending bits in one BAR."""
        control = (self.vectors - 1).to_bytes(2, "little")
        table = (TABLE_OFFSET | bar_index).to_bytes(4, "little")
        return control + table + (PBA_OFFSET | bar_index).to_bytes(4, "little")

    # Guest side: the BAR.

    def read(self, offset: int, size: int) -> int:
        if size not in (4, 8) or offset % size:
            return all_ones(size)
        return self._read_dword(offset) | (self._read_dword(offset + 4) << 32 if size == 8 else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if size not in (4, 8) or offset % size:
            return
        for at in range(offset, offset + size, 4):
            if 0 <= at < ENTRY_SIZE * self.vectors:
                index = at >> 2
                mask = VECTOR_MASKED if index & 3 == 3 else 0xFFFF_FFFF
                self.state.table[index] = value & mask
            value >>= 32
        self.send_pending()

    # Function side.

    @property
    def enabled(self) -> bool:
        """With MSI-X enabled, the function must not use its interrupt pin."""
        return bool(self._control() & CONTROL_ENABLE)

    def signal(self, vector: int) -> bool:
        """Send the message of ``vector``, or remember it while it is masked; False: not enabled.

        A number beyond the table is no vector, and has no message.
        """
        control = self._control()
        if not control & CONTROL_ENABLE:
            return False
        if vector < self.vectors:
            table = self.state.table
            entry = vector << 2
            if control & CONTROL_FUNCTION_MASK or table[entry + 3] & VECTOR_MASKED:
                self.state.pending |= 1 << vector
            else:
                self._msi(table[entry + 1] << 32 | table[entry], table[entry + 2])
        return True

    def send_pending(self) -> None:
        """A mask may have been lifted: send what waited for it, lowest vector first."""
        state = self.state
        if not state.pending or self._control() & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) != CONTROL_ENABLE:
            return
        for vector in range(self.vectors):
            if state.pending >> vector & 1 and not state.table[4 * vector + 3] & VECTOR_MASKED:
                state.pending &= ~(1 << vector)
                self.signal(vector)

    # Life cycle.

    def reset(self) -> None:
        self.state = MsixState()

    def restored(self) -> None:
        """Nothing is driven: a message, once sent, is the receiver's."""

    def _read_dword(self, offset: int) -> int:
        if 0 <= offset < ENTRY_SIZE * self.vectors:
            return self.state.table[offset >> 2]
        if offset == PBA_OFFSET:
            return self.state.pending
        if PBA_OFFSET < offset < PBA_OFFSET + 8:
            return 0
        return 0xFFFF_FFFF
