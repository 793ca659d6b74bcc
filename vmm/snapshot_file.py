"""The layout of a snapshot file up to its RAM: made and taken apart, checked, with every limit.

``vmm.snapshot`` draws the file and says why it is so; this is what its first two parts consist of.
Whoever reads a file believes nothing before its checksum, allocates nothing beyond the limits
below, and is told what was found and what was expected.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Mapping
from typing import Annotated

from vmm.errors import SnapshotError
from vmm.ram import MIB, PAGE_SIZE, RAM_MIB_MAX, RAM_MIB_MIN
from vmm.state import State, at_most, field, length, pack, u32, u64, unpack

MAGIC = b"COLOVMM\0"
FORMAT = 1
PREAMBLE = struct.Struct("<8sIIQ32s")

HEADER_MAX = 2 * MIB
"""Room for the check words of 64 GiB (512 KiB), the configuration and the table."""
CONFIG_MAX = 256 << 10
SECTIONS_MAX = 256
"""A PC has some thirty components."""
SECTION_MAX = 64 * MIB
SECTIONS_TOTAL_MAX = 256 * MIB
"""What a file can make us allocate before its contents were believed."""
CHECK_SIZE = 8


class About(State):
    """What the caller says of the machine."""

    layout_digest: Annotated[str, at_most(128)]
    engine_digest: Annotated[str, at_most(128)]
    config: Annotated[bytes, at_most(CONFIG_MAX)]
    virtual_ns: u64


class Section(State):
    """One row of the table.  Offsets are not stored: sections lie end to end."""

    name: Annotated[str, at_most(128)]
    size: u32
    digest: Annotated[bytes, length(16)]


class Header(State):
    """Everything but the sections and RAM themselves."""

    about: About
    ram_mib: u32
    sections: Annotated[list[Section], at_most(SECTIONS_MAX)] = field(default_factory=list)
    ram_checks: Annotated[bytes, at_most(CHECK_SIZE * RAM_MIB_MAX)] = b""


def front(about: About, sections: Mapping[str, bytes], ram_size: int, checks: bytes) -> bytes:
    """Preamble, header and sections."""
    if len(sections) > SECTIONS_MAX:
        raise SnapshotError(f"{len(sections)} sections; at most {SECTIONS_MAX} are allowed")
    for name, data in sections.items():
        _require_size(name, len(data), SECTION_MAX)
    _require_size("all sections", sum(len(data) for data in sections.values()), SECTIONS_TOTAL_MAX)
    rows = [Section(name, len(data), _digest(data)) for name, data in sections.items()]
    header = pack(Header(about, ram_size // MIB, rows, checks))
    body = b"".join(sections.values())
    file_length = aligned(PREAMBLE.size + len(header) + len(body)) + ram_size
    return _preamble(header, file_length) + header + body


def _preamble(header: bytes, file_length: int) -> bytes:
    bare = PREAMBLE.pack(MAGIC, FORMAT, len(header), file_length, b"")[:-32]
    return bare + hashlib.blake2b(bare + header, digest_size=32).digest()


def read_header(fd: int) -> tuple[Header, bytes, int]:
    """The header, its digest, and the offset at which it ends."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SnapshotError("not a regular file")
    start = os.pread(fd, PREAMBLE.size, 0)
    if start[: len(MAGIC)] != MAGIC:
        raise SnapshotError(f"not a snapshot: starts with {start[:8].hex(' ') or 'nothing'}")
    if len(start) < PREAMBLE.size:
        raise SnapshotError(f"truncated: {len(start)} bytes of a preamble of {PREAMBLE.size}")
    _, form, header_length, file_length, digest = PREAMBLE.unpack(start)
    if form != FORMAT:
        raise SnapshotError(f"format {form}; this build reads format {FORMAT}: use the build that wrote it")
    _require_size("header", header_length, HEADER_MAX)
    if status.st_size != file_length:
        short = "truncated" if status.st_size < file_length else "too long"
        raise SnapshotError(f"{short}: {status.st_size} bytes, its header says {file_length}")
    packed = os.pread(fd, header_length, PREAMBLE.size)
    if hashlib.blake2b(start[:-32] + packed, digest_size=32).digest() != digest:
        raise SnapshotError("header is damaged: its checksum does not match")
    header = unpack(Header, packed)
    _require_sound(header, PREAMBLE.size + header_length, file_length)
    return header, digest, PREAMBLE.size + header_length


def _require_sound(header: Header, header_end: int, file_length: int) -> None:
    """What the header's types cannot say."""
    if not RAM_MIB_MIN <= header.ram_mib <= RAM_MIB_MAX:
        raise SnapshotError(f"RAM of {header.ram_mib} MiB; {RAM_MIB_MIN} to {RAM_MIB_MAX} are possible")
    if len({section.name for section in header.sections}) != len(header.sections):
        raise SnapshotError("two sections have one name")
    for section in header.sections:
        _require_size(section.name, section.size, SECTION_MAX)
    total = sum(section.size for section in header.sections)
    _require_size("all sections", total, SECTIONS_TOTAL_MAX)
    expected = aligned(header_end + total) + header.ram_mib * MIB
    if expected != file_length:
        raise SnapshotError(f"its parts add up to {expected} bytes, its header says {file_length}")


def read_sections(fd: int, rows: list[Section], offset: int) -> dict[str, bytes]:
    sections = {}
    for row in rows:
        data = os.pread(fd, row.size, offset)
        if len(data) != row.size or _digest(data) != row.digest:
            raise SnapshotError(f"section {row.name} at {offset:#x}+{row.size:#x} is damaged")
        sections[row.name] = data
        offset += row.size
    return sections


def _require_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise SnapshotError(f"{what}: {size} bytes; at most {limit} are allowed")


def aligned(offset: int) -> int:
    return -(-offset // PAGE_SIZE) * PAGE_SIZE


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
