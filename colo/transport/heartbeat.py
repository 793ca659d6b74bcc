"""Heartbeats: a thread and a connection of their own, so that nothing else delays them.

Each node sends a Beat every ``interval_ms`` and takes the other for lost after ``silence_ms`` without
one, or at once when the connection ends: the kernel closes the connections of a process that was
killed.  Pages travel on another connection, and this thread never waits for asyncio or the guest.

Silence is what was not heard while listening.  A process that was stopped (SIGSTOP, a host that
sleeps) first reads what came meanwhile; if nothing did, it listens for one more ``silence_ms``,
because the other node may have been stopped with it.

Not detected: a peer whose heartbeat thread lives while the rest of it hangs.  The time limits of the
protocol are for that.  Times are CLOCK_MONOTONIC, which does not count a host's sleep.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from colo.errors import PeerLost, ProtocolViolation
from colo.messages import Beat
from colo.transport.frames import AGAIN, CLOSED, FrameSocket, why
from colo.transport.handshake import INTERVAL_MS_MIN
from colo.transport.wire import BEAT_MAX
from vmm.errors import ConfigError

INTERVAL_MS = 50
SILENCE_MS = 300
SILENCE_INTERVALS_MIN = 3
"""A single late or lost beat is no death."""
READS_MAX = 16
"""Of one wake-up, so that a peer which floods cannot keep this thread from its own beats."""
JOIN_S = 2.0
"""How long close() waits for the thread, which only its own on_lost can hold up."""


def check_timing(interval_ms: int, silence_ms: int) -> None:
    """ConfigError for beats that no host keeps up, or a silence that one late beat is."""
    if interval_ms < INTERVAL_MS_MIN or silence_ms < SILENCE_INTERVALS_MIN * interval_ms:
        raise ConfigError(
            f"heartbeats every {interval_ms} ms, lost after {silence_ms} ms: expected {INTERVAL_MS_MIN} ms or"
            f" more, and a silence of {SILENCE_INTERVALS_MIN} intervals or more"
        )


class Heartbeat:
    """Both directions of one heartbeat channel.

    ``on_lost(reason)`` is called from the heartbeat's thread, once, and never after :meth:`close`
    returned; it must not wait for a thread that may be in close().
    """

    def __init__(
        self,
        frames: FrameSocket,
        on_lost: Callable[[str], None],
        interval_ms: int = INTERVAL_MS,
        silence_ms: int = SILENCE_MS,
    ) -> None:
        check_timing(interval_ms, silence_ms)
        frames.greeted(BEAT_MAX)
        self._frames, self._on_lost = frames, on_lost
        self._interval_s, self._silence_s = interval_ms / 1000, silence_ms / 1000
        self.sent = 0
        self.beats = 0
        """Heard."""
        self.late = 0
        """Beats heard more than two of this node's intervals after the one before."""
        self.max_gap_ms = 0.0
        """The longest time between two beats heard."""
        self._outgoing = bytearray()
        self._sent_at = time.monotonic()
        self._lapsed = False
        self._heard = self._listening_since = time.monotonic()
        self._forgiven = False
        self._lock = threading.Lock()
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def interval_ms(self) -> int:
        return round(self._interval_s * 1000)

    @property
    def silence_ms(self) -> int:
        return round(self._silence_s * 1000)

    def set_timing(self, interval_ms: int, silence_ms: int) -> None:
        """From now on.  The caller sees to it that the other node's silence suits this interval."""
        check_timing(interval_ms, silence_ms)
        self._interval_s, self._silence_s = interval_ms / 1000, silence_ms / 1000
        self._nudge()

    def age_ms(self) -> float:
        """Since the peer was last heard."""
        return (time.monotonic() - self._heard) * 1000

    def is_overdue(self) -> bool:
        """Did this node itself send no beat for as long as the other one waits?  It was stopped, then."""
        return self._lapsed or time.monotonic() - self._sent_at >= self._silence_s

    def close(self) -> None:
        """End the thread and the connection.  From any thread, any number of times."""
        with self._lock:
            self._closing = True
        self._nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)

    def _nudge(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # The thread.

    def _run(self) -> None:
        try:
            reason = self._beat_until_lost()
        except (PeerLost, ProtocolViolation) as exc:
            reason = str(exc)
        except OSError as exc:
            reason = why(exc)
        with self._lock:
            silent, self._closing = self._closing, True
            os.close(self._wake)
            self._wake = -1
        self._frames.close()
        if not silent:
            self._on_lost(reason)

    def _beat_until_lost(self) -> str:
        poll = select.poll()
        for descriptor in (self._wake, self._frames.sock.fileno()):
            poll.register(descriptor, select.POLLIN)
        due = time.monotonic()
        while not self._closing:
            now = time.monotonic()
            if now >= due:
                self._send()
                due = max(due + self._interval_s, now)  # what was missed is not made up for
            until = min(due, self._deadline())
            poll.poll(max(0.0, until - now) * 1000)
            woke = time.monotonic()
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._listen(woke)
            if woke - until > self._silence_s / 2 and not self._forgiven:
                self._listening_since, self._forgiven = woke, True
            if woke >= self._deadline():
                return f"no heartbeat for {(woke - self._heard) * 1000:.0f} ms"
        return "closed here"

    def _deadline(self) -> float:
        return max(self._heard, self._listening_since) + self._silence_s

    def _send(self) -> None:
        """One beat; none while an earlier one has not left, which a stopped peer brings about."""
        if not self._outgoing:
            self._outgoing = self._frames.encoder.frame(Beat(self.sent))
            self.sent += 1
        with suppress(*AGAIN):
            del self._outgoing[: self._frames.sock.send(self._outgoing)]
        now = time.monotonic()
        self._lapsed = self._lapsed or now - self._sent_at >= self._silence_s
        self._sent_at = now

    def _listen(self, woke: float) -> None:
        beats = self._drain()
        if beats == 0:
            return
        gap_s = woke - self._heard
        self.late += gap_s > 2 * self._interval_s
        self.max_gap_ms = max(self.max_gap_ms, gap_s * 1000)
        self.beats += beats
        self._heard, self._forgiven = woke, False

    def _drain(self) -> int:
        """How many beats have come, reading all there is; PeerLost or FrameError after the last."""
        sock, decoder = self._frames.sock, self._frames.decoder
        beats = 0
        with suppress(*AGAIN):
            for _ in range(READS_MAX):
                if not (count := sock.recv_into(decoder.space())):
                    raise PeerLost(CLOSED)
                decoder.filled(count)
                while (message := decoder.next()) is not None:
                    if not isinstance(message, Beat):
                        raise ProtocolViolation(f"expected Beat, the peer sent {type(message).__name__}")
                    beats += 1
        return beats
