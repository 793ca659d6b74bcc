"""A secondary whose guest is not what the primary's is: it goes on only when there is no other."""

from __future__ import annotations

import pytest

from colo.failover import Ending
from colo.faults.model import AtTime, DataFault
from colo.node.pairing import WAY_SILENCES
from colo.sim.node import SimNode
from colo.sim.pair import SILENCE_MS
from colo.sim.world import World
from tests.sim.support import LIMIT_S, Echoes

DAMAGE_AT = 0x9_0000


def damaged(world: World, echoes: Echoes) -> tuple[SimNode, SimNode]:
    """The pair at the moment at which the damage was found and nothing has repaired it."""
    first, second = echoes.pair.primary, echoes.pair.secondary
    where = {"address": DAMAGE_AT, "space": "physical", "width": 1, "mask": 1}
    world.inject(DataFault(when=AtTime(ns=0), target=second.name, **where))
    world.run_until(lambda: echoes.told("departed"), LIMIT_S)
    return first, second


@pytest.mark.parametrize("seed", [1, 2])
def test_of_two_that_lost_each_other_the_whole_one_goes_on(seed: int) -> None:
    """The secondary hears first, by a beat of its own that came late: it would win if it asked."""
    with World(seed) as world:
        echoes = Echoes(world, "lockstep", unix=False)
        first, second = damaged(world, echoes)
        world.pause(first)
        echoes.pair.cut()
        world.run_for(0.1)
        world.resume(first)
        echoes.more(10)
        world.run_until(lambda: second.ending is not None, LIMIT_S)
        assert (first.ending, second.ending) == (Ending.ALONE, Ending.LOST)
        assert not echoes.told("took-over")


def test_when_the_other_is_gone_it_is_better_than_nothing_and_says_so() -> None:
    with World(3) as world:
        echoes = Echoes(world, "lockstep", unix=False)
        first, second = damaged(world, echoes)
        world.kill(first)
        died_ns = world.now_ns
        world.run_until(lambda: second.ending is not None, LIMIT_S)
        assert second.ending is Ending.ALONE
        assert "same=False" in echoes.told("took-over")[0]
        assert world.now_ns - died_ns >= WAY_SILENCES * SILENCE_MS * 1_000_000
        echoes.more(5)


def test_one_that_was_repaired_asks_at_once() -> None:
    with World(4) as world:
        echoes = Echoes(world, "lockstep", unix=False)
        first, second = damaged(world, echoes)
        world.run_until(lambda: any("divergence" in each for each in echoes.told("epoch")), LIMIT_S)
        world.run_for(0.1)
        world.kill(first)
        world.run_until(lambda: second.ending is not None, LIMIT_S)
        assert not echoes.told("gives-way")
        assert "same=True" in echoes.told("took-over")[0]
