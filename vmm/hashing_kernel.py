"""The compiled half of ``vmm.hashing``: imported only when something is to be hashed.

Plain arrays in, plain arrays out.  What it computes is defined there by ``page_hashes_numpy``; the
loop over a page has no branch, so that LLVM makes vector code of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Words = npt.NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
MUL_2 = np.uint64(0x94D049BB133111EB)
LOW = np.uint64(0xFFFF_FFFF)
ZERO = np.uint64(0)
S27, S30, S31, S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
WORDS = 512
SKIP = 16
"""Words examined at a time while a page has been zero so far."""


@njit(cache=True, nogil=True, inline="always")
def _finish(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> S30)) * MUL_1
    word = (word ^ (word >> S27)) * MUL_2
    return word ^ (word >> S31)


@njit(cache=True, nogil=True)
def _is_zero(page: Words) -> bool:
    for start in range(0, WORDS, SKIP):
        seen = ZERO
        for at in range(start, start + SKIP):
            seen |= page[at]
        if seen != ZERO:
            return False
    return True


@njit(cache=True, nogil=True)
def hash_pages(pages: Words, keys: Words, zero_sums: Words, hashes: Words) -> None:
    """Fill ``hashes[i]`` with the two hashes of ``pages[i]``; ``zero_sums`` are those of a zero page."""
    for index in range(pages.shape[0]):
        plain = zero_sums[0]
        product = zero_sums[1]
        if not _is_zero(pages[index]):
            plain = ZERO
            product = ZERO
            for at in range(WORDS):
                mixed = pages[index, at] ^ keys[at]
                mixed ^= mixed >> S32
                mixed *= MUL_1
                mixed ^= mixed >> S32
                plain += mixed
                product += (mixed & LOW) * (mixed >> S32)
        place = np.uint64(index)
        hashes[index, 0] = _finish(plain + place * GAMMA)
        hashes[index, 1] = _finish(product ^ _finish(place + GAMMA))
