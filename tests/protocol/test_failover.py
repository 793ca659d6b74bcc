"""A pair under every single fault at every step, and under several at random ones.

What must hold is written in :mod:`tests.protocol.judge`; what the world does in
:mod:`tests.protocol.faults`.  A failure prints its seed and plan: ``tools/simulate.py`` shows it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from colo.failover import Ending
from tests.protocol.faults import WEIGHTS, Event, Fault, parsed, random_plan, shown
from tests.protocol.nodes import BRIEF, parts
from tests.protocol.simulator import Simulator
from tests.protocol.world import World

ROOT = Path(__file__).parents[2]
SHORT = parts("periodic", **BRIEF)
LONGER = parts("periodic", **{**BRIEF, "epochs": 2})
SHORTEST = 120
"""Runs that one interleaving gives, at least."""
KILLED_AT_EVERY_STEP = range(9)
OTHERWISE_AT_EVERY_STEP = 104
OTHERWISE = [
    Fault.VANISH,
    Fault.PAUSE,
    Fault.DEAF,
    Fault.CUT,
    Fault.SUSPECT,
    Fault.COMMAND,
    Fault.STRAY,
]
BLOCK = 500


@pytest.mark.parametrize("seed", KILLED_AT_EVERY_STEP)
def test_either_side_may_be_killed_at_every_step(seed: int) -> None:
    runs = Simulator(LONGER if seed % 8 == 0 else SHORT).exhaustive(seed, (Fault.KILL,))
    assert runs > SHORTEST, "the interleaving is too short to say anything"


@pytest.mark.parametrize("seed", KILLED_AT_EVERY_STEP[::4])
def test_a_primary_may_be_killed_after_every_word_of_a_release(seed: int) -> None:
    assert Simulator(SHORT).last_words(seed) > 5


@pytest.mark.parametrize("fault", OTHERWISE)
def test_either_side_may_meet_a_fault_at_every_step(fault: Fault) -> None:
    assert Simulator(SHORT).exhaustive(OTHERWISE_AT_EVERY_STEP, (fault,)) > SHORTEST


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_a_guest_that_switches_itself_off_is_heard_out_whoever_is_killed_meanwhile(side: str) -> None:
    simulator = Simulator(SHORT)
    off = Event(90, Fault.POWER_OFF, "primary", 0)
    for seed in range(4):
        steps = simulator.run(seed, (off,)).now
        for step in range(90, steps):
            simulator.run(seed, (off, Event(step, Fault.KILL, side, 0)))


def test_several_faults_at_random() -> None:
    """More of them is what tools/simulate.py is for."""
    simulator = Simulator()
    for seed in range(BLOCK, BLOCK + 150):
        simulator.random(seed)


@pytest.mark.parametrize(("arbiter", "seeds"), [("file", range(80)), ("manual", range(250))])
def test_several_faults_with_the_real_arbiters(arbiter: str, seeds: range, tmp_path: Path) -> None:
    simulator = Simulator(arbiter=arbiter, directory=str(tmp_path))
    for seed in seeds:
        simulator.random(seed)
    assert not list(tmp_path.glob(".*")), "a claim leaves nothing behind but itself"


def _endings(worlds: list[World]) -> Counter[Ending]:
    return Counter(node.ending for world in worlds for node in world.nodes if node.ending is not None)


def test_the_random_worlds_go_everywhere() -> None:
    """Every ending, every fault, every status, and chains of pairings: else the runs above mean little."""
    simulator = Simulator()
    worlds = [simulator.random(seed) for seed in range(BLOCK)]
    endings = _endings(worlds)
    assert min(endings[ending] for ending in Ending) > 20, endings
    said = Counter(what for world in worlds for _, _, what, _ in world.log)
    assert all(said[fault.value] > 10 for fault in WEIGHTS), said
    statuses = Counter(detail for world in worlds for _, _, what, detail in world.log if what == "failover:")
    assert min(statuses[word] for word in ("none", "require", "active", "completed", "relaunch")) > 20, (
        statuses
    )
    pairings = Counter(world.pairings for world in worlds)
    assert pairings[4] > 20, pairings
    taken_over = Counter(len(world.judge.taken_over) for world in worlds)
    assert taken_over[3] > 20, taken_over
    assert max(taken_over) >= 5, taken_over


def test_a_plan_can_be_written_down_and_read() -> None:
    for seed in range(50):
        plan = random_plan(Random(seed))
        assert parsed(shown(plan)) == plan
    with pytest.raises(ValueError, match="expected STEP FAULT WHO LENGTH"):
        parsed("soon KILL primary")


def test_a_seed_is_one_history_in_every_process() -> None:
    """No order of a set or of hashes comes into it."""
    logs = set()
    for hash_seed in ("0", "1", "random"):
        command = [
            sys.executable,
            "tools/simulate.py",
            "--seed",
            "17",
            "--seed",
            "4711",
            "--arbiter",
            "manual",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        logs.add(done.stdout)
    assert len(logs) == 1
    assert len(logs.pop().splitlines()) > 300
