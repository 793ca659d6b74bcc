"""A primary that was stopped while its secondary took over, on another host: what it still says."""

from __future__ import annotations

import pytest

from colo.failover import Ending
from colo.faults.model import AtStep, LinkFault
from colo.sim.node import SimNode
from colo.sim.world import World
from tests.sim.support import LIMIT_S, Echoes

WIRE_NS = 20_000_000
"""So slow that a survivor serves for a while before its predecessor can hear of it."""
WORDS = (3, 5)
"""After which of the log's words the primary is stopped: an answer of its guest waits for some of them."""


def _stopped_after(word: int, world: World, echoes: Echoes) -> tuple[SimNode, SimNode]:
    """The primary, stopped right after it told this word, and the secondary, which has taken over."""
    first, second = echoes.pair.primary, echoes.pair.secondary
    left = word

    def stop(node: SimNode, event: str) -> None:
        nonlocal left
        left -= node is first and event == "Log"
        if not left and not first.stopped:
            world.at(world.now_ns, lambda: world.pause(first))

    world.on_step.append(stop)
    world.run_until(lambda: echoes.told("took-over"), LIMIT_S)
    world.on_step.remove(stop)
    return first, second


@pytest.mark.parametrize("word", WORDS)
def test_it_says_nothing_although_nobody_could_tell_it_yet(word: int) -> None:
    with World(1267) as world:
        echoes = Echoes(world, "lockstep", unix=False, delay_ns=WIRE_NS)
        first, second = _stopped_after(word, world, echoes)
        woke_ns = world.now_ns
        world.resume(first)
        echoes.more(20)
        world.run_until(lambda: first.ending is not None, LIMIT_S)
        assert (first.ending, second.ending) == (Ending.LOST, Ending.ALONE)
        said = [line for line in echoes.lines if line.who == "pair-0.from" and line.at_ns > woke_ns]
        assert said == []


def test_a_primary_that_stood_still_too_long_leaves_a_pair_whose_peer_waited_for_it() -> None:
    """Its peer has not gone on, by chance: the connection ends all the same, and the primary wins."""
    with World(5) as world:
        echoes = Echoes(world, "lockstep", unix=False)
        first = echoes.pair.primary
        far = echoes.pair.secondary
        world.pause(far)
        world.run_for(0.01)
        world.pause(first)
        world.run_for(0.4)
        world.resume(first)
        world.resume(far)
        echoes.more(20)
        assert first.ending is Ending.ALONE
        assert echoes.pair.primary is first


def test_a_late_beat_is_no_reason_to_leave() -> None:
    with World(6) as world:
        echoes = Echoes(world, "lockstep", unix=False)
        world.inject(LinkFault(when=AtStep(step="Log"), target="pair-wire", effect="partition", for_ns=10**8))
        world.run_for(0.4)
        assert echoes.pair.primary.ending is None
        assert echoes.pair.is_protected
