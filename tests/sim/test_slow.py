"""A guest that is slow moves in every turn: a world in which one does not stands still for ever."""

from __future__ import annotations

import pytest

from colo.sim.world import World


@pytest.mark.parametrize("slowness", [2, 5, 1000])
def test_a_slow_guest_moves_when_less_is_ahead_than_one_of_its_nanoseconds_takes(slowness: int) -> None:
    with World(1) as world:
        node = world.machine("counter")
        world.run_for(0.05)
        world.slow(node, slowness)
        for _ in range(20):
            before_ns = node.guest.local_ns
            node.guest.turn(before_ns + 1)
            assert node.guest.local_ns > before_ns
