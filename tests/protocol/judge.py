"""What the world hears, and what must be true of it.

The judge knows what nobody in the pair knows: every word said, by whom, and who won each generation.
Its rules are about what can be noticed from outside, and about the survivor; it looks into no variable
of the code under test, but for the failover's status.

The rule for two speakers allows one thing.  A primary that has the commit of an epoch in its hands but
does not know yet that the other one won may still say that epoch's words (it was stopped, say, between
the two).  No protocol without a fence at the network can forbid that; it must be no more than a repetition:
the survivor has these words in its history and says them, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from colo.failover import Failover, FailoverStatus
from tests.protocol.toy_guest import Kind, Word, executions
from tests.protocol.toy_machine import HELD_HARD, Image, Said, ToyMachine, ToyPrimary, ToySecondary

STATUS_AFTER = {
    ("none", "require"),
    ("none", "relaunch"),
    ("relaunch", "none"),
    ("require", "active"),
    ("active", "completed"),
}
"""The diagram of colo.failover, written down apart from its table."""


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


@dataclass
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
    heard: list[bytes] = field(default_factory=list)
    master: str = ""
    """Who may speak: who served first, or has won since."""
    winners: dict[int, str] = field(default_factory=dict)
    taken_over: dict[str, int] = field(default_factory=dict)
    """How long the history of each survivor was at its take-over."""
    halves: dict[str, ToyPrimary | ToySecondary] = field(default_factory=dict)
    """What each node that is in a pairing does there."""
    led_by: dict[str, str] = field(default_factory=dict)
    """The primary that each secondary followed."""
    images: dict[tuple[int, int, str], Image] = field(default_factory=dict)

    # Words

    def hear(self, machine: ToyMachine, said: Said) -> None:
        place, word = said
        name = machine.name
        self.note(name, "says", said)
        if machine.halted:
            self.fail("a loser never runs again", f"{name} was halted")
        self._check_turn(name, place)
        if place < len(self.heard):
            if self.heard[place] != word:
                self.fail("one history", f"{name} says word {place} otherwise than it was heard")
            return
        if place > len(self.heard):
            self.fail("one history", f"{name} says word {place}, {len(self.heard)} were heard")
        self.heard.append(word)
        self._acknowledge(Word.unpack(word))

    def _check_turn(self, name: str, place: int) -> None:
        half = self.halves.get(name)
        if name != self.master:
            successor = None if half is None else self.winners.get(half.generation + 1)
            if successor is None or self.led_by.get(successor) != name:
                self.fail("one speaker", f"{name} speaks, {self.master} has the word")
            elif place >= self.taken_over.get(successor, place + 1):
                self.fail("one speaker", f"{name} says something new, {successor} has taken over")
        if half is None or half.failover.status is not FailoverStatus.ACTIVE:
            return
        promised = isinstance(half, ToySecondary) or half.has_promised
        if promised and self.winners.get(half.generation + 1) != name:
            self.fail("silent until it has won", f"{name} speaks")

    def _acknowledge(self, word: Word) -> None:
        if word.kind not in (Kind.REPLY, Kind.AGAIN):
            return
        client = self.clients[word.client]
        if word.total != client.total(word.number):
            self.fail("executed once", f"client {client.number} is told {word.total} after {word.number}")
        client.acknowledged = max(client.acknowledged, word.number)

    # Wins

    def claimed(self, name: str, generation: int) -> None:
        """The arbiter decided for ``name``."""
        if self.winners.setdefault(generation, name) != name:
            self.fail("one winner", f"{name} wins generation {generation} after {self.winners[generation]}")
        self.master = self.winners[max(self.winners)]

    def survives(self, machine: ToyMachine) -> None:
        """``machine`` goes on without its peer."""
        self.check_history(machine)
        self.taken_over[machine.name] = machine.guest.registers.said

    def check_history(self, machine: ToyMachine) -> None:
        """Everything heard is in this history, in order, and nothing was executed twice."""
        history = machine.guest.history()
        if history[: len(self.heard)] != self.heard:
            self.fail(
                "one history", f"{machine.name} knows of {len(history)} words, not of all that was heard"
            )
        executed = executions(history)
        for (kind, number, operation), count in executed.items():
            if count > 1:
                self.fail("executed once", f"{machine.name}: {kind.name} {number}.{operation}, {count} times")
        for client in self.clients:
            for operation in range(1, client.acknowledged + 1):
                if (Kind.REPLY, client.number, operation) not in executed:
                    self.fail("executed once", f"{machine.name}: never did {client.number}.{operation}")

    def check_last_words(self, master: ToyMachine, alive: bool) -> None:
        """A guest that switched itself off is heard to its last word."""
        if alive and master.guest.registers.ended and master.guest.history() != self.heard:
            self.fail("last words are heard", f"{len(self.heard)} of {master.guest.registers.said}")

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
        if what in ("goes alone", "takes over from"):
            half = self.halves[machine.name]
            if isinstance(half, ToySecondary) and half.epoch < 0:
                self.fail("who never sealed never serves", machine.name)
            self.survives(machine)

    def check_bounds(self, machine: ToyMachine) -> None:
        held = machine.hold.held_frames
        if held > HELD_HARD or (machine.hold.dropped and not machine.halted):
            self.fail("held output is bounded", f"{machine.name} holds {held} words")
