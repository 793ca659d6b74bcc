"""ELF headers: our reading against pyelftools', and loading in pieces."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tests.boot import images
from vmm.boot import elf
from vmm.errors import ImageError
from vmm.ram import MIB, Ram


@pytest.mark.parametrize("data", [images.vmlinux(), images.multiboot(32), images.multiboot(64)])
def test_headers_agree_with_pyelftools(data: bytes) -> None:
    ours = elf.parse(data[: elf.HEAD_MAX], "image")
    theirs = ELFFile(io.BytesIO(data))
    assert ours.bits == theirs.elfclass
    assert ours.entry == theirs.header.e_entry
    loads = [s.header for s in theirs.iter_segments() if s.header.p_type == "PT_LOAD"]
    assert [(s.offset, s.vaddr, s.paddr, s.filesz, s.memsz) for s in ours.segments] == [
        (h.p_offset, h.p_vaddr, h.p_paddr, h.p_filesz, h.p_memsz) for h in loads
    ]


@given(cuts=st.lists(st.integers(0, 80_000), max_size=6))
def test_pieces_load_like_the_whole(cuts: list[int]) -> None:
    data = images.elf(
        [(MIB, MIB, bytes(range(250)) * 300, 80_000), (3 * MIB, 0, b"tail" * 99, 396)], MIB, pad=7
    )
    whole, pieced = Ram(4), Ram(4)
    elf.load(whole, [data], "image")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    elf.load(pieced, [data[a:b] for a, b in pairwise(edges)], "image")
    assert whole.read(0, whole.size) == pieced.read(0, pieced.size)


def test_bss_is_cleared_even_when_ram_was_used_before() -> None:
    memory = Ram(4)
    memory.write(0, b"\xaa" * memory.size)
    elf.load(memory, [images.elf([(MIB, MIB, b"abc", 0x5000)], MIB)], "image")
    assert memory.read(MIB - 1, 5) == b"\xaaabc\0"
    assert not any(memory.read(MIB + 3, 0x5000 - 3))
    assert memory.read(MIB + 0x5000, 1) == b"\xaa"


def test_entry_is_translated_only_when_it_is_virtual() -> None:
    physical = elf.parse(images.elf([(MIB, 0x80100000, b"code", 4)], MIB + 2), "image")
    virtual = elf.parse(images.elf([(MIB, 0x80100000, b"code", 4)], 0x80100002), "image")
    nowhere = elf.parse(images.elf([(MIB, 0x80100000, b"code", 4)], 0x1234), "image")
    assert physical.physical_entry() == virtual.physical_entry() == MIB + 2
    assert nowhere.physical_entry() is None


def _header(**fields: int) -> bytes:
    """A small 64-bit file with some header bytes replaced: ``at_<offset>=value``."""
    data = bytearray(images.elf([(MIB, MIB, b"code", 4)], MIB))
    for name, value in fields.items():
        data[int(name.removeprefix("at_"), 0)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected an ELF file"),
        (b"MZ" + bytes(100), "expected an ELF file"),
        (_header(at_4=9), "ELF class 9"),
        (_header(at_5=2), "data encoding 2"),
        (_header(at_16=3), "ELF type 3"),
        (_header(at_18=40), "for machine 40"),
        (_header(at_54=1), "program headers of 1 bytes"),
        (_header(at_56=200), "200 program headers"),
        (_header(at_33=255), "program headers"),
        (_header()[:60], "cut off"),
        (_header()[:100], "truncated in its ELF program headers"),
        (_header()[:-1], "truncated"),
        (_header(at_64=2), "nothing to load"),
        (_header(at_104=0), "larger in the file"),
        (images.elf([(MIB, 0, b"abcd", 4), (MIB + 3, 0, b"e", 1)], MIB), "overlap"),
        (images.elf([(4 * MIB - 2, 0, b"abcd", 4)], MIB), "give it more memory"),
        (images.elf([(MIB, 0, b"abcd", 1 << 60)], MIB), "give it more memory"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    if reason == "nothing to load":
        reason = "anything to load"
    with pytest.raises(ImageError, match=reason) as caught:
        elf.load(Ram(4), [data], "vmlinux")
    assert str(caught.value).startswith("vmlinux: ")
    assert "\n" not in str(caught.value)
