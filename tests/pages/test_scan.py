"""The kernels compute what their numpy definitions say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.pages import scan
from colo.pages.scan import RECORD_MAX, RUNS_MAX, WORDS, Pages, Rows, Units, Words

PAGES = 6
NO_ROWS: Rows = np.empty(0, np.int32)

places = st.lists(st.tuples(st.integers(0, WORDS - 1), st.integers(1, WORDS)), max_size=12)
"""Stretches of a page: where from, how many words."""


def noise(pages: int, seed: int = 1) -> Words:
    return np.random.default_rng(seed).integers(1, 1 << 64, (pages, WORDS), dtype=np.uint64)


def encode(new: Words, shadow: Words, index: Pages | None = None) -> tuple[Units, int]:
    """All records in one go, and how many."""
    if index is None:
        index = np.arange(len(new), dtype=np.uint32)
    out = np.zeros(RECORD_MAX * (len(new) + 1), np.uint32)
    row, used, count = scan.encode_pages(new, index, 0, shadow, out, len(new) + 1)
    assert row == len(new)
    return out[:used], count


def decode(data: Units, count: int, base: Words) -> tuple[Pages, Words]:
    index, out = np.empty(count, np.uint32), np.empty((count, WORDS), np.uint64)
    assert scan.decode_pages(data, base, NO_ROWS, out, index, out) == (scan.OK, data.size)
    return index, out


def test_every_changed_word_is_seen() -> None:
    left = noise(WORDS)
    right = left.copy()
    right[np.arange(WORDS), np.arange(WORDS)] ^= np.uint64(1) << np.arange(WORDS, dtype=np.uint64) % 64
    found = np.empty(WORDS, np.uint32)
    assert scan.changed_pages(left, right, found) == WORDS
    assert scan.changed_pages(left, left.copy(), found) == 0


@given(st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(0, WORDS - 1)), max_size=8))
def test_compare_equals_its_definition(stores: list[tuple[int, int]]) -> None:
    left = noise(PAGES)
    right = left.copy()
    for page, word in stores:
        right[page, word] += np.uint64(1)
    found = np.empty(PAGES, np.uint32)
    count = scan.changed_pages(left, right, found)
    assert found[:count].tolist() == scan.changed_pages_numpy(left, right).tolist()


@given(st.lists(st.integers(0, PAGES - 1), unique=True))
def test_copy_and_place_are_take_and_put(chosen: list[int]) -> None:
    pages, index = noise(PAGES), np.array(chosen, np.uint32)
    rows = np.zeros((len(chosen), WORDS), np.uint64)
    scan.copy_pages(pages, index, rows)
    assert (rows == pages[index]).all()
    other = noise(PAGES, 2)
    expected = other.copy()
    expected[index] = rows
    scan.place_pages(other, index, rows)
    assert (other == expected).all()


def change(old: Words, stretches: list[tuple[int, int]], zeroes: bool) -> Words:
    new = old.copy()
    for first, length in stretches:
        new[first : first + length] = 0 if zeroes else new[first : first + length] + np.uint64(1 << 40)
    return new


@given(st.lists(st.tuples(places, st.booleans()), min_size=PAGES, max_size=PAGES), st.booleans())
def test_records_equal_their_definition(
    changes: list[tuple[list[tuple[int, int]], bool]], empty: bool
) -> None:
    old = np.zeros((PAGES, WORDS), np.uint64) if empty else noise(PAGES)
    new = np.stack([change(page, *how) for page, how in zip(old, changes, strict=True)])
    records = [scan.encode_page_numpy(page, new[page], old[page]) for page in range(PAGES)]
    shadow = old.copy()
    data, count = encode(new, shadow)
    assert data.tolist() == np.concatenate(records).tolist()
    assert count == sum(record.size > 0 for record in records)
    assert (shadow == new).all()
    index, out = decode(data, count, old)
    for n, record in enumerate(record for record in records if record.size):
        page, contents = scan.decode_page_numpy(record, old[index[n]])
        assert page == index[n]
        assert (out[n] == contents).all()
        assert (out[n] == new[page]).all()


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (range(0, 2 * RUNS_MAX, 2), RUNS_MAX),
        (range(0, 2 * RUNS_MAX + 2, 2), scan.WHOLE),  # a run too many
        (range(511), 1),
        (range(512), scan.WHOLE),  # one run of everything is a unit longer than the page
        ([*range(510), 511], scan.WHOLE),  # as long as the page
        ([*range(509), 511], 2),
        ([0], 1),
        ([511], 1),
        ([7, 8], 1),
        ([63, 64, 65], 1),
        ([7, 9], 2),
    ],
)
def test_the_shortest_kind_is_chosen(words: list[int], kind: int) -> None:
    old = noise(1)
    new = old.copy()
    new[0, list(words)] += np.uint64(3)
    expected = scan.encode_page_numpy(0, new[0], old[0])
    data, count = encode(new, old.copy())
    assert count == 1
    assert int(data[0]) >> scan.PAGE_BITS == kind
    assert data.tolist() == expected.tolist()
    assert (decode(data, 1, old)[1] == new).all()


def test_a_page_that_became_zero_has_no_body() -> None:
    old, new = noise(2), np.zeros((2, WORDS), np.uint64)
    data, count = encode(new, old)
    assert (count, data.tolist()) == (2, [0, 1])
    assert not old.any()
    assert encode(new, old)[1] == 0, "a zero page over a zero page has not changed"


def test_encoding_stops_before_the_output_is_full_and_goes_on_there() -> None:
    new, shadow = noise(5), noise(5, 2)
    out = np.zeros(2 * RECORD_MAX + 10, np.uint32)
    index = np.array([3, 5, 8, 13, 21], np.uint32)
    shadow = noise(22, 2)
    assert scan.encode_pages(new, index, 0, shadow, out, 99) == (2, 2 * RECORD_MAX, 2)
    assert scan.encode_pages(new, index, 2, shadow, out, 1) == (3, RECORD_MAX, 1)
    assert scan.encode_pages(new, index, 3, shadow, out, 99) == (5, 2 * RECORD_MAX, 2)
    assert (shadow[index] == new).all()


def test_a_staged_page_is_the_base_where_there_is_one() -> None:
    base, staged = noise(3), noise(2, 2)
    rows = np.array([-1, 1, -1], np.int32)
    run = np.array([1 << 16 | 5, 7, 0], np.uint32)
    data = np.concatenate([np.append(np.uint32(1 << 24 | page), run) for page in (1, 2)])
    index, out = np.empty(2, np.uint32), np.empty((2, WORDS), np.uint64)
    assert scan.decode_pages(data, base, rows, staged, index, out) == (scan.OK, 8)
    expected = np.stack([staged[1], base[2]])
    expected[:, 5] = 7
    assert (out == expected).all()


def test_importing_the_rest_does_not_import_numba() -> None:
    """A node that forms no pair must not pay 0.4 s for it."""
    code = "import sys, colo.pages.delta, colo.pages.dirty; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
