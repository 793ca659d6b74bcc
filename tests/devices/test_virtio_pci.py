"""VIRTIO 1.2, section 4.1: the PCI transport, seen through configuration ports and BARs.

The entropy device stands for all: it has one queue and no configuration of its own.
"""

from __future__ import annotations

import pytest

from tests.devices.virtio_driver import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT_DESC,
    MSI_ADDRESS,
    NEEDS_RESET,
    VERSION_1,
    Board,
    VirtioDriver,
)
from vmm.devices.virtio_queue import Violation
from vmm.devices.virtio_rng import VirtioRng
from vmm.state import pack, unpack

COMMON, NOTIFY, ISR, DEVICE, PCI = 1, 2, 3, 4, 5


class Bench:
    def __init__(self) -> None:
        self.board = Board()
        self.device = VirtioRng(b"seed", self.board.ram, self.board.irq, self.board.msi)
        self.board.plug(self.device)
        self.driver = VirtioDriver(self.board)

    def draw(self) -> bytes:
        queue = self.driver.queues[0]
        queue.add([], [16])
        self.driver.kick(0)
        ((_, data),) = queue.collect()
        return data


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def started(bench: Bench) -> Bench:
    bench.driver.start()
    return bench


class TestDiscovery:
    """4.1.2 and 4.1.4."""

    def test_ids(self, bench: Bench) -> None:
        assert bench.board.config_read(0x00) == 0x1044_1AF4
        assert bench.board.config_read(0x08, 1) == 1, "a non-transitional device has a revision of 1 or more"
        assert bench.board.config_read(0x2E, 2) >= 0x40

    def test_structures(self, bench: Bench) -> None:
        assert {COMMON, NOTIFY, ISR, PCI} == set(bench.driver.where)
        assert bench.driver.where[COMMON] == (2, 0, 60)

    def test_first_notification_structure_is_in_port_space(self, bench: Bench) -> None:
        bus, _ = bench.driver.bar(bench.driver.where[NOTIFY][0])
        assert bus is bench.board.io
        assert bench.driver.multiplier == 4

    def test_second_notification_structure_is_in_memory_space(self, bench: Bench) -> None:
        found = [at for kind, at in bench.board.capabilities() if kind == 9]
        bars = [
            bench.board.config_read(at + 4, 1) for at in found if bench.board.config_read(at + 3, 1) == NOTIFY
        ]
        assert bars == [0, 2]
        bench.driver.start()
        bench.driver.queues[0].add([], [16])
        bench.driver.queues[0].publish()
        bus, base = bench.driver.bar(2)
        bus.write(base + 0x300, 2, 0)
        assert len(bench.driver.queues[0].collect()) == 1

    def test_window_in_configuration_space(self, bench: Bench) -> None:
        """4.1.4.9: the registers without any BAR decoded."""
        at = next(at for kind, at in bench.board.capabilities() if bench.board.config_read(at + 3, 1) == PCI)
        config = bench.board
        config.config_write(0x04, 2, 0)
        config.config_write(at + 4, 1, 2)
        config.config_write(at + 8, 4, 0x14)
        config.config_write(at + 12, 4, 1)
        config.config_write(at + 16, 1, ACKNOWLEDGE)
        assert config.config_read(at + 16, 1) == ACKNOWLEDGE
        assert bench.device.state.status == ACKNOWLEDGE
        for bar, offset, length in ((1, 0, 3), (7, 0, 4), (2, 0xFFE, 4), (2, 1, 2)):
            config.config_write(at + 4, 1, bar)
            config.config_write(at + 8, 4, offset)
            config.config_write(at + 12, 4, length)
            config.config_write(at + 16, 4, 0)
            assert config.config_read(at + 16, 4) == 0xFFFF_FFFF
        assert bench.device.state.status == ACKNOWLEDGE


class TestInitialisation:
    """3.1.1 and 4.1.4.3."""

    def test_features(self, bench: Bench) -> None:
        assert bench.driver.offered() == VERSION_1 | EVENT_IDX | INDIRECT_DESC
        bench.driver.write(COMMON, 0, 4, 2)
        assert bench.driver.read(COMMON, 4, 4) == 0

    @pytest.mark.parametrize("features", [0, EVENT_IDX, VERSION_1 | 1, VERSION_1 | 1 << 40])
    def test_unacceptable_features_are_refused(self, bench: Bench, features: int) -> None:
        assert not bench.driver.negotiate(features)

    def test_features_are_fixed_by_features_ok(self, bench: Bench) -> None:
        assert bench.driver.negotiate(VERSION_1)
        bench.driver.write(COMMON, 8, 4, 0)
        bench.driver.write(COMMON, 0xC, 4, 0xFFFF_FFFF)
        assert bench.device.state.driver_features == VERSION_1

    def test_queue_registers(self, bench: Bench) -> None:
        driver = bench.driver
        assert driver.read(COMMON, 0x12, 2) == 1
        assert driver.read(COMMON, 0x18, 2) == 64
        driver.write(COMMON, 0x20, 8, 0x1_2345_6780)
        assert driver.read(COMMON, 0x20, 4) == 0x2345_6780
        assert driver.read(COMMON, 0x24, 4) == 1
        driver.write(COMMON, 0x16, 2, 1)
        assert driver.read(COMMON, 0x18, 2) == 0, "a queue that does not exist has size 0"
        driver.write(COMMON, 0x18, 2, 8)
        driver.write(COMMON, 0x1C, 2, 1)

    def test_enabled_queue_keeps_its_registers(self, started: Bench) -> None:
        before = pack(started.device.queues[0].state)
        for offset in (0x20, 0x24, 0x28, 0x30):
            started.driver.write(COMMON, offset, 4, 0x1234)
        started.driver.write(COMMON, 0x18, 2, 2)
        assert pack(started.device.queues[0].state) == before

    def test_vector_that_does_not_exist_reads_back_as_none(self, bench: Bench) -> None:
        for offset in (0x10, 0x1A):
            bench.driver.write(COMMON, offset, 2, 1)
            assert bench.driver.read(COMMON, offset, 2) == 1
            bench.driver.write(COMMON, offset, 2, 2)
            assert bench.driver.read(COMMON, offset, 2) == 0xFFFF

    def test_reset_by_the_driver(self, started: Bench) -> None:
        fresh = Bench()
        board = started.board
        before = board.config_read(0x10), board.config_read(0x04, 2)
        started.driver.status = 0
        assert pack(started.device.state) == pack(fresh.device.state)
        assert (board.config_read(0x10), board.config_read(0x04, 2)) == before

    def test_nothing_happens_before_driver_ok(self, started: Bench) -> None:
        started.driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        started.driver.queues[0].add([], [16])
        started.driver.kick(0)
        assert started.driver.queues[0].collect() == []

    def test_nothing_happens_without_bus_mastering(self, started: Bench) -> None:
        started.board.config_write(0x04, 2, 0x0003)
        started.driver.queues[0].add([], [16])
        started.driver.kick(0)
        assert started.driver.queues[0].collect() == []

    @pytest.mark.parametrize("offset", [0x0F0, 0x101, 0x3C, 0x200, 0x3FF, 0x800])
    def test_unknown_registers(self, bench: Bench, offset: int) -> None:
        bus, base = bench.driver.bar(2)
        before = pack(bench.device.state)
        bus.write(base + offset, 4, 0)
        assert bus.read(base + offset, 4) == 0xFFFF_FFFF
        assert pack(bench.device.state) == before


class TestInterrupts:
    """4.1.4.5 and 4.1.5.3."""

    def test_pin_until_isr_is_read(self, started: Bench) -> None:
        started.draw()
        assert started.board.irq.changes == [True]
        assert started.driver.isr == 1
        assert started.board.irq.changes == [True, False]
        assert started.driver.isr == 0

    def test_message_in_place_of_the_pin(self, bench: Bench) -> None:
        bench.driver.start(msix=True)
        bench.draw()
        assert bench.board.messages == [(MSI_ADDRESS, 0x41)]
        assert bench.board.irq.changes == []
        assert bench.driver.isr == 0

    def test_no_vector_means_no_message(self, bench: Bench) -> None:
        bench.driver.start(msix=True)
        bench.driver.write(COMMON, 0x1A, 2, 0xFFFF)
        bench.draw()
        assert bench.board.messages == []

    def test_enabling_messages_releases_the_pin(self, started: Bench) -> None:
        started.draw()
        started.driver.enable_msix()
        assert not started.board.irq.level

    def test_function_mask_in_configuration_space(self, bench: Bench) -> None:
        bench.driver.start(msix=True)
        control = bench.driver.msix_at + 2
        bench.board.config_write(control, 2, 0xC000)
        bench.draw()
        assert bench.board.messages == []
        bench.board.config_write(control, 2, 0x8000)
        assert bench.board.messages == [(MSI_ADDRESS, 0x41)]


class TestBroken:
    """2.1.2: DEVICE_NEEDS_RESET."""

    def break_it(self, bench: Bench) -> None:
        queue = bench.driver.queues[0]
        queue.offer(0xFFFF)
        bench.driver.kick(0)

    def test_the_driver_is_told(self, started: Bench) -> None:
        self.break_it(started)
        assert started.driver.status & NEEDS_RESET
        assert started.driver.isr == 2
        assert started.device.state.violations[Violation.HEAD_RANGE] == 1

    def test_by_message(self, bench: Bench) -> None:
        bench.driver.start(msix=True)
        self.break_it(bench)
        assert bench.board.messages == [(MSI_ADDRESS, 0x40)]

    def test_the_queue_is_left_alone(self, started: Bench) -> None:
        self.break_it(started)
        used = started.board.ram.read(started.driver.queues[0].device, 0x200)
        started.driver.notify(0)
        assert started.board.ram.read(started.driver.queues[0].device, 0x200) == used
        assert sum(started.device.state.violations) == 1, "counted once"

    def test_the_status_stays_until_reset(self, started: Bench) -> None:
        self.break_it(started)
        started.driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        assert started.driver.status & NEEDS_RESET
        started.driver.start()
        assert not started.driver.status & NEEDS_RESET
        assert len(started.draw()) == 16
        assert sum(started.device.state.violations) == 1, "what happened stays counted"

    def test_bad_registers_are_refused_at_enable(self, bench: Bench) -> None:
        bench.driver.negotiate(VERSION_1)
        bench.driver.write(COMMON, 0x18, 2, 24)
        bench.driver.write(COMMON, 0x1C, 2, 1)
        assert bench.driver.read(COMMON, 0x1C, 2) == 0
        assert bench.driver.status & NEEDS_RESET
        assert bench.device.state.violations[Violation.QUEUE_SIZE] == 1

    def test_buffer_outside_ram(self, started: Bench) -> None:
        queue = started.driver.queues[0]
        queue.put_descriptor(0, 0x40_0000 - 8, 16, 2)
        queue.offer(0)
        started.driver.kick(0)
        assert started.device.state.violations[Violation.OUTSIDE_RAM] == 1


def test_restored_device_goes_on_in_the_middle(started: Bench) -> None:
    started.draw()
    other = Bench()
    other.board.ram.write(0, started.board.ram.read(0, started.board.ram.size))
    other.device.state = unpack(type(started.device.state), pack(started.device.state))
    other.device.restored()
    other.board.host.restored()
    assert other.board.irq.level, "the interrupt is still pending"
    other.driver.queues = [queue.on(other.board.ram) for queue in started.driver.queues]
    assert other.draw() == started.draw()
    assert pack(other.device.state) == pack(started.device.state)
