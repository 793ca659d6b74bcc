"""From the pause to whole pages at the other end: what is sent is what changed, and nothing else."""

from __future__ import annotations

import itertools
import mmap

import numpy as np
import pytest

from colo.errors import ColoError, ProtocolViolation
from colo.messages import BATCH_MAX
from colo.pages import scan
from colo.pages.delta import (
    BATCH_BYTES,
    BATCH_PAGES,
    HEADER,
    LZ4,
    PLAIN,
    Bytes,
    Counts,
    Outgoing,
    Overlay,
    Pages,
    apply,
    decode,
    differing_pages,
)
from colo.pages.dirty import open_source
from vmm.ram import MIB, PAGE_SIZE, RAM_MIB_MAX, Ram

Batch = tuple[int, bytes]

MAP_NORESERVE = 0x4000
"""<asm-generic/mman-common.h>; in the mmap module from Python 3.13 on."""


def image(size_mib: int = 4, seed: int | None = None) -> Bytes:
    if seed is None:
        return np.zeros(size_mib * MIB, np.uint8)
    return np.random.default_rng(seed).integers(0, 256, size_mib * MIB, dtype=np.uint8)


def listed(*pages: int) -> Pages:
    return np.array(pages, np.uint32)


def everything(ram: Bytes) -> Pages:
    return np.arange(ram.size // PAGE_SIZE, dtype=np.uint32)


def send(outgoing: Outgoing, ram: Bytes, shadow: Bytes, candidates: Pages | None) -> list[Batch]:
    outgoing.capture(ram, shadow, candidates)
    return list(outgoing.batches(shadow))


def receive(batches: list[Batch], replica: Bytes) -> list[int]:
    pages: list[int] = []
    for count, data in batches:
        index, contents = decode(count, data, replica, BATCH_PAGES)
        apply(replica, index, contents)
        pages += index.tolist()
    return pages


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_other_end_has_what_we_have(compress: bool, named: bool) -> None:
    ram, shadow, replica = image(seed=1), image(), image()
    outgoing = Outgoing(ram.size, compress)
    rng = np.random.default_rng(2)
    for step in range(12):
        for page in rng.integers(0, 1024, 60).tolist():
            scribble(ram.reshape(-1, PAGE_SIZE)[page], rng, step)
        changed = differing_pages(ram, shadow).tolist()
        sent = receive(send(outgoing, ram, shadow, everything(ram) if named else None), replica)
        assert sent == changed
        assert (replica == ram).all()
        assert (shadow == ram).all()
        assert outgoing.counts.changed == len(changed)
        assert outgoing.counts.captured == (1024 if named else len(changed))


def scribble(page: Bytes, rng: np.random.Generator, how: int) -> None:
    if how % 4 == 0:
        page[:] = 0
    elif how % 4 == 1:
        page[:] = rng.integers(0, 256, PAGE_SIZE)
    else:
        for _ in range(how):
            page[rng.integers(PAGE_SIZE)] = rng.integers(256)


def test_a_page_that_was_written_but_not_changed_is_not_sent() -> None:
    ram, shadow = image(seed=1), image(seed=1)
    outgoing = Outgoing(ram.size)
    assert send(outgoing, ram, shadow, everything(ram)) == []
    assert outgoing.counts == Counts(captured=1024)
    ram[5 * PAGE_SIZE] ^= 1
    assert len(send(outgoing, ram, shadow, listed(4, 5, 6))) == 1
    assert (outgoing.counts.captured, outgoing.counts.changed) == (3, 1)
    assert send(outgoing, ram, shadow, listed(4, 5, 6)) == []


def test_what_is_sent_is_the_capture_and_not_what_the_guest_did_since() -> None:
    ram, shadow, replica = image(), image(), image()
    outgoing = Outgoing(ram.size)
    ram[0] = 1
    outgoing.capture(ram, shadow, listed(0))
    ram[0] = 2
    receive(list(outgoing.batches(shadow)), replica)
    assert replica[0] == shadow[0] == 1


def test_one_word_costs_sixteen_bytes_and_a_zero_page_four() -> None:
    ram, shadow = image(seed=1), image(seed=1)
    outgoing = Outgoing(ram.size, compress=False)
    pages = ram.view(np.uint64).reshape(-1, 512)
    pages[:100, 17] += np.uint64(1)
    ((count, data),) = send(outgoing, ram, shadow, listed(*range(100)))
    assert (count, len(data)) == (100, HEADER.size + 100 * 16)
    pages[:100] = 0
    ((count, data),) = send(outgoing, ram, shadow, None)
    assert (count, len(data)) == (100, HEADER.size + 100 * 4)


def test_both_sources_lead_to_the_same_bytes() -> None:
    sent: dict[str, list[list[Batch]]] = {}
    for name in ("kernel", "scan"):
        ram, shadow, rng = Ram(4), image(), np.random.default_rng(4)
        try:
            source = open_source(ram, "kernel" if name == "kernel" else "scan")
        except ColoError as exc:
            pytest.skip(str(exc))
        outgoing, rounds = Outgoing(ram.size), []
        for step in range(10):
            for page in rng.integers(0, 1024, 30).tolist():
                scribble(ram.array.reshape(-1, PAGE_SIZE)[page], rng, step)
            if step == 6:
                ram.clear()
            rounds.append(send(outgoing, ram.array, shadow, source.take()))
            assert (shadow == ram.array).all()
        sent[name] = rounds
        source.close()
    assert sent["kernel"] == sent["scan"]


def test_rounds_of_one_epoch_build_on_each_other() -> None:
    """RAM stays as it was until the epoch is sealed, so a later delta is against the staged page."""
    ram, shadow, replica = image(seed=1), image(seed=1), image(seed=1)
    before, outgoing = replica.copy(), Outgoing(ram.size)
    rows, staged, used = np.full(1024, -1, np.int32), np.zeros((64, PAGE_SIZE), np.uint8), 0
    for change in ([3, 5, 900], [5, 6], [3, 5]):
        for page in change:
            ram[page * PAGE_SIZE + 8 * used] ^= 0xFF
        for count, data in send(outgoing, ram, shadow, listed(*change)):
            index, contents = decode(count, data, replica, 64, Overlay(rows, staged), staged[used:])
            assert index.tolist() == change
            assert np.shares_memory(contents, staged)
            rows[index] = np.arange(used, used + count)
            used += count
    assert (replica == before).all()
    newest = np.flatnonzero(rows >= 0)
    assert newest.tolist() == [3, 5, 6, 900]
    apply(replica, newest.astype(np.uint32), staged[rows[newest]])
    assert (replica == ram).all()


def test_a_round_while_the_guest_runs_needs_little_room() -> None:
    ram, shadow, replica = image(16, seed=1), image(16), image(16)
    outgoing = Outgoing(ram.size)
    found = list(outgoing.live(ram, shadow, None))
    batches = [(count, data) for count, data in found if count]
    assert (0, b"") in found, "a turn for others after each piece"
    assert receive(batches, replica) == list(range(4096))
    assert (replica == ram).all()
    assert outgoing.counts.captured == outgoing.counts.changed == 4096
    assert outgoing.counts.sent_bytes == sum(len(data) for _, data in batches)
    assert outgoing.memory_bytes <= 6 * MIB
    assert list(outgoing.live(ram, shadow, listed())) == []
    assert outgoing.counts == Counts()


def test_room_follows_use_and_is_given_back() -> None:
    ram, shadow = image(32, seed=1), image(32)
    outgoing = Outgoing(ram.size)
    little = outgoing.memory_bytes
    send(outgoing, ram, shadow, None)
    assert outgoing.memory_bytes == 32 * MIB, "as much as RAM, and never more"
    for _ in range(30):
        ram[0] ^= 1
        send(outgoing, ram, shadow, listed(0))
    assert outgoing.memory_bytes <= 2 * little
    ram[:] ^= 1
    send(outgoing, ram, shadow, None)
    assert (shadow == ram).all()


@pytest.mark.parametrize("seed", [None, 1])
def test_batches_keep_their_limits(seed: int | None) -> None:
    ram, shadow = image(32, seed), image(32, 2)
    outgoing = Outgoing(ram.size)
    batches = send(outgoing, ram, shadow, None)
    assert sum(count for count, _ in batches) == 8192
    assert all(0 < count <= BATCH_PAGES for count, _ in batches)
    assert all(len(data) <= BATCH_BYTES + HEADER.size <= BATCH_MAX for _, data in batches)
    assert len(batches) == (2 if seed is None else 33)
    assert outgoing.counts.sent_bytes == sum(len(data) for _, data in batches)


def test_compression_is_used_where_it_pays() -> None:
    outgoing = Outgoing(4 * MIB)
    for ram, flag in (
        (image(seed=1), PLAIN),
        (np.tile(np.arange(250, dtype=np.uint8) | 1, 16778)[: 4 * MIB], LZ4),
    ):
        batches = send(outgoing, ram, image(), None)
        assert {HEADER.unpack_from(data)[0] for _, data in batches} == {flag}
        assert (outgoing.counts.sent_bytes < outgoing.counts.encoded_bytes) == (flag == LZ4)
        receive(batches, replica := image())
        assert (replica == ram).all()


def test_the_smallest_ram_and_its_last_page() -> None:
    ram, shadow, replica = image(1), image(1), image(1)
    ram[-1] = 7
    assert receive(send(Outgoing(ram.size), ram, shadow, None), replica) == [255]
    assert (replica == ram).all()


def test_captures_and_batches_alternate() -> None:
    ram, shadow = image(8, seed=1), image(8)
    outgoing = Outgoing(ram.size)
    outgoing.capture(ram, shadow, None)
    assert len(list(itertools.islice(outgoing.batches(shadow), 2))) == 2
    with pytest.raises(AssertionError, match="have not been sent"):
        outgoing.capture(ram, shadow, None)
    outgoing.discard()
    replica = image(8)
    receive(send(outgoing, ram, shadow := image(8), None), replica)
    assert (replica == ram).all()
    with pytest.raises(AssertionError):
        outgoing.capture(ram, shadow, listed(5, 4))
    with pytest.raises(AssertionError):
        outgoing.capture(ram, shadow, listed(2048))


def test_verification_finds_every_differing_page() -> None:
    left, right = image(seed=1), image(seed=1)
    assert differing_pages(left, right).tolist() == []
    right[[0, 4095, 4096, 77 * PAGE_SIZE + 5, -1]] ^= 1
    assert differing_pages(left, right).tolist() == [0, 1, 77, 1023]
    apply(left, listed(77, 0), right.reshape(-1, PAGE_SIZE)[[77, 0]])
    assert differing_pages(left, right).tolist() == [1, 1023]


def batch(*units: int, flag: int = PLAIN) -> bytes:
    return HEADER.pack(flag, 4 * len(units)) + np.array(units, np.uint32).tobytes()


WHOLE = 255 << 24
RUN = 1 << 24

HOSTILE = {
    "nothing at all": (1, b"", "0 bytes; allowed are 8"),
    "half a header": (1, b"\0\0\0\0\0\0", "6 bytes; allowed are 8"),
    "too long": (1, bytes(BATCH_MAX + 1), f"{BATCH_MAX + 1} bytes"),
    "no pages": (0, batch(0), "a batch of 0; allowed here are 1 to 100"),
    "more pages than allowed": (101, batch(*range(101)), "a batch of 101; allowed here are 1 to 100"),
    "an unknown packing": (1, batch(0, flag=2), "packed in way 2, at byte 0; known are 0 and 1"),
    "another size than announced": (1, batch(0) + b"\0\0\0\0", "8 bytes of records, at byte 8; 4 announced"),
    "half a unit": (1, HEADER.pack(PLAIN, 5) + bytes(5), "5 bytes of records, at byte 4; 1 pages have 4 to"),
    "fewer bytes than pages need": (2, batch(0), "2 pages have 8 to"),
    "more bytes than pages can have": (1, batch(*range(1026)), "1 pages have 4 to 4100"),
    "damaged lz4": (1, HEADER.pack(LZ4, 4) + b"\xff\xff\xff", "damaged lz4 data, at byte 8"),
    "lz4 of less": (1, HEADER.pack(LZ4, 8) + b"\x40\0\0\0\0", "4 bytes of records, at byte 8; 8 announced"),
    "lz4 of more": (1, HEADER.pack(LZ4, 4) + b"\x80" + bytes(8), "damaged lz4 data"),
    "a page outside RAM": (1, batch(256), "page 256 of 256, at byte 0 of 4"),
    "the last page there could be": (1, batch(0xFF_FFFF), "page 16777215 of 256"),
    "a page twice": (2, batch(3, 3), "page 3 does not come after the one before it, at byte 4 of 8"),
    "pages backwards": (2, batch(3, 2), "page 2 does not come after"),
    "a record too few": (2, batch(RUN | 1, 1 << 16, 0, 0), "end too early, at byte 16 of 16"),
    "a record too many": (1, batch(1, 2), "4 bytes after the last record, at byte 4 of 8"),
    "no run": (1, batch(RUN | 1), "end too early, at byte 4 of 4"),
    "half a run": (1, batch(RUN, 1 << 16, 5), "end too early, at byte 8 of 12"),
    "an empty run": (1, batch(RUN, 5), "a run of no words, at byte 4"),
    "a run past the page": (
        1,
        batch(RUN, 2 << 16 | 511, 0, 0, 0, 0),
        "a run of 2 words from word 511 of 512",
    ),
    "a run outside the page": (1, batch(RUN, 1 << 16 | 512, 0, 0), "a run of 1 words from word 512"),
    "an endless run": (1, batch(RUN, 0xFFFF_FFFF), "a run of 65535 words from word 65535"),
    "runs backwards": (1, batch(2 << 24, 1 << 16 | 9, 0, 0, 1 << 16 | 8, 0, 0), "from word 8 that does not"),
    "runs that overlap": (
        1,
        batch(2 << 24, 2 << 16, 0, 0, 0, 0, 1 << 16 | 1, 0, 0),
        "from word 1 that does not",
    ),
    "runs that touch": (1, batch(2 << 24, 1 << 16, 0, 0, 1 << 16 | 1, 0, 0), "from word 1 that does not"),
    "part of a whole page": (1, batch(WHOLE, *range(1023)), "end too early, at byte 4"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_a_peer_may_not_say(name: str) -> None:
    count, data, reason = HOSTILE[name]
    base, out = image(1, seed=1), np.full((101, PAGE_SIZE), 0xA5, np.uint8)
    before = base.copy()
    with pytest.raises(ProtocolViolation, match=r"^pages: ") as caught:
        decode(count, data, base, 100, out=out)
    assert reason in str(caught.value)
    assert (base == before).all()
    assert (out[min(count, 101) :] == 0xA5).all()


def test_a_batch_is_bounded_whatever_its_receiver_allows() -> None:
    base = image(32)
    assert decode(4096, batch(*range(4096)), base, 1 << 30)[0].size == 4096
    with pytest.raises(ProtocolViolation, match="allowed here are 1 to 4096"):
        decode(4097, batch(*range(4097)), base, 1 << 30)


def test_the_last_page_of_the_largest_ram() -> None:
    largest = RAM_MIB_MAX * MIB
    try:  # nothing of it is ever touched but its last pages
        space = mmap.mmap(-1, largest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as exc:
        pytest.skip(f"no {largest >> 30} GiB of address space: {exc.strerror}")
    ram = np.frombuffer(space, np.uint8)
    last = largest // PAGE_SIZE - 1
    apply(ram, listed(last), np.full((1, PAGE_SIZE), 3, np.uint8))
    shadow = ram.view(np.uint64).reshape(-1, 512)
    new, records = shadow[-1:].copy(), np.zeros(2000, np.uint32)
    new[0, 511] = 9
    assert scan.encode_pages(new, listed(last), 0, shadow, records, 1) == (1, 4, 1)
    assert ram[-8:].tolist() == [9, 0, 0, 0, 0, 0, 0, 0]
    ram[-8:] = 3
    index, contents = decode(1, batch(*records[:4].tolist()), ram, 1)
    assert index.tolist() == [last]
    assert (contents == new.view(np.uint8)).all()
