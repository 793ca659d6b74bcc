"""Policy ``lockstep`` on the secondary: its guest does what the primary's log says, and no more.

The guest's thread reads the log and runs the machine to the frontier of what has come; the machine hears
nothing else (its pacer is deaf, its cards and consoles are muted) and what it says is compared.  At the
first difference the guest stands still, the primary is told, and the next checkpoint repairs it.

The reverse: :meth:`Follower.drain`, for a survivor, shuts the log for its sender, reads it to the end, and
leaves a machine that stands where the primary was last known to be, with nothing left unheard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from colo.errors import Departed, PeerLost, ProtocolViolation
from colo.lockstep import marks
from colo.lockstep.reader import LogReader
from colo.messages import Diverged, Log, Mark, Message, Packet, Progress
from colo.node.replica import Replica
from colo.node.standby_frames import StandbyFrames
from colo.peer import brief
from colo.transport.companion import Companion
from colo.transport.wire import COMPANION_MAX
from vmm.errors import ReplayError
from vmm.machine import Ended

STEP_NS = 20_000_000
"""Virtual time after which the primary hears how far we are."""
TELL_EVERY_S = 0.005
FRAMES_ROUND_S = 0.2
"""How long a frame may wait for the primary's word that its guest was given it, twice."""
STATE_MAX = COMPANION_MAX // 2
"""Bytes of device state that travel with a divergence."""


class Follower:
    """For the guest's thread, but for the constructor."""

    def __init__(
        self,
        replica: Replica,
        companion: Companion,
        frames: dict[str, StandbyFrames],
        violated: Callable[[str], None],
    ) -> None:
        """``violated`` is told, by the guest's thread, of a word that the protocol does not allow."""
        self._replica = replica
        self._machine = replica.machine
        self._now_s = replica.now_s
        self._companion = companion
        self._frames = frames
        self._violated = violated
        self._reader = LogReader(-1, 0, [])
        self._paced = replica.machine.pacer.paced
        self._next: Message | None = None
        """A word that was received and is not to be followed yet."""
        self._ended = False
        """Nothing more will be received."""
        self._departed = self._over = False
        self._done = self._told = 0
        self._told_s = self._round_s = 0.0
        self.words = 0
        self.divergences = 0

    @property
    def has_departed(self) -> bool:
        """Its guest differs from the primary's, or ended where that one went on; from any thread."""
        return self._departed

    # The life of one epoch

    def begin(self, epoch: int) -> None:
        """The machine is the epoch's, installed and loaded."""
        machine, replica = self._machine, self._replica
        self._reader = LogReader(epoch, machine.clock.now_ns, machine.door.ports)
        self._departed = self._over = False
        self._done = self._told = 0
        machine.door.replayer = self._reader
        machine.pacer.paced, machine.pacer.deaf = False, True
        replica.divert(self._reader.said)
        replica.guest.drive_by(self.follow, self._companion.fileno())

    def end(self) -> None:
        """Stand still, and be an ordinary machine again, in what way it is to go on."""
        machine, replica = self._machine, self._replica
        machine.door.replayer = None
        machine.pacer.paced, machine.pacer.deaf = self._paced, False
        replica.divert(None)
        replica.guest.drive_by(None)

    # Following

    def follow(self) -> Ended:
        """Take what has come, run as far as that allows; IDLE when it allows nothing."""
        try:
            moved = self._step()
            self._tell()
        except ProtocolViolation as exc:
            moved, self._over = False, True
            self._violated(str(exc))
        if self._ended and not moved:  # acted on elsewhere; a dead connection would keep us awake
            self._replica.guest.drive_by(self.follow)
        owes = self._done != self._told or bool(self._companion.backlog)
        self._replica.guest.idle_s = TELL_EVERY_S if owes and not self._ended else None
        return Ended.TIME if moved else Ended.IDLE

    def _step(self) -> bool:
        """Was there anything to do?"""
        if self._over or self._departed:
            return self._discard()
        try:
            taken = self._take_logs()
            if self._is_due:
                self._run()
                return True
            if taken:
                self._reached()  # no time passed on the primary's side
            word = self._next
            if isinstance(word, Mark) and word.epoch == self._reader.epoch:
                self._next = None
                self._compare(word)
                return True
            return taken
        except (Departed, ReplayError) as exc:
            self._depart(str(exc))
            return True

    @property
    def _is_due(self) -> bool:
        reader, now_ns = self._reader, self._machine.clock.now_ns
        return now_ns < reader.frontier_ns or reader.next_input_ns <= now_ns

    def _run(self) -> None:
        machine, reader = self._machine, self._reader
        ended = machine.run(min(reader.frontier_ns, machine.clock.now_ns + STEP_NS))
        if not self._is_due and ended not in (Ended.REQUEST, Ended.PAUSED):
            self._reached()
        elif ended not in (Ended.TIME, Ended.REQUEST, Ended.PAUSED):
            raise Departed(f"its guest ended ({ended.value}), the log goes on to {reader.frontier_ns} ns")

    def _reached(self) -> None:
        self._reader.reached()
        self._done = self._reader.words

    def _word(self) -> Message | None:
        """The next word, which stays the next until somebody takes it."""
        if self._next is None and not self._ended:
            try:
                self._next = self._companion.receive()
            except PeerLost:
                self._ended = True
        return self._next

    def _take_logs(self) -> bool:
        """All that have come, up to the first word that is no log of this epoch."""
        found = False
        while (word := self._word()) is not None:
            epoch = getattr(word, "epoch", -1)
            if epoch >= self._reader.epoch and not isinstance(word, Log | Mark):
                raise ProtocolViolation(f"expected Log or Mark, the peer sent {brief(word)}")
            if epoch > self._reader.epoch or (epoch == self._reader.epoch and not isinstance(word, Log)):
                break
            self._next = None
            if epoch == self._reader.epoch and isinstance(word, Log):
                self._reader.take(word)
                self.words += 1
                found = True
            if isinstance(word, Log):  # of an epoch that is over, too: its frames are in what we began as
                self._match_frames(word)
        if found and not self._companion.held_on_send:
            self._say(Progress(self._reader.epoch, self._reader.words, self._done))
        return found

    def _discard(self) -> bool:
        """Nothing of this epoch is followed any more; words of the next one wait."""
        while (word := self._word()) is not None and getattr(word, "epoch", -1) <= self._reader.epoch:
            self._next = None
            if isinstance(word, Log):
                self._match_frames(word)
        return False

    def _match_frames(self, word: Log) -> None:
        """A frame that the primary's guest was given is no longer one that it may not have heard."""
        for port, frames in self._frames.items():
            frames.collect()
            for _, given, payload in word.inputs:
                if given == port:
                    frames.given(payload)
        now_s = self._now_s()
        if now_s - self._round_s >= FRAMES_ROUND_S:
            self._round_s = now_s
            for frames in self._frames.values():
                frames.committed()

    def _compare(self, mark: Mark) -> None:
        if mark.first_page * 4096 >= self._machine.ram.size:
            raise ProtocolViolation(f"a mark of page {mark.first_page:#x}, which this machine lacks")
        sections = self._machine.everything_unchecked()
        marks.compare(mark, self._machine.clock.now_ns, sections, self._machine.ram.array)
        self._reader.words += 1
        self._done = self._reader.words

    def _depart(self, what: str) -> None:
        self._departed = True
        self.divergences += 1
        sections = self._machine.everything_unchecked()
        if sum(map(len, sections.values())) > STATE_MAX:
            sections = {}
        now_ns = self._machine.clock.now_ns
        self._replica.report("departed", {"epoch": self._reader.epoch, "ns": now_ns, "what": what})
        self._say(Diverged(self._reader.epoch, now_ns, what, sections))

    def _tell(self) -> None:
        now_s = self._now_s()
        if self._companion.backlog:
            with suppress(PeerLost):
                self._companion.flush()
        if self._done != self._told and now_s - self._told_s >= TELL_EVERY_S:
            self._told, self._told_s = self._done, now_s
            self._say(Progress(self._reader.epoch, self._reader.words, self._done))

    def _say(self, word: Message) -> None:
        """A primary that cannot be told any more may have said much that is still to be received."""
        with suppress(PeerLost):
            self._companion.send(word)

    # Taking over

    def drain(self) -> bool:
        """Follow the log to its end, beyond which nothing was heard; False when the guest had departed."""
        self._companion.shut()
        try:
            while self._step():
                continue
        except ProtocolViolation as exc:
            self._replica.report("log-refused", {"reason": str(exc)})
        return not self._departed

    def unspoken(self) -> list[Packet]:
        """What the primary may have died before it said."""
        return self._reader.unspoken()
