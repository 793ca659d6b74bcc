"""Campaigns in a world (:mod:`colo.sim`): real machines, the real COLO code and clients, in one process.

::

    guest = "udpecho"

    [world]
    policy = "colo"            # periodic, lockstep, colo; none: a machine that nobody protects
    client = "udp-echo"        # who asks: udp-echo, redis-counter
    operations = 40            # that each client wants answered
    pause_ns = 5_000_000       # between two of them
    begin = "protected"        # when faults are armed: then, or at "start"

Each trial is a whole world, made from the trial's seed in a child of :class:`WorldServer`, which has
imported, compiled and booted what worlds need.  A world is not forked half way: a pair's standby image is
shared memory.

Outcomes, by the first rule that fits:

1. *crash*: code of ours raised an exception.
2. *failed-over*: every answer came and was right, from a survivor: a node that serves alone, or another one
   than at first.
3. *masked*: every answer came and was right, and the pair is as it was.
4. *crash*, *detected*: a guest says so on its console (:mod:`colo.campaign.scenario` has the texts).
5. *sdc*: an answer is wrong.  A counter's history has to be linearizable (:mod:`colo.checkers`); echoes have
   to come in their order.
6. *crash*: nobody serves any more, or the guest that serves has ended.
7. *hang*: a client still waits at the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec

from colo.campaign.fork_server import WALL_LIMIT_S, ForkServer, settle
from colo.campaign.injection import Happened
from colo.campaign.outcome import Verdict
from colo.campaign.scenario import CRASH_TEXTS, DETECTED_TEXTS
from colo.campaign.subject import Say
from colo.campaign.touched import virtual_pages
from colo.campaign.trial import Report
from colo.checkers.history import History
from colo.checkers.linearizability import linearizable
from colo.checkers.models import Counter as CounterModel
from colo.checkers.verdict import Outcome as Judged
from colo.errors import ColoError
from colo.failover import Ending
from colo.faults import golden
from colo.faults.fields import Whole
from colo.faults.model import Outcome, Trial
from colo.faults.triggers import Ns, Part
from colo.sim import faults
from colo.sim.clients import redis_counter, udp_echo
from colo.sim.events import Line
from colo.sim.image import Image
from colo.sim.loop import WorldError
from colo.sim.node import SimNode
from colo.sim.pair import SimPair
from colo.sim.world import World
from vmm import hashing
from vmm.machine import Machine
from vmm.ram import PAGE_SIZE

SETUP_S = 60.0
"""Virtual time until a pair is protected and its clients were answered: a large guest takes seconds."""
CLIENTS_MAX, OPERATIONS_MAX = 64, 100_000
WHY_MAX = 300
FAULT_LINES = ("fault", "fault-missed")
"""What the world's log calls an injection."""


class Scenery(Part, frozen=True, kw_only=True):
    """``[world]``, and what belongs to it from elsewhere in a plan."""

    guest: str = ""
    policy: Literal["none", "periodic", "lockstep", "colo"] = "colo"
    client: Literal["udp-echo", "redis-counter"] = "udp-echo"
    clients: Annotated[int, Whole(1, CLIENTS_MAX, "clients")] = 1
    operations: Annotated[int, Whole(1, OPERATIONS_MAX, "answers that each client wants")] = 40
    pause_ns: Ns = 5_000_000
    begin: Literal["protected", "start"] = "protected"
    two_hosts: bool = False
    """What a node's kernel holds is lost with its host."""
    again_ns: Ns = 0
    """A survivor gets a new node so much later; 0: never."""
    limit_ns: Ns = 10_000_000_000
    """From when faults are armed, for all answers."""


class WorldRun(msgspec.Struct, frozen=True, kw_only=True, tag="world"):
    """The world without faults."""

    scenario: Scenery
    seed: int
    span_ns: int
    """From when faults would be armed to the last answer."""
    log: str
    """Digest of all that happened."""
    steps: dict[str, dict[str, int]]
    """By node, words and changes since then."""
    cables: tuple[str, ...]
    disks: dict[str, int]
    pairs: tuple[str, ...]
    guests: dict[str, golden.Guest]

    @property
    def digest(self) -> str:
        return self.log

    def facts(self) -> golden.Golden:
        """What wildcards stand for."""
        return golden.Golden(
            end_ns=self.span_ns,
            guests=self.guests,
            links=self.cables,
            disks=self.disks,
            arbiters=self.pairs,
            steps=self.steps,
        )


class _Guest:
    """What a machine of a world does from when faults would be armed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._began = machine.stops.instructions
        self._hashes = hashing.page_hashes(machine.ram.array)

    def facts(self) -> golden.Guest:
        """Until now."""
        machine = self._machine
        written = (hashing.page_hashes(machine.ram.array) != self._hashes).any(axis=1)
        offsets = (int(page) * PAGE_SIZE for page in written.nonzero()[0])
        return golden.Guest(
            instructions=machine.stops.instructions - self._began,
            physical=golden.spans(machine.ram.address(offset) // PAGE_SIZE for offset in offsets),
            virtual=golden.spans(virtual_pages(machine, written)),
        )


class Scene:
    """One world on its way.  Use it in a ``with`` statement."""

    def __init__(self, scenario: Scenery, seed: int) -> None:
        self._scenario = scenario
        self.world = World(seed)
        self.history = History()
        self.heard: list[list[int]] = []
        self.steps: dict[str, Counter[str]] = {}
        self.happened: list[Happened] = []
        self.armed_ns = 0
        self.guests: dict[str, _Guest] = {}
        self.world.log.sinks.append(self._note)
        self._first, self.pair = self._machines()
        self.clients = [self._client(number) for number in range(scenario.clients)]

    def _machines(self) -> tuple[SimNode, SimPair | None]:
        wanted = self._scenario
        if wanted.policy == "none":
            return self.world.machine(wanted.guest), None
        pair = self.world.pair(
            wanted.guest,
            wanted.policy,
            unix=not wanted.two_hosts,
            again_after_s=wanted.again_ns / 1e9 if wanted.again_ns else None,
        )
        return pair.primary, pair

    def _client(self, number: int):  # type: ignore[no-untyped-def]
        wanted = self._scenario
        pause_s = wanted.pause_ns / 1e9
        if wanted.client == "redis-counter":
            actor = redis_counter(self.history, operations=wanted.operations, pause_s=pause_s)
        else:
            self.heard.append([])
            actor = udp_echo(self.heard[number].append, operations=wanted.operations, pause_s=pause_s)
        return self.world.client(actor)

    def _note(self, line: Line) -> None:
        if line.what in FAULT_LINES:
            missed = line.detail if line.what == "fault-missed" else ""
            self.happened.append(
                Happened(line.at_ns - self.armed_ns, 0, f"{line.who}: {line.detail}", missed)
            )

    def _step(self, node: SimNode, event: str) -> None:
        self.steps.setdefault(node.name, Counter())[event] += 1

    # Running

    def set_up(self) -> None:
        """To when faults are armed."""
        if self._scenario.begin == "protected":
            self.world.run_until(self._is_ready, SETUP_S)
        self.armed_ns = self.world.now_ns
        self.guests = {name: _Guest(node.machine) for name, node in self.world.nodes.items()}
        self.world.on_step.append(self._step)

    def _is_ready(self) -> bool:
        protected = self.pair is None or self.pair.is_protected
        return protected and (len(self.history.events) > 1 or any(self.heard))

    def run(self) -> None:
        """Until every client has its answers; WorldError at the limit."""
        self.world.run_until(self.is_done, self._scenario.limit_ns / 1e9)

    def is_done(self) -> bool:
        return all(each.actor.done() for each in self.clients)

    @property
    def elapsed_ns(self) -> int:
        return self.world.now_ns - self.armed_ns

    # Judging

    def verdict(self) -> Verdict:
        """Of a world that ran without an exception of ours."""
        wrong = self._wrong()
        if self.is_done() and not wrong:
            survivor = self._survivor()
            if survivor:
                return Verdict(Outcome.FAILED_OVER, survivor)
            return Verdict(Outcome.MASKED, "every answer, and the pair is whole")
        said = self._said()
        if said is not None:
            return msgspec.structs.replace(said, difference=wrong[:WHY_MAX])
        if wrong:
            return Verdict(Outcome.SDC, "a wrong answer", wrong[:WHY_MAX])
        serving = [node for node in self.world.nodes.values() if node.serves]
        if not serving:
            return Verdict(Outcome.CRASH, "nobody serves")
        ended = next((node.ended for node in serving if node.ended is not None), None)
        if ended is not None:
            return Verdict(Outcome.CRASH, f"the guest ended: {ended.value}")
        return Verdict(Outcome.HANG, "a client still waits")

    def _said(self) -> Verdict | None:
        """By a guest, on its console."""
        for outcome, words in ((Outcome.CRASH, CRASH_TEXTS), (Outcome.DETECTED, DETECTED_TEXTS)):
            for node in self.world.nodes.values():
                word = next((word for word in words if word in node.console), None)
                if word is not None:
                    return Verdict(outcome, f"the console of {node.name} says {word.strip()!r}")
        return None

    def _survivor(self) -> str:
        serving = next((node for node in self.world.nodes.values() if node.serves), None)
        if serving is None or self.pair is None:
            return ""
        if serving is not self._first:
            return f"{serving.name} serves"
        return f"{serving.name} went on alone" if serving.ending is Ending.ALONE else ""

    def _wrong(self) -> str:
        for number, heard in enumerate(self.heard):
            if heard != list(range(1, len(heard) + 1)):
                return f"client {number} heard {heard[-5:]}"
        if self._scenario.client == "redis-counter":
            found = linearizable(self.history, CounterModel())
            if found.outcome is not Judged.RIGHT:
                return str(found)
        return ""

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()


def record(scenario: Scenery, seed: int, say: Say = lambda text: None) -> WorldRun:
    """The world without faults; ColoError when its clients are not all answered."""
    say(f"a world with {scenario.guest} and no fault")
    with Scene(scenario, seed) as scene:
        scene.set_up()
        scene.run()
        found = scene.verdict()
        if found.outcome is not Outcome.MASKED:
            raise ColoError(f"the world without faults came to {found.outcome.value}: {found.why}")
        world = scene.world
        return WorldRun(
            scenario=scenario,
            seed=seed,
            span_ns=scene.elapsed_ns,
            log=world.digest,
            steps={name: dict(sorted(steps.items())) for name, steps in sorted(scene.steps.items())},
            cables=(*world.cables, *world.wires),
            disks={
                name: node.machine.disks[0].sectors
                for name, node in world.nodes.items()
                if len(node.machine.disks) == 1
            },
            pairs=tuple(world.pairs),
            guests={name: each.facts() for name, each in scene.guests.items()},
        )


def perform(scenario: Scenery, trial: Trial, watch: Callable[[Scene], None] = lambda scene: None) -> Report:
    """One trial, from the beginning of its world; ``watch`` sees the scene before anything happens."""
    with Scene(scenario, trial.seed) as scene:
        watch(scene)
        scene.set_up()
        faults.arm_trial(scene.world, trial)
        verdict = _ran(scene)
        return Report(
            outcome=verdict.outcome,
            why=verdict.why,
            difference=verdict.difference,
            happened=tuple(scene.happened),
            ended_ns=scene.elapsed_ns,
            digest=scene.world.digest,
        )


def _ran(scene: Scene) -> Verdict:
    try:
        scene.run()
    except WorldError as exc:
        if exc.__cause__ is not None:
            cause = exc.__cause__
            return Verdict(Outcome.CRASH, f"{type(cause).__name__}: {cause}"[:WHY_MAX])
    return scene.verdict()


class WorldServer(ForkServer):
    """Forks a child for each world."""

    def __init__(
        self, run: WorldRun, *, wall_limit_s: float = WALL_LIMIT_S, say: Say = lambda text: None
    ) -> None:
        super().__init__(wall_limit_s)
        self._run = run
        Image.of(run.scenario.guest)  # boots it, if that takes long
        again = record(run.scenario, run.seed, say)
        if again.digest != run.digest:
            raise ColoError(
                f"the world without faults has digest {again.digest}, the campaign's {run.digest}:"
                " expected the same build; make the golden run again"
            )
        settle()

    def perform(self, trial: Trial) -> Report:
        return perform(self._run.scenario, trial)

    def close(self) -> None:
        """Nothing is held between trials."""
