"""Jobs of a guest's thread that nobody waits for: done in their turn, and what they raise is not lost."""

from __future__ import annotations

import threading

import pytest

from colo.errors import ColoError
from colo.node.guest_thread import GuestThread
from colo.node.pairing import PrimaryPairing
from colo.sim.loop import WorldError
from colo.sim.world import World
from tests.machine.support import machine
from tests.replica.support import BUSY, LIMIT_S, running, thread_of
from tests.sim.support import LIMIT_S as WORLD_LIMIT_S
from tests.sim.support import Echoes


def refuse() -> None:
    raise ColoError("planted")


def test_posted_jobs_are_done_in_the_order_of_all_jobs() -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        done: list[str] = []
        guest.post(lambda: done.append("posted"))
        guest.submit(lambda: done.append("submitted")).result(LIMIT_S)
        assert done == ["posted", "submitted"]


def wait_in_vain(guest: GuestThread) -> None:
    """Behind a job that raises, and when the thread has ended."""
    begun = threading.Event()
    guest.submit(lambda: begun.wait(LIMIT_S))
    guest.post(refuse)
    waiting = guest.submit(lambda: 1)
    begun.set()
    with pytest.raises(RuntimeError, match="has ended"):
        waiting.result(LIMIT_S)
    guest.post(refuse)


def test_what_a_posted_job_raises_ends_the_thread_and_fails_who_waits() -> None:
    with machine(BUSY) as pc:
        guest = thread_of(pc)
        with pytest.raises(ColoError, match="planted"), running(guest):
            wait_in_vain(guest)


@pytest.mark.parametrize("policy", ["lockstep", "colo"])
def test_a_rule_that_fails_when_it_opens_ends_its_node(policy: str) -> None:
    """As on a host: the machine's thread raises, the process ends, and somebody reads why."""
    with World(2) as world:
        echoes = Echoes(world, policy)
        primary = echoes.pair.primary
        assert isinstance(primary.pairing, PrimaryPairing)
        primary.pairing.vm.early.open = refuse  # type: ignore[method-assign]
        primary.request("test")
        with pytest.raises(WorldError, match="ColoError: planted"):
            echoes.more(100, WORLD_LIMIT_S)
