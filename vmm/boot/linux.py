"""Linux, entered at `startup_64`.

Source: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst.

The protocol's conditions: 64-bit mode with paging on and the loaded memory, the zero page and the
command line identity mapped; a GDT with __BOOT_CS (0x10) and __BOOT_DS (0x18) flat; interrupts
off; RSI points at the zero page.

    0x00500   GDT
    0x07000   zero page (boot_params)
    0x09000   page tables: PML4, PDPT, four page directories of 2 MiB pages: the first 4 GiB
    0x20000   command line, up to 64 KiB
    kernel    where its ELF segments say
    initrd    as high as it may lie, page aligned

The payload's ELF entry point is entered rather than the decompressor's: the kernel runs where it
was linked, so there is no address randomisation, whatever the command line says.

Not here: EFI, setup_data, an initrd above 4 GiB.
"""

from __future__ import annotations

import struct

from vmm.boot import bzimage, elf, memory_map
from vmm.boot.bzimage import KernelImage
from vmm.boot.entry import CODE64, DATA32, Entry, Segment, long_mode_entry
from vmm.errors import ImageError
from vmm.ram import PAGE_SIZE, Ram

GDT = 0x500
ZERO_PAGE = 0x7000
PAGE_TABLES = 0x9000
COMMAND_LINE = 0x20000
COMMAND_LINE_MAX = 0xFFFF
"""What fits before the EBDA with room to spare; kernels allow 2047."""
LOWEST = 1 << 20
"""The kernel must leave the first mebibyte to the tables above."""
TABLES_END = COMMAND_LINE + COMMAND_LINE_MAX + 1

BOOT_CS, BOOT_DS = 0x10, 0x18

# Zero page (zero-page.rst).
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
TYPE_OF_LOADER_UNDEFINED = 0xFF

# Page table entry bits (SDM 3A 4.5).
PTE_P = 1 << 0
PTE_RW = 1 << 1
PTE_PS = 1 << 7
MAPPED_GIB = 4


def load(
    memory: Ram, kernel: bytes | KernelImage, command_line: str, initrd: bytes = b"", name: str = "kernel"
) -> Entry:
    """Put a kernel, its command line and initrd into RAM."""
    image = kernel if isinstance(kernel, KernelImage) else KernelImage.parse(kernel, name)
    text = _command_line(image, command_line)
    loaded = elf.load(memory, image.pieces(), image.name)
    if loaded.bits != 64 or loaded.machine != elf.EM_X86_64:
        raise ImageError(f"{image.name}: a {loaded.bits}-bit kernel: use an amd64 kernel")
    ip = loaded.physical_entry()
    if ip is None or loaded.start < LOWEST or loaded.end > MAPPED_GIB << 30:
        raise ImageError(
            f"{image.name}: entry {loaded.entry:#x}, segments {loaded.start:#x}-{loaded.end:#x}:"
            " expected a kernel between 1 MiB and 4 GiB that holds its entry point"
        )
    at = _place_initrd(memory, image, loaded.end, initrd)
    elf.clear(memory, 0, TABLES_END, image.name)
    memory.write(ZERO_PAGE, _zero_page(memory, image, at, len(initrd)))
    memory.write(COMMAND_LINE, text)
    memory_map.write_bda_sizes(memory)
    gdt = _write_gdt(memory)
    _write_identity_map(memory)
    return long_mode_entry(
        ip, {"rsi": ZERO_PAGE}, cr3=PAGE_TABLES, gdt=gdt, code_selector=BOOT_CS, data_selector=BOOT_DS
    )


def _command_line(image: KernelImage, command_line: str) -> bytes:
    text = command_line.encode()
    limit = min(image.cmdline_size, COMMAND_LINE_MAX)
    if len(text) > limit:
        raise ImageError(
            f"{image.name}: command line of {len(text)} bytes, this kernel takes {limit}: shorten it"
        )
    if b"\0" in text:
        raise ImageError(f"{image.name}: command line with a NUL at {text.index(0)}: remove it")
    return text + b"\0"


def _place_initrd(memory: Ram, image: KernelImage, kernel_end: int, initrd: bytes) -> int:
    """The address of the initrd: the highest page from which it fits (0 without one)."""
    if not initrd:
        return 0
    floor = max(kernel_end, image.runtime_end)
    top = min(memory_map.low_top(memory), image.initrd_addr_max + 1)
    at = (top - len(initrd)) & ~(PAGE_SIZE - 1)
    if at < floor:
        raise ImageError(
            f"{image.name}: initrd of {len(initrd) >> 10} KiB does not fit between the kernel's end"
            f" {floor:#x} and {top:#x}: give the machine more memory"
        )
    memory.write(at, initrd)
    return at


def _zero_page(memory: Ram, image: KernelImage, initrd_at: int, initrd_size: int) -> bytes:
    page = bytearray(PAGE_SIZE)
    page[bzimage.HEADER : bzimage.HEADER + len(image.setup_header)] = image.setup_header
    page[: len(SCREEN_INFO)] = SCREEN_INFO
    page[bzimage.TYPE_OF_LOADER] = TYPE_OF_LOADER_UNDEFINED
    page[bzimage.LOADFLAGS] |= bzimage.LOADED_HIGH
    struct.pack_into("<II", page, bzimage.RAMDISK_IMAGE, initrd_at, initrd_size)
    struct.pack_into("<I", page, bzimage.CMD_LINE_PTR, COMMAND_LINE)
    ranges = memory_map.e820(memory)
    page[E820_ENTRIES] = len(ranges)
    for i, entry in enumerate(ranges):
        page[E820_TABLE + 20 * i : E820_TABLE + 20 * (i + 1)] = entry.pack()
    return bytes(page)


def _screen_info() -> bytes:
    """VGA text mode 3, 80 x 25, cursor at the top left (struct screen_info)."""
    info = bytearray(0x40)
    info[0x06] = 3  # orig_video_mode
    info[0x07] = 80  # orig_video_cols
    info[0x0E] = 25  # orig_video_lines
    info[0x0F] = 1  # orig_video_isVGA: VIDEO_TYPE_VGAC text
    struct.pack_into("<H", info, 0x10, 16)  # orig_video_points
    return bytes(info)


SCREEN_INFO = _screen_info()


def _write_gdt(memory: Ram) -> tuple[int, int]:
    code = Segment(BOOT_CS, 0, 0xFFFF_FFFF, CODE64).descriptor
    data = Segment(BOOT_DS, 0, 0xFFFF_FFFF, DATA32).descriptor
    table = struct.pack("<4Q", 0, 0, code, data)
    memory.write(GDT, table)
    return GDT, len(table) - 1


def _write_identity_map(memory: Ram) -> None:
    """The first 4 GiB in 2 MiB pages (SDM 3A 4.5.4)."""
    pdpt = PAGE_TABLES + PAGE_SIZE
    directories = pdpt + PAGE_SIZE
    memory.write(PAGE_TABLES, struct.pack("<Q", pdpt | PTE_P | PTE_RW))
    entries = [(directories + i * PAGE_SIZE) | PTE_P | PTE_RW for i in range(MAPPED_GIB)]
    memory.write(pdpt, struct.pack(f"<{MAPPED_GIB}Q", *entries))
    pages = range(0, MAPPED_GIB << 30, 2 << 20)
    memory.write(
        directories, struct.pack(f"<{len(pages)}Q", *(page | PTE_P | PTE_RW | PTE_PS for page in pages))
    )
