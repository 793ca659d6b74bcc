"""Facts about a shared library's file that the dynamic linker does not tell: room, GOT slots.

Reads the dynamic symbol table and the PLT relocations (System V gABI ch. 4 and 5, x86-64 psABI 4.4)
of a 64-bit little-endian ELF file with NumPy; some 31,000 symbols take a millisecond.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_SHT_RELA, _SHT_DYNSYM = 4, 11
_R_X86_64_JUMP_SLOT = 7
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int


class _Tables(NamedTuple):
    symbols: npt.NDArray[np.void]
    strings: bytes
    relocations: list[npt.NDArray[np.void]]


@lru_cache(maxsize=2)
def _tables(path: Path) -> _Tables:
    with path.open("rb") as file:
        head = file.read(64)
        (section_offset,) = struct.unpack_from("<Q", head, 0x28)
        size, count = struct.unpack_from("<HH", head, 0x3A)
        file.seek(section_offset)
        raw = file.read(size * count)
        sections = [_section(raw, size * index) for index in range(count)]

        def content(section: _Section) -> bytes:
            file.seek(section.offset)
            return file.read(section.size)

        dynsym = next(section for section in sections if section.kind == _SHT_DYNSYM)
        relocations = [s for s in sections if s.kind == _SHT_RELA and sections[s.link] == dynsym]
        return _Tables(
            np.frombuffer(content(dynsym), _SYMBOL),
            content(sections[dynsym.link]),
            [np.frombuffer(content(section), _RELA) for section in relocations],
        )


def _section(raw: bytes, at: int) -> _Section:
    kind = struct.unpack_from("<I", raw, at + 4)[0]
    offset, size = struct.unpack_from("<QQ", raw, at + 0x18)
    return _Section(kind, offset, size, struct.unpack_from("<I", raw, at + 0x28)[0])


def _index(tables: _Tables, symbol: str) -> int:
    """Index of a symbol in the dynamic symbol table, or -1."""
    needle = b"\0" + symbol.encode() + b"\0"
    at = tables.strings.find(needle)
    if at < 0:
        return -1
    found = np.flatnonzero(tables.symbols["name"] == at + 1)
    return int(found[0]) if found.size else -1


def function_room(path: Path, symbol: str) -> int:
    """Bytes from an exported function to the next exported symbol, padding included; 0: no such one."""
    tables = _tables(path)
    index = _index(tables, symbol)
    if index < 0:
        return 0
    address = int(tables.symbols["value"][index])
    later = tables.symbols["value"][tables.symbols["value"] > address]
    return int(later.min()) - address if later.size else int(tables.symbols["size"][index])


def jump_slot(path: Path, symbol: str, anchor_address: int, anchor: str) -> int:
    """Address in this process of the pointer through which the library calls ``symbol``; 0 if none.

    ``anchor_address`` is where the exported symbol ``anchor`` of the same library is loaded.
    """
    tables = _tables(path)
    index, base = _index(tables, symbol), _index(tables, anchor)
    if index < 0 or base < 0:
        return 0
    load_bias = anchor_address - int(tables.symbols["value"][base])
    for relocations in tables.relocations:
        hit = (relocations["symbol"] == index) & (relocations["type"] == _R_X86_64_JUMP_SLOT)
        if hit.any():
            return load_bias + int(relocations["offset"][hit][0])
    return 0
