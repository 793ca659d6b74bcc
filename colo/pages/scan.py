"""The compiled half of dirty pages: compare, copy, encode, decode.  Only this file imports numba.

Plain arrays in, plain arrays out; no allocation, no Python object, no GIL.  A page is a row of 512
little-endian words, so RAM is ``uint64[pages, 512]``; the form of a delta is :mod:`colo.pages.delta`'s and is
written in units of 32 bits.  Indices are trusted here and nowhere checked, except by
:func:`decode_pages`, whose input comes from a peer and is believed in nothing.

Loops over words run over a fixed number without a branch, so that LLVM makes vector code of them;
between them a page is left as soon as it is decided.  Every signature is declared, so importing this
module compiles it (once: numba keeps the result on disk) and no first call ever compiles inside a pause.

Whoever may never need this imports it late: numba costs 0.4 s.  The ``*_numpy`` functions at the end
define what the kernels compute, in the simplest way there is; tests hold the kernels to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

Words = npt.NDArray[np.uint64]
Units = npt.NDArray[np.uint32]
Pages = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int32]

WORDS = 512
UNITS = 1024
"""Of 32 bits in a page."""
BLOCK = 64
"""Words compared between two branches: with half of it a compare of all RAM takes a quarter longer."""
RUN_BLOCK = 8
"""Words compared at a time when looking for runs: one cache line, since stores lie close together."""

PAGE_BITS = 24
PAGE_MASK = np.uint32((1 << PAGE_BITS) - 1)
KIND_SHIFT = np.uint32(PAGE_BITS)
RUN_SHIFT = np.uint32(16)
RUN_MASK = np.uint32(0xFFFF)
ZERO, WHOLE = 0, 255
"""Kinds of a record; any other is the number of its runs."""
RUNS_MAX = 254
RECORD_MAX = 1 + UNITS
"""Units of the longest record: a whole page."""

OK, TRUNCATED, PAGE_RANGE, PAGE_ORDER, RUN_EMPTY, RUN_ORDER, RUN_RANGE, EXCESS = range(8)
"""What :func:`decode_pages` found."""

NONE = np.uint64(0)
HALF = np.uint64(32)

signed: Any = np.int64
"""Inside a kernel this and Python's ``int`` are one type, to mypy they are not."""

_tuple: Any = types.UniTuple
_two: types.Type = _tuple(types.intp, 2)
_three: types.Type = _tuple(types.intp, 3)
_pages = types.Array(types.uint64, 2, "C")
_pages_read = types.Array(types.uint64, 2, "C", readonly=True)
_index = types.Array(types.uint32, 1, "C")
_index_read = types.Array(types.uint32, 1, "C", readonly=True)
_rows_read = types.Array(types.int32, 1, "C", readonly=True)


@njit(cache=True, nogil=True, inline="always")
def _same(left: Words, right: Words, page: int, other: int) -> bool:
    for start in range(0, WORDS, BLOCK):
        seen = NONE
        for at in range(start, start + BLOCK):
            seen |= left[page, at] ^ right[other, at]
        if seen != NONE:
            return False
    return True


@njit(cache=True, nogil=True, inline="always")
def _zero(pages: Words, page: int) -> bool:
    for start in range(0, WORDS, BLOCK):
        seen = NONE
        for at in range(start, start + BLOCK):
            seen |= pages[page, at]
        if seen != NONE:
            return False
    return True


@njit(types.intp(_pages_read, _pages_read, _index), cache=True, nogil=True)
def changed_pages(left: Words, right: Words, found: Pages) -> int:
    """Write to ``found`` which pages differ; how many."""
    count = 0
    for page in range(left.shape[0]):
        if not _same(left, right, page, page):
            found[count] = page
            count += 1
    return count


@njit(types.void(_pages_read, _index_read, _pages), cache=True, nogil=True)
def copy_pages(pages: Words, index: Pages, out: Words) -> None:
    """``out[n] = pages[index[n]]``."""
    for n in range(index.shape[0]):
        page = index[n]
        for at in range(WORDS):
            out[n, at] = pages[page, at]


@njit(types.void(_pages, _index_read, _pages_read), cache=True, nogil=True)
def place_pages(pages: Words, index: Pages, rows: Words) -> None:
    """``pages[index[n]] = rows[n]``."""
    for n in range(index.shape[0]):
        page = index[n]
        for at in range(WORDS):
            pages[page, at] = rows[n, at]


@njit(cache=True, nogil=True, inline="always")
def _measure(new: Words, row: int, shadow: Words, page: int) -> tuple[int, int]:
    """How many runs of changed words, and how many words in them."""
    changed = signed(new[row, 0] != shadow[page, 0])
    runs = changed
    for at in range(1, WORDS):
        here = new[row, at] != shadow[page, at]
        before = new[row, at - 1] != shadow[page, at - 1]
        changed += here
        runs += here & (not before)
    return runs, changed


@njit(cache=True, nogil=True)
def _runs(new: Words, row: int, shadow: Words, page: int, out: Units, used: int) -> None:
    """Write the runs of a page at ``out[used:]`` and bring ``shadow`` up to date."""
    run = used  # where the open run's own unit stands
    after = -1  # the word that would continue it
    for block in range(0, WORDS, RUN_BLOCK):
        seen = NONE
        for at in range(block, block + RUN_BLOCK):
            seen |= new[row, at] ^ shadow[page, at]
        if seen == NONE:
            continue
        for at in range(block, block + RUN_BLOCK):
            word = new[row, at]
            if word == shadow[page, at]:
                continue
            if at != after:
                run = used
                out[run] = np.uint32(at)
                used += 1
            out[run] += np.uint32(1) << RUN_SHIFT
            out[used] = np.uint32(word)
            out[used + 1] = np.uint32(word >> HALF)
            used += 2
            after = at + 1
            shadow[page, at] = word


@njit(cache=True, nogil=True, inline="always")
def _encode(new: Words, row: int, shadow: Words, page: int, out: Units, used: int) -> tuple[int, int]:
    """Write the body of a page's record at ``out[used:]`` and bring ``shadow`` up to date: kind, length."""
    runs, changed = _measure(new, row, shadow, page)
    if runs <= RUNS_MAX and runs + 2 * changed < UNITS:
        _runs(new, row, shadow, page, out, used)
        return runs, runs + 2 * changed
    units = new.view(np.uint32)
    for at in range(UNITS):
        out[used + at] = units[row, at]
    for at in range(WORDS):
        shadow[page, at] = new[row, at]
    return WHOLE, UNITS


@njit(
    _three(_pages_read, _index_read, types.intp, _pages, _index, types.intp),
    cache=True,
    nogil=True,
)
def encode_pages(
    new: Words, index: Pages, row: int, shadow: Words, out: Units, pages_max: int
) -> tuple[int, int, int]:
    """Encode ``new[row:]``, which are the pages ``index[row:]``, until ``out`` or ``pages_max`` is reached.

    The row to go on with, units written, records written.  ``shadow`` is brought up to date.
    """
    used = 0
    count = 0
    while row < index.shape[0] and count < pages_max and used + RECORD_MAX <= out.shape[0]:
        page = index[row]
        if _zero(new, row):
            if not _zero(shadow, page):
                out[used] = page
                used += 1
                count += 1
                for at in range(WORDS):
                    shadow[page, at] = NONE
        else:
            kind, length = _encode(new, row, shadow, page, out, used + 1)
            if length != 0:
                out[used] = page | np.uint32(kind) << KIND_SHIFT
                used += 1 + length
                count += 1
        row += 1
    return row, used, count


@njit(cache=True, nogil=True)
def _take_runs(data: Units, at: int, runs: int, out: Words, row: int) -> tuple[int, int]:
    """Apply the runs at ``data[at:]`` to ``out[row]``: what was found, and where."""
    free = 0  # the first word where a run may begin
    for _ in range(runs):
        if at >= data.shape[0]:
            return TRUNCATED, at
        first = signed(data[at] & RUN_MASK)
        length = signed(data[at] >> RUN_SHIFT)
        if length == 0:
            return RUN_EMPTY, at
        if first < free:
            return RUN_ORDER, at
        if first + length > WORDS:
            return RUN_RANGE, at
        at += 1
        if at + 2 * length > data.shape[0]:
            return TRUNCATED, at
        for n in range(length):
            low = np.uint64(data[at + 2 * n])
            out[row, first + n] = low | np.uint64(data[at + 2 * n + 1]) << HALF
        at += 2 * length
        free = first + length + 1  # a run that touches the one before it would be one run
    return OK, at


@njit(
    _two(_index_read, _pages_read, _rows_read, _pages_read, _index, _pages),
    cache=True,
    nogil=True,
)
def decode_pages(
    data: Units, base: Words, rows: Rows, staged: Words, index: Pages, out: Words
) -> tuple[int, int]:
    """Decode ``index.shape[0]`` records to ``index`` and ``out``: what was found, and at which unit.

    A page with ``rows[page] >= 0`` is built upon ``staged[rows[page]]``, others upon ``base[page]``;
    an empty ``rows`` means that none is staged.
    """
    at = 0
    previous = -1
    units = out.view(np.uint32)
    for n in range(index.shape[0]):
        if at >= data.shape[0]:
            return TRUNCATED, at
        page = signed(data[at] & PAGE_MASK)
        kind = signed(data[at] >> KIND_SHIFT)
        if page >= base.shape[0]:
            return PAGE_RANGE, at
        if page <= previous:
            return PAGE_ORDER, at
        previous = page
        index[n] = page
        at += 1
        if kind == ZERO:
            for word in range(WORDS):
                out[n, word] = NONE
        elif kind == WHOLE:
            if at + UNITS > data.shape[0]:
                return TRUNCATED, at
            for unit in range(UNITS):
                units[n, unit] = data[at + unit]
            at += UNITS
        else:
            row = signed(-1)
            if rows.shape[0] > 0:
                row = signed(rows[page])
            for word in range(WORDS):
                out[n, word] = base[page, word] if row < 0 else staged[row, word]
            found, at = _take_runs(data, at, kind, out, n)
            if found != OK:
                return found, at
    return (OK if at == data.shape[0] else EXCESS), at


# What the kernels compute.


def changed_pages_numpy(left: Words, right: Words) -> Pages:
    return np.flatnonzero((left != right).any(axis=1)).astype(np.uint32)


def encode_page_numpy(page: int, new: Words, old: Words) -> Units:
    """The record of one page, empty if it did not change."""
    changed = np.flatnonzero(new != old)
    if changed.size == 0:
        return np.empty(0, np.uint32)
    if not new.any():
        return np.array([page | ZERO << PAGE_BITS], np.uint32)
    runs = np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1)
    units = [np.array([page | len(runs) << PAGE_BITS], np.uint64).astype(np.uint32)]
    for run in runs:
        units += [np.array([run[0] | run.size << 16], np.uint32), new[run].view(np.uint32)]
    record = np.concatenate(units)
    if len(runs) > RUNS_MAX or record.size >= RECORD_MAX:
        return np.concatenate([np.array([page | WHOLE << PAGE_BITS], np.uint32), new.view(np.uint32)])
    return record


def decode_page_numpy(record: Units, old: Words) -> tuple[int, Words]:
    """A valid record's page, and what the page becomes."""
    page, kind = int(record[0]) & ((1 << PAGE_BITS) - 1), int(record[0]) >> PAGE_BITS
    if kind == ZERO:
        return page, np.zeros(WORDS, np.uint64)
    if kind == WHOLE:
        return page, record[1:].copy().view(np.uint64)
    new, at = old.copy(), 1
    for _ in range(kind):
        first, length = int(record[at]) & 0xFFFF, int(record[at]) >> 16
        new[first : first + length] = record[at + 1 : at + 1 + 2 * length].copy().view(np.uint64)
        at += 1 + 2 * length
    return page, new
