"""fw_cfg: how a PC tells its firmware, or a test program, what it is made of.

Source: QEMU's specification "QEMU Firmware Configuration (fw_cfg) Device" (docs/specs/fw_cfg), the
port interface: 16-bit selector at 510H (write only), 8-bit data at 511H.  Selecting an item starts
at its first byte; each read gives the next; past its end, and for unknown items, zeroes.

Not modelled, and why: the DMA interface (bit 1 of the ID item says so; items here are small) and
writing items (the specification withdrew it for the data port).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.devices.isa import read_bytes
from vmm.errors import ConfigError
from vmm.state import State, u16, u32

SELECTOR, DATA = 0, 1

SIGNATURE, ID, RAM_SIZE, CPU_COUNT, CPU_MAX, FILE_DIRECTORY = 0x00, 0x01, 0x03, 0x05, 0x0F, 0x19
FILE_FIRST = 0x20
IRQ0_OVERRIDE = 0x8002  # ISA IRQ 0 is at pin 2 of the I/O APIC
ID_TRADITIONAL = 0x01

FILES_MAX = 256
FILE_NAME_MAX = 55  # 56 bytes with the terminating zero


class FwCfgState(State):
    selector: u16 = 0
    offset: u32 = 0


class FwCfg:
    """``files`` are found by name through the file directory."""

    __slots__ = ("_items", "state")

    def __init__(self, ram_bytes: int, cpu_count: int, files: Mapping[str, bytes] | None = None) -> None:
        self.state = FwCfgState()
        self._items = {
            SIGNATURE: b"QEMU",
            ID: ID_TRADITIONAL.to_bytes(4, "little"),
            RAM_SIZE: ram_bytes.to_bytes(8, "little"),
            CPU_COUNT: cpu_count.to_bytes(2, "little"),
            CPU_MAX: cpu_count.to_bytes(2, "little"),
            IRQ0_OVERRIDE: (1).to_bytes(4, "little"),
            **_file_items(files or {}),
        }

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        if offset != DATA:
            return 0xFF
        s = self.state
        item = self._items.get(s.selector, b"")
        if s.offset >= len(item):
            return 0
        value = item[s.offset]
        s.offset += 1
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == SELECTOR and size == 2:
            self.state.selector, self.state.offset = value, 0

    # Life cycle

    def reset(self) -> None:
        self.state = FwCfgState()
        self.restored()

    def restored(self) -> None:
        """Nothing to drive."""


def _file_items(files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The directory (big-endian, as the specification says) and the contents, in order of name."""
    if len(files) > FILES_MAX:
        raise ConfigError(f"fw_cfg: {len(files)} files, the limit is {FILES_MAX}")
    directory = bytearray(len(files).to_bytes(4, "big"))
    items: dict[int, bytes] = {}
    for key, (name, data) in enumerate(sorted(files.items()), FILE_FIRST):
        if not name.isascii() or not 1 <= len(name) <= FILE_NAME_MAX:
            raise ConfigError(f"fw_cfg: file name {name!r} must be 1 to {FILE_NAME_MAX} ASCII characters")
        directory += len(data).to_bytes(4, "big") + key.to_bytes(2, "big") + bytes(2)
        directory += name.encode("ascii").ljust(FILE_NAME_MAX + 1, b"\0")
        items[key] = data
    items[FILE_DIRECTORY] = bytes(directory)
    return items
