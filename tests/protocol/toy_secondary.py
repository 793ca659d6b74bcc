"""The secondary's half on a toy machine: what :mod:`colo.node.following` is for a real one, effect by effect.

Who follows a log and who runs beside are the real ones: :class:`colo.node.follower.Follower`,
:class:`colo.node.runner.Runner`.  What takes host time in the real half is an await here, where the world may
intervene; installing takes several, so that a node can be caught in the middle of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from colo.life import Life
from colo.messages import Inputs, Packet
from colo.node.follower import Follower
from colo.node.following import OWN_EVENTS
from colo.node.runner import Runner
from tests.protocol.network import Until, always
from tests.protocol.toy_guest import ANNOUNCE
from tests.protocol.toy_machine import ToyMachine
from tests.protocol.toy_pages import ToyStage
from tests.protocol.toy_primary import Around

PAGES_A_MOVE = 2
"""Installed between two awaits."""


class ToySecondary:
    """A :class:`colo.failover.SurvivingSecondary`."""

    follower_kind: type[Follower] = Follower
    runner_kind: type[Runner] = Runner

    def __init__(self, machine: ToyMachine, generation: int, around: Around) -> None:
        self.pair, self.node, self.generation = "pair", machine.name, generation
        self.machine, self.failover, self.witness = machine, around.failover, around.witness
        self.companion, self.meanwhile = around.companion, around.meanwhile
        self.has_sealed = False
        self.epoch = -1
        """The last one sealed."""
        self.stage: ToyStage | None = None
        """Sealed, and not wholly installed."""
        self.life = Life.WAIT
        self.image = list(machine.guest.ram)
        """RAM of the epoch that is installed; the guest's own differs in the pages that it wrote."""
        self.state = b""
        self.unsaid: list[Packet] = []
        self.inputs: list[tuple[int, Packet]] = []
        self.opened = self.new_stage(0)
        self.violation: str | None = None
        """What the guest's thread found wrong with the peer: the connection is to be closed."""
        replica: Any = machine.replica
        companion: Any = around.companion
        translation: Any = SimpleNamespace(begin=lambda: None, once_more=lambda _, frame: frame)
        self.follower = self.follower_kind(replica, companion, {}, self._violated)
        self.runner = self.runner_kind(replica, companion, {}, translation, self._violated)

    def _violated(self, reason: str) -> None:
        self.witness.noted(self.machine, "refuses a word:", reason)
        self.violation = self.violation or reason

    @property
    def has_departed(self) -> bool:
        if self.stage is not None:
            return False
        follows, runs = self.life is Life.FOLLOW, self.life is Life.RUN
        return (follows and self.follower.has_departed) or (runs and self.runner.has_ended)

    def stand_still(self) -> None:
        if self.life is not Life.WAIT:
            self.machine.thread.freeze()
            self.machine.thread.call(lambda: None)

    def new_stage(self, epoch: int) -> ToyStage:
        return ToyStage(self.image, epoch)

    def open_stage(self, epoch: int) -> ToyStage:
        self.opened = self.new_stage(epoch)
        return self.opened

    def sealed(self, epoch: int) -> None:
        assert self.opened.vmstate is not None
        self.stage, self.unsaid = self.opened, self.opened.vmstate.held
        self.has_sealed, self.epoch = True, epoch

    async def install(self) -> None:
        assert self.stage is not None
        self.failover.begin_loading()
        try:
            for _ in self.installing(self.stage):
                await Until("install", always)
            if self.life is not Life.WAIT:
                thread = self.machine.thread
                thread.submit(self._begin_to_live)
                await Until("the guest's thread", lambda: not thread.jobs)
                thread.start()
                thread.thaw()
        finally:
            self.failover.end_loading()
        self.forget_committed_inputs()

    def installing(self, stage: ToyStage) -> Iterator[None]:
        """Page after page, then the registers."""
        assert stage.vmstate is not None
        self._stop_living()
        self.life = stage.life
        guest, pages = self.machine.guest, sorted(stage.pages)
        for at in range(0, len(pages), PAGES_A_MOVE):
            yield
            for page in pages[at : at + PAGES_A_MOVE]:
                guest.ram[page] = self.image[page] = stage.pages[page]
        yield
        self.state = stage.vmstate.sections["registers"]
        guest.load(self.state)
        self.machine.flipped = False
        self.stage = None
        self.witness.installed(self.machine, self.generation, stage.epoch, self.machine.image())

    def _stop_living(self) -> None:
        if self.life is Life.FOLLOW:
            self.follower.end()
        elif self.life is Life.RUN:
            self.runner.end()
        guest = self.machine.guest
        for page in guest.dirty:
            guest.ram[page] = self.image[page]
        guest.dirty.clear()

    def _begin_to_live(self) -> None:
        self.machine.guest.load(self.state)
        if self.life is Life.FOLLOW:
            self.follower.begin(self.epoch)
        elif self.life is Life.RUN:
            self.runner.begin(self.epoch)

    def keep(self, inputs: Inputs) -> None:
        self.inputs += [(inputs.epoch, packet) for packet in inputs.packets if packet[0] not in OWN_EVENTS]

    def forget_committed_inputs(self) -> None:
        self.inputs = [kept for kept in self.inputs if kept[0] > self.epoch]

    def released(self, epoch: int) -> None:
        if epoch == self.epoch:
            self.unsaid = []

    # The end of the pairing

    def take_over(self) -> None:
        thread = self.machine.thread
        thread.call(self._become_primary)
        thread.thaw()
        thread.start()

    def _become_primary(self) -> None:
        machine = self.machine
        self.meanwhile()
        self.be_current()
        self.meanwhile()
        self.witness.noted(machine, "takes over from", self.epoch)
        self.witness.noted(machine, "had to", self.life.value)
        machine.replica.unmute()
        machine.door.enter(ANNOUNCE, machine.rng.randbytes(8))
        for port, frame in self.unsaid:
            machine.replica.say(port, frame)
        for _, (port, payload) in self.inputs:
            machine.door.enter(port, payload)

    def be_current(self) -> None:
        fresh = self.stage is not None
        if self.stage is not None:
            deque(self.installing(self.stage), maxlen=0)
        self.forget_committed_inputs()
        if fresh or self.life is Life.WAIT:
            self._begin_to_live()
        if self.life is Life.FOLLOW:
            self.follower.drain()
            self.follower.end()
            self.unsaid = self.unsaid + self.follower.unspoken()
        elif self.life is Life.RUN:
            self.runner.drain()
            self.runner.end()
            self.unsaid = self.unsaid + self.runner.repeated()

    def halt(self) -> None:
        self.machine.replica.mute()
        self.stand_still()
        self.machine.halted = True
        self.witness.noted(self.machine, "is halted")

    def shut_down(self) -> None:
        """The guest ended, and its last words were the primary's to say."""
        self.machine.replica.mute()
        self.stand_still()
