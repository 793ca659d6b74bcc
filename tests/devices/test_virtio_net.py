"""VIRTIO 1.2, section 5.1: the network device."""

from __future__ import annotations

import pytest

from tests.devices.virtio_driver import MSI_ADDRESS, VERSION_1, Board, VirtioDriver
from vmm.clock import NEVER_NS, ManualClock
from vmm.devices import virtio_net
from vmm.devices.virtio_net import FRAME_MAX, LARGE, TX_DELAY_NS, VirtioNet
from vmm.devices.virtio_queue import Violation
from vmm.errors import ConfigError

pytestmark = pytest.mark.usefixtures("ways")

MAC = bytes.fromhex("52540012ab01")
RX, TX, CONTROL = 0, 1, 2
COMMON, DEVICE = 1, 4
HEADER = 12


class Bench:
    def __init__(self, offloads: bool = False, features: int | None = None, msix: bool = False) -> None:
        self.board = Board()
        self.sent: list[bytes] = []
        self.ready = 0
        self.device = VirtioNet(
            MAC,
            lambda frame: self.sent.append(bytes(frame)),
            self.board.ram,
            self.board.irq,
            self.board.msi,
            offloads,
            self._rx_ready,
        )
        self.board.plug(self.device)
        self.driver = VirtioDriver(self.board)
        self.driver.start(features, msix)

    def _rx_ready(self) -> None:
        self.ready += 1

    def post(self, count: int = 1, length: int = 1536) -> None:
        for _ in range(count):
            self.driver.queues[RX].add([], [length])
        self.driver.kick(RX)

    def transmit(self, *parts: bytes, indirect: bool = False) -> None:
        self.driver.queues[TX].add(list(parts), [], indirect)
        self.driver.kick(TX)

    def received(self) -> list[bytes]:
        return [data for _, data in self.driver.queues[RX].collect()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestConfiguration:
    """5.1.3 and 5.1.4."""

    def test_identity(self, bench: Bench) -> None:
        assert bench.board.config_read(0x00) == 0x1041_1AF4
        assert bench.board.config_read(0x08) >> 8 == 0x02_00_00

    def test_mac_status_and_pairs(self, bench: Bench) -> None:
        assert bytes(bench.driver.read(DEVICE, at, 1) for at in range(6)) == MAC
        assert bench.driver.read(DEVICE, 6, 2) == 1
        assert bench.driver.read(DEVICE, 8, 2) == 1

    @pytest.mark.parametrize("mac", [b"", bytes(5), b"\x01" + bytes(5)])
    def test_impossible_mac_is_refused(self, mac: bytes) -> None:
        with pytest.raises(ConfigError, match="MAC"):
            VirtioNet(mac, lambda frame: None, Board().ram, None, lambda address, data: None)

    def test_offloads_are_offered_only_when_asked_for(self, bench: Bench) -> None:
        assert not bench.driver.offered() & virtio_net.F_OFFLOADS
        assert Bench(offloads=True).driver.offered() & virtio_net.F_OFFLOADS == virtio_net.F_OFFLOADS

    @pytest.mark.parametrize(
        "features",
        [virtio_net.F_HOST_TSO4, virtio_net.F_GUEST_ECN | virtio_net.F_GUEST_CSUM, virtio_net.F_HOST_ECN],
    )
    def test_feature_without_what_it_requires(self, features: int) -> None:
        assert not Bench(offloads=True).driver.negotiate(VERSION_1 | features)


class TestTransmit:
    """5.1.6.2."""

    @pytest.mark.parametrize("indirect", [False, True])
    def test_header_is_removed(self, bench: Bench, indirect: bool) -> None:
        bench.transmit(bytes(HEADER), b"a" * 14, b"b" * 50, indirect=indirect)
        assert bench.sent == [b"a" * 14 + b"b" * 50]
        assert (bench.device.state.tx_frames, bench.device.state.tx_bytes) == (1, 64)
        assert len(bench.driver.queues[TX].collect()) == 1

    def test_header_in_the_frame_s_own_descriptor(self, bench: Bench) -> None:
        bench.transmit(bytes(HEADER) + b"a" * 60)
        assert bench.sent == [b"a" * 60]

    def test_header_stays_with_offloads(self) -> None:
        bench = Bench(offloads=True)
        header = bytes.fromhex("01 01 3600 a805 2200 1000 0000")
        bench.transmit(header, b"a" * 3000)
        assert bench.sent == [header + b"a" * 3000]
        assert bench.device.state.tx_bytes == 3000

    @pytest.mark.parametrize("size", [0, 13, FRAME_MAX + 1])
    def test_impossible_lengths_are_dropped(self, bench: Bench, size: int) -> None:
        bench.transmit(bytes(HEADER + size))
        assert bench.sent == []
        assert bench.device.state.tx_dropped == 1
        assert len(bench.driver.queues[TX].collect()) == 1, "the buffer is given back all the same"

    @pytest.mark.parametrize("size", [14, FRAME_MAX])
    def test_extreme_lengths(self, bench: Bench, size: int) -> None:
        bench.transmit(bytes(HEADER + size))
        assert [len(frame) for frame in bench.sent] == [size]

    def test_whole_ring_on_one_notification(self, bench: Bench) -> None:
        for number in range(256):
            bench.driver.queues[TX].add([bytes(HEADER) + bytes([number]) * 60], [])
        bench.driver.kick(TX)
        assert [frame[0] for frame in bench.sent] == list(range(256))
        assert len(bench.board.irq.changes) == 1, "one interrupt for all"

    def test_memory_outside_ram(self, bench: Bench) -> None:
        queue = bench.driver.queues[TX]
        queue.put_descriptor(0, 1 << 50, 100, 0)
        queue.offer(0)
        bench.driver.kick(TX)
        assert bench.sent == []
        assert bench.device.state.violations[Violation.OUTSIDE_RAM] == 1


class TestReceive:
    """5.1.6.3 and 5.1.6.4."""

    def test_header_is_added(self, bench: Bench) -> None:
        bench.post()
        assert bench.device.receive(b"x" * 60)
        assert bench.received() == [bytes(10) + b"\1\0" + b"x" * 60]
        assert (bench.device.state.rx_frames, bench.device.state.rx_bytes) == (1, 60)

    def test_header_of_the_host_with_offloads(self) -> None:
        bench = Bench(offloads=True)
        bench.post()
        header = bytes.fromhex("01 01 3600 a805 2200 1000 ffff")
        assert bench.device.receive(memoryview(header + b"x" * 60))
        assert bench.received() == [header[:10] + b"\1\0" + b"x" * 60]

    def test_one_frame_over_several_buffers(self, bench: Bench) -> None:
        bench.post(4, length=1000)
        frame = bytes(range(256)) * 10
        assert bench.device.receive(frame)
        buffers = bench.received()
        assert [len(buffer) for buffer in buffers] == [1000, 1000, HEADER + 2560 - 2000]
        assert b"".join(buffers) == bytes(10) + b"\3\0" + frame

    def test_largest_frame(self, bench: Bench) -> None:
        bench.post(50)
        frame = bytes(FRAME_MAX)
        assert bench.device.receive(frame)
        assert sum(map(len, bench.received())) == HEADER + FRAME_MAX

    def test_refused_until_buffers_are_posted(self, bench: Bench) -> None:
        assert not bench.device.receive(b"x" * 60)
        assert not bench.device.receive(b"x" * 60)
        assert bench.ready == 0
        bench.post()
        assert bench.ready == 1
        assert bench.device.receive(b"x" * 60)
        assert len(bench.received()) == 1

    def test_refused_frame_takes_no_buffer(self, bench: Bench) -> None:
        bench.post(1, length=100)
        assert not bench.device.receive(b"x" * 200)
        assert bench.received() == []
        bench.post(2, length=100)
        assert bench.ready == 1
        assert bench.device.receive(b"x" * 200)
        assert len(b"".join(bench.received())) == HEADER + 200

    def test_no_notifications_while_nothing_waits(self, bench: Bench) -> None:
        bench.post()
        queue = bench.driver.queues[RX]
        queue.add([], [1536])
        assert not bench.driver.kick(RX)

    def test_full_ring_that_is_too_small_loses_the_frame(self, bench: Bench) -> None:
        bench.post(256, length=12)
        assert bench.device.receive(b"x" * 5000), "more buffers cannot come: keeping it would block for ever"
        assert bench.device.state.rx_dropped == 1

    def test_without_mergeable_buffers(self) -> None:
        bench = Bench(features=virtio_net.F_MAC)
        assert not bench.device.receive(b"x" * 60)
        bench.post(2, length=100)
        assert bench.device.receive(b"x" * 89), "too long for a buffer: lost"
        assert bench.device.receive(b"x" * 88)
        assert bench.received() == [bytes(10) + b"\1\0" + b"x" * 88]
        assert bench.device.state.rx_dropped == 1

    @pytest.mark.parametrize("size", [0, 13, FRAME_MAX + 1])
    def test_impossible_lengths_are_lost(self, bench: Bench, size: int) -> None:
        bench.post(100)
        assert bench.device.receive(bytes(size))
        assert bench.received() == []
        assert bench.device.state.rx_dropped == 1

    def test_lost_without_a_driver_or_a_link(self, bench: Bench) -> None:
        bench.post()
        bench.device.set_link(False)
        assert bench.device.receive(b"x" * 60)
        bench.device.set_link(True)
        bench.driver.status = 0
        assert bench.device.receive(b"x" * 60)
        assert bench.device.state.rx_dropped == 2

    def test_reset_by_the_driver_tells_whoever_waits(self, bench: Bench) -> None:
        assert not bench.device.receive(b"x" * 60)
        bench.driver.status = 0
        assert bench.ready == 1
        assert bench.device.receive(b"x" * 60), "lost, so that nobody keeps it for ever"

    def test_buffer_without_room_for_a_header_breaks_the_ring(self, bench: Bench) -> None:
        bench.post(1, length=11)
        assert bench.device.receive(b"x" * 60)
        assert bench.device.state.violations[Violation.BUFFER_LAYOUT] == 1
        assert bench.device.state.rx_dropped == 1

    def test_message_per_queue(self) -> None:
        bench = Bench(msix=True)
        bench.post()
        bench.device.receive(b"x" * 60)
        bench.transmit(bytes(72))
        assert bench.board.messages == [(MSI_ADDRESS, 0x41), (MSI_ADDRESS, 0x42)]


class TestModeration:
    """2.7.10 says of what an interrupt must tell, not when: a busy driver is told late."""

    SMALL, SEGMENT = bytes(HEADER + 60), bytes(HEADER + LARGE)

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(1_000_000)

    @pytest.fixture
    def bench(self, clock: ManualClock) -> Bench:
        """A driver that wants an interrupt for each frame it sends, and just sent a segment."""
        bench = Bench(msix=True)
        bench.device.moderate(clock, "net")
        self.send(bench, self.SEGMENT)
        return bench

    def send(self, bench: Bench, frame: bytes) -> None:
        """As Linux does: take back what was sent, ask for an interrupt, send."""
        queue = bench.driver.queues[TX]
        queue.collect()
        queue.want_interrupt(True)
        bench.transmit(frame)

    def test_frames_leave_and_buffers_come_back_at_once(self, bench: Bench) -> None:
        assert len(bench.sent) == 1
        assert len(bench.driver.queues[TX].collect()) == 1

    def test_an_alarm_tells_the_driver(self, bench: Bench, clock: ManualClock) -> None:
        clock.advance(TX_DELAY_NS - 1)
        assert bench.board.messages == []
        clock.advance(1)
        assert bench.board.messages == [(MSI_ADDRESS, 0x41 + TX)]
        clock.advance(NEVER_NS // 2)
        assert len(bench.board.messages) == 1

    def test_a_driver_that_found_out_is_not_told(self, bench: Bench, clock: ManualClock) -> None:
        bench.driver.queues[TX].collect()
        bench.driver.queues[TX].want_interrupt(True)
        clock.advance(TX_DELAY_NS)
        assert bench.board.messages == []

    def test_each_frame_has_its_own_delay(self, bench: Bench, clock: ManualClock) -> None:
        clock.advance(TX_DELAY_NS - 1)
        self.send(bench, self.SEGMENT)
        clock.advance(TX_DELAY_NS - 1)
        assert bench.board.messages == []
        clock.advance(1)
        assert len(bench.board.messages) == 1

    def test_a_waiting_processor_is_told_once(self, bench: Bench, clock: ManualClock) -> None:
        assert bench.device.idle()
        assert len(bench.board.messages) == 1
        assert not bench.device.idle()
        clock.advance(TX_DELAY_NS)
        assert len(bench.board.messages) == 1

    def test_half_a_ring_is_not_kept_waiting(self, bench: Bench) -> None:
        queue = bench.driver.queues[TX]
        while not bench.board.messages:
            bench.transmit(self.SEGMENT)
        assert len(bench.sent) == queue.size // 2

    def test_who_speaks_in_turns_is_told_at_once(self, clock: ManualClock) -> None:
        bench = Bench(msix=True)
        bench.device.moderate(clock, "net")
        bench.post(4)
        for _ in range(3):
            clock.advance(1)
            bench.device.receive(bytes(60))
            bench.board.messages.clear()
            self.send(bench, self.SMALL)
            assert len(bench.board.messages) == 1

    def test_frames_that_come_together_make_busy(self, clock: ManualClock) -> None:
        bench = Bench(msix=True)
        bench.device.moderate(clock, "net")
        bench.post(2)
        bench.device.receive(bytes(60))
        bench.device.receive(bytes(60))
        bench.board.messages.clear()
        self.send(bench, self.SMALL)
        assert bench.board.messages == []
        clock.advance(TX_DELAY_NS)
        assert len(bench.board.messages) == 1

    def test_busy_passes(self, bench: Bench) -> None:
        for _ in range(virtio_net.BUSY_NOTIFICATIONS):
            self.send(bench, self.SMALL)
        assert len(bench.board.messages) == 1

    def test_a_reset_by_the_driver_ends_it(self, bench: Bench, clock: ManualClock) -> None:
        bench.driver.status = 0
        clock.advance(TX_DELAY_NS)
        assert bench.board.messages == []
        assert bench.device.state.tx_alarm_ns == NEVER_NS


class TestLinkAndAnnouncement:
    """5.1.4 and 5.1.6.5.4."""

    def test_link_change_is_a_configuration_change(self, bench: Bench) -> None:
        generation = bench.driver.read(COMMON, 0x15, 1)
        bench.device.set_link(False)
        assert bench.driver.read(DEVICE, 6, 2) == 0
        assert bench.driver.read(COMMON, 0x15, 1) == generation + 1
        assert bench.driver.isr == 2
        bench.device.set_link(False)
        assert bench.driver.isr == 0

    def test_frames_are_lost_while_the_link_is_down(self, bench: Bench) -> None:
        bench.device.set_link(False)
        bench.transmit(bytes(72))
        assert bench.sent == []
        assert bench.device.state.tx_dropped == 1

    def test_announcement_until_acknowledged(self, bench: Bench) -> None:
        assert bench.device.announce()
        assert bench.driver.isr == 2
        assert bench.driver.read(DEVICE, 6, 2) == 3
        bench.driver.queues[CONTROL].add([b"\3\0"], [1])
        bench.driver.kick(CONTROL)
        assert [data for _, data in bench.driver.queues[CONTROL].collect()] == [b"\0"]
        assert bench.driver.read(DEVICE, 6, 2) == 1

    def test_announcement_needs_the_feature_and_a_driver(self, bench: Bench) -> None:
        assert not Bench(features=virtio_net.F_MAC).device.announce()
        bench.driver.status = 0
        assert not bench.device.announce()

    @pytest.mark.parametrize("command", [b"\0\0\1", b"\3\1", b"\4\0\1\0", b"\xff\xff"])
    def test_other_commands_are_refused(self, bench: Bench, command: bytes) -> None:
        bench.driver.queues[CONTROL].add([command], [1])
        bench.driver.kick(CONTROL)
        assert [data for _, data in bench.driver.queues[CONTROL].collect()] == [b"\1"]

    @pytest.mark.parametrize("parts", [([b"\3"], [1]), ([b"\3\0"], []), ([bytes(65)], [1]), ([], [1])])
    def test_malformed_commands_break_the_ring(
        self, bench: Bench, parts: tuple[list[bytes], list[int]]
    ) -> None:
        bench.driver.queues[CONTROL].add(*parts)
        bench.driver.kick(CONTROL)
        assert bench.device.state.violations[Violation.BUFFER_LAYOUT] == 1
