"""RAM hashes: the kernel agrees with its NumPy definition, and any change is seen."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.hashing import DIGEST_SIZE, Bytes, page_hashes, page_hashes_numpy, ram_digest, state_digest
from vmm.ram import PAGE_SIZE, Ram

PAGES = 32


def noise(pages: int, seed: int = 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, pages * PAGE_SIZE, dtype=np.uint8)


def test_kernel_equals_its_definition() -> None:
    array = noise(PAGES)
    array[3 * PAGE_SIZE : 6 * PAGE_SIZE] = 0  # the kernel takes a short cut for these
    array[7 * PAGE_SIZE : 8 * PAGE_SIZE - 1] = 0  # and may not for this: its last byte is not zero
    assert (page_hashes(array) == page_hashes_numpy(array)).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, PAGES * PAGE_SIZE - 1), st.integers(0, 255)), max_size=20),
    st.booleans(),
)
def test_kernel_equals_its_definition_on_sparse_pages(stores: list[tuple[int, int]], on_zeroes: bool) -> None:
    array = np.zeros(PAGES * PAGE_SIZE, np.uint8) if on_zeroes else noise(PAGES)
    for at, value in stores:
        array[at] = value
    assert (page_hashes(array) == page_hashes_numpy(array)).all()


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_every_single_bit_changes_both_hashes_of_its_page_and_no_other(fill: int) -> None:
    pages = np.full((8 * PAGE_SIZE, PAGE_SIZE), fill, np.uint8)  # one page for each bit, 128 MiB
    bits = np.arange(8 * PAGE_SIZE)
    pages[bits, bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
    hashes = page_hashes(pages.reshape(-1))
    same = page_hashes(np.full(pages.size, fill, np.uint8))
    assert (hashes != same).all()
    assert len(np.unique(hashes[:, 0])) == len(np.unique(hashes[:, 1])) == len(hashes)


def test_a_flipped_bit_flips_about_half_of_the_hash() -> None:
    array = noise(256)
    before = page_hashes(array)
    words = array.view(np.uint64).reshape(256, -1)
    words[:, 100] ^= np.uint64(1 << 63)  # the bit that a multiplication spreads least
    changed = np.unpackbits((page_hashes(array) ^ before).view(np.uint8)).mean()
    assert 0.48 < changed < 0.52


def test_two_top_bits_do_not_cancel() -> None:
    """In a sum modulo 2**64 two changes of bit 63 would."""
    array = noise(1000)
    before = page_hashes(array)
    array.view(np.uint64).reshape(1000, -1)[:, [5, 300]] ^= np.uint64(1 << 63)
    assert (page_hashes(array) != before).any(axis=1).all()


def test_the_same_page_elsewhere_hashes_differently() -> None:
    array = np.tile(noise(1), 64)
    hashes = page_hashes(array)
    assert len(np.unique(hashes[:, 0])) == len(np.unique(hashes[:, 1])) == 64


def test_exchanged_pages_and_words_are_seen() -> None:
    array = noise(4)
    digest = ram_digest(array)
    pages = array.reshape(4, -1)
    assert ram_digest(pages[[1, 0, 2, 3]].reshape(-1)) != digest
    words = array.view(np.uint64).copy()
    words[[8, 9]] = words[[9, 8]]
    assert ram_digest(words.view(np.uint8)) != digest


def test_digest_depends_on_contents_alone() -> None:
    ram = Ram(1)
    assert ram_digest(ram.array) == ram_digest(np.zeros(1 << 20, np.uint8))
    assert len(ram_digest(ram.array)) == DIGEST_SIZE
    assert ram_digest(np.zeros(2 << 20, np.uint8)) != ram_digest(ram.array), "more zeroes are more RAM"


def test_known_digest() -> None:
    """The hash is part of every log: a change of it is a change of format and must not pass unseen."""
    array = np.arange(2 * PAGE_SIZE, dtype=np.uint64).astype(np.uint8)
    assert ram_digest(array).hex() == "5313445bf8829f42f2e8caad86882aaa"


def test_state_digest_knows_which_bytes_belong_to_whom() -> None:
    ram = bytes(16)
    digest = state_digest({"pit": b"ab", "pic": b"c"}, ram)
    assert digest != state_digest({"pit": b"a", "pic": b"bc"}, ram)
    assert digest != state_digest({"pic": b"c", "pit": b"ab"}, ram), "component order is machine layout"
    assert digest != state_digest({"pit": b"ab", "pic": b"c"}, bytes(15) + b"\1")
    assert digest == state_digest({"pit": b"ab", "pic": b"c"}, ram)


def test_importing_it_does_not_import_numba() -> None:
    """A warm start that hashes nothing must not pay 0.4 s for it."""
    code = "import sys, vmm.hashing, vmm.snapshot, vmm.replay, vmm.compare; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
