"""Real pairs in the world: the real protocol around real machines, under every policy, in bad times."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from colo.failover import Ending
from colo.faults.delay import Delay
from colo.faults.model import AtStep, NodeFault
from colo.sim.events import check_determinism
from colo.sim.host import Host
from colo.sim.loop import WorldError
from colo.sim.world import World
from tests.sim.support import LIMIT_S, POLICIES, Echoes

ELSEWHERE = """
import sys
from colo.sim.world import World
from tests.sim.test_pairs import journey
with World(11) as world:
    journey(sys.argv[1])(world)
    print(world.digest)
"""


def journey(policy: str):  # type: ignore[no-untyped-def]
    """Protected, killed, protected again, killed again."""

    def scenario(world: World) -> None:
        echoes = Echoes(world, policy, again_after_s=0.05)
        for _ in range(2):
            echoes.more(5)
            world.run_until(lambda: echoes.pair.is_protected, LIMIT_S)
            world.kill(echoes.pair.primary)
            echoes.more(5)

    return scenario


@pytest.mark.parametrize("policy", POLICIES)
def test_a_killed_primary_is_not_missed(policy: str) -> None:
    with World(3) as world:
        echoes = Echoes(world, policy)
        first, second = echoes.pair.primary, echoes.pair.secondary
        echoes.more(20)
        world.kill(first)
        echoes.more(20)
        assert echoes.pair.primary is second
        assert second.ending is Ending.ALONE
        assert echoes.heard == [*range(1, len(echoes.heard) + 1)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_killed_secondary_costs_nothing(policy: str) -> None:
    with World(4) as world:
        echoes = Echoes(world, policy)
        first = echoes.pair.primary
        world.kill(echoes.pair.secondary)
        echoes.more(10)
        assert echoes.pair.primary is first
        assert first.ending is Ending.ALONE
        assert echoes.pair.ballot.holders == {("pair", 1): first.name}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_is_a_function_of_the_seed(policy: str) -> None:
    digest = check_determinism(lambda: World(11), journey(policy))
    with World(12) as world:
        journey(policy)(world)
        assert world.digest != digest


@pytest.mark.parametrize("policy", POLICIES)
def test_another_process_has_the_same_digest(policy: str) -> None:
    with World(11) as world:
        journey(policy)(world)
        digest = world.digest
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, policy],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cut_between_two_living_nodes_has_one_winner(policy: str) -> None:
    with World(5) as world:
        echoes = Echoes(world, policy, unix=False)
        nodes = (echoes.pair.primary, echoes.pair.secondary)
        echoes.pair.cut()
        world.run_until(lambda: all(node.ending is not None for node in nodes), LIMIT_S)
        assert sorted(str(node.ending) for node in nodes) == [str(Ending.ALONE), str(Ending.LOST)]
        assert [node.serves for node in nodes].count(True) == 1
        echoes.more(10)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_host_that_vanishes_is_found_by_its_silence(policy: str) -> None:
    with World(6) as world:
        echoes = Echoes(world, policy, unix=False)
        first, second = echoes.pair.primary, echoes.pair.secondary
        died_s = world.now_s
        world.kill(first, silently=True)
        world.run_until(lambda: second.serves, LIMIT_S)
        assert 0.2 < world.now_s - died_s < 0.5
        echoes.more(10)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_primary_that_was_stopped_and_goes_on_says_nothing_more(policy: str) -> None:
    with World(7) as world:
        echoes = Echoes(world, policy, unix=False)
        first, second = echoes.pair.primary, echoes.pair.secondary
        world.pause(first, for_s=1.0)
        world.run_until(lambda: second.serves, LIMIT_S)
        echoes.more(10)
        world.run_until(lambda: first.ending is not None, LIMIT_S)
        assert first.ending is Ending.LOST
        assert not first.serves
        echoes.more(10)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_answered_before_the_pair_formed_is_not_answered_again(policy: str) -> None:
    """The bridge brings every frame to the node that stands by, long before it is told which were given."""
    answers: list[bytes] = []

    async def ask_once(host: Host) -> None:
        socket = host.udp()
        await asyncio.sleep(0.002)
        while True:
            socket.send("10.77.0.2", 7, b"once")
            answers.append((await socket.receive())[2])
            if len(answers) == 1:
                await asyncio.Event().wait()

    with World(1) as world:
        node = world.machine("udpecho", "m")
        world.client(ask_once)
        world.run_until(lambda: answers, LIMIT_S)
        assert node.console.startswith("GUEST-READY")
    answers.clear()
    with World(1) as world:
        pair = world.pair("udpecho", policy, unix=False, delay_ns=5_000_000)
        client = world.client(ask_once)
        world.run_until(lambda: pair.is_protected, LIMIT_S)
        assert answers == [b"once"]
        echoed = []
        world.on_frame.append(lambda who, what, frame: echoed.append(frame) if b"once" in frame else None)
        world.run_for(0.01)
        world.kill(pair.primary)
        world.run_for(0.5)
        assert pair.serving is not None
        assert not echoed
        assert not client.is_done


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_part_of_the_last_epoch_is_not_done_again(policy: str) -> None:
    """The primary dies when its last word of a checkpoint is said: what its guest was given is in there."""
    echoed: list[bytes] = []

    async def send(host: Host) -> None:
        socket = host.udp()
        for number in range(10_000):
            socket.send("10.77.0.2", 7, b"number %06d" % number)
            await asyncio.sleep(0.0007)

    with World(1) as world:
        pair = world.pair("udpecho", policy, unix=False, delay_ns=2_000_000, delay_ms=20)
        world.client(send)
        world.on_frame.append(
            lambda who, what, frame: (
                echoed.append(frame[42:55])
                if (who, what) == ("client0.to", "carries") and b"number" in frame
                else None
            )
        )
        world.run_until(lambda: pair.is_protected and len(echoed) > 100, LIMIT_S)
        first = pair.primary
        world.inject(
            NodeFault(when=AtStep(step="VmstateSize", node=first.name), target=first.name, effect="kill")
        )
        world.run_until(lambda: pair.serving not in (None, first), LIMIT_S)
        world.run_for(0.1)
    assert len(echoed) > 100
    assert len(set(echoed)) == len(echoed)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_that_stops_right_after_a_commit_says_nothing_when_it_goes_on(policy: str) -> None:
    """Its guest's thread was about to let go what the commit allowed, and the other node serves by now."""
    late: list[int] = []

    async def send(host: Host) -> None:
        socket = host.udp()
        await asyncio.sleep(0.1)
        for number in range(10_000):
            socket.send("10.77.0.2", 7, b"number %06d" % number)
            await asyncio.sleep(0.0003)

    # Late loops: what the other guest says overtakes the commit.
    with World(2, late=Delay(ns=3_000_000, distribution="exponential")) as world:
        pair = world.pair("udpecho", policy, unix=False, delay_ns=20_000, delay_ms=20)
        world.client(send)
        world.run_until(lambda: pair.is_protected and world.now_s > 0.2, LIMIT_S)
        first = pair.primary
        world.on_frame.append(
            lambda who, what, frame: (
                late.append(world.now_ns)
                if who == f"{first.name}.from" and pair.serving not in (None, first)
                else None
            )
        )
        stop = NodeFault(
            when=AtStep(step="epoch", count=4, node=first.name),
            target=first.name,
            effect="pause",
            for_ns=600_000_000,
        )
        world.inject(stop)
        world.run_until(lambda: first.ending is Ending.LOST, LIMIT_S)
        world.run_for(0.1)
        assert not late


def test_what_was_waited_for_in_vain_is_told() -> None:
    with (
        World(1) as world,
        pytest.raises(WorldError, match=r"between 0\.000000 s and 0\.010000 s"),
    ):
        world.run_until(lambda: False, 0.01)
