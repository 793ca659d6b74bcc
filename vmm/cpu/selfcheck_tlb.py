"""Do :mod:`vmm.cpu.tlb_fill` and ``tlb_flush`` leave what the engine's own functions leave?

Asked once a process.  Both fill and flush the TLBs of one engine, for the same accesses over the same page
tables, whose entries go through every combination of the bits that matter.  Then everything must be equal:
which accesses were granted, each entry and each victim, how many are in use, the sizes of the TLBs, the
bounds of large pages, and the page tables with their accessed and dirty bits.  Only 4-level paging is asked,
as nothing else is walked by ours.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmm.clock import NEVER_NS
from vmm.cpu import layout

if TYPE_CHECKING:
    from vmm.cpu.engine import Engine

CR0_PAGING, CR0_WP = 0x8000_0001, 1 << 16
CR4_PAE, CR4_SMEP = 1 << 5, 1 << 20
_EFER_LONG_NXE = 1 << 8 | 1 << 10 | 1 << 11
TABLES = 0x10000
"""Four tables: each level's first entry is the next one, the last maps 2 MiB; large pages follow."""
_TABLES_SIZE = 4 * 4096
_OPEN = 0x27
"""Present, writable, user, accessed."""
_FLAGS = (1, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 63)
"""Bits of an entry: present, writable, user, accessed, dirty, XD."""
_LARGE, _RESERVED = 1 << 7, 13
_ENTRIES = 512
_NOBODY = (1 << 64) - 1

_ALL = (1 << layout.CPU_TLB_MODES) - 1
_FLUSHED = (_ALL, 0b110, _ALL, 0b010)
"""The modes that are flushed, in turn."""
_FILL = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    *(ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_bool, ctypes.c_void_p),
)
_FLUSH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint16)

Access = tuple[int, int, int]
"""Address, kind (load, store, fetch), mode (which of the TLBs)."""


class _Functions(NamedTuple):
    """Addresses of what fills and what flushes."""

    fill: int
    flush: int


class Outcome(NamedTuple):
    """What a number of accesses left."""

    granted: list[bool]
    tlbs: Sequence[object]
    """All of them, before each flush and at the end."""
    tables: bytes


def check(engine: Engine) -> str:
    """What is different, or an empty string; ``engine`` is spent, and needs 1 MiB of RAM."""
    pages = [n * 397 % (3 * _ENTRIES) for n in range(200)]
    accesses = [(page << 12 | page, n % 7 % 3, n % 5 % 3) for n, page in enumerate(pages)]
    accesses += [((1 << 64) - 4096, 0, 2), (1 << 47, 0, 2)]
    for cr0, cr4, every in ((CR0_PAGING | CR0_WP, CR4_PAE | CR4_SMEP, 40), (CR0_PAGING, CR4_PAE, 90)):
        theirs, ours = compare(engine, tables(0), accesses, cr0, cr4, every)
        for name in Outcome._fields:
            if getattr(theirs, name) != getattr(ours, name):
                return f"{name} differ after compiled code filled the TLB"
    return ""


def tables(offset: int) -> bytes:
    """Page tables; entry ``n`` of the last has the flags whose number is ``n + offset``.

    Large pages are all at 0, and some have a reserved bit set.
    """
    upper = [TABLES + 4096 * level | _OPEN for level in (1, 2, 3)]
    large = [_flags(n) | _LARGE | (n % 16 == 9) << _RESERVED for n in range(1, _ENTRIES)]
    last = [(page * 37 % 256) << 12 | _flags(page + offset) for page in range(_ENTRIES)]
    rest = [0] * (_ENTRIES - 1)
    words = [upper[0], *rest, upper[1], *rest, upper[2], *large, *last]
    return struct.pack(f"<{len(words)}Q", *words)


def _flags(number: int) -> int:
    """A combination of flags; three of four are present, as the others are all alike."""
    number = number * 5 if number & 1 else number * 5 | 0b1001
    return sum(flag for bit, flag in enumerate(_FLAGS) if number >> bit & 1)


def compare(
    engine: Engine, filled: bytes, accesses: Iterable[Access], cr0: int, cr4: int, every: int
) -> tuple[Outcome, Outcome]:
    """The outcome of the engine's own functions, and of ours; a flush after ``every`` so many accesses."""
    accesses = list(accesses)
    own = _Functions(engine.block["FN_TLB_FILL"], engine.block["FN_TLB_FLUSH"])
    ours = _Functions(engine.callbacks["fill"], engine.callbacks["flush_tlbs"])
    _set_mode(engine, cr0, cr4)
    return _outcome(engine, own, filled, accesses, every), _outcome(engine, ours, filled, accesses, every)


def _set_mode(engine: Engine, cr0: int, cr4: int) -> None:
    env = engine.env
    for field, value in (
        (layout.CR0, cr0),
        (layout.CR3, TABLES),
        (layout.CR4, cr4),
        (layout.EFER, _EFER_LONG_NXE),
    ):
        ctypes.c_uint64.from_address(env + field).value = value
    hidden = ctypes.c_uint32.from_address(env + layout.HFLAGS)
    hidden.value |= layout.HF_LMA | layout.HF_CS64


def _outcome(
    engine: Engine, functions: _Functions, filled: bytes, accesses: list[Access], every: int
) -> Outcome:
    """Fill and flush the TLBs, as if by probes: a fault is an answer and not an exception."""
    ctypes.memmove(engine.block["LOW_HOST"] + TABLES, filled, _TABLES_SIZE)
    _forget(engine)
    fill, flush = _FILL(functions.fill), _FLUSH(functions.flush)
    granted, tlbs = [], []
    for number, (address, kind, mode) in enumerate(accesses, 1):
        granted.append(fill(engine.cpu, address, 1, kind, mode, True, None))
        if number % every == 0:
            tlbs.append([_tlb(engine.cpu, mode) for mode in range(layout.CPU_TLB_MODES)])
            flush(engine.cpu, _FLUSHED[number // every % len(_FLUSHED)])
    tlbs.append([_tlb(engine.cpu, mode) for mode in range(layout.CPU_TLB_MODES)])
    return Outcome(granted, tlbs, ctypes.string_at(engine.block["LOW_HOST"] + TABLES, _TABLES_SIZE))


def _forget(engine: Engine) -> None:
    """Empty the TLBs and make them as small as they can be, whatever they were and whoever filled them."""
    cpu = engine.cpu
    ctypes.c_uint16.from_address(cpu + layout.CPU_TLB_DIRTY).value = _ALL
    for mode in range(layout.CPU_TLB_MODES):
        descriptor = cpu + layout.CPU_TLB_DESCRIPTORS + layout.TLB_DESCRIPTOR_SIZE * mode
        for field, value in (
            (layout.TLB_WINDOW_BEGIN, -NEVER_NS),
            (layout.TLB_WINDOW_MAX, 0),
            (layout.TLB_USED, 0),
        ):
            ctypes.c_int64.from_address(descriptor + field).value = value
    _FLUSH(engine.block["FN_TLB_FLUSH"])(cpu, _ALL)


def _tlb(cpu: int, mode: int) -> tuple[object, ...]:
    """All of one TLB that has a meaning."""
    descriptor = cpu + layout.CPU_TLB_DESCRIPTORS + layout.TLB_DESCRIPTOR_SIZE * mode
    mask, table = struct.unpack("<QQ", ctypes.string_at(cpu + layout.CPU_TLB_FAST + 16 * mode, 16))
    (io,) = struct.unpack("<Q", ctypes.string_at(descriptor + layout.TLB_IO, 8))
    dirty = ctypes.c_uint16.from_address(cpu + layout.CPU_TLB_DIRTY).value
    return (
        dirty,
        mask,
        struct.unpack("<6Q", ctypes.string_at(descriptor, layout.TLB_VICTIMS)),
        _entries(table, io, (mask >> layout.TLB_ENTRY_BITS) + 1),
        _entries(descriptor + layout.TLB_VICTIMS, descriptor + layout.TLB_VICTIM_IO, layout.TLB_VICTIM_COUNT),
    )


def _entries(table: int, io: int, count: int) -> list[tuple[int, ...]]:
    """The entries in use, each with its index; without NOTDIRTY, which ours sets with more care."""
    entries = struct.iter_unpack("<5Q24x", ctypes.string_at(table, layout.TLB_ENTRY_SIZE * count))
    translations = struct.iter_unpack("<QI4x", ctypes.string_at(io, layout.TLB_IO_SIZE * count))
    found = []
    for index, (entry, translation) in enumerate(zip(entries, translations, strict=True)):
        read, write, code, *rest = entry
        if read & write & code != _NOBODY:
            watched = write if write == _NOBODY else write & ~0x400
            found.append((index, read, watched, code, *rest, *translation))
    return found
