"""The virtio network device: one pair of queues and a control queue.

Source: VIRTIO version 1.2, section 5.1.

The unit exchanged with the host side is chosen once by ``offloads``.  Without, it is a bare
Ethernet frame and the device adds and removes the virtio header.  With, it is that 12-byte header
followed by the frame, which is what a Linux TAP with IFF_VNET_HDR and a header size of 12 gives and
takes: checksums and segmentation then stay undone between guest and host.  The device never looks
inside a frame.

A frame that arrives while the driver is not ready or the link is down is lost, as on a cable.  One
that finds too few buffers is refused and stays the caller's, who is told by ``rx_ready`` when to
try again; after ``restored()`` the caller should try again in any case, because the refusal may be
part of a past that was replaced.

A driver is told of sent frames late while it is busy (:meth:`VirtioNet.moderate`), as real cards do.
Frames are sent at once in any case, and it sees at once that they are; but it has nothing to do
with that knowledge except to give memory back, which Linux does anyhow when it sends or receives
the next frame.  An interrupt for each costs the guest more than sending does, and a TCP that has
not heard of the last segment's end makes a larger one of the next (tcp_should_autocork).  Busy is
a driver that sends large segments or receives several frames at one time; one that speaks and
listens in turns is told at once, or its answers would wait.  The delay ends with an alarm, when the
processor halts, or when half of the ring is waiting.

Between the rings and a bare descriptor of the host (``direct``, ``fetch``) frames are moved by the memory's
``rings``, many at once, until one is not simple: that one is moved by what stands here.

Not modelled: several queue pairs, receive filters, VLAN filters, hash reporting, notification
coalescing; the control queue knows VIRTIO_NET_CTRL_ANNOUNCE only.  A host that wants to filter does
so in its back end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated

from vmm.clock import NEVER_NS
from vmm.device import UNREAD, Clock, Line, Memory, Timer
from vmm.devices.virtio_buffer import Segments, gather, scatter
from vmm.devices.virtio_pci import ISR_QUEUE, STATUS_DRIVER_OK, VirtioPci, VirtioState
from vmm.devices.virtio_queue import QueueState, RingViolation, Violation, VirtQueue
from vmm.errors import ConfigError
from vmm.state import field, length, u8, u16, u64

DEVICE_TYPE = 1
CLASS_ETHERNET = 0x02_00_00
QUEUE_RX, QUEUE_TX, QUEUE_CONTROL = 0, 1, 2
QUEUE_SIZES = (256, 256, 64)

F_CSUM, F_GUEST_CSUM = 1 << 0, 1 << 1
F_MAC = 1 << 5
F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN = 1 << 11, 1 << 12, 1 << 13
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
F_CTRL_VQ = 1 << 17
F_GUEST_ANNOUNCE = 1 << 21

F_BASIC = F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_GUEST_ANNOUNCE
F_OFFLOADS = (
    F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN
    | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN
)  # fmt: skip
REQUIRES = (
    (F_GUEST_TSO4 | F_GUEST_TSO6, F_GUEST_CSUM),
    (F_HOST_TSO4 | F_HOST_TSO6, F_CSUM),
    (F_GUEST_ECN, F_GUEST_TSO4 | F_GUEST_TSO6),
    (F_HOST_ECN, F_HOST_TSO4 | F_HOST_TSO6),
    (F_GUEST_ANNOUNCE, F_CTRL_VQ),
)
"""Any feature on the left needs one on the right (5.1.3.1)."""

LINK_UP, ANNOUNCE = 1, 2
CTRL_ANNOUNCE, CTRL_ANNOUNCE_ACK = 3, 0
CTRL_OK, CTRL_ERR = b"\0", b"\1"
CONTROL_MAX = 64
"""Bytes of a control command: ours have two."""

HEADER_SIZE = 12
NUM_BUFFERS = 10
"""Offset in the header of the number of merged receive buffers."""
ETHERNET_HEADER = 14
FRAME_MAX = 65550
"""The largest segmentation unit, 65535 bytes of IP packet and an Ethernet header, rounded as 5.1.6.3."""

TX_DELAY_NS = 250_000
"""Longest time that a busy driver is not told of sent frames: less than a tick of any guest, longer
than it takes to send a few segments."""
BUSY_NOTIFICATIONS = 32
"""Doorbells for which a driver counts as busy after it was."""
LARGE = 4096
"""Frames from this size on are segments of a stream, not answers."""

Filled = tuple[int, Segments, int]
"""A receive buffer: its head, where it lies, its bytes."""

_NO_OFFLOAD = bytes(NUM_BUFFERS)
_U16 = struct.Struct("<H")
_CONFIG = struct.Struct("<6sHHH")


def _queues() -> list[QueueState]:
    return [QueueState(size=size) for size in QUEUE_SIZES]


class VirtioNetState(VirtioState):
    """Link, what the caller was told, and counters (bytes without the virtio header)."""

    queues: Annotated[list[QueueState], length(3)] = field(default_factory=_queues)
    link: u16 = LINK_UP
    rx_refused: bool = False
    rx_frames: u64 = 0
    rx_bytes: u64 = 0
    rx_dropped: u64 = 0
    tx_frames: u64 = 0
    tx_bytes: u64 = 0
    tx_dropped: u64 = 0
    busy: u8 = 0
    """Doorbells for which the driver still counts as busy."""
    tx_alarm_ns: u64 = NEVER_NS
    """When it is told of sent frames; NEVER_NS: there is nothing to tell."""
    rx_last_ns: u64 = NEVER_NS
    """When the last frame came."""


class VirtioNet(VirtioPci):
    """One network card.

    ``transmit`` is called once per frame, with bytes that are valid only during the call.
    ``rx_ready`` is called when ``receive`` is worth another try after it returned False.
    ``direct`` gives a descriptor that takes frames as ``transmit`` does, or -1 while that has to be called.
    """

    __slots__ = ("_alarm", "_clock", "_direct", "_host_header", "_mac", "_rx_ready", "_transmit")

    state: VirtioNetState

    def __init__(
        self,
        mac: bytes,
        transmit: Callable[[memoryview | bytes], None],
        memory: Memory,
        irq: Line | None,
        msi: Callable[[int, int], None],
        offloads: bool = False,
        rx_ready: Callable[[], None] | None = None,
        direct: Callable[[], int] = lambda: -1,
    ) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise ConfigError(f"MAC address {mac.hex(':')}: expected 6 bytes, the first one even (unicast)")
        features = F_BASIC | (F_OFFLOADS if offloads else 0)
        super().__init__(DEVICE_TYPE, CLASS_ETHERNET, features, QUEUE_SIZES, _CONFIG.size, memory, irq, msi)
        self._mac = mac
        self._host_header = HEADER_SIZE if offloads else 0
        self._transmit = transmit
        self._rx_ready = rx_ready
        self._direct = direct
        self._clock: Clock | None = None
        self._alarm: Timer | None = None
        self.reset()

    def moderate(self, clock: Clock, name: str) -> None:
        """Part of the wiring, once: from now on a busy driver is told late of sent frames."""
        assert self._clock is None, "a card has one clock"
        self._clock = clock
        self._alarm = clock.timer(f"{name}.sent", self._tell_of_sent)

    # Host side.

    def receive(self, frame: bytes | memoryview) -> bool:
        """A frame for the guest; False: no room now, keep it and wait for ``rx_ready``."""
        state = self.state
        size = len(frame) - self._host_header
        live = self._live(self.queues[QUEUE_RX]) and state.link & LINK_UP
        if not (live and ETHERNET_HEADER <= size <= FRAME_MAX):
            state.rx_dropped += 1
            return True
        self._note_arrivals(1)
        if not self._guarded(QUEUE_RX, self._deliver, bytes(frame), size):
            state.rx_dropped += 1
        return not state.rx_refused

    def fetch(self, descriptor: int) -> tuple[int, bytes | None]:
        """Receive frames from there, many at once; how many, and what else was read: perhaps no frame."""
        rings, state, queue = self._memory.rings, self.state, self.queues[QUEUE_RX].state
        if rings is None or not (self._live(self.queues[QUEUE_RX]) and state.link & LINK_UP):
            return 0, None
        mergeable = state.driver_features & F_MRG_RXBUF != 0
        frames, size, wanted, held = rings.receive(queue, descriptor, mergeable)
        if frames:
            self._note_arrivals(frames)
            state.rx_refused = False
            state.rx_frames += frames
            state.rx_bytes += size
            if wanted:  # between two blocks one request is as good as several
                self._interrupt(queue.vector, ISR_QUEUE)
        return frames, held

    def idle(self) -> bool:
        """The processor waits for interrupts: nothing is gained by waiting with ours.  Was there one?"""
        if self.state.tx_alarm_ns == NEVER_NS:
            return False
        self._tell_of_sent()
        return True

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out."""
        link = self.state.link & ~LINK_UP | (LINK_UP if up else 0)
        if link != self.state.link:
            self.state.link = link
            self._config_changed()

    def announce(self) -> bool:
        """Ask the driver to tell the network where it is now; False if it cannot be asked."""
        state = self.state
        if not (self._has(F_GUEST_ANNOUNCE) and state.status & STATUS_DRIVER_OK and state.link & LINK_UP):
            return False
        state.link |= ANNOUNCE
        self._config_changed()
        return True

    # Life cycle.

    def restored(self) -> None:
        super().restored()
        self._set_alarm(self.state.tx_alarm_ns)

    # What the transport asks.

    def _fresh(self) -> VirtioNetState:
        return VirtioNetState(config=bytes(self._power_on))

    def _device_config(self) -> bytes:
        return _CONFIG.pack(self._mac, self.state.link, 1, 0)

    def _acceptable(self, features: int) -> bool:
        return all(features & needed for asked, needed in REQUIRES if features & asked)

    def _notified(self, index: int) -> bool:
        if index == QUEUE_TX:
            return self._transmit_all()
        if index == QUEUE_RX:
            return self._buffers_posted()
        return self.queues[index].serve(self._command)

    def _driver_reset(self) -> None:
        """The caller may hold a refused frame: let it try again, and see it lost."""
        self.state.link &= LINK_UP
        self.state.busy = 0
        self._set_alarm(NEVER_NS)
        if self.state.rx_refused:
            self.state.rx_refused = False
            if self._rx_ready is not None:
                self._rx_ready()

    # Private: transmission.

    def _transmit_all(self) -> bool:
        """Send what there is; is the driver to be told that it is sent, and now?"""
        state, clock = self.state, self._clock
        queue = self.queues[QUEUE_TX]
        state.busy -= state.busy > 0
        if state.tx_alarm_ns != NEVER_NS and clock is not None and not queue.wants_interrupt():
            queue.settle()  # the driver found out by itself: what follows has its own delay
            self._set_alarm(clock.now_ns + TX_DELAY_NS)
        wanted = self._send_all(queue)
        if wanted and state.busy and clock is not None and queue.untold < queue.state.size >> 1:
            if state.tx_alarm_ns == NEVER_NS:
                self._set_alarm(clock.now_ns + TX_DELAY_NS)
            return False
        queue.settle()
        if state.tx_alarm_ns != NEVER_NS:
            self._set_alarm(NEVER_NS)
        return wanted

    def _send_all(self, queue: VirtQueue) -> bool:
        state, rings, left = self.state, self._memory.rings, UNREAD
        if rings is not None and state.link & LINK_UP and (descriptor := self._direct()) >= 0:
            frames, size, longest, left, wanted = rings.send(queue.state, descriptor)
            state.tx_frames += frames
            state.tx_bytes += size
            if longest >= LARGE:
                state.busy = BUSY_NOTIFICATIONS
            if not left:
                return wanted
        return queue.serve(self._send, left=left, settle=False)

    def _send(self, readable: Segments, size: int, _writable: Segments, _room: int) -> int:
        state = self.state
        size -= HEADER_SIZE
        if ETHERNET_HEADER <= size <= FRAME_MAX and state.link & LINK_UP:
            data = gather(self._memory, readable)
            if size >= LARGE:
                state.busy = BUSY_NOTIFICATIONS
            state.tx_frames += 1
            state.tx_bytes += size
            self._transmit(data if self._host_header else data[HEADER_SIZE:])
        else:
            state.tx_dropped += 1
        return 0

    def _tell_of_sent(self) -> None:
        """By now the driver may know, or not want to."""
        self._set_alarm(NEVER_NS)
        if self._live(self.queues[QUEUE_TX]):
            self._guarded(QUEUE_TX, lambda index: self.queues[index].finish())

    def _set_alarm(self, at_ns: int) -> None:
        self.state.tx_alarm_ns = at_ns
        if self._alarm is None:
            return
        if at_ns == NEVER_NS:
            self._alarm.cancel()
        else:
            self._alarm.arm(at_ns)

    # Private: reception.

    def _note_arrivals(self, frames: int) -> None:
        """Several at one time come to a busy driver."""
        if self._clock is not None:
            state, now = self.state, self._clock.now_ns
            if frames > 1 or now == state.rx_last_ns:
                state.busy = BUSY_NOTIFICATIONS
            state.rx_last_ns = now

    def _buffers_posted(self) -> bool:
        """Kicks for receive buffers are wanted only while a frame waits for them."""
        queue = self.queues[QUEUE_RX]
        if not self.state.rx_refused:
            queue.want_notifications(False)
            return False
        self.state.rx_refused = False
        if self._rx_ready is not None:
            self._rx_ready()
        return False

    def _deliver(self, index: int, frame: bytes, size: int) -> bool:
        """Fill as many buffers as the frame needs, or none; does the driver want an interrupt for them?"""
        state, queue = self.state, self.queues[index]
        state.rx_refused = False
        mergeable = state.driver_features & F_MRG_RXBUF != 0
        wanted = queue.merge(frame, self._host_header != 0, mergeable)
        if wanted is None:
            wanted = self._fill_buffers(queue, frame, HEADER_SIZE + size, mergeable)
            if wanted is None:
                return False
        state.rx_frames += 1
        state.rx_bytes += size
        return wanted

    def _fill_buffers(self, queue: VirtQueue, frame: bytes, needed: int, mergeable: bool) -> bool | None:
        """The same step by step; None: there are too few."""
        state = self.state
        taken: list[Filled] = []
        available = room = 0
        buffer = queue.take()
        while buffer is not None:
            left, head, _, _, writable, capacity = buffer
            if capacity < HEADER_SIZE:
                raise RingViolation(Violation.BUFFER_LAYOUT)
            taken.append((head, writable, capacity))
            available, room = len(taken) + left, room + capacity
            if room >= needed:
                return self._fill(queue, taken, frame)
            buffer = queue.take(left) if left and mergeable else None
        queue.put_back(len(taken))
        if available < queue.state.size and (mergeable or not available):
            state.rx_refused = True
            queue.want_notifications(True)
        else:  # more buffers would not help
            state.rx_dropped += 1
        return None

    def _fill(self, queue: VirtQueue, buffers: list[Filled], frame: bytes) -> bool:
        """The header and the frame, over the buffers in turn."""
        header = frame[:NUM_BUFFERS] if self._host_header else _NO_OFFLOAD
        data = b"".join((header, _U16.pack(len(buffers)), frame[self._host_header :]))
        *others, (head, writable, _) = buffers
        for full, where, capacity in others:
            scatter(self._memory, where, data[:capacity])
            queue.push(full, capacity)
            data = data[capacity:]
        scatter(self._memory, writable, data)
        return queue.finish(head, len(data))

    # Private: control (5.1.6.5).

    def _command(self, readable: Segments, size: int, writable: Segments, _room: int) -> int:
        if not writable or not 2 <= size <= CONTROL_MAX:
            raise RingViolation(Violation.BUFFER_LAYOUT)
        command = bytes(gather(self._memory, readable))
        known = command[0] == CTRL_ANNOUNCE and command[1] == CTRL_ANNOUNCE_ACK
        if known and self._has(F_GUEST_ANNOUNCE):
            self.state.link &= ~ANNOUNCE
        scatter(self._memory, writable, CTRL_OK if known else CTRL_ERR)
        return 1
