"""Multiboot kernels: xv6, kvm-unit-tests and teaching kernels.

Source: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state) and 3.3 (boot
information).

The kernel is an ELF file of 32 or 64 bits, loaded by physical address, or, when header flag 16 is
set, a flat file with its addresses in the header.  It is entered in 32-bit protected mode without
paging: EAX = 0x2BADB002, EBX = the boot information.

    kernel    where it says
    modules   page aligned, above the kernel and above 1 MiB
    info      with its strings, memory map and GDT: first room between 0x9000 and the EBDA,
              otherwise above the modules

Not here: section headers of the kernel (flags 4 and 5), drives, configuration table, APM and
video modes; the flags that announce them stay clear.  A header that asks for a video mode gets
VGA text, which the specification allows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmm.boot import elf, memory_map
from vmm.boot.entry import CODE32, DATA32, FLAT_LIMIT, Entry, Segment, protected_entry
from vmm.errors import ImageError
from vmm.ram import MIB, PAGE_SIZE, Ram

HEADER_MAGIC = 0x1BADB002
BOOTLOADER_MAGIC = 0x2BADB002
SEARCH = 8192
"""The header lies in the first 8192 bytes, 4-byte aligned."""
MODULES_MAX = 64
STRING_MAX = 4096

# Header flags (3.1.2).
PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
REQUIRED = 0xFFFF
"""Flags 0 to 15 must be understood, 16 to 31 may be ignored."""
ADDRESSES = 1 << 16

# Boot information flags (3.3).
INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODS = 1 << 3
INFO_MMAP = 1 << 6
INFO_LOADER_NAME = 1 << 9
INFO_SIZE = 116
INFO_LOWEST = 0x9000
LOADER_NAME = b"colo-vmm\0"

CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10


@dataclass(frozen=True, slots=True)
class Module:
    """One boot module and the string that goes with it."""

    data: bytes
    string: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """The Multiboot header; the addresses mean something when flag 16 is set."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


def find_header(image: bytes) -> Header | None:
    """The header of ``image``: magic, flags and checksum add up to zero."""
    window = image[:SEARCH]
    at = window.find(HEADER_MAGIC.to_bytes(4, "little"))
    while at >= 0:
        if at % 4 == 0 and at + 12 <= len(window):
            magic, flags, checksum = struct.unpack_from("<III", window, at)
            if (magic + flags + checksum) & 0xFFFF_FFFF == 0:
                if flags & ADDRESSES and at + 32 <= len(window):
                    return Header(at, flags, *struct.unpack_from("<5I", window, at + 12))
                return Header(at, flags & ~ADDRESSES)
        at = window.find(HEADER_MAGIC.to_bytes(4, "little"), at + 1)
    return None


def load(
    memory: Ram,
    image: bytes,
    command_line: str = "",
    modules: Sequence[Module] = (),
    name: str = "kernel",
) -> Entry:
    """Put a Multiboot kernel, its modules and its boot information into RAM."""
    header = find_header(image)
    if header is None:
        raise ImageError(
            f"{name}: no Multiboot header (0x1badb002 with a matching checksum) in the first {SEARCH} bytes:"
            " not a Multiboot kernel"
        )
    unknown = header.flags & REQUIRED & ~(PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE)
    if unknown:
        raise ImageError(
            f"{name}: Multiboot header requires flags {unknown:#06x}, this loader knows 0x0007:"
            " build without them"
        )
    memory_map.write_bda_sizes(memory)
    if header.flags & ADDRESSES:
        ip, used = _load_flat(memory, image, header, name)
    else:
        ip, used = _load_elf(memory, image, name)
    placed, end = _load_modules(memory, modules, max(MIB, *(stop for _, stop in used)), name)
    info, gdt = _write_info(memory, command_line, modules, placed, used, end, name)
    return protected_entry(
        ip,
        {"rax": BOOTLOADER_MAGIC, "rbx": info},
        gdt=gdt,
        code_selector=CODE_SELECTOR,
        data_selector=DATA_SELECTOR,
    )


Ranges = list[tuple[int, int]]


def _load_elf(memory: Ram, image: bytes, name: str) -> tuple[int, Ranges]:
    loaded = elf.load(memory, [image], name)
    ip = loaded.physical_entry()
    if ip is None or loaded.end > 1 << 32:
        raise ImageError(
            f"{name}: entry {loaded.entry:#x}, segments {loaded.start:#x}-{loaded.end:#x}: expected a kernel"
            " below 4 GiB that holds its entry point"
        )
    return ip, [(segment.paddr, segment.end) for segment in loaded.segments]


def _load_flat(memory: Ram, image: bytes, header: Header, name: str) -> tuple[int, Ranges]:
    """The address fields (3.1.3): the text begins as far before the header as in memory."""
    start = header.offset - (header.header_addr - header.load_addr)
    length = header.load_end_addr - header.load_addr if header.load_end_addr else len(image) - start
    if not 0 <= start <= header.offset or length <= 0 or start + length > len(image):
        raise ImageError(
            f"{name}: Multiboot addresses ask for {length:#x} bytes at file offset {start:#x}, the file has"
            f" {len(image):#x}: truncated or linked wrongly"
        )
    end = max(header.load_addr + length, header.bss_end_addr)
    if not header.load_addr <= header.entry_addr < end:
        raise ImageError(
            f"{name}: Multiboot entry {header.entry_addr:#x} is outside the image"
            f" {header.load_addr:#x}-{end:#x}"
        )
    elf.require_ram(memory, header.load_addr, end - header.load_addr, name)
    memory.write(header.load_addr, memoryview(image)[start : start + length])
    elf.clear(memory, header.load_addr + length, end - header.load_addr - length, name)
    return header.entry_addr, [(header.load_addr, end)]


def _load_modules(memory: Ram, modules: Sequence[Module], above: int, name: str) -> tuple[Ranges, int]:
    """Where each module went, and the first free page above them."""
    if len(modules) > MODULES_MAX:
        raise ImageError(f"{name}: {len(modules)} modules, the limit is {MODULES_MAX}")
    placed: Ranges = []
    at = _page_up(above)
    for i, module in enumerate(modules):
        elf.require_ram(memory, at, len(module.data), f"{name}: module {i}")
        memory.write(at, module.data)
        placed.append((at, at + len(module.data)))
        at = _page_up(at + len(module.data))
    return placed, at


def _write_info(
    memory: Ram,
    command_line: str,
    modules: Sequence[Module],
    placed: Ranges,
    used: Ranges,
    free: int,
    name: str,
) -> tuple[int, tuple[int, int]]:
    """The boot information and a GDT; addresses of both."""
    strings = [_string(command_line, f"{name}: command line")]
    strings += [_string(module.string, f"{name}: module string") for module in modules]
    ranges = memory_map.e820(memory)
    table = b"".join(struct.pack("<I", 20) + entry.pack() for entry in ranges)
    size = INFO_SIZE + len(table) + 16 * len(modules) + sum(map(len, strings)) + len(LOADER_NAME) + 24 + 64
    base = _find_room(memory, used, size, free, name)
    blob = _Blob(base, INFO_SIZE)
    gdt = blob.add(_gdt())
    mmap = blob.add(table)
    addresses = [blob.add(text) for text in strings]
    loader = blob.add(LOADER_NAME)
    mods = blob.add(
        b"".join(
            struct.pack("<4I", *where, text, 0) for where, text in zip(placed, addresses[1:], strict=True)
        )
    )
    blob.data[:INFO_SIZE] = _info(memory, addresses[0], (len(modules), mods), (len(table), mmap), loader)
    memory.write(base, blob.data)
    return base, (gdt, len(_gdt()) - 1)


def _info(memory: Ram, cmdline: int, mods: tuple[int, int], mmap: tuple[int, int], loader: int) -> bytes:
    info = bytearray(INFO_SIZE)
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_LOADER_NAME
    upper_kib = (memory_map.low_top(memory) - MIB) >> 10
    struct.pack_into("<III", info, 0, flags, memory_map.BASE_MEMORY_KIB, upper_kib)
    struct.pack_into("<III", info, 16, cmdline, *mods)
    struct.pack_into("<II", info, 44, *mmap)
    struct.pack_into("<I", info, 64, loader)
    return bytes(info)


class _Blob:
    """Bytes with known addresses, filled from the front; every item 8-byte aligned."""

    __slots__ = ("base", "data")

    def __init__(self, base: int, reserved: int) -> None:
        self.base = base
        self.data = bytearray(reserved)

    def add(self, item: bytes) -> int:
        self.data += bytes(-len(self.data) % 8)
        at = self.base + len(self.data)
        self.data += item
        return at


def _find_room(memory: Ram, used: Ranges, size: int, free: int, name: str) -> int:
    """Low memory beside the kernel if there is room, otherwise above everything."""
    size += 8 * (MODULES_MAX + 8)  # alignment of the items
    at = INFO_LOWEST
    for start, stop in sorted(used):
        if start < at + size and at < stop:
            at = _page_up(stop)
    if at + size <= memory_map.EBDA:
        return at
    elf.require_ram(memory, free, size, f"{name}: boot information")
    return free


def _string(text: str, what: str) -> bytes:
    data = text.encode()
    if len(data) > STRING_MAX or b"\0" in data:
        raise ImageError(f"{what} of {len(data)} bytes: expected at most {STRING_MAX} and no NUL")
    return data + b"\0"


def _gdt() -> bytes:
    """The specification leaves the GDT to the kernel; a valid one spares it surprises."""
    code = Segment(CODE_SELECTOR, 0, FLAT_LIMIT, CODE32).descriptor
    data = Segment(DATA_SELECTOR, 0, FLAT_LIMIT, DATA32).descriptor
    return struct.pack("<3Q", 0, code, data)


def _page_up(address: int) -> int:
    return (address + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
