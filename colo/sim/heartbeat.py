"""The heartbeat of a simulated connection: the rules of :mod:`colo.transport.heartbeat`, in virtual time.

A thread of its own there, events of the world here.  A process that is stopped sends no beats; when it goes
on it first reads what came, and if nothing did, it listens for one more silence, because the other node may
have been stopped with it.
"""

from __future__ import annotations

from collections.abc import Callable

from colo.sim.process import Process
from colo.sim.wire import Lane
from colo.transport.frames import CLOSED
from colo.transport.heartbeat import INTERVAL_MS, SILENCE_MS, check_timing

BEAT = b"beat"


class SimHeartbeat:
    """One end, in ``process``."""

    peer: SimHeartbeat

    def __init__(
        self,
        process: Process,
        out: Lane,
        interval_ms: int = INTERVAL_MS,
        silence_ms: int = SILENCE_MS,
    ) -> None:
        check_timing(interval_ms, silence_ms)
        self._process, self._out = process, out
        self.on_lost: Callable[[str], None] = lambda reason: None
        self._interval_ns, self._silence_ns = interval_ms * 1_000_000, silence_ms * 1_000_000
        self._agenda = process.agenda
        self.sent = self.beats = self.late = 0
        self.max_gap_ms = 0.0
        self._sent_ns = self._heard_ns = self._listening_ns = self._agenda.now_ns
        self._lapsed = self._forgiven = self._over = False
        self._arrived = 0
        """Beats in the kernel's queue."""
        self._eof = self._watching = False
        self._due_ns = self._agenda.now_ns

    def begin(self) -> None:
        """When both ends are there."""
        self._beat()
        self._watch_on()

    # As colo.transport.heartbeat.Heartbeat

    @property
    def interval_ms(self) -> int:
        return self._interval_ns // 1_000_000

    @property
    def silence_ms(self) -> int:
        return self._silence_ns // 1_000_000

    def set_timing(self, interval_ms: int, silence_ms: int) -> None:
        check_timing(interval_ms, silence_ms)
        self._interval_ns, self._silence_ns = interval_ms * 1_000_000, silence_ms * 1_000_000

    def age_ms(self) -> float:
        return (self._agenda.now_ns - self._heard_ns) / 1e6

    def is_overdue(self) -> bool:
        return self._lapsed or self._agenda.now_ns - self._sent_ns >= self._silence_ns

    def close(self) -> None:
        if not self._over:
            self._over = True
            if self._process.alive:
                self._out.send(b"", self.peer.arrive)

    # The thread

    @property
    def _stands_still(self) -> bool:
        return self._process.stopped or not self._process.alive or self._over

    @property
    def _deadline_ns(self) -> int:
        return max(self._heard_ns, self._listening_ns) + self._silence_ns

    def _beat(self) -> None:
        """If one is due; what was missed is not made up for."""
        now_ns = self._agenda.now_ns
        if self._stands_still or now_ns < self._due_ns:
            return
        self._out.send(BEAT, self.peer.arrive)
        self.sent += 1
        self._lapsed = self._lapsed or now_ns - self._sent_ns >= self._silence_ns
        self._sent_ns, self._due_ns = now_ns, now_ns + self._interval_ns
        self._agenda.at(self._due_ns, self._beat)

    def arrive(self, data: bytes) -> None:
        """At this host."""
        self._arrived += bool(data)
        self._eof = self._eof or not data
        if not self._stands_still:
            self._listen()

    def _listen(self) -> None:
        now_ns, beats = self._agenda.now_ns, self._arrived
        self._arrived = 0
        if beats:
            gap_ns = now_ns - self._heard_ns
            self.late += gap_ns > 2 * self._interval_ns
            self.max_gap_ms = max(self.max_gap_ms, gap_ns / 1e6)
            self.beats += beats
            self._heard_ns, self._forgiven = now_ns, False
        if self._eof:
            self._lose(CLOSED)

    def _watch_on(self) -> None:
        if not self._watching:
            self._watching = True
            self._agenda.at(self._deadline_ns, self._watch)

    def _watch(self) -> None:
        self._watching = False
        if self._stands_still:
            return
        now_ns = self._agenda.now_ns
        if now_ns >= self._deadline_ns:
            self._lose(f"no heartbeat for {(now_ns - self._heard_ns) / 1e6:.0f} ms")
        else:
            self._watch_on()

    def go_on(self) -> None:
        """The process was stopped and is not any more."""
        if self._over:
            return
        woke_ns = self._agenda.now_ns
        overslept_ns = woke_ns - min(self._due_ns, self._deadline_ns)
        self._beat()
        self._listen()
        if overslept_ns > self._silence_ns / 2 and not self._forgiven:
            self._listening_ns, self._forgiven = woke_ns, True
        self._watch_on()

    def die(self, silently: bool) -> None:
        """Its process is gone; ``silently``, and its host with it."""
        if not self._over and not silently:
            self._out.send(b"", self.peer.arrive)
        self._over = True

    def snap(self) -> None:
        """The connection breaks."""
        self.arrive(b"")

    def _lose(self, reason: str) -> None:
        if not self._over:
            self.close()
            self.on_lost(reason)
