"""PCI Local Bus Specification 3.0, 6.8.2: MSI-X."""

from __future__ import annotations

import pytest

from vmm.devices.msix import Msix

ENABLE, FUNCTION_MASK = 0x80, 0x40


class Bench:
    def __init__(self) -> None:
        self.control = ENABLE
        self.sent: list[tuple[int, int]] = []
        self.msix = Msix(3, lambda: self.control, lambda address, data: self.sent.append((address, data)))

    def program(self, vector: int, masked: int = 0) -> None:
        for at, value in ((0, 0xFEE0_1000), (4, 1), (8, 0x30 + vector), (12, masked)):
            self.msix.write(16 * vector + at, 4, value)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_capability_says_where_and_how_many(bench: Bench) -> None:
    assert bench.msix.capability(1) == bytes.fromhex("0200 01000000 01080000")


def test_all_vectors_are_masked_after_reset(bench: Bench) -> None:
    assert [bench.msix.read(16 * vector + 12, 4) for vector in range(3)] == [1, 1, 1]
    bench.msix.signal(1)
    assert bench.sent == []
    assert bench.msix.read(0x800, 8) == 0b010


def test_message(bench: Bench) -> None:
    bench.program(2)
    bench.msix.signal(2)
    assert bench.sent == [(0x1_FEE0_1000, 0x32)]


def test_quad_word_access(bench: Bench) -> None:
    bench.msix.write(0, 8, 0x1_FEE0_1000)
    bench.msix.write(8, 8, 0x30)
    assert bench.msix.read(0, 8) == 0x1_FEE0_1000
    bench.msix.signal(0)
    assert bench.sent == [(0x1_FEE0_1000, 0x30)]


def test_vector_mask_keeps_one_pending_message(bench: Bench) -> None:
    bench.program(0, masked=1)
    bench.msix.signal(0)
    bench.msix.signal(0)
    bench.msix.write(12, 4, 0)
    assert bench.sent == [(0x1_FEE0_1000, 0x30)]
    assert bench.msix.read(0x800, 4) == 0


def test_function_mask_holds_all_and_lets_them_go_in_order(bench: Bench) -> None:
    for vector in range(3):
        bench.program(vector)
    bench.control = ENABLE | FUNCTION_MASK
    for vector in (2, 0):
        bench.msix.signal(vector)
    assert bench.sent == []
    bench.control = ENABLE
    bench.msix.send_pending()
    assert [data for _, data in bench.sent] == [0x30, 0x32]


def test_disabled_function_sends_nothing_that_waited(bench: Bench) -> None:
    bench.program(0, masked=1)
    bench.msix.signal(0)
    bench.control = 0
    bench.msix.write(12, 4, 0)
    assert bench.sent == []


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (2, 2), (1, 4), (4, 8), (-4, 4)])
def test_odd_accesses_change_nothing(bench: Bench, offset: int, size: int) -> None:
    bench.program(0)
    before = list(bench.msix.state.table)
    bench.msix.write(offset, size, 0)
    assert bench.msix.state.table == before
    assert bench.msix.read(offset, size) == (1 << 8 * size) - 1


def test_pending_bits_and_the_rest_of_the_bar_are_read_only(bench: Bench) -> None:
    for at in (0x800, 0x30, 0xFFC):
        bench.msix.write(at, 4, 0xFFFF_FFFF)
    assert bench.msix.read(0x800, 8) == 0
    assert bench.msix.read(0x30, 4) == 0xFFFF_FFFF, "there is no fourth vector"
