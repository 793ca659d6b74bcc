"""The host side of the board's sockets: a console on the serial port, a back end on each card.

These hold what is in flight between the host and the door (:mod:`vmm.inputs`), and nothing that the
guest can notice.

A frame passes the door.  Where nobody stands there, and the back end is a descriptor and nothing more, the
card moves frames by itself, many in one call: the guest is given the same at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from vmm.backends.console import Console
from vmm.backends.net import FrameDescriptor, NetBackend
from vmm.clock import TimerClock
from vmm.devices.uart import Uart
from vmm.devices.virtio_net import F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, VirtioNet
from vmm.inputs import REFUSED, Door

LINE_MAX = 256
"""Console output is handed on by lines, or in pieces of this size: where a piece ends depends on
what the guest says and on nothing else, so recordings agree."""
FEED_NS = 1_000_000
"""Typed ahead of the guest: sixteen bytes a millisecond, about what 115,200 baud carries."""
NEWLINE = 0x0A


class SerialPort:
    """COM1's other end: bytes from the guest to consoles, bytes from the host to the guest."""

    __slots__ = (
        "_clock",
        "_door",
        "_feed",
        "_line",
        "consoles",
        "feed_due",
        "port",
        "uart",
        "unshown",
        "watch",
    )

    def __init__(self, port: str, door: Door, clock: TimerClock) -> None:
        self.port = port
        self._door = door
        self._clock = clock
        self._feed = clock.timer(f"{port}.feed", self._feed_again)
        self.feed_due = False
        """It is time for :meth:`retry`."""
        self._line = bytearray()
        self.unshown = bytearray()
        """What :meth:`show` would hand on."""
        self.consoles: list[Console] = []
        self.uart: Uart | None = None
        self.watch: Callable[[int], None] | None = None
        door.open(port, self._receive)

    def transmit(self, byte: int) -> None:
        """The UART's sink."""
        self.unshown.append(byte)
        self._line.append(byte)
        if byte == NEWLINE or len(self._line) >= LINE_MAX:
            self._door.leave(self.port, self._line)
            self._line.clear()
        if self.watch is not None:
            self.watch(byte)

    def show(self) -> None:
        """Hand what the guest said so far to the consoles."""
        if self.unshown:
            data = bytes(self.unshown)
            self.unshown.clear()
            for console in self.consoles:
                console.write(data)

    def send(self, data: bytes) -> None:
        """Type ``data``: the guest gets it as fast as its FIFO empties."""
        self._door.enter(self.port, data)

    def pump(self, console: Console) -> bool:
        """Take what was typed at ``console``, as long as the guest keeps up with it.  Does it?"""
        while not self._door.is_full(self.port):
            data = console.receive()
            if data is None:
                return True
            self.send(data)
        return False

    def retry(self) -> None:
        """Between two blocks: feed the guest what waits."""
        self.feed_due = False
        self._door.retry(self.port)

    def restart(self) -> None:
        """The guest's state was replaced, or a log begins: a line begins here."""
        self._line.clear()
        self._feed.cancel()
        if self._door.is_full(self.port):
            self._feed.arm(self._clock.now_ns + FEED_NS)

    def _receive(self, data: bytes) -> int:
        """However it came to the door, the rest of it is fed to the guest."""
        assert self.uart is not None
        taken = self.uart.receive(data)
        if taken < len(data):
            self._feed.arm(self._clock.now_ns + FEED_NS)
        return taken

    def _feed_again(self) -> None:
        """Alarms of one instant fire in an order of their own, and inputs enter after all of them."""
        self.feed_due = True


@runtime_checkable
class TakesOffloads(Protocol):
    """A back end that wants to know what the guest's driver accepts: a TAP, or what is around one."""

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool) -> None: ...


class NetPort:
    """A card's other end: frames between a back end and the door."""

    __slots__ = ("_door", "_features", "_look", "_open", "_read", "backend", "card", "port", "rx_ready")

    def __init__(
        self, port: str, backend: NetBackend, door: Door, look: Callable[[], None] = lambda: None
    ) -> None:
        """``look`` asks the machine to come by between two blocks."""
        self.port = port
        self.backend = backend
        self._open = backend if isinstance(backend, FrameDescriptor) else None
        self._door = door
        self._look = look
        self._read: bytes | None = None
        """Read by the card, and not yet looked at."""
        self._features = -1
        self.card: VirtioNet | None = None
        self.rx_ready = False
        door.open(port, self._receive)

    def transmit(self, frame: memoryview | bytes) -> None:
        """The card's sink."""
        self._door.leave(self.port, frame)
        self.backend.transmit(frame)

    def direct(self) -> int:
        """The descriptor that the card may read and write by itself; -1: somebody else has to see it pass."""
        if self._open is None or not self._door.is_plain:
            return -1
        return self._open.descriptor

    def _receive(self, frame: bytes) -> int:
        assert self.card is not None
        return len(frame) if self.card.receive(frame) else REFUSED

    def hear(self) -> bool:
        """Let the card move what has come, if it is alone with it; False: :meth:`pump` has more to do."""
        card = self.card
        assert card is not None
        if self._read is not None or card.state.driver_features != self._features:
            return False
        if self._door.is_full(self.port) or (descriptor := self.direct()) < 0:
            return False
        moved, self._read = card.fetch(descriptor)
        return moved != 0 and self._read is None

    def pump(self) -> bool:
        """Move frames from the back end to the guest, until one of them has no more.  Is it the back end?"""
        self.agree_on_offloads()
        if self.hear():
            return True
        port, door = self.port, self._door
        more = not door.is_full(port)
        if more and self._read is not None and self._open is not None:
            frame, self._read = self._open.admitted(self._read), None
            if frame is None:
                return True
            more = door.enter(port, frame)
        while more and (frame := self.backend.receive()) is not None:
            more = door.enter(port, frame)
        return more

    def posted(self) -> None:
        """The card's word that receiving is worth another try; tried between two blocks."""
        self.rx_ready = True
        self._look()

    def agree_on_offloads(self) -> None:
        """Tell a TAP which unfinished frames the guest's driver accepts."""
        assert self.card is not None
        features = self.card.state.driver_features
        if features == self._features:
            return
        self._features = features
        if isinstance(self.backend, TakesOffloads):
            self.backend.set_offloads(
                checksum=bool(features & F_GUEST_CSUM),
                tso4=bool(features & F_GUEST_TSO4),
                tso6=bool(features & F_GUEST_TSO6),
            )
