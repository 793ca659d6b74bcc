"""Policy ``lockstep`` on the primary: its guest's inputs go into a log, and output follows the log.

**What may be said before the commit, and why it is safe** is in :mod:`colo.lockstep`.  Here is when a word
goes: with an output, before it is said; when the guest waits; and every few milliseconds while it runs, so
that the secondary does not wait for a guest that computes.

**Flow control.**  The secondary tells how far it is.  A primary whose oldest word was not executed for
``LAG_MAX_S`` stands still until it was: a survivor has to execute all of that before it serves.

**The fence** is the log's (:mod:`colo.lockstep`): what is said was held.  A primary that was stopped after
its word was held looks, right before each frame, whether its peer left, or may have
(:mod:`colo.node.fence`), and leaves it to the survivor then.

Not modelled: a log kept across checkpoints.  A guest that differs is repaired from the next checkpoint on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from colo.errors import PeerLost, ProtocolViolation
from colo.life import Life
from colo.lockstep import marks
from colo.lockstep.writer import LogWriter
from colo.messages import Diverged, Log, Mark, Message, Packet, Progress
from colo.node.fence import Fence
from colo.node.replica import Replica
from colo.transport.companion import Companion
from vmm.errors import StateError
from vmm.machine import Ended

SILENCE_RUNNING_S, SILENCE_WAITING_S = 0.001, 0.005
"""Without a word: while the guest computes, and while it waits."""
MARK_EVERY_S = 0.1
MARKS_KEPT = 8
"""States that a divergence can be compared with: the secondary is rarely further behind."""
LAG_MAX_S = 0.2
BACKLOG_MAX = 1 << 20
"""Bytes of log that the kernel did not take."""
DIFFERENCES_SHOWN = 4


class Logged:
    """Life.FOLLOW; a gate (:class:`colo.filters.hold.Gate`) and a rule (:class:`colo.node.early.Early`)."""

    life = Life.FOLLOW

    def __init__(
        self,
        replica: Replica,
        companion: Companion,
        diverged: Callable[[dict[str, object]], None],
        fence: Fence | None = None,
    ) -> None:
        """``diverged`` is told of a divergence, by the guest's thread; it must not wait."""
        self._replica = replica
        self._machine = replica.machine
        self._now_s = replica.now_s
        self._hold = replica.hold
        self._companion = companion
        self._fence = fence or Fence(companion)
        self._diverged = diverged
        self._writer = LogWriter()
        self._is_open = False
        self._peer_follows = False
        self._words = self._held = self._done = 0
        """Of this epoch: sent, held by the secondary, executed by it."""
        self._sent_at: deque[tuple[int, float]] = deque()
        self._waiting: deque[tuple[int, Packet]] = deque()
        """Output that the gate took, each with the word that must be held first."""
        self._spoken: dict[str, int] = {}
        self._last_word_s = self._last_mark_s = 0.0
        self._marked_ns = -1
        self._window = self._windows_left = 0
        """Of RAM: the first page of the next, and how many there are to go since the guest last moved."""
        self._states: deque[tuple[int, Mapping[str, bytes]]] = deque(maxlen=MARKS_KEPT)
        self._counts = {"log-words": 0, "marks": 0, "stalls": 0, "early-frames": 0}

    # Early

    def begin(self, epoch: int) -> None:
        """Both guests start from here alike: without translations of addresses, and at a line's start."""
        machine = self._machine
        machine.door.enter("snapshot", b"\0")
        machine.serial.restart()
        self._writer.begin(epoch, machine.clock.now_ns)
        self._is_open, self._peer_follows = False, True
        self._words = self._held = self._done = 0
        self._sent_at.clear()
        self._spoken.clear()
        self._states.clear()
        self._marked_ns = machine.clock.now_ns
        self._last_mark_s = self._now_s()
        machine.door.recorder = self._writer
        machine.watch(self._look)
        machine.call(self._companion.fileno(), self.hear)
        self._replica.guest.drive_by(self._run, self._companion.fileno())
        self._hold.gate = self

    def open(self) -> None:
        self._is_open = self._peer_follows
        if not self._is_open:
            return
        for port, frame in self._hold.take_open():
            self._take(port, frame)
        self._publish()

    def end(self) -> None:
        machine = self._machine
        machine.door.recorder = None
        machine.watch(None)
        machine.call(self._companion.fileno(), None)
        self._replica.guest.drive_by(None)

    def facts(self) -> dict[str, int | float]:
        return {**self._counts, "log-lag-ms": round(self.lag_s * 1000, 1)}

    @property
    def lag_s(self) -> float:
        """For how long the oldest word that a following guest has not executed is said; from any thread."""
        now_s = self._now_s()
        oldest_s = next((sent_s for _, sent_s in tuple(self._sent_at)), now_s)
        return now_s - oldest_s if self._peer_follows else 0.0

    # Gate

    def offer(self, port: str, frame: bytes) -> bool:
        if not self._is_open or not self._peer_follows:
            return False
        self._take(port, frame)
        self._publish()
        return True

    def cut(self) -> list[Packet]:
        self._is_open = False
        packets = [packet for _, packet in self._waiting]
        self._waiting.clear()
        return packets

    def _take(self, port: str, frame: bytes) -> None:
        """It may be said when the next word is held."""
        self._waiting.append((self._words + 1, (port, frame)))

    def _say_held(self) -> None:
        """Unless the peer acts alone by now, because we were stopped right here."""
        while self._waiting and self._waiting[0][0] <= self._held and not self._fence.is_shut:
            _, (port, frame) = self._waiting.popleft()
            self._spoken[port] = self._spoken.get(port, 0) + len(frame)
            self._counts["early-frames"] += 1
            self._hold.say(port, frame)

    # Words

    def _publish(self) -> None:
        """Everything up to this instant; what was taken for the next word waits for the last of them."""
        words = self._writer.take(self._machine.clock.now_ns, self._spoken)
        if len(words) > 1:
            last = self._words + len(words)
            self._waiting = deque(
                (max(word, last) if word > self._words else word, packet) for word, packet in self._waiting
            )
        self._send(words)

    def _send(self, words: Sequence[Log | Mark]) -> None:
        if not self._peer_follows:
            return
        now_s = self._now_s()
        self._words += len(words)
        self._counts["log-words"] += len(words)
        self._last_word_s = now_s
        if not self._sent_at or now_s - self._sent_at[-1][1] >= SILENCE_WAITING_S:
            self._sent_at.append((self._words, now_s))
        try:
            taken = self._companion.send_all(words)
        except PeerLost:
            self._peer_follows = False  # its loss is met, and acted on, elsewhere
            return
        self._note_taken(taken)

    def _note_taken(self, taken: bool) -> None:
        if taken and self._companion.held_on_send:
            self._held = self._words
            self._say_held()

    def _look(self, waits: bool) -> None:
        """Between two blocks."""
        if not self._peer_follows:
            return
        now_s = self._now_s()
        since_s = now_s - self._last_word_s
        news = self._writer.has_news
        if since_s >= (SILENCE_WAITING_S if waits and not news else SILENCE_RUNNING_S) or (waits and news):
            if news or self._machine.clock.now_ns != self._writer.frontier_ns:
                self._publish()
            moved = self._machine.clock.now_ns != self._marked_ns
            if now_s - self._last_mark_s >= MARK_EVERY_S and (moved or self._windows_left):
                self._mark(now_s)
        if self._is_late(now_s):
            self._machine.pause()

    def _mark(self, now_s: float) -> None:
        machine = self._machine
        self._publish()
        now_ns = machine.clock.now_ns
        if now_ns != self._marked_ns:
            self._windows_left = marks.windows(machine.ram.size)  # a guest that then waits is scanned once
        self._windows_left -= 1
        sections = machine.everything_unchecked()
        self._states.append((now_ns, sections))
        pages = marks.window(machine.ram.array, self._window)
        self._send([Mark(self._writer.epoch, now_ns, marks.digests(sections), self._window, pages)])
        self._window = marks.next_window(self._window, machine.ram.size)
        self._last_mark_s, self._marked_ns = now_s, now_ns
        self._counts["marks"] += 1

    # The other guest

    def _run(self) -> Ended:
        """For the guest's thread: run on, unless the other guest is too far behind."""
        if self._is_late(self._now_s()):
            self.hear()
            if self._is_late(self._now_s()):
                self._counts["stalls"] += 1
                return Ended.IDLE
        return self._replica.guest.run_freely()

    def _is_late(self, now_s: float) -> bool:
        if not self._peer_follows:
            return False
        late = bool(self._sent_at) and now_s - self._sent_at[0][1] > LAG_MAX_S
        return (late and self._is_open) or self._companion.backlog > BACKLOG_MAX

    def hear(self) -> None:
        """What the secondary's guest says about itself."""
        try:
            if self._companion.backlog:
                self._note_taken(self._companion.flush())
            if self._companion.peer_left:  # the survivor's fence; what it had acknowledged is too late to say
                raise PeerLost("the peer ended its side")
            while (word := self._companion.receive()) is not None:
                self._act_on(word)
        except (PeerLost, ProtocolViolation):
            self._peer_follows = False
            self._machine.call(self._companion.fileno(), None)

    def _act_on(self, word: Message) -> None:
        match word:
            case Progress(epoch=epoch, held=held, done=done) if epoch == self._writer.epoch:
                self._done = done
                while self._sent_at and self._sent_at[0][0] <= done:
                    self._sent_at.popleft()
                if not self._companion.held_on_send:
                    self._held = held
                    self._say_held()
            case Diverged(epoch=epoch) if epoch == self._writer.epoch:
                self._is_open = self._peer_follows = False
                self._diverged(
                    {"epoch": word.epoch, "ns": word.ns, "what": word.what, "first": self._difference(word)}
                )
            case _:
                return  # of an epoch that is over

    def _difference(self, word: Diverged) -> list[str]:
        """Which field of which component, when the state of that instant is still here."""
        for ns, sections in self._states:
            if ns == word.ns and word.sections:
                try:
                    found = self._machine.section_differences(sections, word.sections)
                except StateError as exc:
                    return [str(exc)]
                return found[:DIFFERENCES_SHOWN]
        return []
