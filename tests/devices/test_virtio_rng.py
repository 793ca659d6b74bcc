"""VIRTIO 1.2, section 5.4, and the stream that a seed stands for."""

from __future__ import annotations

import hashlib

import pytest

from tests.devices.virtio_driver import Board, VirtioDriver
from vmm.devices.virtio_queue import Violation
from vmm.devices.virtio_rng import VirtioRng

pytestmark = pytest.mark.usefixtures("ways")


class Bench:
    def __init__(self, seed: bytes = b"seed") -> None:
        self.board = Board()
        self.device = VirtioRng(seed, self.board.ram, self.board.irq, self.board.msi)
        self.board.plug(self.device)
        self.driver = VirtioDriver(self.board)
        self.driver.start()

    def draw(self, *lengths: int) -> bytes:
        self.driver.queues[0].add([], list(lengths))
        self.driver.kick(0)
        ((_, data),) = self.driver.queues[0].collect()
        return data


def test_stream_is_blake2b_in_counter_mode() -> None:
    bench = Bench(b"a seed of any length" * 10)
    key = hashlib.blake2b(b"a seed of any length" * 10).digest()
    blocks = [hashlib.blake2b(n.to_bytes(8, "little"), key=key).digest() for n in range(4)]
    assert bench.draw(64) == blocks[0]
    assert bench.draw(65) == blocks[1] + blocks[2][:1]
    assert bench.draw(10) == blocks[3][:10], "what is left of a block is thrown away"


def test_one_seed_one_stream() -> None:
    assert Bench().draw(100) == Bench().draw(100) != Bench(b"other").draw(100)


def test_several_descriptors() -> None:
    assert Bench().draw(10, 20, 30) == Bench().draw(60)


def test_a_long_buffer_is_filled_in_part() -> None:
    assert len(Bench().draw(100_000)) == 4096


def test_a_reset_of_the_driver_does_not_repeat_the_stream() -> None:
    bench = Bench()
    first = bench.draw(64)
    bench.driver.start()
    assert bench.draw(64) != first


@pytest.mark.parametrize("readable", [[b"x"], [b"x", b"y"]])
def test_buffer_to_read_breaks_the_ring(readable: list[bytes]) -> None:
    bench = Bench()
    bench.driver.queues[0].add(readable, [])
    bench.driver.kick(0)
    assert bench.device.state.violations[Violation.BUFFER_LAYOUT] == 1
