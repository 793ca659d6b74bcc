"""bzImage and vmlinux by the 64-bit boot protocol (boot.rst, zero-page.rst)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.boot import images
from vmm.boot import bzimage, linux, memory_map
from vmm.boot.bzimage import KernelImage
from vmm.errors import ImageError
from vmm.ram import HIGH_BASE, LOW_MAX, MIB, Ram

KERNEL = images.bzimage(images.pack("lz4", images.vmlinux()))


def zero_page(memory: Ram) -> bytes:
    return memory.read(linux.ZERO_PAGE, 4096)


def u32(page: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", page, at)[0])


@pytest.mark.parametrize("kind", images.KINDS)
def test_every_payload_gives_the_same_machine(kind: str) -> None:
    memory, plain = Ram(20), Ram(20)
    entry = linux.load(memory, images.bzimage(images.pack(kind, images.vmlinux())), "quiet")
    assert entry == linux.load(plain, images.vmlinux(), "quiet")
    assert memory.read(MIB, 19 * MIB) == plain.read(MIB, 19 * MIB)
    assert memory.read(entry.ip, 3) == images.CODE


def test_entry_state() -> None:
    """boot.rst, 64-bit protocol: RSI = zero page, __BOOT_CS 10h and __BOOT_DS 18h flat, IF clear."""
    memory = Ram(20)
    entry = linux.load(memory, KERNEL, "quiet")
    assert (entry.mode, entry.ip, entry.registers) == ("long", 16 * MIB, {"rsi": linux.ZERO_PAGE})
    assert entry.segments["cs"].selector == 0x10
    assert entry.segments["ds"].selector == 0x18
    base, limit = entry.gdt
    assert limit == 31
    gdt = struct.unpack("<4Q", memory.read(base, 32))
    assert gdt == (0, 0, entry.segments["cs"].descriptor, entry.segments["ds"].descriptor)


def test_first_four_gib_are_identity_mapped() -> None:
    """SDM 3A 4.5.4: a walk of every 2 MiB page ends where it began."""
    memory = Ram(20)
    cr3 = linux.load(memory, KERNEL, "").cr3

    def entry(table: int, index: int) -> int:
        return int(struct.unpack("<Q", memory.read(table + 8 * index, 8))[0])

    for address in range(0, 4 << 30, 2 << 20):
        top = entry(cr3, address >> 39)
        middle = entry(top & ~0xFFF, address >> 30 & 511)
        leaf = entry(middle & ~0xFFF, address >> 21 & 511)
        assert top & middle & leaf & 3 == 3, "present and writable"
        assert leaf & 0x80, "a 2 MiB page"
        assert leaf & ~0x1FFFFF == address


def test_zero_page() -> None:
    memory = Ram(32)
    initrd = b"initrd" * 1000
    linux.load(memory, KERNEL, "console=ttyS0 quiet", initrd)
    page = zero_page(memory)
    assert page[0x1F1 : 0x202 + 0x6A] == _patched_header(page), "the setup header is copied"
    assert page[0x1EF] == 0, "sentinel: a zero page that was not cleared is refused by the kernel"
    assert page[bzimage.TYPE_OF_LOADER] == 0xFF
    at = u32(page, bzimage.CMD_LINE_PTR)
    assert memory.read(at, 20) == b"console=ttyS0 quiet\0"
    where, size = u32(page, bzimage.RAMDISK_IMAGE), u32(page, bzimage.RAMDISK_SIZE)
    assert memory.read(where, size) == initrd
    assert where % 4096 == 0
    assert 32 * MIB - (where + size) < 4096, "as high as it may be"
    assert (page[0x06], page[0x07], page[0x0E], page[0x0F]) == (3, 80, 25, 1), "screen_info: VGA text"
    assert not any(page[0x70:0x78]), "acpi_rsdp_addr"


def _patched_header(page: bytes) -> bytes:
    """The file's header with the fields that the loader must fill taken from the page."""
    header = bytearray(KERNEL[0x1F1 : 0x202 + 0x6A])
    for at, size in ((0x210, 1), (0x218, 8), (0x228, 4)):
        header[at - 0x1F1 : at - 0x1F1 + size] = page[at : at + size]
    return bytes(header)


def test_e820() -> None:
    memory = Ram(32)
    linux.load(memory, KERNEL, "")
    page = zero_page(memory)
    table = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    assert table == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xE0000, 0x20000, 2),
        (MIB, 31 * MIB, 1),
    ]


def test_e820_above_the_device_hole() -> None:
    ranges = memory_map.e820(Ram(4096))
    assert (ranges[-2].base, ranges[-2].end) == (MIB, LOW_MAX)
    assert (ranges[-1].base, ranges[-1].length) == (HIGH_BASE, 1 << 30)


def test_bios_data_area_names_the_ebda() -> None:
    memory = Ram(20)
    linux.load(memory, KERNEL, "")
    assert struct.unpack("<H", memory.read(0x40E, 2)) == (0x9FC0,)
    assert struct.unpack("<H", memory.read(0x413, 2)) == (639,)


def test_initrd_stays_below_its_limit() -> None:
    """initrd_addr_max is the highest address that the initrd's last byte may have."""
    kernel = bytearray(KERNEL)
    struct.pack_into("<I", kernel, bzimage.INITRD_ADDR_MAX, 24 * MIB - 1)
    memory = Ram(32)
    linux.load(memory, bytes(kernel), "", b"x" * 5000)
    assert u32(zero_page(memory), bzimage.RAMDISK_IMAGE) == 24 * MIB - 8192


def test_initrd_leaves_the_kernel_its_working_memory() -> None:
    """pref_address + init_size: what the kernel uses before it has read the memory map."""
    linux.load(Ram(21), KERNEL, "", bytes(MIB))
    with pytest.raises(ImageError, match="initrd of 1024 KiB does not fit"):
        linux.load(Ram(20), KERNEL, "", bytes(MIB))


def test_command_line_limit_is_the_kernels() -> None:
    kernel = images.bzimage(images.pack("gzip", images.vmlinux()), cmdline_size=10)
    linux.load(Ram(20), kernel, "0123456789")
    with pytest.raises(ImageError, match="11 bytes, this kernel takes 10"):
        linux.load(Ram(20), kernel, "01234567890")
    with pytest.raises(ImageError, match="NUL at 1"):
        linux.load(Ram(20), kernel, "a\0b")


def test_version() -> None:
    assert KernelImage.parse(KERNEL, "vmlinuz").version == "6.1.0-test (me) #1"
    assert KernelImage.parse(images.vmlinux(), "vmlinux").version == "6.1.0-test"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (bytes(4096), "not a Linux bzImage"),
        (images.bzimage(b"12345678", protocol=0x020B), "boot protocol 2.11, expected 2.12"),
        (KERNEL[: len(KERNEL) // 2], "truncated"),
        (images.bzimage(b""), "truncated"),
        (images.bzimage(b"12345678"), "no known compression"),
        (images.multiboot(32), "32-bit kernel"),
        (images.elf([(0x8000, 0, b"code", 4)], 0x8000), "between 1 MiB and 4 GiB"),
        (images.elf([(MIB, 0, b"code", 4)], 0x8000), "holds its entry point"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        linux.load(Ram(20), data, "", name="vmlinuz")
    assert str(caught.value).startswith("vmlinuz: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [bzimage.LOADFLAGS, bzimage.XLOADFLAGS])
def test_32_bit_and_low_kernels_are_refused(at: int) -> None:
    kernel = bytearray(KERNEL)
    kernel[at] = 0
    with pytest.raises(ImageError, match="use an amd64 kernel"):
        linux.load(Ram(20), bytes(kernel), "")


def test_too_little_memory_says_so() -> None:
    with pytest.raises(ImageError, match="the machine has 8 MiB: give it more memory"):
        linux.load(Ram(8), KERNEL, "")


def test_distribution_kernel(guest: Callable[[str], Any]) -> None:
    """The kernel that the distribution ships, as it is."""
    kernel = guest("linux").kernel.read_bytes()
    image = KernelImage.parse(kernel, "vmlinuz")
    assert image.version[0].isdigit()
    memory = Ram(128)
    entry = linux.load(memory, image, "console=ttyS0", b"initrd")
    whole = b"".join(image.pieces())
    twin = Ram(128)
    assert linux.load(twin, whole, "console=ttyS0", b"initrd").ip == entry.ip
    assert memory.read(MIB, 100 * MIB) == twin.read(MIB, 100 * MIB)
    assert KernelImage.parse(whole, "vmlinux").version == image.version.split()[0]
