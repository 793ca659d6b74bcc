"""VIRTIO 1.2, section 5.2: the block device."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.virtio_driver import INDIRECT, NEXT, WRITE, Board, VirtioDriver
from vmm.device import Pieces
from vmm.devices.virtio_blk import F_FLUSH, F_RO, REQUEST_MAX, VirtioBlk
from vmm.devices.virtio_queue import Violation
from vmm.errors import BackendError, ConfigError

pytestmark = pytest.mark.usefixtures("ways")

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"
DEVICE = 4
SECTORS = 64


class Medium:
    """Sectors in memory, every byte of which tells where it is; ``broken`` makes every call fail."""

    def __init__(self, read_only: bool = False) -> None:
        self.sectors = SECTORS
        self.read_only = read_only
        self.data = bytearray(b"".join(bytes([number]) * 512 for number in range(SECTORS)))
        self.calls: list[str] = []
        self.broken = False

    def _called(self, name: str) -> None:
        if self.broken:
            raise BackendError("the medium is gone")
        self.calls.append(name)

    def read(self, sector: int, count: int) -> bytes:
        self._called("read")
        return bytes(self.data[512 * sector : 512 * (sector + count)])

    def write(self, sector: int, data: bytes | memoryview) -> None:
        self._called("write")
        self.data[512 * sector : 512 * sector + len(data)] = data

    def read_into(self, sector: int, pieces: Pieces) -> None:
        self._called("read_into")
        at = 512 * sector
        for view in pieces.views():
            view[:] = self.data[at : at + len(view)]
            at += len(view)

    def write_from(self, sector: int, pieces: Pieces) -> None:
        self._called("write_from")
        self.data[512 * sector : 512 * sector + pieces.size] = b"".join(pieces.views())

    def flush(self) -> None:
        self._called("flush")


class Bench:
    def __init__(self, read_only: bool = False, serial: str = "disk-0") -> None:
        self.board = Board()
        self.medium = Medium(read_only)
        self.device = VirtioBlk(self.medium, self.board.ram, self.board.irq, self.board.msi, serial)
        self.board.plug(self.device)
        self.driver = VirtioDriver(self.board)
        self.driver.start()

    def request(self, readable: list[bytes], writable: list[int], indirect: bool = False) -> bytes:
        """What the device wrote, the status last."""
        self.driver.queues[0].add(readable, writable, indirect)
        self.driver.kick(0)
        ((_, data),) = self.driver.queues[0].collect()
        return data


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestConfiguration:
    """5.2.3 and 5.2.4."""

    def test_identity(self, bench: Bench) -> None:
        assert bench.board.config_read(0x00) == 0x1042_1AF4

    def test_capacity_and_limits(self, bench: Bench) -> None:
        read = bench.driver.read
        assert read(DEVICE, 0, 4) == SECTORS
        assert read(DEVICE, 4, 4) == 0
        size_max, seg_max = read(DEVICE, 8, 4), read(DEVICE, 12, 4)
        assert read(DEVICE, 20, 4) == 512
        assert size_max * seg_max + 16 <= REQUEST_MAX, "a driver that keeps to the limits is always served"
        assert seg_max + 2 <= bench.driver.queues[0].size

    def test_features(self, bench: Bench) -> None:
        assert bench.driver.offered() & (F_RO | F_FLUSH) == F_FLUSH
        assert Bench(read_only=True).driver.offered() & F_RO

    @pytest.mark.parametrize("serial", ["x" * 21, "é"])
    def test_impossible_serial_is_refused(self, serial: str) -> None:
        with pytest.raises(ConfigError, match="serial"):
            Bench(serial=serial)


class TestRequests:
    """5.2.6."""

    @pytest.mark.parametrize("indirect", [False, True])
    def test_read(self, bench: Bench, indirect: bool) -> None:
        assert bench.request([header(IN, 7)], [512, 512, 1], indirect) == b"\7" * 512 + b"\10" * 512 + OK
        assert (bench.device.state.reads, bench.device.state.sectors_read) == (1, 2)

    @pytest.mark.parametrize("indirect", [False, True])
    def test_write(self, bench: Bench, indirect: bool) -> None:
        assert bench.request([header(OUT, 2), b"a" * 512, b"b" * 512], [1], indirect) == OK
        assert bench.medium.data[1024:2048] == b"a" * 512 + b"b" * 512
        assert bench.medium.data[2048] == 4

    def test_write_lasts_after_the_buffer_is_reused(self, bench: Bench) -> None:
        bench.request([header(OUT, 2), b"a" * 512], [1])
        bench.board.ram.write(0x10_0000, bytes(0x10000))
        assert bench.medium.data[1024:1536] == b"a" * 512

    def test_flush(self, bench: Bench) -> None:
        assert bench.request([header(FLUSH)], [1]) == OK
        assert bench.medium.calls == ["flush"]

    def test_serial(self, bench: Bench) -> None:
        assert bench.request([header(GET_ID)], [20, 1]) == b"disk-0".ljust(20, b"\0") + OK

    def test_unknown_type(self, bench: Bench) -> None:
        assert bench.request([header(11)], [1]) == UNSUPP

    @pytest.mark.parametrize(
        ("sector", "size"),
        [(SECTORS, 512), (SECTORS - 1, 1024), (1 << 60, 512), (0, 511), (0, 0)],
    )
    def test_outside_the_medium_or_not_whole_sectors(self, bench: Bench, sector: int, size: int) -> None:
        bench.driver.queues[0].add([header(IN, sector)], [size, 1] if size else [1])
        bench.driver.kick(0)
        where = bench.driver.queues[0].chains[0][0][-1][0]
        assert bench.board.ram.read(where, 1) == IOERR
        ((_, written),) = bench.driver.queues[0].collect()
        assert written == (b"" if size else IOERR), "the length counts from the start (2.7.8.2)"
        assert bench.request([header(OUT, sector), *([bytes(size)] if size else [])], [1]) == IOERR
        assert bench.medium.calls == []
        assert bench.device.state.errors == 2

    def test_read_only(self) -> None:
        bench = Bench(read_only=True)
        assert bench.request([header(OUT, 0), bytes(512)], [1]) == IOERR
        assert bench.medium.calls == []

    @pytest.mark.parametrize("kind", [OUT, FLUSH])
    def test_broken_back_end_is_a_medium_error(self, bench: Bench, kind: int) -> None:
        bench.medium.broken = True
        assert bench.request([header(kind), *([bytes(512)] if kind == OUT else [])], [1]) == IOERR

    def test_many_requests_on_one_notification(self, bench: Bench) -> None:
        for sector in range(60):
            bench.driver.queues[0].add([header(IN, sector)], [512, 1])
        bench.driver.kick(0)
        answers = [data for _, data in bench.driver.queues[0].collect()]
        assert answers == [bytes([sector]) * 512 + OK for sector in range(60)]
        assert len(bench.board.irq.changes) == 1

    @pytest.mark.parametrize(("readable", "writable"), [([bytes(15)], [1]), ([header(IN)], []), ([], [600])])
    def test_no_room_for_header_or_status(
        self, bench: Bench, readable: list[bytes], writable: list[int]
    ) -> None:
        bench.driver.queues[0].add(readable, writable)
        bench.driver.kick(0)
        assert bench.device.state.violations[Violation.BUFFER_LAYOUT] == 1
        assert bench.medium.calls == []

    def test_huge_request_is_refused_without_touching_it(self, bench: Bench) -> None:
        """Forty descriptors of a megabyte over the same memory: far more than REQUEST_MAX."""
        queue = bench.driver.queues[0]
        queue.put_descriptor(0, 0x10_0000, 16, 1, 1)
        for index in range(1, 40):
            queue.put_descriptor(index, 0x20_0000, 1 << 20, 3, index + 1)
        queue.put_descriptor(40, 0x10_0100, 1, 2)
        queue.offer(0)
        bench.driver.kick(0)
        assert bench.board.ram.read(0x10_0100, 1) == IOERR
        assert bench.medium.calls == []


class TestLargeRequests:
    """More than :data:`vmm.devices.virtio_queue.MANY` segments in an indirect table, as Linux sends them."""

    def test_read(self, bench: Bench) -> None:
        assert bench.request([header(IN, 3)], [1024] * 20 + [1], indirect=True) == (
            bytes(bench.medium.data[3 * 512 : 43 * 512]) + OK
        )
        assert bench.medium.calls == ["read_into"]
        assert (bench.device.state.reads, bench.device.state.sectors_read) == (1, 40)

    def test_write(self, bench: Bench) -> None:
        pages = [bytes([0x80 | number]) * 1024 for number in range(20)]
        before = bytes(bench.medium.data)
        assert bench.request([header(OUT, 3), *pages], [1], indirect=True) == OK
        assert bench.medium.calls == ["write_from"]
        assert bench.medium.data == before[: 3 * 512] + b"".join(pages) + before[43 * 512 :]
        assert (bench.device.state.writes, bench.device.state.sectors_written) == (1, 40)

    @pytest.mark.parametrize("indirect", [False, True])
    def test_pieces_need_not_be_sectors(self, bench: Bench, indirect: bool) -> None:
        pieces = [bytes([number]) * (300 + number) for number in range(30)]
        pieces.append(bytes(-sum(map(len, pieces)) % 512))
        whole = b"".join(pieces)
        assert bench.request([header(OUT, 1), *pieces], [1], indirect) == OK
        assert bench.medium.data[512 : 512 + len(whole)] == whole
        cuts = [len(piece) for piece in reversed(pieces)]
        assert bench.request([header(IN, 1)], [*cuts, 1], indirect) == whole + OK

    def test_the_status_with_the_last_bytes_and_the_header_with_the_first(self, bench: Bench) -> None:
        whole = bytes(range(256)) * 64
        assert bench.request([header(OUT, 0) + whole[:512], *[whole[512:1024]] * 31], [1], True) == OK
        assert bench.medium.data[: len(whole)] == whole[:512] + whole[512:1024] * 31
        data = bytes(bench.medium.data)
        assert bench.request([header(IN, 0)], [512] * 19 + [513], True) == data[: 512 * 20] + OK

    @pytest.mark.parametrize(("sector", "size"), [(SECTORS - 39, 512), (1 << 62, 512), (0, 500)])
    def test_outside_the_medium_or_not_whole_sectors(self, bench: Bench, sector: int, size: int) -> None:
        bench.driver.queues[0].add([header(IN, sector)], [size] * 40 + [1], True)
        bench.driver.queues[0].add([header(OUT, sector), *[bytes(size)] * 41], [1], True)
        bench.driver.kick(0)
        assert bench.device.state.errors == 2
        assert bench.medium.calls == []

    def test_read_only(self) -> None:
        bench = Bench(read_only=True)
        assert bench.request([header(OUT, 0), *[bytes(512)] * 20], [1], True) == IOERR
        assert bench.medium.calls == []

    def test_broken_back_end_is_a_medium_error(self, bench: Bench) -> None:
        bench.medium.broken = True
        assert bench.request([header(OUT, 0), *[bytes(512)] * 20], [1], True) == IOERR
        head = bench.driver.queues[0].add([header(IN, 0)], [512] * 20 + [1], True)
        status = bench.driver.queues[0].chains[head][0][-1][0]
        bench.driver.kick(0)
        assert bench.board.ram.read(status, 1) == IOERR
        assert bench.driver.queues[0].collect() == [(head, b"")], "nothing that counts was written"
        assert bench.device.state.errors == 2

    @pytest.mark.parametrize("place", [1, 12, 20])
    @pytest.mark.parametrize("address", [0x40_0000, 0x3F_FE01, (1 << 64) - 512, 1 << 32])
    @pytest.mark.parametrize("kind", [IN, OUT])
    def test_a_piece_outside_ram_moves_nothing(
        self, bench: Bench, kind: int, address: int, place: int
    ) -> None:
        ram, queue = bench.board.ram, bench.driver.queues[0]
        flags = WRITE if kind == IN else 0
        ram.write(0x10_0000, header(kind))
        rows = [(0x10_0000, 16, NEXT, 1)]
        rows += [(0x20_0000 + 512 * n, 512, NEXT | flags, n + 1) for n in range(1, 21)]
        rows.append((0x10_0010, 1, WRITE, 0))
        rows[place] = address, *rows[place][1:]
        ram.write(0x30_0000, b"".join(struct.pack("<QIHH", *row) for row in rows))
        queue.put_descriptor(0, 0x30_0000, 16 * len(rows), INDIRECT)
        queue.offer(0)
        bench.driver.kick(0)
        assert bench.device.state.violations[Violation.OUTSIDE_RAM] == 1
        assert bench.medium.calls == []
        assert ram.read(0x20_0000, 0x8000) == bytes(0x8000)

    def test_pieces_over_each_other_are_filled_in_order(self, bench: Bench) -> None:
        ram, queue = bench.board.ram, bench.driver.queues[0]
        ram.write(0x10_0000, header(IN))
        rows = [(0x10_0000, 16, NEXT, 1)]
        rows += [(0x20_0000, 512, NEXT | WRITE, n + 1) for n in range(1, 21)]
        rows.append((0x10_0010, 1, WRITE, 0))
        ram.write(0x30_0000, b"".join(struct.pack("<QIHH", *row) for row in rows))
        queue.put_descriptor(0, 0x30_0000, 16 * len(rows), INDIRECT)
        queue.offer(0)
        bench.driver.kick(0)
        assert ram.read(0x20_0000, 513) == bytes([19]) * 512 + b"\0"

    def test_code_that_was_read_over_is_announced(self, bench: Bench) -> None:
        """Also what a back end that fails may have written."""
        seen: list[tuple[int, int]] = []
        bench.driver.queues[0].add([header(IN, 0)], [512] * 20 + [1], True)
        parts, _ = bench.driver.queues[0].chains[0]
        bench.board.ram.on_write = lambda address, length: seen.append((address, length))
        bench.medium.broken = True
        bench.driver.kick(0)
        assert [(address, length) for address, length, _ in parts[1:-1]] == [
            piece for piece in seen if piece[1] == 512
        ]


few = st.lists(st.integers(1, 700), max_size=5)
many = st.lists(st.integers(250, 700), min_size=10).map(lambda rest: [16, *rest])


@given(few | many, few | many, st.booleans())
def test_any_layout_of_descriptors(cuts: list[int], write_cuts: list[int], indirect: bool) -> None:
    """2.7.4: how a driver cuts a request up carries no meaning."""
    bench = Bench()
    whole = header(OUT, 3) + struct.pack("<8192H", *range(8192))
    assert bench.request(list(cut(whole, cuts)), [1], indirect) == OK
    lengths = [len(piece) for piece in cut(bytes(16384), write_cuts)]
    assert bench.request(list(cut(header(IN, 3), cuts)), [*lengths, 1], indirect) == whole[16:] + OK
    lengths[-1] += 1  # with the status in the last piece
    assert bench.request(list(cut(header(IN, 3), cuts)), lengths, indirect) == whole[16:] + OK


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """``data`` in pieces of these lengths, the rest in one."""
    pieces = []
    for length in lengths:
        pieces.append(data[:length])
        data = data[length:]
    return [piece for piece in (*pieces, data) if piece]
