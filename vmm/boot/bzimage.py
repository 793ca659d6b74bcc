"""The Linux kernel image on disk: bzImage, or the ELF vmlinux inside it.

Source: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

    offset 0       one boot sector and `setup_sects` sectors of 16-bit code with the setup header
    0x1F1          setup header; the byte at 0x201 says where it ends
    then           32-bit decompressor with the payload at `payload_offset`

The 16-bit code and the decompressor are never run: the payload is an ELF file that can be loaded
and entered directly (linux.py), several times faster than running either under emulation.

Not checked: the CRC at the end of the file, which signing a kernel invalidates, and the PE/COFF
headers.  Protocols before 2.12 are refused: they cannot say that a kernel is 64-bit.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vmm.boot import elf, unpack
from vmm.errors import ImageError

SECTOR = 512
HEADER = 0x1F1
"""Offset of the setup header, in the file and in the zero page."""
HEADER_MAX = 0x290
"""The zero page has room for a setup header up to here."""
SETUP_SECTS = 0x1F1
BOOT_FLAG = 0x1FE
HEADER_LENGTH = 0x201
HEADER_MAGIC = 0x202
VERSION = 0x206
KERNEL_VERSION = 0x20E
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C
KERNEL_ALIGNMENT = 0x230
XLOADFLAGS = 0x236
CMDLINE_SIZE = 0x238
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C
PREF_ADDRESS = 0x258
INIT_SIZE = 0x260

BOOT_FLAG_VALUE = 0xAA55
PROTOCOL_MIN = 0x020C
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
SETUP_SECTS_DEFAULT = 4
VERSION_MAX = 256
CMDLINE_SIZE_DEFAULT = 2047
"""COMMAND_LINE_SIZE of x86 less its NUL, for a vmlinux, which does not say."""
INITRD_ADDR_MAX_DEFAULT = 0x7FFF_FFFF
BANNER = re.compile(rb"Linux version ([0-9][\x21-\x7e]{0,200})")


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel file taken apart; ``setup_header`` is what the zero page gets at 0x1F1."""

    name: str
    version: str
    setup_header: bytes
    payload: memoryview
    compressed: bool
    cmdline_size: int
    initrd_addr_max: int
    runtime_end: int
    """End of the memory that the kernel uses before it reads the memory map; 0 if not stated."""

    @classmethod
    def parse(cls, data: bytes, name: str) -> KernelImage:
        """Take ``data`` apart; ``name`` is for messages."""
        return _vmlinux(data, name) if data[:4] == elf.MAGIC else _bzimage(data, name)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The ELF image, piece by piece."""
        if self.compressed:
            yield from unpack.unpack(self.payload, self.name)
        else:
            yield self.payload


def _bzimage(data: bytes, name: str) -> KernelImage:
    header_end = _check_header(data, name)
    setup_size = ((data[SETUP_SECTS] or SETUP_SECTS_DEFAULT) + 1) * SECTOR
    offset, length = struct.unpack_from("<II", data, PAYLOAD_OFFSET)
    start = setup_size + offset
    if length < 8 or start + length > len(data):
        raise ImageError(
            f"{name}: payload of {length:#x} bytes at {start:#x} in a file of {len(data):#x}:"
            " the file is truncated; fetch the kernel again"
        )
    payload = memoryview(data)[start : start + length]
    (pref_address,) = struct.unpack_from("<Q", data, PREF_ADDRESS)
    (init_size,) = struct.unpack_from("<I", data, INIT_SIZE)
    return KernelImage(
        name=name,
        version=_version(data, setup_size),
        setup_header=data[HEADER:header_end],
        payload=payload,
        compressed=bytes(payload[:4]) != elf.MAGIC,
        cmdline_size=struct.unpack_from("<I", data, CMDLINE_SIZE)[0],
        initrd_addr_max=struct.unpack_from("<I", data, INITRD_ADDR_MAX)[0],
        runtime_end=pref_address + init_size,
    )


def _check_header(data: bytes, name: str) -> int:
    """Refuse what is not a 64-bit bzImage; the end of the setup header."""
    if len(data) < HEADER_MAX:
        raise ImageError(f"{name}: {len(data)} bytes are too few for a Linux kernel")
    (flag,) = struct.unpack_from("<H", data, BOOT_FLAG)
    magic = data[HEADER_MAGIC : HEADER_MAGIC + 4]
    if flag != BOOT_FLAG_VALUE or magic != b"HdrS":
        raise ImageError(
            f"{name}: boot flag {flag:#06x} and signature {magic.hex(' ')}, expected 0xaa55 and"
            " 48 64 72 53 (HdrS): not a Linux bzImage or ELF vmlinux"
        )
    (version,) = struct.unpack_from("<H", data, VERSION)
    if version < PROTOCOL_MIN:
        raise ImageError(
            f"{name}: boot protocol {version >> 8}.{version & 0xFF:02}, expected 2.12 or later:"
            " use Linux 3.8 or later"
        )
    (xloadflags,) = struct.unpack_from("<H", data, XLOADFLAGS)
    if not data[LOADFLAGS] & LOADED_HIGH or not xloadflags & XLF_KERNEL_64:
        raise ImageError(
            f"{name}: loadflags {data[LOADFLAGS]:#x}, xloadflags {xloadflags:#x}: not a 64-bit bzImage;"
            " use an amd64 kernel"
        )
    return min(HEADER_MAGIC + data[HEADER_LENGTH], HEADER_MAX)


def _version(data: bytes, setup_size: int) -> str:
    """The text at `kernel_version`, which lies in the 16-bit part."""
    (pointer,) = struct.unpack_from("<H", data, KERNEL_VERSION)
    at = pointer + SECTOR
    if not pointer or at >= min(setup_size, len(data)):
        return "unknown"
    text = data[at : at + VERSION_MAX].split(b"\0", 1)[0].decode("latin-1")
    return text if text and text.isascii() and text.isprintable() else "unknown"


def _vmlinux(data: bytes, name: str) -> KernelImage:
    """An ELF kernel has no setup header: make the least that a 2.15 kernel reads."""
    header = bytearray(HEADER_MAX)
    struct.pack_into("<H", header, BOOT_FLAG, BOOT_FLAG_VALUE)
    struct.pack_into("<4sH", header, HEADER_MAGIC, b"HdrS", 0x020F)
    header[LOADFLAGS] = LOADED_HIGH
    struct.pack_into("<I", header, INITRD_ADDR_MAX, INITRD_ADDR_MAX_DEFAULT)
    struct.pack_into("<I", header, KERNEL_ALIGNMENT, 2 << 20)
    struct.pack_into("<I", header, CMDLINE_SIZE, CMDLINE_SIZE_DEFAULT)
    banner = BANNER.search(data)
    return KernelImage(
        name=name,
        version=banner[1].decode("ascii") if banner else "unknown",
        setup_header=bytes(header[HEADER:]),
        payload=memoryview(data),
        compressed=False,
        cmdline_size=CMDLINE_SIZE_DEFAULT,
        initrd_addr_max=INITRD_ADDR_MAX_DEFAULT,
        runtime_end=0,
    )
