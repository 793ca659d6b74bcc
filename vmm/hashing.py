"""Hashes of RAM and of a whole machine: 128 bits that two equal machines share.

A page of 4096 bytes is 512 little-endian words.  Each word is keyed by its place in the page and
mixed by a bijection, one round of xor-shift, multiply, xor-shift (SplitMix64 takes two and a half:
Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 15; a
second round costs a fifth of the speed).  It then enters two sums modulo 2**64: one of the mixed
words, one of the products of their halves (the NH of Black et al., "UMAC", CRYPTO 1999).  The
page's index enters at the end, through the whole SplitMix64 finaliser, so equal pages in different
places hash differently.  BLAKE2b over all page hashes is the digest.

Why not BLAKE2b over the RAM itself: that runs at 1 GiB/s and this near the speed of memory, and
lock-step and replay hash whole machines often.  The price: the page hash is **not** cryptographic.
Its keys are public, so a guest could compute two pages that hash alike.  Nothing here defends
against that: hashes find where two honest machines parted, and authenticate nothing.

The kernel lives in ``vmm.hashing_kernel``, imported on first use: numba costs 0.4 s, which a warm
start that hashes nothing must not pay.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vmm.ram import PAGE_SIZE

DIGEST_SIZE = 16
WORDS = PAGE_SIZE // 8

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFF_FFFF)
_S27, _S30, _S31, _S32 = (np.uint64(n) for n in (27, 30, 31, 32))


def ram_digest(array: Bytes) -> bytes:
    """The digest of RAM, 16 bytes."""
    hashes = page_hashes(array)
    hasher = hashlib.blake2b(len(hashes).to_bytes(8, "little"), digest_size=DIGEST_SIZE)
    hasher.update(hashes.data)
    return hasher.digest()


def state_digest(sections: Mapping[str, bytes], ram: bytes) -> bytes:
    """The digest of a machine: each component's name and packed state, in order, and its RAM's digest."""
    hasher = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name, data in sections.items():
        for part in (name.encode(), data):
            hasher.update(len(part).to_bytes(8, "little"))
            hasher.update(part)
    hasher.update(ram)
    return hasher.digest()


def page_hashes(array: Bytes) -> Words:
    """Two 64-bit hashes for each page of ``array``: shape ``(pages, 2)``."""
    from vmm.hashing_kernel import hash_pages

    pages = _pages(array)
    hashes = np.empty((len(pages), 2), np.uint64)
    hash_pages(pages, _keys(), _zero_sums(), hashes)
    return hashes


def page_hashes_numpy(array: Bytes) -> Words:
    """The same without numba: the definition that tests hold the kernel to."""
    plain, product = _sums(_pages(array))
    index = np.arange(len(plain), dtype=np.uint64)
    return np.stack([_finish(plain + index * _GAMMA), _finish(product ^ _finish(index + _GAMMA))], axis=1)


def _pages(array: Bytes) -> Words:
    assert array.dtype == np.uint8
    assert array.ndim == 1
    assert array.flags.c_contiguous
    assert array.size % PAGE_SIZE == 0
    return array.view(np.uint64).reshape(-1, WORDS)


def _sums(pages: Words) -> tuple[Words, Words]:
    mixed = pages ^ _keys()
    mixed ^= mixed >> _S32
    mixed *= _MUL_1
    mixed ^= mixed >> _S32
    product = (mixed & _LOW) * (mixed >> _S32)
    return mixed.sum(axis=1, dtype=np.uint64), product.sum(axis=1, dtype=np.uint64)


def _finish(words: Words) -> Words:
    """The SplitMix64 finaliser: every bit of the result depends on every bit of ``words``."""
    words = (words ^ (words >> _S30)) * _MUL_1
    words = (words ^ (words >> _S27)) * _MUL_2
    return words ^ (words >> _S31)


@functools.cache
def _keys() -> Words:
    """One key for each word of a page: SplitMix64 seeded with zero."""
    return _finish(np.arange(1, WORDS + 1, dtype=np.uint64) * _GAMMA)


@functools.cache
def _zero_sums() -> Words:
    """The two sums of a page of zeroes, so that the kernel need not compute them."""
    return np.concatenate(_sums(np.zeros((1, WORDS), np.uint64)))
