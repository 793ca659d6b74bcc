"""Policy ``colo``: what the primary says goes out at once when the running secondary said the same.

A gate in front of the output hold (:mod:`colo.filters.hold`)::

    guest ──▶ hold ──offer──▶ gate ──say──▶ world        the secondary said it, too
                │               │
                └── waits ◀─cut─┘                        a checkpoint comes first

**What may be said before the commit, and why that is safe.**  Between two checkpoints the secondary is a
machine of its own: it began as the primary was at the last cut, gets the same frames from clients, and runs.
A frame of the primary is said when :mod:`colo.compare` finds that the secondary, *since that cut*, said what
this frame says and could go on from where it leaves its receiver (the rule and its proof stand in
:mod:`colo.compare.tcp`, :mod:`colo.compare.other` and :mod:`colo.compare.console`).  The primary may die at
any moment after that:

* Before the next epoch is sealed, the survivor is the secondary *as it runs*, not the checkpoint that it
  began with: going back would unsay what it said, on which the release was built.  All that the world heard
  since the cut, the survivor said itself.  What waited here nobody heard, and nobody will.
* Once the next epoch is sealed, the survivor is what the primary was at that cut, and so has said everything
  that the primary said before it, compared or not.  What waited here was handed to the hold at that cut: it
  travels with the epoch, and the survivor says it, perhaps once more.

From a cut to its commit the survivor could be either, so nothing is said then: the gate is shut, what the
guest says waits in the hold's open batch, and is offered when the gate opens.  Tidings of the secondary carry
the epoch that they follow, and whoever calls :meth:`ComparedOutput.heard` lets none of another epoch through:
those of the last one are void from the cut on, since they tell of a machine that will not survive.

**Divergence.**  A conversation in which the two differ, or in which one is late, waits for a checkpoint; the
others go on.  However many differ, one checkpoint is asked for, because it ends them all; each cause is
counted.

**Order** is the guest's, in each conversation.  Frames of different conversations may overtake each other, as
they may on any network; what is handed over at a cut is in the order in which it was offered.

**Limits.**  ``TAKEN_FRAMES`` and ``TAKEN_BYTES`` wait here, on all ports together.  Beyond them a checkpoint
is asked for and *everything* that the guest says until then waits in the hold, which has limits of its own: a
gate that took some of it would say a later frame before an earlier one.  A conversation of which the
comparison keeps no more frames waits here as a whole.  When there was anything that the comparison was not
shown, it forgets all conversations at the cut: that may cost one more checkpoint, never a wrong release.

Mode ``qemu`` is for comparing with QEMU: it releases and drops as QEMU does, safe or not.

Everything here is for the guest's thread.  Not modelled: contents in which the two may differ (a time of day,
a random number); these need policy ``lockstep``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import msgspec

from colo.compare.comparison import open_comparison
from colo.compare.console import ConsoleComparison
from colo.compare.verdict import Decision, Diverged, Drop, Reason, Release, Settings, Status
from colo.filters.console import PORT
from colo.filters.hold import HARD_BYTES, HARD_FRAMES
from colo.filters.waiting import ConsoleLane, Lane, Taken
from colo.messages import Packet

TAKEN_FRAMES = HARD_FRAMES // 2
TAKEN_BYTES = HARD_BYTES // 2
"""What waits here is the hold's from the cut on, and must leave room there for what is said meanwhile."""
AHEAD_FRAMES, AHEAD_BYTES = 1024, 2 << 20
"""Kept of the secondary while the gate is shut: it is ahead by a commit's last steps at most.  What does not
fit looks as if it had not been said, which costs a checkpoint."""
SETTINGS = Settings(bytes_max=2 * TAKEN_BYTES, history_bytes=16 << 20)


class Account(msgspec.Struct):
    """What the gate did."""

    taken: int = 0
    """Frames."""
    said: int = 0
    """Of them, before a commit."""
    bytes_said: int = 0
    handed_over: int = 0
    """Of them, at a cut."""
    lost: int = 0
    """Of them, in mode ``qemu``."""
    refused: int = 0
    """Over a limit: these waited in the hold."""
    unheard: int = 0
    """The secondary's, over a limit or of a port that is not compared."""
    triggers: int = 0
    """Divergences; many may end in one checkpoint."""
    waited: int = 0
    """Frames that waited here, said or handed over in the end; how long, in all and the longest."""
    waited_ms: float = 0.0
    waited_ms_max: float = 0.0

    @property
    def waited_ms_mean(self) -> float:
        return self.waited_ms / self.waited if self.waited else 0.0

    def note_wait(self, frames: int, ms: float) -> None:
        self.waited += frames
        self.waited_ms += frames * ms
        self.waited_ms_max = max(self.waited_ms_max, ms)


class ComparedOutput:
    """The gate of policy ``colo``: :class:`colo.filters.hold.Gate`."""

    def __init__(
        self,
        say: Callable[[str, bytes], None],
        diverged: Callable[[str], None],
        now_ms: Callable[[], float],
        nets: Mapping[str, bool],
        *,
        console: str = PORT,
        mode: str = "strict",
        settings: Settings = SETTINGS,
        frames_max: int = TAKEN_FRAMES,
        bytes_max: int = TAKEN_BYTES,
    ) -> None:
        """``nets`` are the cards' ports, each with whether its frames have a virtio-net header.

        ``diverged`` is told the cause, once for each checkpoint; :attr:`divergence` is the whole story.
        """
        self._say = say
        self._tell = diverged
        self._now_ms = now_ms
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._lanes: dict[str, Lane] = {}
        for port, vnet in nets.items():
            comparison = open_comparison(mode, msgspec.structs.replace(settings, vnet=vnet))
            self._lanes[port] = Lane(port, comparison, lossy=mode == "qemu")
        self._lanes[console] = ConsoleLane(console, ConsoleComparison(console, settings))
        self._open = False
        self._full = False  # nothing more is taken
        self._missed = False  # the comparison was not shown all that the guest said
        self._frames = self._bytes = 0  # that wait
        self._ahead: list[Packet] = []  # of the secondary, while shut
        self._ahead_bytes = 0
        self.account = Account()
        self.divergence: Diverged | None = None
        """The first since the last cut."""

    # The primary's guest

    def offer(self, port: str, frame: bytes) -> bool:
        """The guest said this.  False: it waits in the hold, as all that it says from here to the cut."""
        lane = self._lanes.get(port)
        if lane is None or not self._open:
            return False
        if self._full or self._frames >= self._frames_max or self._bytes + len(frame) > self._bytes_max:
            self._refuse(port)
            return False
        account, now_ms = self.account, self._now_ms()
        decisions = lane.comparison.feed_primary(frame, now_ms)
        account.taken += 1
        if len(decisions) == 1 and isinstance(decisions[0], Release) and decisions[0].frame is frame:
            account.said += 1
            account.bytes_said += len(frame)
            self._say(port, frame)
            return True
        lane.keep((account.taken, port, frame, now_ms))
        self._frames += 1
        self._bytes += len(frame)
        self._act(lane, decisions, now_ms)
        return True

    def cut(self) -> list[Packet]:
        """In the pause: what waits, in order.  Shut from here on.

        Of a gate that was shut already, too: it was not shown what the guest said since.  So one that was out
        of use for some epochs is cut before it is used again.
        """
        self._ahead, self._ahead_bytes = [], 0  # they tell of an epoch that ends here
        now_ms = self._now_ms()
        everything: list[Taken] = []
        for lane in self._lanes.values():
            lane.comparison.checkpoint()  # its releases are what waits
            if self._missed or not self._open:
                lane.comparison.forget()
            everything += lane.take_all()
        everything.sort()  # by number
        for taken in everything:
            self.account.note_wait(1, now_ms - taken[3])
        self.account.handed_over += len(everything)
        self._open = self._full = self._missed = False
        self._frames = self._bytes = 0
        self.divergence = None
        return [(port, frame) for _, port, frame, _ in everything]

    def open(self, waiting: list[Packet]) -> list[Packet]:
        """The cut is committed: take what was said since, in order.  Returns what must go on waiting."""
        assert not self._open, "a gate is opened once after each cut"
        self._open = True
        refused = [packet for packet in waiting if not self.offer(*packet)]
        ahead, self._ahead, self._ahead_bytes = self._ahead, [], 0
        for port, frame in ahead:
            self.heard(port, frame)
        return refused

    # The secondary's guest

    def heard(self, port: str, frame: bytes) -> None:
        """The secondary said this since the last cut; in its order, in the primary's sequence numbers."""
        lane = self._lanes.get(port)
        if lane is None:
            self.account.unheard += 1
        elif not self._open:
            self._keep_ahead(port, frame)
        else:
            now_ms = self._now_ms()
            self._act(lane, lane.comparison.feed_secondary(frame, now_ms), now_ms)

    # Time

    @property
    def waits(self) -> bool:
        """Is a tick due every few milliseconds?"""
        return self._open and any(lane.comparison.waits for lane in self._lanes.values())

    def tick(self) -> None:
        """Find what waited for too long."""
        if self._open:
            now_ms = self._now_ms()
            for lane in self._lanes.values():
                self._act(lane, lane.comparison.tick(now_ms), now_ms)

    # For a reader

    @property
    def held_frames(self) -> int:
        return self._frames

    @property
    def held_bytes(self) -> int:
        return self._bytes

    @property
    def held_age_ms(self) -> float:
        """How long the oldest frame has been waiting here."""
        times = [since for lane in self._lanes.values() if (since := lane.since_ms()) is not None]
        return self._now_ms() - min(times) if times else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Decisions by cause (:class:`colo.compare.verdict.Reason`), of all ports."""
        total: Counter[str] = Counter()
        for lane in self._lanes.values():
            total.update(lane.comparison.counts)
        return dict(total)

    def facts(self) -> dict[str, int | float]:
        """All that is counted here, and what waits now."""
        account = self.account
        return {
            **{name.replace("_", "-"): getattr(account, name) for name in account.__struct_fields__},
            "waited-ms-mean": account.waited_ms_mean,
            "held-frames": self._frames,
            "held-bytes": self._bytes,
            "held-age-ms": self.held_age_ms,
        }

    def conversations(self) -> Iterator[Status]:
        return chain.from_iterable(lane.comparison.conversations() for lane in self._lanes.values())

    # Private

    def _act(self, lane: Lane, decisions: list[Decision], now_ms: float) -> None:
        for decision in decisions:
            if isinstance(decision, Drop):
                if decision.primary:
                    self._not_kept(lane, decision.frame)
            elif isinstance(decision, Release):
                frame, account = decision.frame, self.account
                frames, waited_ms = self._take(lane, frame, now_ms)
                if waited_ms:
                    account.note_wait(frames, waited_ms)
                account.said += frames
                account.bytes_said += len(frame)
                self._say(lane.port, frame)
            else:
                self._diverge(decision)

    def _take(self, lane: Lane, frame: bytes, now_ms: float) -> tuple[int, float]:
        """``frame`` waits no longer: how many that ends, and how long the first waited."""
        frames, since_ms = lane.take(frame)
        self._frames -= frames
        self._bytes -= len(frame)
        return frames, now_ms - since_ms

    def _not_kept(self, lane: Lane, frame: bytes) -> None:
        """The comparison has no room for a frame of the primary; it asked for a checkpoint before."""
        if lane.lossy:
            self.account.lost += self._take(lane, frame, 0.0)[0]
        else:
            self._missed = True

    def _refuse(self, port: str) -> None:
        self.account.refused += 1
        self._missed = True
        if not self._full:
            self._full = True
            self._diverge(Diverged(Reason.QUEUE_FULL, port, f"{self._frames} frames wait on all ports"))

    def _diverge(self, found: Diverged) -> None:
        self.account.triggers += 1
        if self.divergence is None:
            self.divergence = found
            self._tell(found.reason.name.lower().replace("_", " "))

    def _keep_ahead(self, port: str, frame: bytes) -> None:
        if len(self._ahead) >= AHEAD_FRAMES or self._ahead_bytes + len(frame) > AHEAD_BYTES:
            self.account.unheard += 1
            return
        self._ahead.append((port, frame))
        self._ahead_bytes += len(frame)
