"""The bytes of the BIOS: stubs, interrupt handlers, vectors, data area, and what POST programs.

Sources: IBM PC/AT technical reference (BIOS listing: entry points, data area at 0040:0000, interrupt
vectors); 8259A and 8254 data sheets (initialisation).

    F000:E000   256 stubs of 8 bytes, one a vector
    F000:E800   handlers and continuations, at the addresses named below
    F000:E900   tables: system configuration, diskette parameters
    F000:FFF0   reset vector, date, model byte

A service stub is `push vector; out CALL_PORT, al; ret`.  The service (bios.py) runs inside the OUT
with every register as the caller left it, and replaces the pushed word by the address at which to
go on: DONE (an IRET) as a rule, or a routine that waits and calls again.  No register is spent on
telling which service is meant, and nothing in Python ever waits.

Why port 0xE4: no PC/AT or later chipset function decodes 0xE4 (0xB2 is the chipset's power
management command, 0xE9 and 0x402 are other emulators' debug ports, 0xED is an I/O delay), and
below 0x100 the port fits in the OUT instruction.

Not here: option ROM scan, ROM BASIC, fonts, parallel ports, a checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from vmm.boot import memory_map
from vmm.boot.memory_map import BDA
from vmm.ram import Ram

CALL_PORT = 0xE4
SEGMENT = 0xF000
BASE = 0xF0000
ROM_START = 0xE000
ROM_SIZE = 0x2000
STUBS = 0xE000
STUB_SIZE = 8

# Continuations: where a service tells its stub to go on.
DONE = 0xE800
HALT = 0xE804
WAIT_KEY = 0xE808
WAIT_TIME = 0xE810
SPIN_TIME = 0xE818
KEY_TAKEN = 0xE820
# Handlers of hardware interrupts.
TIMER = 0xE840
KEYBOARD = 0xE880
EOI_MASTER = 0xE890
EOI_SLAVE = 0xE8A0
RESET = 0xE8B0
# Tables.
CONFIGURATION = 0xE900
DISKETTE = 0xE910
RESET_VECTOR = 0xFFF0

VECTOR_TIMER, VECTOR_KEYBOARD = 0x08, 0x09
VECTOR_MEMORY_WAIT, VECTOR_KEY = 0x15, 0x16
VECTOR_DISKETTE_TABLE = 0x1E
SERVICES = (0x00, 0x06, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x18, 0x19, 0x1A)
"""Vectors whose stubs call Python: two exceptions that would otherwise repeat for ever, then services."""
MASTER_VECTORS = range(0x0A, 0x10)
SLAVE_VECTORS = range(0x70, 0x78)
TICKS_A_DAY = 0x1800B0

# BIOS data area.
BDA_KEY_FLAGS = BDA + 0x17
BDA_KEY_HEAD = BDA + 0x1A
BDA_KEY_TAIL = BDA + 0x1C
BDA_KEY_BUFFER = BDA + 0x1E
BDA_DISKETTE_STATUS = BDA + 0x41
BDA_VIDEO_MODE = BDA + 0x49
BDA_COLUMNS = BDA + 0x4A
BDA_PAGE_SIZE = BDA + 0x4C
BDA_PAGE_START = BDA + 0x4E
BDA_CURSORS = BDA + 0x50
BDA_CURSOR_SHAPE = BDA + 0x60
BDA_PAGE = BDA + 0x62
BDA_CRTC = BDA + 0x63
BDA_TICKS = BDA + 0x6C
BDA_MIDNIGHT = BDA + 0x70
BDA_DISK_STATUS = BDA + 0x74
BDA_DISK_COUNT = BDA + 0x75
BDA_KEY_START = BDA + 0x80
BDA_KEY_END = BDA + 0x82
BDA_ROWS = BDA + 0x84
BDA_CHARACTER_HEIGHT = BDA + 0x85
BDA_KEY_STATE = BDA + 0x96

EQUIPMENT_DISKETTE = 1 << 0
EQUIPMENT_FPU = 1 << 1
EQUIPMENT_COLOUR_80X25 = 2 << 4
EQUIPMENT_ONE_SERIAL = 1 << 9

# Handlers, as bytes with their assembly.
_ROUTINES: dict[int, tuple[str, ...]] = {
    DONE: ("CF",),  # iret
    HALT: ("FA", "F4", "EB FC"),  # cli; hlt; jmp back to the cli
    KEY_TAKEN: ("B0 20", "E6 20", "58", "CF"),  # mov al, EOI; out 20h, al; pop ax; iret
    TIMER: (
        "50 52 1E",  # push ax; push dx; push ds
        "B8 40 00 8E D8",  # mov ax, 40h; mov ds, ax
        "FF 06 6C 00",  # inc word [6Ch]
        "75 04",  # jnz day
        "FF 06 6E 00",  # inc word [6Eh]
        "83 3E 6E 00 18",  # day: cmp word [6Eh], 18h
        "72 19",  # jb tick
        "81 3E 6C 00 B0 00",  # cmp word [6Ch], B0h
        "72 11",  # jb tick
        "C7 06 6C 00 00 00",  # mov word [6Ch], 0
        "C7 06 6E 00 00 00",  # mov word [6Eh], 0
        "C6 06 70 00 01",  # mov byte [70h], 1: midnight has passed
        "CD 1C",  # tick: int 1Ch
        "B0 20 E6 20",  # mov al, EOI; out 20h, al
        "1F 5A 58 CF",  # pop ds; pop dx; pop ax; iret
    ),
    KEYBOARD: (
        "50",  # push ax
        "E4 60",  # in al, 60h
        "6A 09 E6 E4 C3",  # push 9; out CALL_PORT, al; ret, to KEY_TAKEN
    ),
    EOI_MASTER: ("50", "B0 20 E6 20", "58 CF"),  # push ax; mov al, EOI; out 20h, al; pop ax; iret
    EOI_SLAVE: ("50", "B0 20 E6 A0 E6 20", "58 CF"),  # the same, to the slave and to the master
    RESET: ("B0 FE E6 64", "F4", "EB FD"),  # mov al, FEh; out 64h, al: pulse reset; hlt; jmp to the hlt
    # Length 8, model FCh (AT), submodel 0, revision 0; features: second 8259, RTC, EBDA.
    CONFIGURATION: ("08 00", "FC 00 00", "64 00 00 00 00"),
    # 1.44 MB: step and head times, motor off delay, 512-byte sectors, 18 a track, gaps, fill byte.
    DISKETTE: ("AF 02 25 02 12 1B FF 6C F6 0F 08",),
    RESET_VECTOR + 5: ("30 31 2F 30 31 2F 32 36", "00", "FC"),  # date 01/01/26, filler, model byte
}


class Ports(Protocol):
    """The port bus, as firmware uses it."""

    def read(self, address: int, size: int) -> int: ...

    def write(self, address: int, size: int, value: int) -> None: ...


def rom() -> bytes:
    """The 8 KiB at F000:E000."""
    image = bytearray(b"\xf4" * ROM_SIZE)
    for vector in range(256):
        _put(image, STUBS + STUB_SIZE * vector, _stub(vector))
    for at, pieces in _ROUTINES.items():
        _put(image, at, bytes.fromhex("".join(pieces)))
    # sti; hlt; jmp stub: an interrupt ends the HLT, then the service looks again.
    _put(image, WAIT_KEY, b"\xfb\xf4" + _jump(WAIT_KEY + 2, stub(VECTOR_KEY)))
    _put(image, WAIT_TIME, b"\xfb\xf4" + _jump(WAIT_TIME + 2, stub(VECTOR_MEMORY_WAIT)))
    # sti; nop; jmp stub: too little time is left for a HLT until the next tick.
    _put(image, SPIN_TIME, b"\xfb\x90" + _jump(SPIN_TIME + 2, stub(VECTOR_MEMORY_WAIT)))
    _put(image, RESET_VECTOR, b"\xea" + struct.pack("<HH", RESET, SEGMENT))  # jmp far F000:RESET
    return bytes(image)


def stub(vector: int) -> int:
    """Offset of a vector's stub in segment F000."""
    return STUBS + STUB_SIZE * vector


def _stub(vector: int) -> bytes:
    at = stub(vector)
    if vector == VECTOR_TIMER:
        return _jump(at, TIMER)
    if vector == VECTOR_KEYBOARD:
        return _jump(at, KEYBOARD)
    if vector in MASTER_VECTORS:
        return _jump(at, EOI_MASTER)
    if vector in SLAVE_VECTORS:
        return _jump(at, EOI_SLAVE)
    if vector in SERVICES:
        return bytes((0x6A, vector, 0xE6, CALL_PORT, 0xC3))  # push vector; out CALL_PORT, al; ret
    return b"\xcf"  # iret


def _jump(at: int, to: int) -> bytes:
    """jmp near, from an instruction at ``at``."""
    return b"\xe9" + struct.pack("<h", to - (at + 3))


def _put(image: bytearray, at: int, code: bytes) -> None:
    image[at - ROM_START : at - ROM_START + len(code)] = code


def install(memory: Ram, drives: Iterable[int]) -> None:
    """ROM, vectors, data area and a clear screen; ``drives`` are BIOS drive numbers."""
    numbers = list(drives)
    memory.write(BASE + ROM_START, rom())
    vectors = [(SEGMENT << 16) | stub(vector) for vector in range(256)]
    vectors[VECTOR_DISKETTE_TABLE] = (SEGMENT << 16) | DISKETTE
    memory.write(0, struct.pack("<256I", *vectors))
    memory.write(BDA, _data_area(numbers))
    memory_map.write_bda_sizes(memory)
    memory.write(0xB8000, b"\x20\x07" * 0x4000)


def _data_area(drives: list[int]) -> bytes:
    area = bytearray(256)
    diskettes = sum(number < 0x80 for number in drives)
    equipment = EQUIPMENT_FPU | EQUIPMENT_COLOUR_80X25 | EQUIPMENT_ONE_SERIAL
    if diskettes:
        equipment |= EQUIPMENT_DISKETTE | (diskettes - 1) << 6
    for at, value in (
        (memory_map.BDA_COM1, 0x3F8),
        (memory_map.BDA_EQUIPMENT, equipment),
        (BDA_KEY_HEAD, 0x1E),
        (BDA_KEY_TAIL, 0x1E),
        (BDA_COLUMNS, 80),
        (BDA_PAGE_SIZE, 0x1000),
        (BDA_CURSOR_SHAPE, 0x0607),
        (BDA_CRTC, 0x3D4),
        (BDA_KEY_START, 0x1E),
        (BDA_KEY_END, 0x3E),
        (BDA_CHARACTER_HEIGHT, 16),
    ):
        struct.pack_into("<H", area, at - BDA, value)
    area[BDA_VIDEO_MODE - BDA] = 3
    area[BDA_ROWS - BDA] = 24
    area[BDA_DISK_COUNT - BDA] = len(drives) - diskettes
    area[BDA_KEY_STATE - BDA] = 0x10  # a 101-key keyboard
    return bytes(area)


# What POST leaves in the chips: port, value, what.
_POST = (
    (0x20, 0x11),  # 8259 master ICW1: edge, cascade, ICW4 follows
    (0x21, 0x08),  # ICW2: IRQ 0-7 are vectors 08-0F
    (0x21, 0x04),  # ICW3: slave at input 2
    (0x21, 0x01),  # ICW4: 8086 mode
    (0xA0, 0x11),  # 8259 slave ICW1
    (0xA1, 0x70),  # ICW2: IRQ 8-15 are vectors 70-77
    (0xA1, 0x02),  # ICW3: slave number 2
    (0xA1, 0x01),  # ICW4
    (0x21, 0xF8),  # OCW1: timer, keyboard and cascade open
    (0xA1, 0xFF),  # OCW1: the slave's inputs closed
    (0x43, 0x36),  # 8254: counter 0, two bytes, mode 3
    (0x40, 0x00),  # count 0 = 65536: 18.2 Hz
    (0x40, 0x00),
    (0x64, 0x60),  # 8042: write command byte
    (0x60, 0x65),  # translate to set 1, auxiliary port off, system flag, IRQ 1 on
    (0x64, 0xAE),  # keyboard on
)


def initialise(ports: Ports) -> None:
    """Program the interrupt controllers, the timer and the keyboard as POST does."""
    for port, value in _POST:
        ports.write(port, 1, value)
