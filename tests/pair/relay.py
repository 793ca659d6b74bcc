"""The world between two nodes: a relay that sees every word pass, and does to it what a test says.

The primary dials the relay, the relay dials the secondary, for the protocol's connection, the heartbeat's
and the companion's; the preamble says which is which.  Frames of the protocol are taken apart with the
project's own decoder, so that a test can act at an exact word: when the relay has a frame, its sender
has said it and its receiver has not heard it.  Behind TLS there are bytes only, and a test counts them.

A node that dies is seen as the kernel shows it: what it had sent still comes, then the end.  A link
that is *cut* loses everything in silence, while both nodes live.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from colo.messages import Channel, Message
from colo.peer import brief
from colo.transport.address import PREAMBLE_SIZE, PREAMBLES, Address
from colo.transport.wire import HEADER, Decoder

CHUNK = 64 << 10
LENGTH = 2
"""Which field of a frame's header is its payload's length."""
JOIN_S = 5.0


class Direction(Enum):
    TO_SECONDARY = "to the secondary"
    TO_PRIMARY = "to the primary"


TO_SECONDARY, TO_PRIMARY = Direction
BOTH = tuple(Direction)


@dataclass(frozen=True)
class Passing:
    """A frame of the protocol between its sender and its receiver."""

    direction: Direction
    message: Message
    frame: bytes


Rule = Callable[[Passing], Sequence[bytes] | None]
"""What to forward in place of a frame; None: the frame as it is."""


def forward(_: Passing) -> None:
    """The rule of a good link."""


@dataclass
class Flow:
    """One direction of one connection."""

    channel: Channel
    direction: Direction
    source: socket.socket
    sink: socket.socket
    waiting: bytearray = field(default_factory=bytearray)
    decoder: Decoder = field(default_factory=Decoder)
    passed: int = 0

    def frames(self, data: bytes) -> Iterator[Passing]:
        """Every frame that is whole now."""
        self.waiting += data
        while len(self.waiting) >= HEADER.size:
            size = HEADER.size + HEADER.unpack_from(self.waiting)[LENGTH]
            if len(self.waiting) < size:
                return
            frame = bytes(self.waiting[:size])
            del self.waiting[:size]
            self.decoder.feed(frame)
            message = self.decoder.next()
            assert message is not None
            yield Passing(self.direction, message, frame)


class Relay:
    """Listens at ``address``, connects to ``target`` for each that comes.  ``with Relay(...)``."""

    def __init__(self, address: Address, target: Address, *, opaque: bool = False) -> None:
        """``opaque``: the protocol cannot be read (TLS)."""
        self.address, self.target = address, target
        self.rule: Rule = forward
        self.words: list[str] = []
        """What passed, in short."""
        self.bytes_per_s: float | None = None
        """Of the protocol, to the secondary."""
        self.watch: Callable[[Direction, int], None] = lambda direction, passed: None
        """Told before a chunk of the protocol is forwarded how many bytes have passed with it."""
        self._opaque = opaque
        self._cut: set[tuple[Direction, Channel]] = set()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: dict[Channel, list[socket.socket]] = {channel: [] for channel in Channel}
        self._listener = self._listen()
        self._start(self._accept)

    # For tests, from any thread

    def cut(self, *directions: Direction, channels: Iterable[Channel] = Channel) -> None:
        """From here on nothing arrives; nobody is told."""
        self._cut |= {(each, channel) for each in directions or BOTH for channel in channels}

    def mend(self) -> None:
        """New connections pass again; what was cut stays so, because bytes are missing."""
        self.sever()
        self._cut.clear()

    def sever(self, channels: Iterable[Channel] = Channel) -> None:
        """Close the connections, both ways, at once."""
        for channel in channels:
            for each in self._sockets[channel]:
                with suppress(OSError):  # it has ended already
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closing.set()
        with suppress(OSError):  # shutdown wakes accept(2); close alone would not
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.sever()
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive(), "a rule of the relay does not return"
        for each in chain.from_iterable(self._sockets.values()):
            each.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The threads

    def _listen(self) -> socket.socket:
        if not self.address.is_tcp:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.bind(self.address.path)
            made.listen()
            return made
        made = socket.create_server((self.address.host, self.address.port))
        self.address = Address(host=self.address.host, port=made.getsockname()[1])
        return made

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name=f"relay {work.__name__}")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed, as this ends
            while not self._closing.is_set():
                near, _ = self._listener.accept()
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        preamble = near.recv(PREAMBLE_SIZE, socket.MSG_WAITALL)
        channel = next(each for each, said in PREAMBLES.items() if said == preamble)
        self._sockets[channel].append(near)
        try:
            far = self._dial()
        except OSError:
            near.close()  # as it would be where nobody listens
            return
        self._sockets[channel].append(far)
        far.sendall(preamble)
        self._start(self._pump, Flow(channel, TO_SECONDARY, near, far))
        self._start(self._pump, Flow(channel, TO_PRIMARY, far, near))

    def _dial(self) -> socket.socket:
        if self.target.is_tcp:
            return socket.create_connection((self.target.host, self.target.port))
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(self.target.path)
        return made

    def _pump(self, flow: Flow) -> None:
        with suppress(OSError):  # either end is gone
            while data := flow.source.recv(CHUNK):
                for piece in self._changed(flow, data):
                    self._pass(flow, piece)
        if (flow.direction, flow.channel) not in self._cut:
            with suppress(OSError):  # gone as well
                flow.sink.shutdown(socket.SHUT_WR)

    def _changed(self, flow: Flow, data: bytes) -> Iterator[bytes]:
        if flow.channel is not Channel.PROTOCOL:
            yield data
            return
        flow.passed += len(data)
        if self._opaque:
            self.watch(flow.direction, flow.passed)
            yield data
            return
        for passing in flow.frames(data):
            self.words.append(brief(passing.message))
            instead = self.rule(passing)
            yield from (passing.frame,) if instead is None else instead

    def _pass(self, flow: Flow, data: bytes) -> None:
        if self.bytes_per_s is not None and flow.direction is TO_SECONDARY:
            self._closing.wait(len(data) / self.bytes_per_s)
        if (flow.direction, flow.channel) not in self._cut:
            flow.sink.sendall(data)


class Moment:
    """A rule that does something once: at the first word of ``kind``, of ``epoch`` or a later one.

    ``act`` may return what to forward instead, as a rule does.
    """

    def __init__(self, kind: type[Message], act: Rule, epoch: int = 0) -> None:
        self.kind, self.act, self.epoch = kind, act, epoch
        self.reached = threading.Event()
        self.at_s = 0.0

    def __call__(self, passing: Passing) -> Sequence[bytes] | None:
        if self.reached.is_set() or not isinstance(passing.message, self.kind):
            return None
        if getattr(passing.message, "epoch", self.epoch) < self.epoch:
            return None
        try:
            return self.act(passing)
        finally:
            self.at_s = time.monotonic()
            self.reached.set()
