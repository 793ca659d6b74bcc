"""VIRTIO 1.2, section 2.7: split virtqueues, first as a driver should use them, then as one should not."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.virtio_driver import EVENT_IDX, INDIRECT, NEXT, WRITE, Board, DriverQueue
from vmm.devices.virtio_buffer import Segments, gather, scatter, total
from vmm.devices.virtio_queue import RingViolation, Violation, VirtQueue

pytestmark = pytest.mark.usefixtures("ways")

BASE = 0x1000
DATA = 0x20_0000


class Pair:
    """The two ends of one queue."""

    def __init__(self, size: int = 8, features: int = 0, start: int = 0) -> None:
        self.board = Board()
        self.ram = self.board.ram
        self.driver = DriverQueue(self.board, 0, size, BASE, features)
        self.queue = VirtQueue(self.ram, 256)
        state = self.queue.state
        state.size = size
        state.desc, state.driver, state.device = self.driver.desc, self.driver.driver, self.driver.device
        state.event_idx = bool(features & EVENT_IDX)
        state.indirect = True
        self.queue.enable()
        state.next_avail = state.used = state.published = start
        self.driver.added = self.driver.kicked = self.driver.seen = start
        events = self.driver.device + 4 + 8 * size, self.driver.driver + 4 + 2 * size
        for at in (self.driver.driver + 2, self.driver.device + 2, *events):
            self.driver.put16(at, start)

    def offer(self, *descriptors: tuple[int, int, int, int]) -> None:
        """Descriptors as they are, the first one made available."""
        for index, descriptor in enumerate(descriptors):
            self.driver.put_descriptor(index, *descriptor)
        self.driver.offer(0)
        self.driver.publish()

    def taken(self) -> list[tuple[int, Segments, Segments]]:
        """Every buffer there is: head, what the device reads, what it writes."""
        found = []
        buffer = self.queue.take()
        while buffer is not None:
            left, head, readable, size, writable, room = buffer
            assert (size, room) == (total(readable), total(writable))
            found.append((head, readable, writable))
            buffer = self.queue.take(left) if left else None
        return found

    def violation(self) -> Violation:
        with pytest.raises(RingViolation) as caught:
            self.taken()
        return caught.value.kind


def written(count: int) -> Callable[..., int]:
    """Work that serves nothing and says that it wrote so much."""
    return lambda *_: count


class TestUse:
    def test_chain_in_descriptor_order(self) -> None:
        pair = Pair()
        head = pair.driver.add([b"one", b"four"], [5, 6])
        pair.driver.publish()
        ((found, readable, writable),) = pair.taken()
        assert found == head
        assert bytes(gather(pair.ram, readable)) == b"onefour"
        assert [length for _, length in writable] == [5, 6]

    def test_indirect_chain_is_the_same(self) -> None:
        pair = Pair()
        pair.driver.add([b"one", b"four"], [5], indirect=True)
        pair.driver.publish()
        ((_, readable, writable),) = pair.taken()
        assert bytes(gather(pair.ram, readable)) == b"onefour"
        assert total(writable) == 5

    def test_used_buffer_comes_back(self) -> None:
        pair = Pair()
        head = pair.driver.add([], [8])
        pair.driver.publish()
        ((_, _, writable),) = pair.taken()
        scatter(pair.ram, writable, b"hello")
        assert pair.queue.finish(head, 5)
        assert pair.driver.collect() == [(head, b"hello")]
        assert not pair.queue.finish(), "nothing new"

    def test_it_is_not_seen_before_the_pass_ends(self) -> None:
        pair = Pair()
        heads = [pair.driver.add([], [8]) for _ in range(2)]
        pair.driver.publish()
        seen: list[list[tuple[int, bytes]]] = []

        def work(_readable: Segments, _size: int, writable: Segments, _room: int) -> int:
            seen.append(pair.driver.collect())
            scatter(pair.ram, writable, b"hello")
            return 5

        assert pair.queue.serve(work)
        assert seen == [[], []]
        assert pair.driver.collect() == [(head, b"hello") for head in heads]

    def test_indices_wrap_at_65536(self) -> None:
        pair = Pair(features=EVENT_IDX, start=65530)
        served: list[bytes] = []

        def work(readable: Segments, *_: object) -> int:
            served.append(bytes(gather(pair.ram, readable)))
            return 0

        for number in range(20):
            head = pair.driver.add([bytes([number])], [])
            assert pair.driver.publish(), "the device always asks to be told of the next buffer"
            assert pair.queue.serve(work)
            assert pair.driver.collect() == [(head, b"")]
        assert served == [bytes([number]) for number in range(20)]
        assert pair.queue.state.next_avail == 65530 + 20 - 65536

    def test_put_back(self) -> None:
        pair = Pair(start=0)
        pair.driver.add([b"x"], [])
        pair.driver.publish()
        first = pair.queue.take()
        pair.queue.put_back(1)
        assert pair.queue.pending() == 1
        assert pair.queue.take() == first

    @pytest.mark.parametrize("size", [1, 2, 256])
    def test_whole_ring_at_once(self, size: int) -> None:
        pair = Pair(size=size)
        for _ in range(size):
            pair.driver.add([b"x"], [])
        pair.driver.publish()
        assert len(pair.taken()) == size


class TestSuppression:
    """2.7.7 and 2.7.10."""

    def one(self, pair: Pair) -> bool:
        pair.driver.add([b"x"], [])
        pair.driver.publish()
        return pair.queue.serve(written(0))

    def test_flag_suppresses_interrupts(self) -> None:
        pair = Pair()
        pair.driver.want_interrupt(False)
        assert not self.one(pair)
        pair.driver.want_interrupt(True)
        assert self.one(pair)

    def test_used_event_suppresses_interrupts(self) -> None:
        pair = Pair(features=EVENT_IDX)
        pair.driver.put16(pair.driver.driver + 4 + 2 * 8, 2)
        assert [self.one(pair) for _ in range(4)] == [False, False, True, False]

    @pytest.mark.parametrize("features", [0, EVENT_IDX])
    def test_device_suppresses_notifications(self, features: int) -> None:
        pair = Pair(features=features)
        pair.queue.want_notifications(True)
        pair.driver.add([b"x"], [])
        assert pair.driver.publish()
        pair.queue.want_notifications(False)
        pair.driver.add([b"x"], [])
        assert not pair.driver.publish()
        pair.queue.want_notifications(True)
        pair.driver.add([b"x"], [])
        assert pair.driver.publish()


class TestEnable:
    """2.7: sizes and alignment of the three parts."""

    @pytest.mark.parametrize(
        ("field", "value", "kind"),
        [
            ("size", 0, Violation.QUEUE_SIZE),
            ("size", 3, Violation.QUEUE_SIZE),
            ("size", 512, Violation.QUEUE_SIZE),
            ("desc", 0x1008, Violation.RING_ADDRESS),
            ("driver", 0x2001, Violation.RING_ADDRESS),
            ("device", 0x3002, Violation.RING_ADDRESS),
            ("desc", 0x3F_FFF0, Violation.RING_ADDRESS),
            ("driver", 1 << 40, Violation.RING_ADDRESS),
            ("device", (1 << 64) - 4, Violation.RING_ADDRESS),
        ],
    )
    def test_refused(self, field: str, value: int, kind: Violation) -> None:
        queue = VirtQueue(Board().ram, 256)
        queue.state.desc, queue.state.driver, queue.state.device = 0x1000, 0x2000, 0x3000
        setattr(queue.state, field, value)
        with pytest.raises(RingViolation) as caught:
            queue.enable()
        assert caught.value.kind == kind
        assert not queue.state.enabled


def indirect(pair: Pair, *descriptors: tuple[int, int, int, int], length: int | None = None) -> None:
    table = b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)
    pair.ram.write(DATA, table)
    pair.offer((DATA, len(table) if length is None else length, INDIRECT, 0))


def head_beyond_the_table(pair: Pair) -> None:
    pair.driver.offer(8)
    pair.driver.publish()


HOSTILE: dict[str, tuple[Callable[[Pair], None], Violation]] = {
    "head beyond the table": (head_beyond_the_table, Violation.HEAD_RANGE),
    "next beyond the table": (lambda p: p.offer((DATA, 1, NEXT, 8)), Violation.NEXT_RANGE),
    "chain to itself": (lambda p: p.offer((DATA, 1, NEXT, 0)), Violation.CHAIN_LENGTH),
    "loop of two": (lambda p: p.offer((DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)), Violation.CHAIN_LENGTH),
    "read after write": (
        lambda p: p.offer((DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)),
        Violation.ORDER,
    ),
    "empty descriptor": (lambda p: p.offer((DATA, 0, 0, 0)), Violation.ZERO_LENGTH),
    "empty second descriptor": (
        lambda p: p.offer((DATA, 1, NEXT, 1), (DATA, 0, 0, 0)),
        Violation.ZERO_LENGTH,
    ),
    "empty indirect table": (lambda p: p.offer((DATA, 0, INDIRECT, 0)), Violation.INDIRECT_SIZE),
    "odd indirect table": (lambda p: p.offer((DATA, 17, INDIRECT, 0)), Violation.INDIRECT_SIZE),
    "huge indirect table": (lambda p: p.offer((DATA, 16 * 1025, INDIRECT, 0)), Violation.INDIRECT_SIZE),
    "indirect and next": (lambda p: p.offer((DATA, 16, INDIRECT | NEXT, 1)), Violation.INDIRECT_NESTED),
    "indirect in a chain": (
        lambda p: p.offer((DATA, 1, NEXT, 1), (DATA, 16, INDIRECT, 0)),
        Violation.INDIRECT_NESTED,
    ),
    "indirect in a table": (lambda p: indirect(p, (DATA, 16, INDIRECT, 0)), Violation.INDIRECT_NESTED),
    "next beyond the indirect table": (lambda p: indirect(p, (DATA, 1, NEXT, 1)), Violation.NEXT_RANGE),
    "loop in the indirect table": (lambda p: indirect(p, (DATA, 1, NEXT, 0)), Violation.CHAIN_LENGTH),
    "jump by more than the size": (
        lambda p: p.driver.put16(p.driver.driver + 2, 9),
        Violation.AVAIL_JUMP,
    ),
    "index going back": (lambda p: p.driver.put16(p.driver.driver + 2, 0xFFFF), Violation.AVAIL_JUMP),
}


class TestHostile:
    @pytest.mark.parametrize("name", sorted(HOSTILE))
    def test_violation_has_a_name(self, name: str) -> None:
        act, kind = HOSTILE[name]
        pair = Pair()
        act(pair)
        assert pair.violation() == kind

    def test_indirect_without_the_feature(self) -> None:
        pair = Pair()
        pair.queue.state.indirect = False
        indirect(pair, (DATA, 1, 0, 0))
        assert pair.violation() == Violation.INDIRECT_NOT_OFFERED

    def test_every_violation_of_a_ring_is_tried(self) -> None:
        tried = {kind for _, kind in HOSTILE.values()}
        elsewhere = {
            Violation.QUEUE_SIZE,
            Violation.RING_ADDRESS,
            Violation.INDIRECT_NOT_OFFERED,
            Violation.OUTSIDE_RAM,
            Violation.BUFFER_LAYOUT,
        }
        assert tried | elsewhere == set(Violation)

    def test_own_writes_cannot_prolong_a_pass(self) -> None:
        """A buffer that lies on the available ring lets our writing raise its index."""
        pair = Pair()
        pair.offer((pair.driver.driver + 2, 2, WRITE, 0))
        served = 0

        def work(_readable: Segments, _size: int, writable: Segments, _room: int) -> int:
            nonlocal served
            served += 1
            scatter(pair.ram, writable, struct.pack("<H", served + 5))
            return 2

        pair.queue.serve(work)
        assert served == 1


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.binary(max_size=80), st.integers(0, 100))
def test_scatter_is_a_write_at_an_offset(lengths: list[int], data: bytes, skip: int) -> None:
    ram = Board().ram
    segments = [(0x1000 + 64 * index, length) for index, length in enumerate(lengths)]
    scatter(ram, segments, data, skip)
    room = sum(lengths)
    expected = bytearray(room)
    fits = data[: max(0, room - skip)]
    expected[skip : skip + len(fits)] = fits
    assert bytes(gather(ram, segments)) == bytes(expected[:room])
    assert ram.read(0x1000, 0x1000).count(0) == 0x1000 - sum(1 for byte in fits if byte)
