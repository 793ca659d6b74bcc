"""The one door: everything that enters or leaves a machine passes here, with its virtual time.

An *input* is ``(port, payload)``: bytes for a serial port, a frame for a card, keys, a host-side
event.  It is delivered between two blocks, never inside one, so the virtual time at which it entered
says exactly where.  Recording writes it down, replaying delivers it again at that time, and a
replica is fed by the same call.

An *output* is what the guest says: recorded as a digest, and compared on replay, so that a replay
that departs is noticed at the first difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from vmm.clock import NEVER_NS
from vmm.errors import ReplayError

Deliver = Callable[[bytes], int]
"""Give a payload to a device: how many bytes it took, 0 for "not now", or REFUSED."""
Heard = Callable[[str, bytes], None]
"""A port, and what its device took."""
REFUSED = -1
"""Not now, and the guest can notice that something waits: the attempt itself is an input."""
REFUSED_MARK = "?"
"""Ends the port's name in the log of such an attempt."""


class Source(Protocol):
    """The host side of a port that brings input."""

    def fileno(self) -> int: ...

    def receive(self) -> bytes | None: ...


class Recording(Protocol):
    """Where inputs and outputs are written down: a file (:mod:`vmm.record`), or a log to another machine."""

    def input(self, ns: int, port: str, payload: bytes) -> None: ...

    def output(self, ns: int, port: str, payload: bytes) -> None: ...

    def mark(self, ns: int, state_hash: bytes) -> None: ...


class Replaying(Protocol):
    """Where they come from again; each call may raise when the machine departs from it."""

    @property
    def next_input_ns(self) -> int:
        """NEVER_NS: none is known."""

    @property
    def next_mark_ns(self) -> int: ...

    def due(self, now_ns: int) -> list[tuple[str, bytes]]: ...

    def check_output(self, ns: int, port: str, payload: bytes) -> None: ...

    def check_mark(self, ns: int, state_hash: bytes) -> None: ...


class Door:
    """Inputs and outputs of one machine."""

    __slots__ = ("_deliver", "_now", "_waiting", "heard", "recorder", "replayer")

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._deliver: dict[str, Deliver] = {}
        self._waiting: dict[str, deque[bytes]] = {}
        self.heard: Heard | None = None
        """Told of every input that a device took, in the machine's thread."""
        self.recorder: Recording | None = None
        self.replayer: Replaying | None = None

    def open(self, port: str, deliver: Deliver) -> None:
        """Inputs for ``port`` go to ``deliver``."""
        self._deliver[port] = deliver
        self._waiting[port] = deque()

    @property
    def ports(self) -> list[str]:
        return list(self._deliver)

    @property
    def next_ns(self) -> int:
        """When the log wants attention: an input or a mark is due."""
        if self.replayer is None:
            return NEVER_NS
        return min(self.replayer.next_input_ns, self.replayer.next_mark_ns)

    @property
    def is_plain(self) -> bool:
        """Does nobody write down, say again, compare or overhear what passes?"""
        return self.recorder is None and self.replayer is None and self.heard is None

    # In

    def enter(self, port: str, payload: bytes) -> bool:
        """Queue an input; it is delivered at once, or when its device has room.  Is there room for more?"""
        if self.replayer is not None:
            return True  # a replay hears nothing but its log
        self._waiting[port].append(payload)
        return self.retry(port)

    def is_full(self, port: str) -> bool:
        """Should the source be held back?"""
        return bool(self._waiting[port])

    def retry(self, port: str) -> bool:
        """Deliver what waits for ``port``, as much as the device takes.  Was it all?"""
        waiting, deliver = self._waiting[port], self._deliver[port]
        while waiting:
            payload = waiting[0]
            taken = deliver(payload)
            if self.recorder is not None or self.heard is not None:
                self._record(port, payload, taken)
            if taken < len(payload):
                waiting[0] = payload[max(taken, 0) :]
                return False
            waiting.popleft()
        return True

    def _record(self, port: str, payload: bytes, taken: int) -> None:
        if self.heard is not None and taken > 0:
            self.heard(port, payload[:taken])
        if self.recorder is None or taken == 0:
            return
        if taken == REFUSED:
            self.recorder.input(self._now(), port + REFUSED_MARK, payload)
        else:
            self.recorder.input(self._now(), port, payload[:taken])

    def forget(self) -> None:
        """The guest that this was meant for is no more."""
        for queue in self._waiting.values():
            queue.clear()

    def waiting(self) -> list[str]:
        """Ports with inputs that no device has taken yet."""
        return [port for port, queue in self._waiting.items() if queue]

    def replay_due(self, state_hash: Callable[[], bytes]) -> None:
        """Deliver what the log has for this moment and check its marks."""
        if self.replayer is None:
            return
        now = self._now()
        while self.next_ns <= now:
            for logged, payload in self.replayer.due(now):
                self._deliver_again(now, logged, payload)
            if self.replayer.next_mark_ns <= now:
                self.replayer.check_mark(now, state_hash())

    def _deliver_again(self, now: int, logged: str, payload: bytes) -> None:
        port = logged.removesuffix(REFUSED_MARK)
        if port not in self._deliver:
            raise ReplayError(f"at {now} ns the log has an input for {port}, which this machine lacks")
        expected = len(payload) if port == logged else REFUSED
        taken = self._deliver[port](payload)
        if taken != expected:
            raise ReplayError(
                f"at {now} ns {port} was given {len(payload)} bytes and took {taken}"
                f" ({REFUSED}: refused), not {expected} as recorded"
            )

    # Out

    def leave(self, port: str, payload: bytes | bytearray | memoryview) -> None:
        """The guest said something."""
        if self.recorder is not None:
            self.recorder.output(self._now(), port, bytes(payload))
        if self.replayer is not None:
            self.replayer.check_output(self._now(), port, bytes(payload))
