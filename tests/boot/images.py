"""Small boot images, made by hand: what the loaders' tests and the fuzzers start from."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import lz4.block
import zstandard

MIB = 1 << 20
CODE = b"\xf4\xeb\xfd"
"""hlt; jmp to the hlt."""


def elf(
    segments: list[tuple[int, int, bytes, int]],
    entry: int,
    bits: int = 64,
    pad: int = 0,
) -> bytes:
    """An executable; a segment is ``(paddr, vaddr, contents, memsz)``."""
    header = struct.Struct("<16sHHIQQQIHHHHHH" if bits == 64 else "<16sHHIIIIIHHHHHH")
    phdr = struct.Struct("<IIQQQQQQ" if bits == 64 else "<IIIIIIII")
    at = header.size + phdr.size * len(segments) + pad
    table, body = b"", b""
    for paddr, vaddr, contents, memsz in segments:
        where = at + len(body)
        if bits == 64:
            table += phdr.pack(1, 5, where, vaddr, paddr, len(contents), memsz, 4096)
        else:
            table += phdr.pack(1, where, vaddr, paddr, len(contents), memsz, 5, 4096)
        body += contents
    ident = bytes((0x7F, 0x45, 0x4C, 0x46, 2 if bits == 64 else 1, 1, 1)).ljust(16, b"\0")
    machine = 62 if bits == 64 else 3
    sizes = (header.size, phdr.size, len(segments), 0, 0, 0)
    return header.pack(ident, 2, machine, 1, entry, header.size, 0, 0, *sizes) + table + bytes(pad) + body


def vmlinux(size: int = 20_000) -> bytes:
    """A kernel of two segments at 16 MiB with a banner and a .bss."""
    text = CODE + b"Linux version 6.1.0-test (builder) #1\0" + bytes(i * 7 & 0xFF for i in range(size))
    return elf([(16 * MIB, 0xFFFFFFFF81000000, text, len(text)), (17 * MIB, 0, b"data", 0x3000)], 16 * MIB)


def pack(kind: str, data: bytes) -> bytes:
    """``data`` as the kernel's build packs it, with the size word at the end."""
    size = struct.pack("<I", len(data))
    match kind:
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "bzip2":
            return bz2.compress(data) + size
        case "lzma":
            return lzma.compress(data, lzma.FORMAT_ALONE, preset=0) + size
        case "xz":
            x86 = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 0}]
            return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=x86) + size
        case "zstd":
            return zstandard.ZstdCompressor().compress(data) + size
        case "lz4":
            packed = b"\x02\x21\x4c\x18"
            for at in range(0, len(data), 8 * MIB):
                block = lz4.block.compress(data[at : at + 8 * MIB], store_size=False)
                packed += struct.pack("<I", len(block)) + block
            return packed + size
    return data


KINDS = ("gzip", "bzip2", "lzma", "xz", "zstd", "lz4", "none")


def bzimage(payload: bytes, *, protocol: int = 0x020F, cmdline_size: int = 2047) -> bytes:
    """A bzImage of two setup sectors around ``payload``."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", protocol)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<HI", setup, 0x236, 1, cmdline_size)
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    struct.pack_into("<QI", setup, 0x258, 16 * MIB, 4 * MIB)
    setup[0x500:0x512] = b"6.1.0-test (me) #1"
    return bytes(setup) + bytes(64) + payload + bytes(32)


def multiboot_header(flags: int, addresses: tuple[int, ...] = ()) -> bytes:
    return struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def multiboot(bits: int = 32, flags: int = 3) -> bytes:
    """An ELF kernel at 1 MiB, linked at 2 GiB, with its header in front of the code."""
    contents = multiboot_header(flags) + CODE + b"kernel" * 40
    return elf([(MIB, 0x80100000, contents, len(contents) + 0x2000)], 0x8010000C, bits)


def multiboot_flat() -> bytes:
    """A flat kernel: 16 bytes that are not loaded, then the header at 2 MiB + 32."""
    base = 2 * MIB
    text = 32
    size = text + 32 + len(CODE)
    header = multiboot_header(1 << 16, (base + text, base, base + size, base + size + 4096, base + text + 32))
    return bytes(16) + bytes(text) + header + CODE + b"not loaded"


def boot_sector(code: bytes = CODE) -> bytes:
    return code.ljust(510, b"\0") + b"\x55\xaa"
