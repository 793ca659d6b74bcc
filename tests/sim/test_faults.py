"""Each fault of the model that a world applies, against something that can see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo.failover import Ending
from colo.faults.delay import Delay
from colo.faults.model import (
    ArbiterFault,
    AtInstruction,
    AtStep,
    AtText,
    AtTime,
    DataFault,
    DiskFault,
    Intermittent,
    LinkFault,
    NodeFault,
    RegisterFault,
    Trial,
)
from colo.sim.faults import arm_trial
from colo.sim.loop import WorldError
from colo.sim.world import World
from tests.sim.support import LIMIT_S, POLICIES, Echoes
from vmm.guest import BuiltGuest

NOW = AtTime(ns=0)
SECOND = 1_000_000_000


def losses(echoes: Echoes, cable: str, why: str) -> int:
    return sum(line.who.startswith(cable) and line.what == f"loses({why})" for line in echoes.lines)


# Links


@pytest.mark.parametrize("effect", ["drop", "duplicate", "reorder", "corrupt"])
def test_a_bad_cable_costs_time_and_no_answer(effect: str) -> None:
    with World(1) as world:
        echoes = Echoes(world, "periodic")
        world.inject(
            LinkFault(when=NOW, target="client0", effect=effect, probability=0.5, for_ns=SECOND)  # type: ignore[arg-type]
        )
        before, frames = len(echoes.heard), world.log.count
        world.run_for(1.0)
        assert echoes.heard == [*range(1, len(echoes.heard) + 1)]
        assert len(echoes.heard) > before
        if effect in ("drop", "corrupt"):
            assert echoes.told("no-echo")
        assert world.log.count > frames


def test_a_drop_of_so_many_frames() -> None:
    with World(1) as world:
        echoes = Echoes(world, "periodic")
        world.inject(LinkFault(when=NOW, target="client0", effect="drop", direction="to", times=3))
        echoes.more(5)
        assert losses(echoes, "client0", "drop") == 3
        assert len([each for each in echoes.told("no-echo") if each != "1"]) == 3


def test_a_delay_is_a_delay() -> None:
    with World(1) as world:
        echoes = Echoes(world, "periodic")
        late = Delay(ns=40_000_000)
        world.inject(LinkFault(when=NOW, target="client0", effect="delay", delay=late, for_ns=SECOND))
        echoes.more(1)
        began_s = world.now_s
        echoes.more(5)
        assert world.now_s - began_s > 5 * 0.08


def test_a_thin_link_takes_its_time() -> None:
    with World(1) as world:
        echoes = Echoes(world, "periodic")
        world.inject(
            LinkFault(when=NOW, target="client0", effect="bandwidth", bytes_per_s=600, for_ns=SECOND)
        )
        echoes.more(1)
        began_s = world.now_s
        echoes.more(2)
        assert world.now_s - began_s > 2 * 60 / 600


def test_a_partition_of_a_client_ends() -> None:
    with World(1) as world:
        echoes = Echoes(world, "colo")
        world.inject(LinkFault(when=NOW, target="client0", effect="partition", for_ns=SECOND // 2))
        before = len(echoes.heard)
        world.run_for(0.4)
        assert len(echoes.heard) <= before + 1
        assert losses(echoes, "client0", "partition")
        echoes.more(5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_partition_that_heals_before_the_silence_is_no_loss(policy: str) -> None:
    with World(2) as world:
        echoes = Echoes(world, policy, unix=False)
        world.inject(LinkFault(when=NOW, effect="partition", for_ns=SECOND // 5))
        world.run_for(0.5)
        assert echoes.pair.is_protected
        echoes.more(5)
        assert len(echoes.pair.nodes) == 2


@pytest.mark.parametrize("direction", ["both", "to", "from"])
@pytest.mark.parametrize("effect", ["partition", "half-open"])
def test_a_partition_that_stays_has_one_winner(effect: str, direction: str) -> None:
    with World(2) as world:
        echoes = Echoes(world, "colo", unix=False)
        nodes = list(echoes.pair.nodes)
        fault = LinkFault(
            when=NOW,
            target="pair-wire",
            effect=effect,
            direction=direction,
            persistence="permanent",  # type: ignore[arg-type]
        )
        world.inject(fault)
        world.run_until(lambda: all(node.ending is not None for node in nodes), LIMIT_S)
        assert sorted(str(node.ending) for node in nodes) == [str(Ending.ALONE), str(Ending.LOST)]
        echoes.more(5)


def test_damage_on_the_wire_is_found() -> None:
    with World(2) as world:
        echoes = Echoes(world, "periodic", unix=False)
        world.inject(LinkFault(when=NOW, target="pair-wire", effect="corrupt", times=1))
        world.run_until(lambda: not echoes.pair.is_protected, LIMIT_S)
        assert any("damaged" in reason or "closed" in reason for reason in echoes.told("pairing-ended"))
        echoes.more(5)


@pytest.mark.parametrize("direction", ["to", "from"])
@pytest.mark.parametrize("policy", POLICIES)
def test_damage_on_every_channel_breaks_the_pair_and_no_node(policy: str, direction: str) -> None:
    with World(2) as world:
        echoes = Echoes(world, policy, unix=False)
        nodes = list(echoes.pair.nodes)
        fault = LinkFault(
            when=NOW,
            target="pair-wire",
            effect="corrupt",
            direction=direction,  # type: ignore[arg-type]
            for_ns=SECOND,
        )
        world.inject(fault)
        world.run_until(lambda: all(node.ending is not None for node in nodes), LIMIT_S)
        echoes.more(5)
        assert all(node.alive for node in nodes)


# Nodes


@pytest.mark.parametrize("step", ["CheckpointReply", "VmstateSize", "VmstateReceived", "Released"])
def test_a_primary_dies_at_a_step(step: str) -> None:
    with World(3) as world:
        echoes = Echoes(world, "periodic")
        first = echoes.pair.primary
        world.inject(
            NodeFault(when=AtStep(step=step, count=3, node=first.name), target=first.name, effect="kill")
        )
        world.run_until(lambda: not first.alive, LIMIT_S)
        echoes.more(10)
        assert echoes.pair.primary is not first


def test_a_node_dies_at_a_text() -> None:
    with World(3) as world:
        pair = world.pair("udpecho", "periodic")
        world.inject(NodeFault(when=AtText(text="10.77.0.2"), effect="kill"))
        world.run_for(1.0)
        assert not pair.nodes[0].alive


def test_a_killed_node_comes_back_to_stand_by() -> None:
    with World(3) as world:
        echoes = Echoes(world, "colo")
        world.inject(NodeFault(when=NOW, effect="restart", for_ns=SECOND // 10))
        world.run_for(0.09)
        assert not echoes.pair.is_protected
        world.run_until(lambda: echoes.pair.is_protected, LIMIT_S)
        assert len(echoes.pair.nodes) == 3


def test_an_unprotected_machine_that_comes_back_has_forgotten() -> None:
    with World(3) as world:
        world.machine("udpecho", "m")
        world.run_for(0.01)
        world.inject(NodeFault(when=NOW, target="m", effect="restart", for_ns=1_000_000))
        world.run_for(0.1)
        assert world.nodes["m'"].console.startswith("GUEST-READY udpecho")


def test_a_slow_node_is_slow() -> None:
    with World(3) as world:
        node = world.machine("counter", "m")
        world.run_for(0.5)
        began_ns = node.machine.clock.now_ns
        world.inject(NodeFault(when=NOW, target="m", effect="slow", factor=4.0, for_ns=SECOND))
        world.run_for(1.0)
        assert 0.2e9 < node.machine.clock.now_ns - began_ns < 0.3e9
        world.run_for(0.5)
        assert node.machine.clock.now_ns - began_ns > 0.7e9


def test_an_intermittent_pause() -> None:
    with World(3) as world:
        node = world.machine("counter", "m")
        again = Intermittent(period_ns=200_000_000, times=3)
        world.inject(NodeFault(when=NOW, target="m", effect="pause", for_ns=100_000_000, persistence=again))
        world.run_for(1.0)
        assert 0.65e9 < node.machine.clock.now_ns < 0.75e9


# Machines


def test_a_flipped_register_is_told_of() -> None:
    with World(3) as world:
        node = world.machine("counter", "m")
        world.inject(RegisterFault(when=AtTime(ns=30_000_000), register="rip", mask=1 << 30))
        world.run_for(1.5)
        (told,) = [line for line in world.log.last if line.what == "fault"]
        assert (told.who, told.at_ns) == ("m", 30_000_000)
        assert told.detail.startswith("register: rip: ")
        assert node.console.count("GUEST-READY") == 2, "where there is no memory it faults, and starts again"


def test_an_instruction_count_is_a_trigger_for_the_world() -> None:
    with World(3) as world:
        node = world.machine("counter", "m")
        world.inject(NodeFault(when=AtInstruction(count=50_000), target="m", effect="kill"))
        world.run_for(0.5)
        assert not node.alive


def test_damage_in_a_follower_is_found_and_repaired() -> None:
    with World(3) as world:
        echoes = Echoes(world, "lockstep", unix=False)
        second = echoes.pair.secondary
        world.inject(
            DataFault(when=NOW, target=second.name, address=0x9_0000, space="physical", width=1, mask=1)
        )
        world.run_until(lambda: echoes.told("departed"), LIMIT_S)
        assert "page" in echoes.told("departed")[0]
        world.run_until(lambda: any("divergence" in each for each in echoes.told("epoch")), LIMIT_S)
        world.run_for(1.0)
        assert len(echoes.told("departed")) == 1
        assert bytes(second.machine.ram.view(0x9_0000, 1)) == b"\0"
        echoes.more(5)


def test_damage_in_a_primary_is_nobodys_to_find() -> None:
    """Replication protects from crashes; a wrong state is replicated like a right one."""
    with World(3) as world:
        echoes = Echoes(world, "periodic")
        first, second = echoes.pair.primary, echoes.pair.secondary
        world.inject(DataFault(when=NOW, target="pair", address=0x9_0000, space="physical", width=1, mask=1))
        world.run_for(0.5)
        world.kill(first)
        echoes.more(5)
        assert bytes(second.machine.ram.view(0x9_0000, 1)) == b"\1"


@pytest.mark.long
def test_a_disk_that_fails_is_a_disk_that_linux_gives_up(guest: Callable[[str], BuiltGuest]) -> None:
    guest("linux-disk")
    with World(3) as world:
        node = world.machine("linux-disk", "m")
        world.inject(DiskFault(when=NOW, target="m", effect="eio", persistence="permanent"))
        node.machine.door.enter("com1", b"echo word > /srv/file; sync\n")
        world.run_until(lambda: "Remounting filesystem read-only" in node.console, 30)


# Arbiters


def test_a_slow_arbiter_delays_the_survivor() -> None:
    with World(4) as world:
        echoes = Echoes(world, "periodic")
        world.inject(ArbiterFault(when=NOW, effect="slow", delay=Delay(ns=SECOND // 2), for_ns=SECOND))
        world.run_for(0.01)
        world.kill(echoes.pair.primary)
        died_s = world.now_s
        world.run_until(lambda: echoes.pair.serving, LIMIT_S)
        assert world.now_s - died_s > 0.5
        echoes.more(5)


def test_nobody_acts_alone_without_the_arbiter() -> None:
    with World(4) as world:
        echoes = Echoes(world, "colo")
        world.inject(ArbiterFault(when=NOW, effect="unreachable", for_ns=SECOND))
        world.run_for(0.01)
        world.kill(echoes.pair.primary)
        world.run_for(0.9)
        assert echoes.pair.serving is None
        world.run_until(lambda: echoes.pair.serving, LIMIT_S)
        echoes.more(5)


def test_a_lying_arbiter_makes_two_of_one() -> None:
    """What a pair cannot survive is seen, not hidden."""
    with World(4) as world:
        echoes = Echoes(world, "periodic", unix=False)
        nodes = list(echoes.pair.nodes)
        world.inject(ArbiterFault(when=NOW, effect="wrong", persistence="permanent"))
        world.run_for(0.01)
        echoes.pair.cut()
        world.run_until(lambda: all(node.ending is not None for node in nodes), LIMIT_S)
        assert [node.ending for node in nodes] == [Ending.ALONE, Ending.ALONE]
        assert all(node.serves for node in nodes)


# Targets


def test_a_target_that_is_not_there_is_named() -> None:
    with World(5) as world:
        Echoes(world, "periodic")
        world.inject(LinkFault(when=NOW, target="client9", effect="drop"))
        with pytest.raises(
            WorldError, match=r"'client9' is no cable or wire.*expected pair-0, pair-1, client0"
        ):
            world.run_for(0.01)


def test_a_trial_belongs_to_its_seed() -> None:
    with World(5) as world, pytest.raises(WorldError, match="seed 6"):
        arm_trial(world, Trial(seed=6))
