"""What the world hears, and what must be true of it.

The judge knows what nobody in the pair knows: every byte said, by whom and to whom, and who won each
generation. Its rules are about what can be noticed from outside, and about the survivor; it looks into no
variable of the code under test, but for the failover's status and the life of a secondary's guest.

Each client, and whoever reads the console, hears one stream of bytes.  Where in it a piece belongs follows
from the memory of the guest that is said to have said it, so nothing can be said that no guest ever did.

The rule for two speakers allows one thing.  A primary that does not know yet that the other one won may still
say what it could say before (it was stopped, say, between the commit of an epoch and the saying, or between
the sending of a log and the saying).  No protocol without a fence at the network can forbid that; from the
take-over on it must be no more than a repetition: the survivor has these words in its history and says them,
too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from colo.failover import Failover, FailoverStatus
from colo.life import Life
from tests.protocol.toy_guest import STREAMS, TERMINAL, WORD_BYTES, Kind, Word, executions, words_of
from tests.protocol.toy_machine import HELD_HARD, Image, ToyMachine
from tests.protocol.toy_primary import ToyPrimary
from tests.protocol.toy_secondary import ToySecondary

STATUS_AFTER = {
    ("none", "require"),
    ("none", "relaunch"),
    ("relaunch", "none"),
    ("require", "active"),
    ("active", "completed"),
}
"""The diagram of colo.failover, written down apart from its table."""
HELD_MOST = HELD_HARD + 8
"""Words that wait for a commit, with what one step adds; a gate may hand over some times as many."""
BEHIND_A_GATE = 4


class Violation(AssertionError):
    """Something that must never happen did; ``rule`` names what."""

    def __init__(self, rule: str, step: int, text: str) -> None:
        super().__init__(f"{rule} at step {step}: {text}")
        self.rule, self.step = rule, step


class WatchedFailover(Failover):
    """The real one, with its transitions checked against the diagram and noted."""

    def __init__(self, noted: Callable[[str], None]) -> None:
        super().__init__()
        self._noted = noted

    def _become(self, status: FailoverStatus) -> None:
        before = self.status
        super()._become(status)
        assert (before.value, status.value) in STATUS_AFTER, f"{before} to {status}"
        self._noted(status.value)


@dataclass(eq=False)
class Client:
    """One connection: an operation at a time, sent again until it is acknowledged."""

    number: int
    asked: int = 0
    acknowledged: int = 0
    sent_at: int = 0

    @property
    def waits(self) -> bool:
        return self.asked > self.acknowledged

    def value(self, operation: int) -> int:
        """What operation adds; known without asking anybody."""
        return 7 * operation + self.number

    def total(self, operation: int) -> int:
        return sum(map(self.value, range(1, operation + 1)))


@dataclass
class Judge:
    """The world's ears."""

    fail: Callable[[str, str], None]
    """Raises Violation."""
    note: Callable[[str, str, object], None]
    clients: list[Client]
    heard: list[bytearray] = field(default_factory=lambda: [bytearray() for _ in range(STREAMS)])
    """By stream; a gap is filled with what the survivor knows to have stood there."""
    held_most: int = HELD_MOST
    gaps: int = 0
    """Bytes to clients that a survivor's guest said and nobody heard."""
    master: str = ""
    """Who may speak: who served first, or has won since."""
    winners: dict[int, str] = field(default_factory=dict)
    taken_over: dict[str, list[int]] = field(default_factory=dict)
    """How long the history of each survivor was at its take-over, by stream."""
    halves: dict[str, ToyPrimary | ToySecondary] = field(default_factory=dict)
    """What each node that is in a pairing does there."""
    led_by: dict[str, str] = field(default_factory=dict)
    """The primary that each secondary followed."""
    images: dict[tuple[int, int, str], Image] = field(default_factory=dict)
    _cursors: dict[tuple[str, int], int] = field(default_factory=dict)
    """Behind the last piece that each node said, by stream."""
    _ran: set[str] = field(default_factory=set)
    """Survivors that had been running beside."""

    # Words

    def hear(self, machine: ToyMachine, stream: int, data: bytes) -> None:
        name, heard = machine.name, self.heard[stream]
        at = self._place(machine, stream, data)
        self.note(name, "says", (stream, at, data))
        if machine.halted:
            self.fail("a loser never runs again", f"{name} was halted")
        self._check_turn(name, stream, at + len(data))
        if at > len(heard):
            self._skip(machine, stream, at)
        if heard[at : at + len(data)] != data[: len(heard) - at]:
            self.fail("one history", f"{name} says byte {at} to {stream} otherwise than it was heard")
        known = len(heard) // WORD_BYTES * WORD_BYTES
        heard += data[len(heard) - at :]
        for word in words_of(bytes(heard[known:])):
            self._acknowledge(stream, word)

    def _place(self, machine: ToyMachine, stream: int, data: bytes) -> int:
        """Where in what its guest ever said to ``stream`` this stands."""
        key, length = (machine.name, stream), len(self.heard[stream])
        size = machine.guest.registers.said[stream] * WORD_BYTES
        at = self._cursors.get(key, length)
        if at + len(data) > size or machine.guest.said_at(stream, at, len(data)) != data:
            text = machine.guest.spoken(stream)
            places = [at for at in range(size) if text.startswith(data, at)]
            if not places:
                self.fail("nothing is invented", f"{machine.name} never said this to {stream}")
            at = min(places, key=lambda at: abs(length - at))
        self._cursors[key] = at + len(data)
        return at

    def _skip(self, machine: ToyMachine, stream: int, at: int) -> None:
        """Only what a running secondary said to a client before it took over."""
        heard = self.heard[stream]
        if stream == TERMINAL or not self._may_be_lost(machine.name, stream, at):
            self.fail("one history", f"{machine.name} says byte {at} to {stream}, {len(heard)} were heard")
        self.gaps += at - len(heard)
        heard += machine.guest.said_at(stream, len(heard), at - len(heard))

    def _may_be_lost(self, name: str, stream: int, end: int) -> bool:
        return name in self._ran and end <= self.taken_over[name][stream]

    def _check_turn(self, name: str, stream: int, end: int) -> None:
        half = self.halves.get(name)
        if name != self.master:
            successor = None if half is None else self.winners.get(half.generation + 1)
            if successor is None or self.led_by.get(successor) != name:
                self.fail("one speaker", f"{name} speaks, {self.master} has the word")
            elif end > self.taken_over.get(successor, [end] * STREAMS)[stream]:
                self.fail("one speaker", f"{name} says something new, {successor} has taken over")
        if half is None or half.failover.status is not FailoverStatus.ACTIVE:
            return
        promised = isinstance(half, ToySecondary) or half.has_promised
        if promised and self.winners.get(half.generation + 1) != name:
            self.fail("silent until it has won", f"{name} speaks")

    def _acknowledge(self, stream: int, word: Word) -> None:
        if word.kind not in (Kind.REPLY, Kind.AGAIN):
            return
        client = self.clients[stream]
        if word.total != client.total(word.number):
            self.fail("executed once", f"client {client.number} is told {word.total} after {word.number}")
        client.acknowledged = max(client.acknowledged, word.number)

    # Wins

    def claimed(self, name: str, generation: int) -> None:
        """The arbiter decided for ``name``."""
        if self.winners.setdefault(generation, name) != name:
            self.fail("one winner", f"{name} wins generation {generation} after {self.winners[generation]}")
        self.master = self.winners[max(self.winners)]

    def survives(self, machine: ToyMachine, half: ToyPrimary | ToySecondary) -> None:
        """``machine`` goes on without its peer."""
        self.check_history(machine)
        said = machine.guest.registers.said
        self.taken_over[machine.name] = [count * WORD_BYTES for count in said]
        if isinstance(half, ToySecondary) and half.life is Life.RUN:
            self._ran.add(machine.name)

    def check_history(self, machine: ToyMachine) -> None:
        """Everything heard is in this history, in order, and nothing was executed twice."""
        words: list[Word] = []
        for stream in range(STREAMS):
            text, heard = machine.guest.spoken(stream), self.heard[stream]
            if text[: len(heard)] != heard:
                self.fail("one history", f"{machine.name} does not know of all that {stream} heard")
            words += words_of(text)
        executed = executions(words)
        for (kind, number, operation), count in executed.items():
            if count > 1:
                self.fail("executed once", f"{machine.name}: {kind.name} {number}.{operation}, {count} times")
        for client in self.clients:
            for operation in range(1, client.acknowledged + 1):
                if (Kind.REPLY, client.number, operation) not in executed:
                    self.fail("executed once", f"{machine.name}: never did {client.number}.{operation}")

    def check_last_words(self, master: ToyMachine, alive: bool) -> None:
        """A guest that switched itself off is heard to its last word."""
        if not alive or not master.guest.registers.ended:
            return
        for stream in range(STREAMS):
            text = master.guest.spoken(stream)
            if stream != TERMINAL and self._may_be_lost(master.name, stream, len(text)):
                continue  # it said them to itself, and had nothing to add
            if text != self.heard[stream]:
                self.fail("last words are heard", f"{len(self.heard[stream])} of {len(text)} by {stream}")

    # A witness of the protocol

    def captured(self, machine: ToyMachine, generation: int, epoch: int, image: Image) -> None:
        self.note(machine.name, "is captured", epoch)
        self.images[generation, epoch, machine.name] = image

    def installed(self, machine: ToyMachine, generation: int, epoch: int, image: Image) -> None:
        self.note(machine.name, "has installed", epoch)
        expected = self.images.get((generation, epoch, self.led_by[machine.name]))
        if image != expected:
            self.fail("both machines are equal", f"{machine.name} after epoch {epoch}")

    def noted(self, machine: ToyMachine, what: str, detail: object = "") -> None:
        self.note(machine.name, what, detail)
        if what == "refuses a word:":
            self.fail("no false alarm", f"{machine.name} refuses what was said in good faith: {detail}")
        if what in ("goes alone", "takes over from"):
            half = self.halves[machine.name]
            if isinstance(half, ToySecondary) and half.epoch < 0:
                self.fail("who never sealed never serves", machine.name)
            self.survives(machine, half)

    def told(self, machine: ToyMachine, event: str, facts: dict[str, Any]) -> None:
        """A node reports an event."""
        self.note(machine.name, f"{event}:", str(facts))
        if event == "departed" and not machine.flipped:
            self.fail("no false alarm", f"{machine.name} is what it should be: {facts['what']}")

    def check_bounds(self, machine: ToyMachine) -> None:
        held = machine.hold.held_frames
        if held > self.held_most or (machine.hold.dropped and not machine.halted):
            self.fail("held output is bounded", f"{machine.name} holds {held} words")
