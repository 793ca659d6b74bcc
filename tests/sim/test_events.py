"""The log, its digest, and the check that two runs are one."""

from __future__ import annotations

import itertools
import random

import pytest

from colo.sim.events import EventLog, Line, NotDeterministic, check_determinism
from colo.sim.host import Host
from colo.sim.world import World


def test_the_digest_is_of_every_line_in_order() -> None:
    logs = [EventLog() for _ in range(3)]
    first, second = Line(1, "a", "says", "hello"), Line(2, "b", "hears")
    for log, lines in zip(logs, ((first, second), (first, second), (second, first)), strict=True):
        for line in lines:
            log.add(line)
    assert logs[0].digest == logs[1].digest != logs[2].digest
    assert logs[0].tail() == "1 a says hello\n2 b hears"


def test_equal_runs_have_one_digest() -> None:
    async def talk(host: Host) -> None:
        for _ in range(5):
            host.udp().send("10.77.0.99", 7, bytes([host.rng.randrange(256)]))

    def scenario(world: World) -> None:
        world.client(talk)
        world.run_for(2)

    assert check_determinism(lambda: World(1), scenario) != check_determinism(lambda: World(2), scenario)


def test_the_first_difference_is_named() -> None:
    runs = itertools.count()

    def scenario(world: World) -> None:
        world.tell("a", "begins")
        world.tell("a", "draws", str(random.Random(next(runs)).random()))

    with pytest.raises(NotDeterministic, match=r"event 1 differs: .*draws 0\.844.*draws 0\.134"):
        check_determinism(World, scenario)


def test_a_run_that_ends_early_is_named() -> None:
    runs = itertools.count()

    def scenario(world: World) -> None:
        world.tell("a", "begins")
        if not next(runs):
            world.tell("a", "ends")

    with pytest.raises(NotDeterministic, match="event 1 is missing: the first run has 0 a ends"):
        check_determinism(World, scenario)
