"""ELF executables, loaded by physical address.

Source: System V ABI, chapters 4 and 5 (ELF header, program header), and its AMD64 supplement.

The image may arrive in pieces, as a decompressor makes them: the headers are taken from the first
bytes and every piece is copied to where it belongs, so the whole file never exists at once.

Not read: sections, symbols, notes and relocations.  A kernel is entered as it was linked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise

from vmm.errors import BadAddress, ImageError
from vmm.ram import Ram

MAGIC = b"\x7fELF"
CLASS32, CLASS64 = 1, 2
DATA_LSB = 1
ET_EXEC = 2
EM_386, EM_X86_64 = 3, 62
PT_LOAD = 1
SEGMENTS_MAX = 64
"""Program headers; kernels have a handful."""
HEAD_MAX = 1 << 16
"""The headers must lie in the first 64 KiB."""
CLEAR_STEP = 1 << 20

_EHDR = {CLASS32: struct.Struct("<16sHHIIIIIHHHHHH"), CLASS64: struct.Struct("<16sHHIQQQIHHHHHH")}
_PHDR = {CLASS32: struct.Struct("<IIIIIIII"), CLASS64: struct.Struct("<IIQQQQQQ")}


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """One PT_LOAD program header."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int

    @property
    def end(self) -> int:
        return self.paddr + self.memsz


@dataclass(frozen=True, slots=True)
class Elf:
    """What the headers say."""

    bits: int
    machine: int
    entry: int
    segments: tuple[LoadSegment, ...]

    @property
    def start(self) -> int:
        return min(segment.paddr for segment in self.segments)

    @property
    def end(self) -> int:
        return max(segment.end for segment in self.segments)

    def physical_entry(self) -> int | None:
        """Where to enter with paging off: the entry point, translated if it is a virtual address."""
        for segment in self.segments:
            if segment.paddr <= self.entry < segment.end:
                return self.entry
        for segment in self.segments:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memsz:
                return self.entry - segment.vaddr + segment.paddr
        return None


def parse(head: bytes, name: str) -> Elf:
    """The headers in ``head``, the first bytes of the file."""
    if head[:4] != MAGIC or len(head) < 20:
        raise ImageError(
            f"{name}: begins {head[:4].hex(' ') or 'nowhere'}, expected an ELF file (7f 45 4c 46)"
        )
    kind = head[4]
    if kind not in _EHDR or head[5] != DATA_LSB:
        raise ImageError(
            f"{name}: ELF class {kind}, data encoding {head[5]}: expected little-endian 32 or 64 bit"
        )
    if len(head) < _EHDR[kind].size:
        raise ImageError(f"{name}: ELF header cut off after {len(head)} bytes")
    _, etype, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = _EHDR[kind].unpack_from(head)
    if etype != ET_EXEC or machine not in (EM_386, EM_X86_64):
        raise ImageError(
            f"{name}: ELF type {etype} for machine {machine}: expected an x86 executable (2, 3 or 62)"
        )
    phdr = _PHDR[kind]
    if phentsize != phdr.size or not 0 < phnum <= SEGMENTS_MAX or phoff + phnum * phdr.size > HEAD_MAX:
        raise ImageError(
            f"{name}: {phnum} program headers of {phentsize} bytes at {phoff:#x}: expected 1 to"
            f" {SEGMENTS_MAX} of {phdr.size} in the first 64 KiB"
        )
    if phoff + phnum * phdr.size > len(head):
        raise ImageError(f"{name}: truncated in its ELF program headers")
    segments = [_segment(kind, head, phoff + i * phdr.size) for i in range(phnum)]
    return Elf(32 * kind, machine, entry, _checked([s for s in segments if s is not None], name))


def _segment(kind: int, head: bytes, at: int) -> LoadSegment | None:
    fields = _PHDR[kind].unpack_from(head, at)
    if fields[0] != PT_LOAD:
        return None
    if kind == CLASS32:
        _, offset, vaddr, paddr, filesz, memsz, _, _ = fields
    else:
        _, _, offset, vaddr, paddr, filesz, memsz, _ = fields
    return LoadSegment(offset, vaddr, paddr, filesz, memsz) if memsz or filesz else None


def _checked(segments: list[LoadSegment], name: str) -> tuple[LoadSegment, ...]:
    """Overlapping segments would let a small file ask for unlimited copying."""
    if not segments:
        raise ImageError(f"{name}: ELF file without anything to load (no PT_LOAD segment)")
    ordered = sorted(segments, key=lambda segment: segment.paddr)
    for segment in ordered:
        if segment.filesz > segment.memsz:
            raise ImageError(
                f"{name}: ELF segment at {segment.paddr:#x} is larger in the file than in memory"
            )
    for one, other in pairwise(ordered):
        if one.end > other.paddr:
            raise ImageError(f"{name}: ELF segments at {one.paddr:#x} and {other.paddr:#x} overlap")
    return tuple(ordered)


def load(memory: Ram, pieces: Iterable[bytes | memoryview], name: str) -> Elf:
    """Copy the segments of the image in ``pieces`` to their physical addresses."""
    source = iter(pieces)
    head: bytes | memoryview = b""
    for piece in source:
        head = bytes(head) + piece if head else piece
        if len(head) >= HEAD_MAX:
            break
    elf = parse(bytes(head[:HEAD_MAX]), name)
    for segment in elf.segments:
        require_ram(memory, segment.paddr, segment.memsz, name)
        clear(memory, segment.paddr + segment.filesz, segment.memsz - segment.filesz, name)
    at = 0
    for piece in chain((head,), source):
        _copy(memory, elf, at, piece)
        at += len(piece)
    needed = max(segment.offset + segment.filesz for segment in elf.segments)
    if at < needed:
        raise ImageError(f"{name}: truncated: {at:#x} bytes of ELF image, its segments need {needed:#x}")
    return elf


def _copy(memory: Ram, elf: Elf, at: int, piece: bytes | memoryview) -> None:
    """Put the file bytes ``[at, at + len(piece))`` where the segments want them."""
    view = memoryview(piece)
    for segment in elf.segments:
        start = max(at, segment.offset)
        end = min(at + len(view), segment.offset + segment.filesz)
        if start < end:
            memory.write(segment.paddr + start - segment.offset, view[start - at : end - at])


def require_ram(memory: Ram, address: int, length: int, name: str) -> int:
    """The offset of a range in RAM; outside it, say how much memory the image wants."""
    try:
        return memory.offset(address, length)
    except BadAddress:
        raise ImageError(
            f"{name}: needs RAM at {address:#x}-{address + length:#x}, the machine has"
            f" {memory.size >> 20} MiB: give it more memory"
        ) from None


def clear(memory: Ram, address: int, length: int, name: str) -> None:
    """Zero a range; what is zero already is not touched, so that it stays unallocated."""
    offset = require_ram(memory, address, length, name)
    for step in range(0, length, CLEAR_STEP):
        size = min(CLEAR_STEP, length - step)
        if memory.array[offset + step : offset + step + size].any():
            memory.write(address + step, bytes(size))
