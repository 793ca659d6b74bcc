"""Policy ``colo`` on the primary: its guest's inputs are mirrored, and what both guests say goes out.

**What may be said before the commit, and why it is safe** is in :mod:`colo.filters.compared`, which decides.
Here is how the secondary's guest comes to know what ours was given, and how its answers come back.
Everything passes the companion connection between the two guests' threads; what tells of another epoch is
void.

**Tidings** of what ours was given go before our guest acts on it.  Where a bridge brings frames to both
guests they are news to nobody, and go some fifty times a second, and at each cut, so that the secondary knows
which frames are in what its guest is made from.  What no bridge brings, such as a console's input, goes at
once.

**Waking.**  What the other guest said is read when ours says something, and while ours waits or something of
ours does: a guest that runs is not stopped for what nobody waits for.

**The fence.**  A survivor shuts the connection before it speaks.  A primary that was stopped meanwhile and
runs on still has here what the survivor's guest had said before: the same words, so nothing false, but late,
and from a node that no switch should learn to be the guest's.  So it looks, right before each frame, whether
the connection was shut, or may have been (:mod:`colo.node.fence`), and says nothing any more then.

Frames are mirrored as their clients sent them: the secondary of a survivor that still translates for some
(:mod:`colo.rewrite`) does so by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from colo.errors import PeerLost, ProtocolViolation
from colo.filters.compared import ComparedOutput
from colo.filters.console import PORT
from colo.life import Life
from colo.messages import INPUTS_MAX, Diverged, Log, LoggedInput, Message, Packet, Progress, Said
from colo.node.fence import Fence
from colo.node.replica import Replica
from colo.peer import brief
from colo.transport.companion import Companion
from vmm.machine import Ended

BACKLOG_MAX = 1 << 20
"""Bytes that the secondary has not read: our guest stands still until it has."""
WORD_BYTES = 256 << 10
TICK_S = 0.004
TIDINGS_EVERY_S, TIDINGS_MAX = 0.02, 64
"""To a guest that is given the same frames without us, what ours was given is told this often."""


class Compared:
    """Life.RUN; a gate (:class:`colo.filters.hold.Gate`) and a rule (:class:`colo.node.early.Early`)."""

    life = Life.RUN

    def __init__(
        self,
        replica: Replica,
        companion: Companion,
        mode: Callable[[], str],
        differs: Callable[[tuple[int, str]], None],
        fence: Fence | None = None,
    ) -> None:
        """``mode`` of comparison may change from one epoch to the next.

        ``differs`` is told in which epoch a checkpoint became necessary and why, once for each, by the
        guest's thread.
        """
        self._replica = replica
        self._machine = replica.machine
        self._hold = replica.hold
        self._companion = companion
        self._fence = fence or Fence(companion)
        self._wanted_mode = mode
        self._mode = mode()
        self._differs = differs
        self._gate = self._new_gate()
        self._epoch = -1
        self._peer_runs = self._peer_hears = False
        """The other guest runs; it is given frames without us."""
        self._listens = False
        self._told_s = 0.0
        self._cards = {net.name for net in replica.nets}
        self._has_news = False
        """Something that does not come to the other guest by itself."""
        self._inputs: list[LoggedInput] = []
        self._bytes = 0
        self._shown = self._shown_told = 0
        """Bytes of the console, in this epoch: that the world heard, and of which the secondary knows."""
        self._counts = {"inputs-mirrored": 0, "outputs-compared": 0, "stalls": 0}

    def _new_gate(self) -> ComparedOutput:
        return ComparedOutput(
            self._say,
            lambda cause: self._differs((self._epoch, cause)),
            lambda: self._replica.now_s() * 1e3,
            {net.name: net.offloads for net in self._replica.nets},
            mode=self._mode,
        )

    # Early

    def begin(self, epoch: int) -> None:
        machine = self._machine
        self._tell_the_rest()
        self._epoch, self._peer_runs, self._peer_hears = epoch, True, False
        self._listens = False
        self._inputs, self._bytes, self._has_news = [], 0, False
        self._shown = self._shown_told = 0
        machine.door.heard = self._mirror
        machine.watch(self._look)
        self._listen(True)
        self._replica.guest.drive_by(self._run, self._companion.fileno())
        if self._mode != (mode := self._wanted_mode()):
            self._mode, self._gate = mode, self._new_gate()
        if self._hold.gate is not self:
            self._gate.cut()  # it was not shown what was said under another rule
        self._hold.gate = self

    def open(self) -> None:
        if self._fence.is_shut:
            return  # this node was stopped between the commit and here: everything waits for who wins
        for port, frame in self._gate.open(self._hold.take_open()):
            self._hold.hold(port, frame)
        self.hear()

    def end(self) -> None:
        machine = self._machine
        self._tell_the_rest()
        machine.door.heard = None
        machine.watch(None)
        self._listen(False)
        self._replica.guest.drive_by(None)

    def _tell_the_rest(self) -> None:
        """At a cut: it is part of what the other guest will be made from."""
        if self._has_tidings:
            self._send()

    @property
    def waits(self) -> bool:
        """Is a tick due every ``TICK_S``?"""
        return self._gate.waits or self._is_tiding_due

    def tick(self) -> None:
        if self._is_tiding_due:
            self._send()
        self._gate.tick()

    @property
    def _has_tidings(self) -> bool:
        return bool(self._inputs) or self._shown != self._shown_told

    @property
    def _is_tiding_due(self) -> bool:
        return self._has_tidings and self._replica.now_s() - self._told_s >= TIDINGS_EVERY_S

    def facts(self) -> dict[str, int | float]:
        causes = {f"decided-{cause.replace('_', '-')}": count for cause, count in self._gate.counts.items()}
        return {**self._counts, **self._gate.facts(), **causes}

    # Gate

    def offer(self, port: str, frame: bytes) -> bool:
        """What the other guest has said already decides at once; only what waits is worth being woken for."""
        if self._peer_runs and not self._gate.waits:
            self.hear()
        if self._fence.is_shut or not self._gate.offer(port, frame):
            return False
        if self._gate.waits:
            self._listen(True)
        return True

    def cut(self) -> list[Packet]:
        return self._gate.cut()

    # Our guest

    def _say(self, port: str, frame: bytes) -> None:
        """What the peer said too; unless it acts alone by now, because we were stopped right here."""
        if self._fence.is_shut:
            self._hold.hold(port, frame)
            return
        self._hold.say(port, frame)
        if port == PORT:
            self._shown += len(frame)
            self._has_news = True

    def _mirror(self, port: str, payload: bytes) -> None:
        """Our guest was given this, and has not seen it yet."""
        payload = self._replica.as_sent(port, payload)
        self._inputs.append((self._machine.clock.now_ns, port, payload))
        self._bytes += len(payload)
        self._has_news |= not self._peer_hears or port not in self._cards
        if len(self._inputs) >= INPUTS_MAX or self._bytes >= WORD_BYTES:
            self._send()

    def _look(self, waits: bool) -> None:
        """Between two blocks: what was given since the last one goes before our guest acts on it.

        Or later, where it is news to nobody.
        """
        if self._has_news or len(self._inputs) >= TIDINGS_MAX:
            self._send()
        elif self._companion.backlog and self._peer_runs:
            with suppress(PeerLost):  # met, and acted on, elsewhere
                self._companion.flush()
        if self._companion.backlog > BACKLOG_MAX:
            self._machine.pause()
        self._listen(waits or self._gate.waits)

    def _listen(self, wanted: bool) -> None:
        """Whether our guest stops when the other one says something."""
        if wanted != self._listens:
            self._listens = wanted
            self._machine.call(self._companion.fileno(), self.hear if wanted else None)

    def _send(self) -> None:
        inputs, self._inputs, self._bytes = self._inputs, [], 0
        self._has_news = False
        self._shown_told = self._shown
        if not self._peer_runs:
            return
        self._told_s = self._replica.now_s()
        self._counts["inputs-mirrored"] += len(inputs)
        now_ns, spoken = self._machine.clock.now_ns, {PORT: self._shown}
        try:
            self._companion.send(Log(self._epoch, now_ns, inputs, [], spoken))
        except PeerLost:
            self._peer_runs = False  # its loss is met, and acted on, elsewhere

    def _run(self) -> Ended:
        """For the guest's thread: run on, unless the other guest does not read what it is given."""
        if self._peer_runs and self._companion.backlog > BACKLOG_MAX:
            self.hear()
            if self._companion.backlog > BACKLOG_MAX:
                self._counts["stalls"] += 1
                return Ended.IDLE
        return self._replica.guest.run_freely()

    # The other guest

    def hear(self) -> None:
        """What the secondary's guest said."""
        try:
            if self._companion.backlog:
                self._companion.flush()
            if self._companion.peer_left:
                raise PeerLost("the peer ended its side")
            while (word := self._companion.receive()) is not None:
                self._act_on(word)
        except (PeerLost, ProtocolViolation):
            self._peer_runs = False
            self._listen(False)

    def _act_on(self, word: Message) -> None:
        match word:
            case Said(epoch=epoch, packets=packets) if epoch == self._epoch:
                for port, frame in packets:
                    self._counts["outputs-compared"] += 1
                    self._gate.heard(port, frame)
            case Progress(epoch=epoch, held=held) if epoch == self._epoch:
                self._peer_hears = held > 0
            case Said() | Diverged() | Progress():
                return  # of an epoch that is over, whatever its policy was
            case _:
                raise ProtocolViolation(f"expected Said, the peer sent {brief(word)}")
