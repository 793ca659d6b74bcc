"""Run the simulated world: one seed, a plan for every step, or seeds without end.

A seed is one interleaving.  *Exhaustive* runs it once undisturbed, counts its steps, and then again for
every step with a fault there.  *Random* runs draw a plan of several faults from the seed as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from colo.arbiter import Arbiter
from tests.protocol.arbiters import kinds
from tests.protocol.faults import Event, Fault, Plan, mild_plan, random_plan, shown
from tests.protocol.judge import Violation
from tests.protocol.nodes import Parts, parts
from tests.protocol.toy_guest import Panic
from tests.protocol.world import World

WHO = ("primary", "secondary")
OF_NOBODY = (Fault.CUT, Fault.SNAP, Fault.SWITCH, Fault.ARBITER, Fault.POWER_OFF)
"""Faults that are the same whichever side they befall."""
WORLDS: dict[str, Parts] = {
    "periodic": parts("periodic"),
    "lockstep": parts("lockstep"),
    "lockstep-tcp": parts("lockstep", companion="tcp"),
    "colo": parts("colo"),
    "colo-tcp": parts("colo", companion="tcp"),
    "switching": parts("periodic lockstep colo"),
    "switching-tcp": parts("periodic lockstep colo", companion="tcp"),
    "diverging": parts("lockstep", epochs=0, delays=(10**6, 10**6)),
    "diverging-tcp": parts("lockstep", epochs=0, delays=(10**6, 10**6), companion="tcp"),
}
"""By name; bits flip in the diverging ones, and nothing but that mends them."""
TAIL = 40
"""Lines of a log that are shown with a failure."""


@dataclass
class Failure(AssertionError):
    """A run that ended in a violation; everything needed to see it again."""

    seed: int
    plan: Plan
    violation: Violation
    log: list[str]
    world: str = ""

    def __str__(self) -> str:
        tail = "\n".join(self.log[-TAIL:])
        again = f"{self.world} --seed {self.seed} --plan '{shown(self.plan)}'"
        return f"{self.violation}\nagain: {again}\n{tail}"


class Simulator:
    """Worlds with the same parts and the same kind of arbiter."""

    def __init__(self, world: Parts | str = "periodic", arbiter: str = "memory", directory: str = "") -> None:
        self.runs = self.steps = 0
        self.name = f"--world {world}" if isinstance(world, str) else ""
        self._parts = WORLDS[world] if isinstance(world, str) else world
        self._arbiters: Callable[[], Callable[[], Arbiter]] = kinds(directory)[arbiter]

    def run(self, seed: int, plan: Plan = ()) -> World:
        """One world to its end; Failure when a rule was broken."""
        self.runs += 1
        world = World(seed, plan, self._arbiters(), self._parts, f"run{self.runs}")
        try:
            world.run()
        except Violation as exc:
            raise Failure(seed, plan, exc, world.lines(), self.name) from None
        except AssertionError as exc:
            rule = "the guest is whole" if isinstance(exc, Panic) else "assertions hold"
            broken = Violation(rule, world.now, repr(exc))
            raise Failure(seed, plan, broken, world.lines(), self.name) from exc
        finally:
            self.steps += world.now
            world.close()
        return world

    def random(self, seed: int) -> World:
        return self.run(seed, random_plan(Random(f"plan {seed}")))

    def mild(self, seed: int) -> World:
        """Nothing happens by which a node would end."""
        return self.run(seed, mild_plan(Random(f"plan {seed}")))

    def exhaustive(self, seed: int, faults: tuple[Fault, ...] = (Fault.KILL,), length: int = 80) -> int:
        """Every fault for either side at every step of this interleaving; how many runs that was."""
        runs = self.runs
        for plan in self.plans(seed, faults, length):
            self.run(seed, plan)
        return self.runs - runs

    def late(self, seed: int, after: tuple[int, ...] = (16,), length: int = 60) -> int:
        """The secondary stands still from every step on, and loses its primary before it goes on."""
        runs = self.runs
        for step in range(self.run(seed).now):
            pause = Event(step, Fault.PAUSE, "secondary", length)
            for later in after:
                self.run(seed, (pause, Event(step + later, Fault.KILL, "primary")))
        return self.runs - runs

    def plans(self, seed: int, faults: tuple[Fault, ...], length: int) -> Iterator[Plan]:
        """One fault, for either side if that matters, at every step that the undisturbed world has."""
        steps = self.run(seed).now
        for step in range(steps):
            for fault in faults:
                for who in WHO[: 1 if fault in OF_NOBODY else 2]:
                    yield (Event(step, fault, who, length),)

    def last_words(self, seed: int, fault: Fault = Fault.LAST_WORDS) -> int:
        """Kill whoever serves after every single word that is heard, or have it stand still."""
        world = self.run(seed)
        words = sum(what == "says" for _, _, what, _ in world.log)
        for word in range(words):
            self.run(seed, (Event(0, fault, "primary", word),))
        return words


def digest(world: World) -> str:
    """Of everything that happened, in order."""
    return hashlib.blake2b("\n".join(world.lines()).encode()).hexdigest()
