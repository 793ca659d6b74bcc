"""Multiboot 0.6.96: header (3.1), machine state (3.2), boot information (3.3)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.boot import images
from vmm.boot import multiboot
from vmm.boot.multiboot import Module
from vmm.errors import ImageError
from vmm.ram import MIB, Ram

BARE = Path(__file__).parents[2] / "guests" / "bare"


def info(memory: Ram, at: int) -> dict[str, int]:
    words = struct.unpack("<29I", memory.read(at, 116))
    names = {"flags": 0, "lower": 1, "upper": 2, "cmdline": 4, "mods": 5, "mods_at": 6}
    names |= {"mmap_length": 11, "mmap": 12, "loader": 16}
    return {name: words[i] for name, i in names.items()}


def text(memory: Ram, at: int) -> str:
    return memory.read(at, 256).split(b"\0")[0].decode()


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_kernel(bits: int) -> None:
    """Loaded by physical address, entered at the entry point without paging."""
    memory = Ram(4)
    entry = multiboot.load(memory, images.multiboot(bits), "root=ram quiet")
    assert entry.mode == "protected"
    assert entry.registers["rax"] == 0x2BADB002
    assert entry.ip == MIB + 12
    assert memory.read(entry.ip, 3) == images.CODE
    found = info(memory, entry.registers["rbx"])
    assert text(memory, found["cmdline"]) == "root=ram quiet"
    assert text(memory, found["loader"]) == "colo-vmm"
    assert (found["lower"], found["upper"]) == (639, 3 * 1024)
    assert found["flags"] & 0b111 == 0b101, "memory and command line, no boot device"


@pytest.mark.parametrize("name", ["hello", "counter", "udpecho"])
def test_our_own_guests_load(name: str) -> None:
    image = (BARE / f"{name}.elf").read_bytes()
    memory = Ram(4)
    entry = multiboot.load(memory, image, name=name)
    assert memory.read(entry.ip, 16) in image


def test_memory_map_entries() -> None:
    """3.3: each entry's size field does not count itself."""
    memory = Ram(4)
    found = info(memory, multiboot.load(memory, images.multiboot()).registers["rbx"])
    at, entries = found["mmap"], []
    while at < found["mmap"] + found["mmap_length"]:
        size, base, length, kind = struct.unpack("<IQQI", memory.read(at, 24))
        entries.append((base, length, kind))
        at += size + 4
    assert entries[0] == (0, 0x9FC00, 1)
    assert entries[-1] == (MIB, 3 * MIB, 1)


def test_modules_are_page_aligned_above_the_kernel() -> None:
    memory = Ram(4)
    modules = [Module(b"one" * 3000, "first arg"), Module(b"", "empty"), Module(b"two", "")]
    found = info(memory, multiboot.load(memory, images.multiboot(), "", modules).registers["rbx"])
    assert found["mods"] == 3
    end_of_kernel = MIB + 0x2000
    for i, module in enumerate(modules):
        start, end, string, zero = struct.unpack("<4I", memory.read(found["mods_at"] + 16 * i, 16))
        assert start % 4096 == 0
        assert start >= end_of_kernel
        assert memory.read(start, end - start) == module.data
        assert text(memory, string) == module.string
        assert zero == 0


def test_flat_kernel() -> None:
    """3.1.3: flag 16 and five addresses; what lies before load_addr and after load_end is left out."""
    memory = Ram(4)
    memory.write(2 * MIB, b"\xaa" * 8192)
    entry = multiboot.load(memory, images.multiboot_flat())
    assert entry.ip == 2 * MIB + 64
    assert memory.read(entry.ip, 4) == images.CODE + b"\0", "bss follows"
    assert memory.read(2 * MIB + 32, 4) == struct.pack("<I", 0x1BADB002)
    assert memory.read(2 * MIB + 67 + 4096, 1) == b"\xaa"


def test_information_keeps_clear_of_a_low_kernel() -> None:
    """A kernel linked at 36 KiB, where the information goes otherwise."""
    contents = images.multiboot_header(0) + images.CODE
    memory = Ram(2)
    low = images.elf([(0x9000, 0x9000, contents, 0x4000)], 0x900C, 32)
    at = multiboot.load(memory, low).registers["rbx"]
    assert 0xD000 <= at < 0x9FC00
    whole = images.elf([(0x9000, 0x9000, contents, 0x96C00)], 0x900C, 32)
    at = multiboot.load(Ram(2), whole, modules=[Module(bytes(5000))]).registers["rbx"]
    assert at == MIB + 8192, "no room below: behind the modules"


def test_header_must_add_up() -> None:
    """A magic number alone, an unaligned header and one beyond 8 KiB are no headers."""
    good = images.multiboot_header(3)
    assert multiboot.find_header(bytes(100) + good) is not None
    assert multiboot.find_header(bytes(8180) + good) is not None
    assert multiboot.find_header(bytes(8184) + good) is None
    assert multiboot.find_header(bytes(2) + good) is None
    assert multiboot.find_header(struct.pack("<III", 0x1BADB002, 0, 0) + good) is not None, (
        "the second counts"
    )
    assert multiboot.find_header(good[:8]) is None


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "no Multiboot header"),
        (images.elf([(MIB, 0, b"code", 4)], MIB, 32), "no Multiboot header"),
        (images.multiboot(flags=0x0103), "requires flags 0x0100"),
        (images.multiboot_header(0) + bytes(100), "expected an ELF file"),
        (images.multiboot_header(1 << 16, (0, 64, 0, 0, 64)) + bytes(99), "Multiboot addresses"),
        (images.multiboot_header(1 << 16, (64, 64, 0, 0, 0)) + bytes(99), "entry 0x0 is outside"),
        (images.multiboot_header(1 << 16, (MIB, MIB, 0, 64 * MIB, MIB)) + bytes(99), "more memory"),
        (images.multiboot()[:-1], "truncated"),
    ],
)
def test_refused(image: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        multiboot.load(Ram(4), image, name="kernel.elf")
    assert str(caught.value).startswith("kernel.elf: ")


def test_module_limits() -> None:
    with pytest.raises(ImageError, match="65 modules"):
        multiboot.load(Ram(4), images.multiboot(), modules=[Module(b"")] * 65)
    with pytest.raises(ImageError, match="module 0: needs RAM"):
        multiboot.load(Ram(4), images.multiboot(), modules=[Module(bytes(4 * MIB))])
    with pytest.raises(ImageError, match="module string of 4097 bytes"):
        multiboot.load(Ram(4), images.multiboot(), modules=[Module(b"", "x" * 4097)])
