"""Hostile batches: whatever bytes come, pages inside RAM or a ProtocolViolation with its place.

Valid batches are cut everywhere, damaged at random, put together wrongly, and replaced by noise.
What must hold: nothing else is raised; RAM and the rows that were not asked for are untouched; what is
accepted names ascending pages inside RAM.
"""

from __future__ import annotations

import random
import re
from functools import cache

import lz4.block
import numpy as np
import pytest

from colo.errors import ProtocolViolation
from colo.pages.delta import HEADER, LZ4, PLAIN, Bytes, Outgoing, decode
from vmm.ram import MIB, PAGE_SIZE

PAGES = MIB // PAGE_SIZE
LIMIT = 64
SEEDS = range(400)
GUARD = 0xA5
PLACE = re.compile(r"^pages: .*(at byte \d+|allowed (here )?are \d+)", re.DOTALL)


@cache
def base() -> Bytes:
    array = np.random.default_rng(1).integers(0, 256, MIB, dtype=np.uint8)
    array.flags.writeable = False
    return array


@cache
def valid(compress: bool, seed: int = 2) -> tuple[int, bytes]:
    """A batch with every kind of record."""
    ram, rng = base().copy().reshape(PAGES, PAGE_SIZE), random.Random(seed)
    for page in rng.sample(range(PAGES), 12):
        kind = page % 3
        if kind == 0:
            ram[page] = 0
        elif kind == 1:
            ram[page] = page
        for _ in range(rng.randrange(1, 30)):
            ram[page, rng.randrange(PAGE_SIZE)] ^= 0x80
    outgoing, shadow = Outgoing(MIB, compress), base().copy()
    outgoing.capture(ram.reshape(-1), shadow, None)
    ((count, data),) = outgoing.batches(shadow)
    assert HEADER.unpack_from(data)[0] == (LZ4 if compress else PLAIN)
    return count, data


def survive(count: int, data: bytes) -> bool:
    """Whether it was accepted."""
    out = np.full((LIMIT + 1, PAGE_SIZE), GUARD, np.uint8)
    before, complaint = base().copy(), ""
    try:
        index, pages = decode(count, data, base(), LIMIT, out=out)
    except ProtocolViolation as exc:
        complaint = str(exc)
    else:
        assert pages.shape == (count, PAGE_SIZE)
        assert index.size == count
        assert int(index[-1]) < PAGES
        assert (index[1:] > index[:-1]).all()
    assert not complaint or PLACE.search(complaint), complaint
    assert (out[min(max(count, 0), LIMIT) :] == GUARD).all()
    assert (base() == before).all()
    return not complaint


@pytest.mark.parametrize("compress", [False, True])
def test_cut_short(compress: bool) -> None:
    count, data = valid(compress)
    assert survive(count, data)
    step = 1 if compress else 13
    assert not any(survive(count, data[:end]) for end in [*range(0, len(data), step), len(data) - 1])
    assert not survive(count, data + b"\0")


@pytest.mark.parametrize("compress", [False, True])
def test_another_count(compress: bool) -> None:
    count, data = valid(compress)
    assert not any(survive(other, data) for other in [*range(-1, LIMIT + 2), 1 << 40] if other != count)


@pytest.mark.parametrize("compress", [False, True])
def test_random_damage(compress: bool) -> None:
    accepted = 0
    for seed in SEEDS:
        rng = random.Random(f"{seed} {compress}")
        count, data = valid(compress, seed % 5)
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        accepted += survive(count, bytes(damaged))
    assert accepted < len(SEEDS), "damage to the structure is found, to the contents it is the frame's affair"


def test_records_put_together_wrongly() -> None:
    refused = 0
    for seed in SEEDS:
        rng = random.Random(seed)
        count = rng.randrange(1, 6)
        units: list[int] = []
        for page in sorted(rng.sample(range(PAGES + 2), count)):
            kind = rng.choice((0, 1, 2, 3, 254, 255))
            units.append(page | kind << 24)
            if kind == 255:
                units += [rng.getrandbits(32)] * rng.choice((1024, 1024, 1023, 0))
            for _ in range(kind if kind < 255 else 0):
                length = rng.choice((1, 1, 1, 2, 0, 511, 512, 0xFFFF))
                units += [rng.choice((0, 2, 5, 100, 510, 511, 512, 0xFFFF)) | length << 16]
                units += [7] * (2 * min(length, 3))
        records = np.array(units, np.uint32).tobytes()
        plain = HEADER.pack(PLAIN, len(records)) + records
        packed = HEADER.pack(LZ4, len(records)) + lz4.block.compress(records, store_size=False)
        assert survive(count, plain) == survive(count, packed)
        refused += not survive(count, plain)
    assert 0.5 * len(SEEDS) < refused < len(SEEDS), "the attacks have become too tame, or too wild"


def test_noise() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        records = rng.randbytes(4 * rng.randrange(1, 300))
        header = HEADER.pack(
            rng.choice((PLAIN, LZ4, rng.getrandbits(32))), rng.choice((len(records), 4, 1 << 31))
        )
        survive(rng.randrange(1, LIMIT + 1), header + records)
        survive(rng.randrange(1, LIMIT + 1), rng.randbytes(rng.randrange(40)))


def test_a_small_batch_that_announces_much_allocates_little() -> None:
    """Compressed zeroes: four million bytes in sixteen thousand."""
    bomb = lz4.block.compress(bytes(4 * MIB), store_size=False)
    assert not survive(LIMIT, HEADER.pack(LZ4, 4 * MIB) + bomb)
    assert not survive(1, HEADER.pack(LZ4, 4) + bomb)
    assert not survive(1, HEADER.pack(LZ4, 0xFFFF_FFFC) + bomb)
