"""Damaged boot images: an ImageError of one line or a loaded machine, and nothing else.

Limits that hold meanwhile: no address outside RAM is written (Ram would raise BadAddress, which no
loader may let through) and the memory that a load takes stays near what the image's size allows.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.boot import images
from vmm.boot import bzimage, linux, mbr, multiboot, unpack
from vmm.boot.entry import Entry
from vmm.errors import ImageError
from vmm.ram import Ram

RAM_MIB = 21
MEMORY = Ram(RAM_MIB)
"""One memory for all: what an earlier example left there is one more kind of dirt."""

KERNELS = {kind: images.bzimage(images.pack(kind, images.vmlinux(3000))) for kind in images.KINDS}
Loader = Callable[[bytes], Entry]


def _linux(data: bytes) -> Entry:
    return linux.load(MEMORY, data, "console=ttyS0", b"initrd")


def _multiboot(data: bytes) -> Entry:
    return multiboot.load(MEMORY, data, "arguments", [multiboot.Module(b"module", "name")])


def _mbr(data: bytes) -> Entry:
    return mbr.load(MEMORY, data)


IMAGES: dict[str, tuple[Loader, bytes]] = {
    **{f"bzimage-{kind}": (_linux, image) for kind, image in KERNELS.items()},
    "vmlinux": (_linux, images.vmlinux(3000)),
    "multiboot-32": (_multiboot, images.multiboot(32)),
    "multiboot-64": (_multiboot, images.multiboot(64)),
    "multiboot-flat": (_multiboot, images.multiboot_flat()),
    "mbr": (_mbr, images.boot_sector()),
}
NAMES = sorted(IMAGES)


def outcome(load: Loader, data: bytes) -> Entry | str:
    """The entry, or the reason for the refusal."""
    try:
        return load(data)
    except ImageError as exc:
        return str(exc)


def attempt(name: str, data: bytes) -> bool:
    """True when the image loaded."""
    result = outcome(IMAGES[name][0], data)
    if isinstance(result, str):
        assert result
        assert "\n" not in result
        return False
    assert 0 <= result.ip < 1 << 32
    return True


@pytest.mark.parametrize("name", NAMES)
def test_the_undamaged_image_loads(name: str) -> None:
    assert attempt(name, IMAGES[name][1])


@pytest.mark.parametrize("name", NAMES)
def test_truncated_anywhere(name: str) -> None:
    """Every length near the start, where the headers are, and a sample of the others."""
    image = IMAGES[name][1]
    for length in {*range(min(len(image), 700)), *range(0, len(image), 1 + len(image) // 200)}:
        attempt(name, image[:length])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_anywhere(name: str, data: st.DataObject) -> None:
    image = bytearray(IMAGES[name][1])
    for _ in range(data.draw(st.integers(1, 4), label="damages")):
        at = data.draw(st.integers(0, len(image) - 1), label="at")
        junk = data.draw(st.binary(min_size=1, max_size=8), label="junk")
        image[at : at + len(junk)] = junk
    attempt(name, bytes(image))


FIELDS = (0x1F1, 0x201, 0x202, 0x206, 0x20E, 0x211, 0x22C, 0x236, 0x238, 0x248, 0x24C, 0x258, 0x25C, 0x260)
EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@pytest.mark.parametrize("field", FIELDS)
def test_setup_header_fields_at_their_edges(field: int) -> None:
    for value in EDGES:
        image = bytearray(KERNELS["gzip"])
        struct.pack_into("<I", image, field, value)
        attempt("bzimage-gzip", bytes(image))


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_header_words_at_their_edges(bits: int) -> None:
    name = f"multiboot-{bits}"
    for at in range(4, 120, 4):
        for value in EDGES:
            image = bytearray(IMAGES[name][1])
            struct.pack_into("<I", image, at, value)
            attempt(name, bytes(image))


def test_multiboot_addresses_at_their_edges() -> None:
    image = IMAGES["multiboot-flat"][1]
    at = image.index(struct.pack("<I", 0x1BADB002)) + 12
    for field in range(at, at + 20, 4):
        for value in EDGES:
            damaged = bytearray(image)
            struct.pack_into("<I", damaged, field, value)
            attempt("multiboot-flat", bytes(damaged))


@settings(max_examples=200)
@given(data=st.binary(max_size=4096))
@example(b"\x7fELF")
@example(b"\x7fELF" + bytes(60))
@example(bytes(510) + b"\x55\xaa")
def test_noise(data: bytes) -> None:
    for load in (_linux, _multiboot, _mbr):
        try:
            load(data)
        except ImageError:
            continue


@settings(max_examples=200)
@given(
    magic=st.sampled_from(
        [b"\x1f\x8b\x08", b"BZh9", b"\x5d\0\0", b"\xfd7zXZ\0", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd"]
    ),
    noise=st.binary(max_size=2000),
    size=st.integers(0, 1 << 20),
)
def test_noise_behind_a_magic_number(magic: bytes, noise: bytes, size: int) -> None:
    payload = magic + noise + struct.pack("<I", size)
    try:
        total = sum(map(len, unpack.unpack(payload, "kernel")))
    except ImageError:
        return
    assert total == size


@pytest.mark.parametrize("kind", [kind for kind in images.KINDS if kind != "none"])
def test_a_bomb_takes_little_memory(kind: str) -> None:
    """A file of some KiB that unpacks to 24 MiB which nobody wants: it passes by in pieces."""
    text = images.elf([(1 << 20, 0, images.CODE, 3)], 1 << 20)
    kernel = images.bzimage(images.pack(kind, text + bytes(24 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    linux.load(MEMORY, kernel, "")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 4 * unpack.CHUNK >> 10


def test_decoders_that_ask_for_too_much_memory_are_refused() -> None:
    """An xz or lzma header may ask for a 4 GiB dictionary, a zstd frame for a window of 1 TiB."""
    lzma_alone = b"\x5d" + struct.pack("<IQ", 0xFFFFFFFF, 1000) + bytes(100) + struct.pack("<I", 1000)
    zstd = b"\x28\xb5\x2f\xfd\x00\xf8" + bytes(100) + struct.pack("<I", 1000)
    for payload in (lzma_alone, zstd):
        with pytest.raises(ImageError, match="payload"):
            sum(map(len, unpack.unpack(payload, "kernel")))


def test_parse_reads_any_version_text() -> None:
    image = bytearray(KERNELS["gzip"])
    for text in (b"\xff" * 300, b"\n\n", b""):
        image[0x500 : 0x500 + 256] = text.ljust(256, b"\0")[:256]
        assert bzimage.KernelImage.parse(bytes(image), "k").version == "unknown"
