"""Mistakes that somebody could make in the rules of early release, one class each.

In the rules themselves (:mod:`colo.node.logged`, :mod:`colo.node.compared`), in the secondary's part of them
(:mod:`colo.node.follower`, :mod:`colo.node.runner`), and in the halves around them.
:mod:`tests.protocol.test_early_orders` plants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from colo.errors import PeerLost
from colo.filters.console import PORT
from colo.life import Life
from colo.messages import Log, Message, Packet, Progress, Said
from colo.node.compared import Compared
from colo.node.follower import Follower
from colo.node.logged import Logged
from colo.node.runner import Runner
from tests.protocol.toy_secondary import ToySecondary

# Lock-step, the primary's rule


class SaysFirst(Logged):
    """What is said goes out, and then into the log."""

    def offer(self, port: str, frame: bytes) -> bool:
        if not self._is_open or not self._peer_follows:
            return False
        self._hold.say(port, frame)
        self._publish()
        return True

    def open(self) -> None:
        self._is_open = self._peer_follows
        for packet in self._hold.take_open() if self._is_open else []:
            self._hold.say(*packet)
        self._publish()


class SaysWithoutFrontier(Logged):
    """Every input before it is held by the secondary: that is enough, is it not?"""

    def offer(self, port: str, frame: bytes) -> bool:
        if not self._is_open or not self._peer_follows or self._writer._inputs or self._held < self._words:
            return super().offer(port, frame)
        self._hold.say(port, frame)
        return True


class CountsWhatWaits(Logged):
    """What the kernel did not take yet counts as held."""

    def _note_taken(self, taken: bool) -> None:
        super()._note_taken(True)


class OpensAtTheCut(Logged):
    """Output of the new epoch goes before the secondary has the epoch."""

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._is_open = True


class KeepsWhatItTook(Logged):
    """What waits at a cut is not handed over."""

    def cut(self) -> list[Packet]:
        self._is_open = False
        return []


class TellsBeforeItSays(Logged):
    """What waits for the log is counted among what the world has heard."""

    def offer(self, port: str, frame: bytes) -> bool:
        self._spoken[port] = self._spoken.get(port, 0) + len(frame)
        return super().offer(port, frame)

    def _say_held(self) -> None:
        counted = dict(self._spoken)
        super()._say_held()
        self._spoken.update(counted)


class LogsOnlyOutput(Logged):
    """Inputs that came since the last output stay in the writer until the next one."""

    def _look(self, waits: bool) -> None:
        inputs, self._writer._inputs = self._writer._inputs, []
        super()._look(waits)
        self._writer._inputs = inputs


# Lock-step, the secondary's part


class LiveAtTheLastInput(Follower):
    """A survivor follows the log to its last input, and not to its frontier."""

    def drain(self) -> bool:
        self._companion.shut()
        self._take_logs()
        inputs = self._reader._inputs
        self._reader._expected.clear()
        self._reader.frontier_ns = inputs[-1][0] if inputs else self._machine.clock.now_ns
        return super().drain()


class DrainsUnshut(Follower):
    """The log is read to the end, and may go on."""

    def drain(self) -> bool:
        while self._step():
            continue
        return not self._departed


class DrainsNothing(Follower):
    """A survivor is what it has executed; what lies in the queue is dropped."""

    def drain(self) -> bool:
        self._companion.close()
        return super().drain()


class ForgetsTheUnspoken(Follower):
    """What the primary may have died before it said is taken for said."""

    def unspoken(self) -> list[Packet]:
        return []


class FollowsWordsOfAnyEpoch(Follower):
    """Words that follow another cut are followed from this one."""

    def _word(self) -> Message | None:
        word = super()._word()
        if isinstance(word, Log) and word.epoch < self._reader.epoch:
            self._next = word = msgspec.structs.replace(word, epoch=self._reader.epoch)
        return word


class AcknowledgesTooMuch(Follower):
    """A word more than was received."""

    def _say(self, word: Progress) -> None:
        super()._say(msgspec.structs.replace(word, held=word.held + 1))


class TellsNobody(Follower):
    """A guest that differs stands still, and that is all."""

    def _depart(self, what: str) -> None:
        self._departed = True


class GivesUpReading(Follower):
    """A word that cannot be sent any more ends the reading, too."""

    def _say(self, word: Progress) -> None:
        super()._say(word)
        self._ended = self._ended or self._companion.lost is not None


def _drop_what_came(half: ToySecondary) -> None:
    with suppress(PeerLost):
        while half.life is Life.FOLLOW and half.companion.receive() is not None:
            continue


class DiscardsAtTheSeal(ToySecondary):
    """The log ends where the epoch is sealed: what came until now belongs to the old one."""

    def sealed(self, epoch: int) -> None:
        super().sealed(epoch)
        _drop_what_came(self)


class DiscardsAtTheRequest(ToySecondary):
    """A checkpoint begins, so the log of the epoch before it will not be needed."""

    def stand_still(self) -> None:
        super().stand_still()
        _drop_what_came(self)


class GoesLiveAtTheSeal(ToySecondary):
    """A survivor of a sealed epoch does not look into the log that follows it."""

    def be_current(self) -> None:
        if self.stage is None:
            super().be_current()
            return
        self.stage.life = Life.WAIT
        super().be_current()


class IgnoresTheStage(ToySecondary):
    """A guest that lives is newer than an epoch that is sealed."""

    def be_current(self) -> None:
        if self.life is not Life.WAIT:
            self.stage = None
        super().be_current()


class GoesBack(ToySecondary):
    """A survivor is the last epoch that was installed."""

    def be_current(self) -> None:
        if self.stage is None and self.life is not Life.WAIT:
            self._stop_living()
            self.machine.guest.load(self.state)
            self.life = Life.WAIT
        super().be_current()


class KeepsWhatItWrote(ToySecondary):
    """The pages that a living guest wrote are not given back before the next epoch is put over them."""

    def _stop_living(self) -> None:
        self.machine.guest.dirty.clear()
        super()._stop_living()


# Both run


class SaysWhatItLikes(Compared):
    """Nobody waits for the secondary's word."""

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._gate.offer = self._say  # type: ignore[method-assign]

    def _say(self, port: str, frame: bytes) -> bool:
        if not self._gate._open:
            return False
        self._hold.say(port, frame)
        return True


class ComparesFromTheCut(Compared):
    """The gate is open before the epoch is committed."""

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._gate.open([])

    def open(self) -> None:
        """It is."""


class HearsTheDead(Compared):
    """Tidings of a guest that a checkpoint replaced are tidings."""

    def _act_on(self, word: Message) -> None:
        super()._act_on(msgspec.structs.replace(word, epoch=self._epoch) if isinstance(word, Said) else word)


class RepeatsNoConsole(Runner):
    """A survivor says frames again, and nothing of what a reader of the console may not have seen."""

    def repeated(self) -> list[Packet]:
        return [packet for packet in super().repeated() if packet[0] != PORT]


class ShowsTooEarly(Compared):
    """The console's bytes are told as seen when the guest says them."""

    def offer(self, port: str, frame: bytes) -> bool:
        if port == PORT:
            self._shown += len(frame)
        return super().offer(port, frame)


class GivesOldInputs(Runner):
    """Inputs of an epoch that is part of the state are given once more."""

    def _word(self) -> Message | None:
        word = super()._word()
        if isinstance(word, Log) and word.epoch < self._epoch:
            self._next = word = msgspec.structs.replace(word, epoch=self._epoch)
        return word


class RemembersTooMuch(Runner):
    """What the guest said before the cut is told as said after it."""

    _kept: Sequence[Packet] = ()

    def _say(self, word: Message) -> None:
        self._kept = getattr(word, "packets", self._kept)
        super()._say(word)

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        for port, frame in self._kept:
            self._sayings.hear(port, frame)
