"""Output that the world must not hear before the secondary could have said it.

Everything that a protected guest says, on every card and on the console, waits here in one order until
the checkpoint that covers it is committed (Remus, NSDI 2008, section 3.4; COLO-Frame's filter-buffer with
interval 0).  One hold serves a whole machine, so the order among its ports is kept, too.

    guest's thread      hold(port, frame) …      cut(n)      hold … for the next epoch
    releasing thread                                     release(n): says all that cut(n) closed off

**Why no lock is needed where frames are held.**  Frames gather in an *open batch*, which only the
guest's thread appends to.  ``cut`` is called by that same thread, between two frames: it seals the batch
(nothing is ever added to it again) and opens an empty one.  A sealed batch is touched by the releasing
thread only.  What the two threads share is the short list of sealed batches, guarded by ``_ends``, which
is held for a few assignments and never while something is said or waited for.  ``_speaking`` keeps one
release behind another; the guest's thread takes it only when protection ends.

``drop_all`` may come from any thread.  A frame that is being appended at that moment lands in the open
batch that was just thrown away: it is dropped, as if it had come an instant earlier.

**Limits.**  Over the soft limit a checkpoint is asked for, once an epoch.  Over the hard limit a frame is
dropped and counted, as by a card whose transmit queue is full; TCP makes up for it.

**Gate.**  A policy under which some output need not wait for a commit puts a :class:`Gate` in front: it is
asked first, by the guest's thread, and what it does not take waits here.

Not modelled: priorities, pacing of what is released (it goes in one burst).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from colo.messages import HELD_PACKETS_MAX, Packet
from vmm.backends.net import OUTPUT_MAX

SOFT_BYTES = OUTPUT_MAX
"""A release goes out in one burst, and this much a back end keeps for a peer that is slow to read."""
SOFT_FRAMES = 1024
"""QEMU's ``max_queue_size`` of colo-compare, above which it, too, asks for a checkpoint."""
HARD_BYTES = 16 << 20
"""Above the largest receive window of a stock Linux client (6 MiB, tcp_rmem) for two of them, so TCP
stops by itself before we drop; and a node's memory stays bounded whatever its guest does."""
HARD_FRAMES = 16 * SOFT_FRAMES
"""Small frames cost more than their bytes: an object each, some 150 bytes."""

Speak = Callable[[bytes], None]


class Gate(Protocol):
    """What may be said before the commit, by a policy's rule.  For the guest's thread."""

    def offer(self, port: str, frame: bytes) -> bool:
        """The guest said this: True when the gate took it, to say it or to hand it over at the cut."""

    def cut(self) -> list[Packet]:
        """What was taken and not said, in order; it belongs to the epoch that is cut, and waits for its
        commit.  The gate is shut from here on: it takes nothing more.
        """


class Released(NamedTuple):
    """What a release said, and how long the oldest of it had waited."""

    frames: int
    bytes: int
    age_ns: int


class _Batch:
    """What was held between two cuts."""

    __slots__ = ("asked", "bytes", "epoch", "frames", "since_ns")

    def __init__(self) -> None:
        self.epoch = -1
        self.frames: deque[Packet] = deque()
        self.bytes = 0
        self.since_ns = 0
        self.asked = False


class OutputHold:
    """The held output of one machine."""

    __slots__ = (
        "_batch",
        "_ends",
        "_now_ns",
        "_sealed",
        "_sealed_bytes",
        "_sealed_frames",
        "_speaking",
        "_unspoken",
        "_voices",
        "active",
        "begins_to_hold",
        "dropped",
        "gate",
        "wants_checkpoint",
    )

    def __init__(
        self,
        wants_checkpoint: Callable[[], None] = lambda: None,
        begins_to_hold: Callable[[], None] = lambda: None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Once an epoch each, ``begins_to_hold`` is told that something waits and ``wants_checkpoint`` that
        it is too much.  They are called by the guest's thread and must not wait for anything.
        """
        self.wants_checkpoint = wants_checkpoint
        self.begins_to_hold = begins_to_hold
        self.active = False
        """There is a pair: its output is to be held.  Without one nobody would ever release it."""
        self.dropped = 0  # over the hard limit, or by drop_all
        self.gate: Gate | None = None
        self._now_ns = now_ns
        self._voices: dict[str, Speak] = {}
        self._unspoken: frozenset[str] = frozenset()
        self._batch = _Batch()
        self._sealed: deque[_Batch] = deque()
        self._sealed_bytes = 0
        self._sealed_frames = 0
        self._ends = threading.Lock()
        self._speaking = threading.Lock()

    def connect(self, port: str, speak: Speak, *, inward: bool = False) -> None:
        """``speak`` is where released frames of ``port`` go; ``inward`` ones are for the guest."""
        assert port not in self._voices, f"{port} is connected"
        self._voices[port] = speak
        if inward:
            self._unspoken |= {port}

    def disconnect(self, port: str) -> None:
        """What is still held of ``port`` has nowhere to go: it will be dropped in its turn."""
        self._voices.pop(port, None)
        self._unspoken -= {port}

    # The guest's thread

    def begin(self) -> None:
        """A pair forms: from here on output waits.  Saying so twice is saying it once."""
        self.active = True

    def hold(self, port: str, frame: bytes | memoryview) -> bool:
        """Keep a copy of ``frame``, unless the gate takes it; False when it was dropped."""
        if self.gate is not None and self.gate.offer(port, bytes(frame)):
            return True
        batch = self._batch
        frames, size = batch.frames, len(frame)
        if (
            batch.bytes + self._sealed_bytes + size > SOFT_BYTES
            or len(frames) + self._sealed_frames >= SOFT_FRAMES
        ) and not self._admits(batch, size):
            return False
        first = not frames
        if first:
            batch.since_ns = self._now_ns()
        frames.append((port, bytes(frame)))
        batch.bytes += size
        if first:
            self.begins_to_hold()  # now that whoever looks finds it
        return True

    def cut(self, epoch: int) -> int:
        """In the pause: what was held so far belongs to ``epoch``.  Returns how many frames that is."""
        if self.gate is not None:
            self._take_back(self.gate.cut())
        with self._ends:
            batch = self._batch
            assert not self._sealed or self._sealed[-1].epoch < epoch, "epochs are cut in their order"
            self._batch = _Batch()
            batch.epoch = epoch
            if batch.frames:
                self._sealed.append(batch)
                self._weigh()
            return len(batch.frames)

    def _take_back(self, packets: list[Packet]) -> None:
        """What a gate had taken came before what it refused."""
        batch = self._batch
        if packets and not batch.frames:
            batch.since_ns = self._now_ns()
        batch.frames.extendleft(reversed(packets))
        batch.bytes += sum(len(data) for _, data in packets)

    def take_open(self) -> list[Packet]:
        """What waits since the last cut, for a gate that opens now."""
        with self._ends:
            batch, self._batch = self._batch, _Batch()
        return list(batch.frames)

    def say(self, port: str, frame: bytes) -> None:
        """At once: a gate's word that it may go."""
        speak = self._voices.get(port)
        if speak is None:
            self.dropped += 1
        else:
            speak(frame)

    def end(self) -> Released:
        """The pair dissolves and we go on alone: say everything in order, and hold nothing from here on."""
        gate, self.gate = self.gate, None
        if gate is not None:
            self._take_back(gate.cut())
        with self._speaking:
            with self._ends:
                if self._batch.frames:
                    self._sealed.append(self._batch)
                    self._batch = _Batch()
            said = self._say_sealed(None)
            self.active = False
        return said

    # Any one thread

    def taken(self, epoch: int, limit_bytes: int) -> list[Packet]:
        """What ``cut(epoch)`` closed off, to travel with the checkpoint; nothing when it is too much."""
        for batch in self._batches():
            few = len(batch.frames) <= HELD_PACKETS_MAX
            if batch.epoch == epoch and few and batch.bytes <= limit_bytes:
                return [packet for packet in tuple(batch.frames) if packet[0] not in self._unspoken]
        return []

    def release(self, epoch: int) -> Released:
        """``epoch`` is committed: say what was held up to its cut, in order."""
        with self._speaking:
            return self._say_sealed(epoch)

    def drop_all(self) -> int:
        """Forget everything: this node lost, and what it held was never said.  Returns how many."""
        with self._speaking, self._ends:
            count = self.held_frames
            self._sealed.clear()
            self._batch = _Batch()
            self._weigh()
            self.dropped += count
            return count

    # For whoever asks

    @property
    def held_bytes(self) -> int:
        return sum(batch.bytes for batch in self._batches())

    @property
    def held_frames(self) -> int:
        return sum(len(batch.frames) for batch in self._batches())

    @property
    def oldest_ns(self) -> int | None:
        """Since when (host monotonic) the oldest batch that is not said yet has waited."""
        return next((batch.since_ns for batch in self._batches() if batch.frames), None)

    # Private

    def _batches(self) -> tuple[_Batch, ...]:
        return (*tuple(self._sealed), self._batch)

    def _admits(self, batch: _Batch, size: int) -> bool:
        """Beyond the soft limit: ask for a checkpoint; is there still room?"""
        if not batch.asked and (batch.bytes + size > SOFT_BYTES or len(batch.frames) >= SOFT_FRAMES):
            batch.asked = True
            self.wants_checkpoint()
        fits = (
            batch.bytes + self._sealed_bytes + size <= HARD_BYTES
            and len(batch.frames) + self._sealed_frames < HARD_FRAMES
        )
        self.dropped += not fits
        return fits

    def _say_sealed(self, epoch: int | None) -> Released:
        """Up to ``epoch``, or all; a frame whose saying fails is gone, the ones behind it are not."""
        frames = size = age_ns = 0
        while self._sealed and (epoch is None or self._sealed[0].epoch <= epoch):
            batch = self._sealed[0]
            age_ns = max(age_ns, self._now_ns() - batch.since_ns)
            while batch.frames:
                port, data = batch.frames.popleft()
                batch.bytes -= len(data)
                speak = self._voices.get(port)
                if speak is None:
                    self.dropped += 1
                    continue
                speak(data)
                frames += 1
                size += len(data)
            with self._ends:
                self._sealed.popleft()
                self._weigh()
        return Released(frames, size, age_ns)

    def _weigh(self) -> None:
        """Under ``_ends``: what the sealed batches hold, so that holding a frame need not add it up."""
        self._sealed_bytes = sum(batch.bytes for batch in self._sealed)
        self._sealed_frames = sum(len(batch.frames) for batch in self._sealed)
