"""What changed in RAM, from the pause of the primary to whole pages on the secondary.

The *shadow* is the sender's image of what the receiver has.  A checkpoint captures the pages that may
have changed, which is all that happens while the guest stands still; afterwards each captured page is
compared with the shadow, and what differs is encoded, sent, and entered in the shadow.  A page that
was written with what it held already is not sent.  Remus found the same and sent XOR-compressed pages
(Cully et al., NSDI 2008, section 4.2); here the granularity is the word, so that neither side
computes anything.

A batch is a header and records, in units of 32 bits, little-endian::

    batch    flag (0 plain, 1 lz4)   size of the records in bytes   records
    record   page : 24, kind : 8     body
    kind     0        the page is now zero                no body
             1…254    as many runs of changed words       run : first word : 16, words : 16, then the words
             255      the whole page                      1024 units

A word has 64 bits.  Runs ascend and do not touch, pages ascend.  The shortest kind is chosen; of two
changed words with an unchanged one between them two runs are made, since a run costs half a word.
24 bits of page are 64 GiB, which is all the RAM there may be.

:func:`decode` believes nothing: whatever a batch says, it raises :class:`ProtocolViolation` with the
place, or returns pages inside RAM, and it allocates no more than ``BATCH_PAGES`` pages.

Not modelled: deltas at other offsets (a page moved within the guest is sent whole), and compression
with a dictionary across batches: a lost connection must not cost the meaning of what follows.

Importing this module is cheap; making an :class:`Outgoing` or decoding loads numba.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import lz4.block
import numpy as np
import numpy.typing as npt

from colo.errors import ProtocolViolation
from colo.messages import BATCH_MAX
from vmm.ram import MIB, PAGE_SIZE, RAM_MIB_MAX

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Pages = npt.NDArray[np.uint32]

WORDS = PAGE_SIZE // 8
UNIT = 4
HEADER = struct.Struct("<II")
PLAIN, LZ4 = 0, 1

BATCH_BYTES = 1 * MIB
"""Of records, before compression: small enough that encoding, sending and decoding overlap."""
BATCH_PAGES = 4096
"""Pages in a batch: 16 MiB where the receiver writes them out, however short their records."""
SAMPLE_BYTES = 64 << 10
"""Compressed first, to see whether the rest of a batch is worth it."""
COMPRESS_MIN = 256
"""Bytes below which a batch goes as it is."""
PREPARED_MIN = 4 * MIB
"""Of the buffer for captured pages, touched beforehand even where little changes."""
PIECE_PAGES = PREPARED_MIN // PAGE_SIZE
"""Captured at a time while the guest runs: no reason to hold more."""
HUGE_PAGE = 2 * MIB

assert RAM_MIB_MAX * MIB // PAGE_SIZE <= 1 << 24, "a record has 24 bits for its page"
assert BATCH_BYTES + HEADER.size + PAGE_SIZE <= BATCH_MAX


class Overlay(NamedTuple):
    """Pages that are newer than ``base``: those of the same epoch that came before."""

    rows: npt.NDArray[np.int32]
    """For every page of RAM the row of ``pages`` that holds it, or -1."""
    pages: Bytes
    """``(rows, 4096)``."""


@dataclass
class Counts:
    """What became of one capture."""

    captured: int = 0
    """Pages copied in the pause."""
    changed: int = 0
    """Those of them that differed from the shadow, and were sent."""
    encoded_bytes: int = 0
    """Batches before compression."""
    sent_bytes: int = 0
    """Batches as they were sent."""


class Outgoing:
    """The sender's half: captures pages in the pause, makes batches of them afterwards.

    Captures and batches alternate, each finished before the next begins; they may run in different
    threads.  A sender that gives up in between has a shadow that matches nobody: it starts again
    with a new one.

    ``compress`` pays where the link is slower than a few hundred MB/s, since lz4 takes 2 ms for a MiB
    at both ends together: across hosts, not between two processes of one.
    """

    __slots__ = ("_buffer", "_compress", "_count", "_index", "_records", "_row", "counts")

    def __init__(self, size_bytes: int, compress: bool = True) -> None:
        import colo.pages.scan  # noqa: F401  # loads what the first pause would otherwise wait for

        self.counts = Counts()
        self._buffer = _PageBuffer(size_bytes)
        self._index: Pages = np.empty(size_bytes // PAGE_SIZE, np.uint32)
        self._records: Pages = np.zeros(BATCH_BYTES // UNIT, np.uint32)
        self._compress = compress
        self._count = self._row = 0

    def capture(self, ram: Bytes, shadow: Bytes, candidates: Pages | None) -> int:
        """Copy the candidates, or without any named whatever differs from ``shadow``: how many pages.

        ``candidates`` ascend.  This is the pause: nothing is allocated, unless more changed than lately.
        """
        from colo.pages.scan import changed_pages, copy_pages

        assert self._row == self._count, "pages of the capture before have not been sent"
        assert ram.size == shadow.size == self._buffer.size
        if candidates is None:
            count = int(changed_pages(_rows(ram), _rows(shadow), self._index))
        else:
            count = candidates.size
            assert count == 0 or int(candidates[-1]) < self._index.size
            assert (candidates[1:] > candidates[:-1]).all()
            self._index[:count] = candidates
        copy_pages(_rows(ram), self._index[:count], self._buffer.use(count))
        self._count, self._row = count, 0
        self.counts = Counts(captured=count)
        return count

    def live(self, ram: Bytes, shadow: Bytes, candidates: Pages | None) -> Iterator[tuple[int, bytes]]:
        """The batches of a round while the guest runs: captured piece by piece, without a pause.

        After each piece comes an empty one, ``(0, b"")``: a sender lets others run then, because a piece
        may have nothing that changed.

        A page that is written while it is copied is sent torn.  It is a candidate of the next round,
        because candidates are taken before anything is copied.
        """
        self.counts = total = Counts()
        pages = np.arange(self._index.size, dtype=np.uint32) if candidates is None else candidates
        for start in range(0, pages.size, PIECE_PAGES):
            total.captured += self.capture(ram, shadow, pages[start : start + PIECE_PAGES])
            self.counts = total
            yield from self.batches(shadow)
            yield 0, b""

    def batches(self, shadow: Bytes) -> Iterator[tuple[int, bytes]]:
        """``(pages, data)`` of every batch; ``shadow`` takes over what they say."""
        from colo.pages.scan import encode_pages

        index, new = self._index[: self._count], self._buffer.rows
        while self._row < self._count:
            self._row, used, count = encode_pages(
                new, index, self._row, _rows(shadow), self._records, BATCH_PAGES
            )
            if count:
                data = self._pack(self._records[:used].view(np.uint8).data)
                self.counts.changed += count
                self.counts.encoded_bytes += HEADER.size + UNIT * used
                self.counts.sent_bytes += len(data)
                yield count, data
        self._buffer.prepare()

    @property
    def memory_bytes(self) -> int:
        """What the buffer for captured pages has in memory."""
        return self._buffer.touched

    def discard(self) -> None:
        """What was captured will never be sent."""
        self._row = self._count = 0

    def _pack(self, records: memoryview) -> bytes:
        size = len(records)
        if self._compress and _pays(records[:SAMPLE_BYTES]):
            packed: bytes = lz4.block.compress(records, store_size=False)
            if _is_worth_it(len(packed), size):
                return HEADER.pack(LZ4, size) + packed
        return b"".join((HEADER.pack(PLAIN, size), records))


class _PageBuffer:
    """Room for captured pages: reserved for all of RAM, in memory as far as it was used lately.

    The first touch of fresh memory takes several times as long as a copy to it, so it happens here
    between the pauses (:meth:`prepare`), and in huge pages where the host has them.
    """

    __slots__ = ("_map", "_recent", "rows", "size", "touched")

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a host without huge pages only takes longer
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.rows: Words = np.frombuffer(self._map, np.uint64).reshape(-1, WORDS)
        self.touched = self._recent = 0
        self.prepare()

    def use(self, count: int) -> Words:
        """Room for ``count`` pages."""
        self._recent = max(count * PAGE_SIZE, self._recent - self._recent // 8)
        self.touched = max(self.touched, _huge_pages(count * PAGE_SIZE, self.size))
        return self.rows[:count]

    def prepare(self) -> None:
        """Have in memory what was used lately and a quarter more; give back what has long not been."""
        wanted = _huge_pages(max(PREPARED_MIN, self._recent + self._recent // 4), self.size)
        if wanted > self.touched:
            self.rows[self.touched // PAGE_SIZE : wanted // PAGE_SIZE, 0] = 0
            self.touched = wanted
        elif self.touched > 2 * wanted:
            self._map.madvise(mmap.MADV_DONTNEED, wanted, self.touched - wanted)
            self.touched = wanted


def _huge_pages(size: int, limit: int) -> int:
    return min(-(-size // HUGE_PAGE) * HUGE_PAGE, limit)


def _rows(array: Bytes) -> Words:
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    return array.view(np.uint64).reshape(-1, WORDS)


def _pays(sample: memoryview) -> bool:
    """Whether records that begin like this are worth compressing."""
    if len(sample) < SAMPLE_BYTES:
        return len(sample) >= COMPRESS_MIN  # the sample is all there is
    return _is_worth_it(len(lz4.block.compress(sample, store_size=False)), len(sample))


def _is_worth_it(packed: int, plain: int) -> bool:
    """An eighth less: for less than that the receiver need not unpack anything."""
    return packed <= plain - plain // 8


def decode(
    count: int,
    data: bytes,
    base: Bytes,
    limit_pages: int,
    overlay: Overlay | None = None,
    out: Bytes | None = None,
) -> tuple[Pages, Bytes]:
    """The pages of a batch: their indices, and their new contents as ``(count, 4096)``.

    ``base`` is RAM as the peer saw it at the checkpoint before, ``overlay`` what came since; neither
    is touched.  The contents are written to the first rows of ``out`` where it is given; after a
    violation these hold anything.
    """
    from colo.pages.scan import OK, decode_pages

    if not 0 < count <= min(limit_pages, BATCH_PAGES):
        raise ProtocolViolation(
            f"pages: a batch of {count}; allowed here are 1 to {min(limit_pages, BATCH_PAGES)}"
        )
    records = _unpack(count, data)
    if out is None:
        out = np.empty((count, PAGE_SIZE), np.uint8)
    rows = np.empty(0, np.int32) if overlay is None else overlay.rows
    staged = out if overlay is None else overlay.pages
    assert rows.size in (0, base.size // PAGE_SIZE)
    assert out.shape[0] >= count
    index: Pages = np.empty(count, np.uint32)
    found, at = decode_pages(records, _rows(base), rows, _rows(staged), index, _rows(out))
    if found != OK:
        raise ProtocolViolation(_complaint(found, at, records, base.size // PAGE_SIZE))
    return index, out[:count]


def _unpack(count: int, data: bytes) -> Pages:
    """The records of a batch, of a size that ``count`` records can have."""
    from colo.pages.scan import RECORD_MAX

    if not HEADER.size <= len(data) <= BATCH_MAX:
        raise ProtocolViolation(
            f"pages: a batch of {len(data)} bytes; allowed are {HEADER.size} to {BATCH_MAX}"
        )
    flag, size = HEADER.unpack_from(data)
    most = min(BATCH_MAX, UNIT * RECORD_MAX * count)
    if size % UNIT or not UNIT * count <= size <= most:
        raise ProtocolViolation(
            f"pages: {size} bytes of records, at byte 4; {count} pages have {UNIT * count} to {most}"
            f" in steps of {UNIT}"
        )
    body = memoryview(data)[HEADER.size :]
    if flag == LZ4:
        try:
            body = memoryview(lz4.block.decompress(body, uncompressed_size=size))
        except lz4.block.LZ4BlockError as exc:
            raise ProtocolViolation(f"pages: damaged lz4 data, at byte {HEADER.size}: {exc}") from exc
    elif flag != PLAIN:
        raise ProtocolViolation(
            f"pages: a batch packed in way {flag}, at byte 0; known are {PLAIN} and {LZ4}"
        )
    if len(body) != size:
        raise ProtocolViolation(
            f"pages: {len(body)} bytes of records, at byte {HEADER.size}; {size} announced"
        )
    return np.frombuffer(body, "<u4")


def _complaint(found: int, at: int, records: Pages, page_count: int) -> str:
    from colo.pages import scan

    unit = int(records[at]) if at < records.size else 0
    reasons = {
        scan.TRUNCATED: "the records end too early",
        scan.PAGE_RANGE: f"page {unit & 0xFF_FFFF} of {page_count}",
        scan.PAGE_ORDER: f"page {unit & 0xFF_FFFF} does not come after the one before it",
        scan.RUN_EMPTY: "a run of no words",
        scan.RUN_ORDER: f"a run from word {unit & 0xFFFF} that does not come after the one before it",
        scan.RUN_RANGE: f"a run of {unit >> 16} words from word {unit & 0xFFFF} of {WORDS}",
        scan.EXCESS: f"{UNIT * (records.size - at)} bytes after the last record",
    }
    return f"pages: {reasons[found]}, at byte {UNIT * at} of {UNIT * records.size} of records"


def apply(ram: Bytes, indices: Pages, pages: Bytes) -> None:
    """Write whole pages to their places.  The engine has to be told by whoever calls this."""
    from colo.pages.scan import place_pages

    assert indices.size == pages.shape[0]
    assert indices.size == 0 or int(indices.max()) < ram.size // PAGE_SIZE
    place_pages(_rows(ram), indices, _rows(pages))


def differing_pages(left: Bytes, right: Bytes) -> Pages:
    """The pages in which two images of RAM differ."""
    from colo.pages.scan import changed_pages

    assert left.size == right.size
    found: Pages = np.empty(left.size // PAGE_SIZE, np.uint32)
    return found[: changed_pages(_rows(left), _rows(right), found)].copy()
