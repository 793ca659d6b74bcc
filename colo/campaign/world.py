"""Campaigns in a world (:mod:`colo.sim`): real machines, the real COLO code and clients, in one process.

::

    guest = "redis"

    [world]
    policy = ["none", "lockstep", "colo"]  # periodic, lockstep, colo; none: a machine that nobody protects
    client = "redis-counter"   # or udp-echo, http-get; by default, as the guest's service wants
    path = "/1k.txt"           # that http-get asks for
    operations = 40            # that each client wants answered
    pause_ns = 5_000_000       # between two of them
    begin = "protected"        # when faults are armed: then, or at "start"

With several policies every trial is run in a world of each, with the same seed and the same faults.  Not the
same is what the guest does at that moment: triggers count from when faults are armed, and a pair comes there
later than a machine alone.  A fault whose target is empty is the machine's that nobody
protects, or that of the pair's primary: of a fault in a machine when it is armed, because its trigger counts
what that machine does; of a node's when it happens.

A world is set up once for each policy, with the plan's seed, until faults are armed.  There
:class:`WorldServer` forks a child for each trial.  The child has everything as it is, the standing-by
machine's committed image included (:meth:`colo.sim.world.World.after_fork`), and from there on all that is
random comes from the trial's seed.  A replay does the same in one process.

Outcomes, by the first rule that fits:

1. *crash*: code of ours raised an exception.
2. *failed-over*: every answer came and was right, from a survivor: a node that serves alone, or another one
   than at first.
3. *detected*: every answer came and was right, and the pair noticed a difference between its machines
   (:mod:`colo.campaign.noticed`).
4. *masked*: every answer came and was right, and nobody noticed anything.
5. *crash*, *detected*: a guest says so on its console (:mod:`colo.campaign.scenario` has the texts).
6. *detected*: the pair noticed a difference and somebody serves, but an answer is wrong (it is shown as the
   ``difference``) or a client still waits: the error is not silent.
7. *sdc*: an answer is wrong.  A counter's history has to be linearizable (:mod:`colo.checkers`), echoes have
   to come in their order, pages have to be as the first one.
8. *crash*: nobody serves any more, or the guest that serves has ended.  The reason says when that was after a
   double failure (:mod:`colo.campaign.double`).
9. *hang*: a client still waits at the limit.

Why this order.  What clients got decides first, and who noticed only among trials that were served alike:
failed-over is more than detected, for the service goes on as it should; detected is more than masked, for
somebody can act on it.  An error that was reported is never *silent* corruption, however late the report
came; a service that is lost is a crash, whoever noticed before.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from colo.campaign.fork_server import WALL_LIMIT_S, ForkServer, settle
from colo.campaign.scene import Scene
from colo.campaign.scenery import Policy, Scenery, Unharmed, WorldRun
from colo.campaign.subject import Say
from colo.campaign.touched import virtual_pages
from colo.campaign.trial import Report
from colo.errors import ColoError
from colo.faults import golden
from colo.faults.model import Outcome, Trial
from colo.sim.image import Image
from vmm import hashing
from vmm.machine import Machine
from vmm.ram import PAGE_SIZE


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


def record(scenario: Scenery, seed: int, say: Say = lambda text: None) -> WorldRun:
    """The worlds without faults; ColoError when the clients of one are not all answered."""
    worlds = []
    for policy in scenario.policies:
        say(f"a world with {scenario.guest}, policy {policy}, and no fault")
        worlds.append(_record(scenario.under(policy), policy, seed))
    return WorldRun(scenario=scenario, seed=seed, worlds=tuple(worlds))


def _record(scenario: Scenery, policy: Policy, seed: int) -> Unharmed:
    with Scene(scenario, seed) as scene:
        scene.set_up()
        world = scene.world
        guests = {name: _Guest(node.machine) for name, node in world.nodes.items()}
        scene.begin(Trial(seed=seed))
        scene.run()
        found = scene.verdict(tuple(scene.noticed.causes))
        if found.outcome is not Outcome.MASKED:
            raise ColoError(
                f"the world without faults, policy {policy}, came to {found.outcome.value}: {found.why}"
            )
        return Unharmed(
            policy=policy,
            span_ns=scene.elapsed_ns,
            log=world.digest,
            noticed=tuple(sorted(scene.noticed.causes)),
            steps={name: dict(sorted(steps.items())) for name, steps in sorted(scene.steps.items())},
            cables=(*world.cables, *world.wires),
            clients=tuple(client.name for client in scene.clients),
            disks={
                name: node.machine.disks[0].sectors
                for name, node in world.nodes.items()
                if len(node.machine.disks) == 1
            },
            pairs=tuple(world.pairs),
            first=scene.first.name,
            guests={name: each.facts() for name, each in guests.items()},
        )


def perform(
    run: WorldRun, policy: str, trial: Trial, watch: Callable[[Scene], None] = lambda scene: None
) -> Report:
    """One trial, from the beginning of its world; ``watch`` sees the scene before anything happens."""
    known = run.of(policy)
    with Scene(run.scenario.under(known.policy), run.seed) as scene:
        watch(scene)
        scene.set_up()
        return scene.perform(trial, known.noticed)


class WorldServer(ForkServer):
    """Holds the world of one policy, set up, and forks a child for each trial of it."""

    def __init__(
        self, run: WorldRun, *, wall_limit_s: float = WALL_LIMIT_S, say: Say = lambda text: None
    ) -> None:
        super().__init__(wall_limit_s)
        self._run, self._say = run, say
        self._scene: Scene | None = None
        self._known: Unharmed = run.worlds[0]
        Image.of(run.scenario.guest)  # boots it, if that takes long

    def prepare(self, trial: Trial, policy: str = "") -> None:
        """Trials come policy by policy; another one's world takes the place of this one's."""
        wanted = self._run.of(policy) if policy else self._run.worlds[0]
        if self._scene is None or wanted is not self._known:
            self._set_up(wanted)

    def _set_up(self, wanted: Unharmed) -> None:
        self.close()
        scenario, seed = self._run.scenario.under(wanted.policy), self._run.seed
        self._scene, self._known = Scene(scenario, seed), wanted
        self._scene.set_up()
        settle()
        again = self.fork(Trial(seed=seed))
        if again.digest != wanted.log:
            raise ColoError(
                f"the world without faults, policy {wanted.policy}, has digest {again.digest}"
                f"{again.failure}, the campaign's {wanted.log}: expected the same build; make the golden run"
                " again"
            )

    def perform(self, trial: Trial) -> Report:
        assert self._scene is not None
        self._scene.world.after_fork()
        return self._scene.perform(trial, self._known.noticed)

    def close(self) -> None:
        """Let the world go."""
        scene, self._scene = self._scene, None
        if scene is not None:
            gc.unfreeze()
            scene.close()
