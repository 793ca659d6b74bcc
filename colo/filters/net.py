"""A card's back end with filters in front of it, and a mute: what a node puts around every back end.

    net = FilteredNet(Tap("tap0"), "net0", now_ns=clock, muted=True)
    net.add(parse("dump,id=d0,file=net0.pcap"))
    net.unmute()                # this node serves

**Threads.**  The chain belongs to the thread that runs the guest: filters are added and removed by it,
between two blocks, while nothing passes.  Frames from the guest and to it are moved by that thread, too.
Frames that a commit releases come from the thread that releases them, and a node may be muted from any.
Back ends know only one thread, so each use of one is under ``_wire``; back ends never block, so it is held
for one frame at most.  A frame that is said is checked against the mute under that same lock: once
:meth:`mute` has returned, this node has said its last word.

**A guest that runs and does not serve.**  A secondary's frames go to ``diverted`` instead of the world
(QEMU's filter-redirector), and its guest's connections have other sequence numbers than its clients know
(QEMU's filter-rewriter): ``translate`` stands between the guest and all filters, both ways, muted or not,
and stays when the node serves.  Frames that somebody else enters through the machine's door are translated
by :meth:`FilteredNet.to_guest`.

**Cost.**  A frame that meets no filter costs two more calls, four tests and an uncontended lock.

``rx`` and ``tx`` are QEMU's, as :mod:`colo.filters` explains.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from colo.filters.bell import Bell
from colo.filters.buffer import HoldBuffer, IntervalBuffer
from colo.filters.chain import Chain, Filter, FilterSpec, Frame, Queue
from colo.filters.dump import Dump
from colo.filters.hold import OutputHold
from colo.filters.mirror import Mirror
from vmm.backends.net import NetBackend
from vmm.clock import NEVER_NS
from vmm.errors import ConfigError
from vmm.ports import TakesOffloads

RECEIVE_MAX = 64
"""Frames that filters may keep in one ``receive``: then the guest has its turn again."""
COLLECT_MAX = 256
"""Frames of one ``collect``: a flood must not hold up a node that stands by."""
AS_SENT_MAX = 1024
"""Translated frames whose original somebody may still ask for: they wait at the machine's door, if at all."""
INBOX_MAX = 4096
"""Frames released for the guest that it did not fetch yet; more are dropped and counted."""


class Translator(Protocol):
    """Between a guest's sequence numbers and those that its clients know.  ``now_ms`` is virtual time."""

    def inward(self, frame: bytes, now_ms: float) -> bytes:
        """A frame to the guest."""

    def outward(self, frame: bytes, now_ms: float) -> bytes:
        """A frame from the guest."""


class FilteredNet:
    """``backend``, whose frames pass the filters of the netdev ``name`` both ways."""

    __slots__ = (
        "_as_sent",
        "_backend",
        "_bell",
        "_chain",
        "_dropped",
        "_epoch_s",
        "_from_guest",
        "_inbox",
        "_muted",
        "_now_ns",
        "_ticking",
        "_to_guest",
        "_wire",
        "diverted",
        "muted_frames",
        "name",
        "translate",
    )

    def __init__(
        self,
        backend: NetBackend,
        name: str = "net0",
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        epoch_s: int = 0,
        muted: bool = False,
    ) -> None:
        """``now_ns`` is the machine's clock, which intervals and captures go by; captures start at
        ``epoch_s``."""
        self.name = name
        self.muted_frames = 0  # from the guest, while muted and not diverted
        self.diverted: Callable[[str, bytes], None] | None = None
        """Told, by the guest's thread, what the guest says while muted: our name, and the frame."""
        self.translate: Translator | None = None
        self._as_sent: OrderedDict[bytes, bytes] = OrderedDict()
        self._backend = backend
        self._now_ns = now_ns
        self._epoch_s = epoch_s
        self._muted = muted
        self._dropped = 0  # here, and by filters that are gone
        self._chain = Chain()
        self._from_guest: tuple[Filter, ...] = ()
        self._to_guest: tuple[Filter, ...] = ()
        self._ticking: tuple[Filter, ...] = ()
        self._inbox: deque[bytes] = deque()
        self._wire = threading.Lock()
        # A back end that never brings input stays so: a machine without any may end when it idles.
        self._bell = Bell(backend.fileno()) if backend.fileno() >= 0 else None

    # A back end like any other

    @property
    def backend(self) -> NetBackend:
        """What is behind the filters."""
        return self._backend

    @property
    def offloads(self) -> bool:
        return self._backend.offloads

    @property
    def dropped(self) -> int:
        filters = sum(each.dropped for each in self._chain if not isinstance(each, Mirror))
        return self._backend.dropped + self._dropped + self.muted_frames + filters

    @property
    def pending_output(self) -> bool:
        return self._backend.pending_output

    def fileno(self) -> int:
        return -1 if self._bell is None else self._bell.fileno()

    def transmit(self, frame: Frame) -> None:
        """The guest's thread: a frame from the guest."""
        if self.translate is not None:
            frame = self.translate.outward(bytes(frame), self._now_ns() / 1e6)
        if self._muted:
            if self.diverted is None:
                self.muted_frames += 1
            else:
                self.diverted(self.name, bytes(frame))
            return
        if self._ticking:
            self._transmit_on_time(frame)
            return
        for each in self._from_guest:
            if each.keeps(frame, Queue.RX):
                return
        self.say(frame)

    def receive(self) -> bytes | None:
        """The guest's thread: the next frame for the guest."""
        frame = self._next()
        return frame if frame is None or self.translate is None else self.to_guest(frame)

    def to_guest(self, frame: bytes) -> bytes:
        """The guest's thread: ``frame`` as the guest must be given it, however it came here."""
        if self.translate is None:
            return frame
        translated = self.translate.inward(frame, self._now_ns() / 1e6)
        if translated is not frame:
            self._as_sent[translated] = frame
            while len(self._as_sent) > AS_SENT_MAX:
                self._as_sent.popitem(last=False)
        return translated

    def as_sent(self, frame: bytes) -> bytes:
        """The guest's thread: the frame that :meth:`to_guest` made this of; once for each."""
        return self._as_sent.pop(frame, frame)

    def _next(self) -> bytes | None:
        if self._bell is not None and (self._bell.rang or self._ticking):
            self._bell.answer()
            self.tick()
        if self._muted:
            return None
        if self._inbox:
            return self._inbox.popleft()
        if not self._to_guest:
            with self._wire:
                return self._backend.receive()
        frame = self._receive_filtered()
        self.tick()  # sets the alarm for what was kept
        return frame

    def flush(self) -> None:
        with self._wire:
            if not self._muted:
                self._backend.flush()

    def close(self) -> None:
        """What filters hold is lost with the card, as by a machine that is switched off."""
        for each in self._chain:
            each.close()
        if self._bell is not None:
            self._bell.close()
        self._backend.close()

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool) -> None:
        """Of a TAP behind this, if there is one."""
        with self._wire:
            if isinstance(self._backend, TakesOffloads):
                self._backend.set_offloads(checksum=checksum, tso4=tso4, tso6=tso6)

    # Speaking and being silent; from any thread

    def say(self, frame: Frame) -> None:
        """Past all filters, to the back end; not while muted."""
        with self._wire:
            if not self._muted:
                self._backend.transmit(frame)
                return
            self.muted_frames += 1

    @property
    def muted(self) -> bool:
        return self._muted

    def mute(self) -> None:
        """When this returns nothing of ours reaches the back end any more, and nothing of its reaches us.

        What a back end had taken before and keeps for a slow peer was said before.
        """
        with self._wire:
            self._muted = True

    def unmute(self) -> None:
        self._muted = False

    def collect(self) -> list[bytes]:
        """While muted: what came for a guest that does not serve, at most COLLECT_MAX frames at once."""
        self._inbox.clear()
        frames: list[bytes] = []
        while len(frames) < COLLECT_MAX:
            with self._wire:
                frame = self._backend.receive() if self._muted else None
            if frame is None:
                break
            frames.append(frame)
        return frames

    # The chain; the guest's thread, between two blocks

    @property
    def filters(self) -> tuple[Filter, ...]:
        """From head to tail."""
        return tuple(self._chain)

    def add(self, spec: FilterSpec, hold: OutputHold | None = None) -> Filter:
        """Put a filter at its place; one with interval 0 needs the machine's hold."""
        place = self._chain.place(spec)
        if spec.on and spec.on_demand:
            self._refuse_second_hold(spec)
        added = self._make(spec, hold)
        self._chain.insert(place, added)
        self._arrange()
        return added

    def remove(self, id: str) -> None:
        """Take a filter away; what it held goes on its way first, in order."""
        removed = self._chain.find(id)
        self._refuse_early_release(removed)
        removed.let_go()
        self._chain.remove(removed)
        self._arrange()
        removed.close()
        self._dropped += 0 if isinstance(removed, Mirror) else removed.dropped

    def set_status(self, id: str, on: bool) -> None:
        """QEMU's ``status``: off lets go what is held and takes the filter out of the way."""
        changed = self._chain.find(id)
        if changed.on == on:
            return
        if on and changed.spec.on_demand:
            self._refuse_second_hold(changed.spec)
        if not on:
            self._refuse_early_release(changed)
            changed.let_go()
        changed.switch(on)
        self._chain.arrange()
        self._arrange()

    @property
    def holds_output(self) -> bool:
        """Some buffer keeps what the guest says until a commit."""
        return any(each.on and each.spec.on_demand and each.spec.sees(Queue.RX) for each in self._chain)

    def end_hold(self) -> None:
        """Say what this card's buffers hold, with all else that the machine holds; hold no more."""
        for each in self._chain:
            if isinstance(each, HoldBuffer):
                each.hold.end()

    def tick(self) -> None:
        """Do what is due at this virtual time, and set the alarm for what will be."""
        if not self._ticking:
            return
        now_ns = self._now_ns()
        next_ns = min(each.tick(now_ns) for each in self._ticking)
        if self._bell is not None and next_ns != NEVER_NS and next_ns != self._bell.alarmed_ns:
            self._bell.alarm(next_ns, next_ns - now_ns)

    def onward(self, behind: Filter, queue: Queue, frame: bytes) -> None:
        """Pass on what ``behind`` let go: to the filters behind it, then out or to the guest."""
        chain = self._from_guest if queue is Queue.RX else self._to_guest
        for each in chain[chain.index(behind) + 1 :]:
            if each.keeps(frame, queue):
                if self._bell is not None:
                    self._bell.ring()  # the guest's thread sets the alarm for it
                return
        if queue is Queue.RX:
            self.say(frame)
        elif self._bell is None or len(self._inbox) >= INBOX_MAX:
            self._dropped += 1
        else:
            self._inbox.append(frame)
            self._bell.ring()

    # Private

    def _transmit_on_time(self, frame: Frame) -> None:
        """Behind what is due already; sets the alarm if it is kept."""
        self.tick()
        if not any(each.keeps(frame, Queue.RX) for each in self._from_guest):
            self.say(frame)
        self.tick()

    def _receive_filtered(self) -> bytes | None:
        for _ in range(RECEIVE_MAX):
            with self._wire:
                frame = self._backend.receive()
            if frame is None or not any(each.keeps(frame, Queue.TX) for each in self._to_guest):
                return frame
        return None

    def _make(self, spec: FilterSpec, hold: OutputHold | None) -> Filter:
        match spec.kind:
            case "buffer" if spec.on_demand:
                if hold is None:
                    raise ConfigError(
                        f"filter {spec.id!r}: interval=0: releases on commit, and here is nobody who commits;"
                        " give an interval"
                    )
                return HoldBuffer(spec, self.name, hold, self.onward)
            case "buffer":
                return IntervalBuffer(spec, self.onward, self._now_ns())
            case "mirror":
                return Mirror(spec, self.offloads)
            case "dump":
                return Dump(spec, self.offloads, self._now_ns, self._epoch_s)
        raise AssertionError(spec.kind)

    def _arrange(self) -> None:
        self._from_guest = self._chain.from_guest
        self._to_guest = self._chain.to_guest
        self._ticking = tuple(each for each in self._chain if each.on and each.ticks)

    def _refuse_second_hold(self, spec: FilterSpec) -> None:
        """One commit releases a frame once: a second hold behind the first would keep it again."""
        other = next((each for each in self._chain if each.on and each.spec.on_demand), None)
        if other is not None:
            raise ConfigError(
                f"filter {spec.id!r}: interval=0: {other.spec.id!r} of this card already waits for commits;"
                " one is enough"
            )

    def _refuse_early_release(self, filter: Filter) -> None:
        if isinstance(filter, HoldBuffer) and filter.holding:
            raise ConfigError(
                f"filter {filter.spec.id!r}: holds what the pair has not committed, which nobody may hear"
                " yet; end the protection first"
            )
