"""Output that goes before its commit, under every fault at every step: policies ``lockstep`` and ``colo``.

What may go, and why it is safe, stands in :mod:`colo.lockstep` and :mod:`colo.filters.compared`.  Here the
rules that a node has run on toy machines (:mod:`tests.protocol.toy_primary`), and the judge listens: what a
client heard before a commit is what the survivor says it said, whoever dies, stands still or is cut off, and
whenever."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import pytest

from colo.life import Life
from tests.protocol.faults import Event, Fault
from tests.protocol.nodes import BRIEF
from tests.protocol.simulator import WORLDS, Simulator
from tests.protocol.toy_primary import ToyPrimary
from tests.protocol.world import World

EARLY = ("lockstep", "lockstep-tcp", "colo", "colo-tcp")
INTERLEAVINGS = 40
"""Of which the shortest are tried at every step, if something is said early in them."""
OTHERWISE_AT_EVERY_STEP = [
    Fault.VANISH,
    Fault.PAUSE,
    Fault.CUT,
    Fault.DEAF,
    Fault.SUSPECT,
    Fault.SNAP,
]
SHORTEST = 100
"""Runs that one interleaving gives, at least."""
BLOCK = 100


def brief(world: str) -> Simulator:
    return Simulator(dataclasses.replace(WORLDS[world], **BRIEF))


@functools.cache
def shortest(world: str) -> list[int]:
    """Seeds of undisturbed worlds in which something is said early, the shortest first."""
    worlds = [brief(world).run(seed) for seed in range(INTERLEAVINGS)]
    spoken = [each for each in worlds if any(said_early([each], life) for life in (Life.FOLLOW, Life.RUN))]
    return [each.seed for each in sorted(spoken, key=lambda each: each.now)]


@pytest.mark.parametrize("world", EARLY)
@pytest.mark.parametrize("number", range(3))
def test_either_side_may_be_killed_at_every_step(world: str, number: int) -> None:
    """With output on its way, before and after a seal, within an install, and with a log not yet followed."""
    runs = brief(world).exhaustive(shortest(world)[number])
    assert runs > SHORTEST, "the interleaving is too short to say anything"


@pytest.mark.parametrize("world", EARLY)
def test_a_primary_may_die_or_stand_still_between_any_two_words(world: str) -> None:
    """Between the log and the saying; one that stood still says what it was about to, and nothing else."""
    simulator = brief(world)
    for seed in range(10, 14):
        for fault in (Fault.LAST_WORDS, Fault.GASP):
            assert simulator.last_words(seed, fault) > 5


@pytest.mark.parametrize("number", range(len(OTHERWISE_AT_EVERY_STEP)))
def test_either_side_may_meet_a_fault_at_every_step(number: int) -> None:
    """The worlds take turns."""
    fault = OTHERWISE_AT_EVERY_STEP[number]
    world = EARLY[number % len(EARLY)]
    assert brief(world).exhaustive(shortest(world)[0], (fault,)) > SHORTEST


@pytest.mark.parametrize("world", EARLY[:2])
def test_a_secondary_may_stand_still_and_lose_its_primary_meanwhile(world: str) -> None:
    """A log that nobody has looked into, in front of an epoch that is sealed or not."""
    assert brief(world).late(shortest(world)[0], after=(12, 30)) > SHORTEST


@pytest.mark.parametrize("world", ["switching", "switching-tcp"])
def test_a_policy_may_change_and_either_side_be_killed_at_every_step(world: str) -> None:
    simulator = brief(world)
    for seed in shortest(world)[:2]:
        changes = Event(60, Fault.SWITCH, "primary"), Event(90, Fault.SWITCH, "primary")
        steps = simulator.run(seed, changes).now
        for step in range(60, steps):
            for side in ("primary", "secondary"):
                plan = sorted((*changes, Event(step, Fault.KILL, side)), key=lambda event: event.step)
                simulator.run(seed, tuple(plan))


@pytest.mark.parametrize("world", ["diverging", "diverging-tcp"])
def test_a_bit_may_flip_at_every_step_and_is_mended(world: str) -> None:
    """Nothing but the divergence causes a checkpoint there, and no world settles before it was found."""
    simulator = Simulator(dataclasses.replace(WORLDS[world], operations=2))
    for seed in range(2):
        steps = simulator.run(seed).now
        for step in range(0, steps, 2):
            simulator.run(seed, (Event(step, Fault.FLIP, "secondary", step),))


@pytest.mark.parametrize("world", ["switching", "switching-tcp"])
def test_several_faults_with_a_person_for_an_arbiter(world: str) -> None:
    simulator = Simulator(world, arbiter="manual")
    for seed in range(BLOCK):
        simulator.random(seed)


# Do the worlds do what the tests above are about?


def said_early(worlds: list[World], life: Life) -> int:
    """Words, or pieces of them, that the rule for ``life`` let out before a commit."""
    total = 0
    for world in worlds:
        for half in (node.half for node in world.nodes):
            if isinstance(half, ToyPrimary):
                facts = half.rules[life].facts()
                total += int(facts["early-frames" if life is Life.FOLLOW else "said"])
    return total


@pytest.mark.parametrize("world", [*EARLY, "switching", "switching-tcp"])
def test_several_faults_at_random_and_something_is_said_early_in_every_life(world: str) -> None:
    """A secondary that runs may say what nobody ever hears, as a network may lose it; no other may."""
    simulator = Simulator(world)
    worlds = [simulator.random(seed) for seed in range(BLOCK)]
    lives = {"lockstep": [Life.FOLLOW], "colo": [Life.RUN], "switching": list(Life)}[world.partition("-")[0]]
    survivors = Counter(detail for each in worlds for _, _, what, detail in each.log if what == "had to")
    for life in lives:
        assert survivors[life.value] > 10, survivors
        if life is not Life.WAIT:
            assert said_early(worlds, life) > 50, life
    assert Life.RUN in lives or not any(each.judge.gaps for each in worlds)


@pytest.mark.parametrize("world", ["diverging", "diverging-tcp"])
def test_every_kind_of_divergence_is_found(world: str) -> None:
    """By what is said, by a mark, by an input that comes too late, and by a guest that breaks down."""
    simulator = Simulator(world)
    told = Counter[str]()
    for seed in range(BLOCK):
        for _, _, what, detail in simulator.mild(seed).log:
            if what == "hears of a divergence:":
                signs = ("checksum", "these differ", "found the guest at", "its guest ended")
                told.update([next((sign for sign in signs if sign in str(detail)), str(detail))])
    assert min(told[sign] for sign in ("checksum", "these differ", "its guest ended")) > 3, told
