"""The secondary's machine in one pairing: what :mod:`colo.secondary` calls, on a real machine.

What its guest does between two checkpoints is the epoch's :class:`~colo.messages.Life`.

*wait*: it does not run.  Its RAM is the last epoch that was installed; the device state of that epoch is
kept packed, checked but not loaded, because chips are needed only by a guest that runs:
:meth:`Following.take_over` loads it once instead of forty times a second.

*follow*: it does what the primary's log says (:mod:`colo.node.follower`).  *run*: it runs by itself, with the
inputs of the primary's (:mod:`colo.node.runner`).  What it writes in either are pages of its own beside the
image of the epoch, given back when the next one is installed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from colo.errors import ProtocolViolation
from colo.failover import Failover
from colo.filters import announce
from colo.life import Life
from colo.messages import Inputs, Packet
from colo.node.follower import Follower
from colo.node.rehearsal import Rehearsal
from colo.node.replica import Replica
from colo.node.runner import Runner
from colo.node.stage import FirstStage, Stage
from colo.node.standby_frames import StandbyFrames
from colo.node.standby_ram import NO_PAGES
from colo.node.translation import Translation
from colo.transport.companion import Companion
from vmm import hashing

INLINE_PAGES_MAX = 512
"""An epoch of this size is installed at once; a larger one in a thread, so that the link is served."""
INPUTS_KEPT, INPUTS_BYTES_KEPT = 8192, 32 << 20
"""Inputs of the open epoch that a survivor could repeat; the oldest go, and their clients ask again."""
OWN_EVENTS = ("snapshot", "announce")
"""Inputs that concern the node that had them, and no other."""


class Following:
    """``replica`` as the secondary of one pairing."""

    def __init__(
        self, replica: Replica, failover: Failover, companion: Companion, violated: Callable[[str], None]
    ) -> None:
        self.replica = replica
        self.pair, self.node, self.generation = replica.pair, replica.node, replica.generation
        self.has_sealed = False
        self.epoch = -1
        """The last one sealed."""
        self._failover = failover
        self._machine = replica.machine
        self._stage: Stage | None = None
        self._state: Mapping[str, bytes] = {}
        self._inputs: deque[tuple[int, Packet]] = deque()
        self._inputs_bytes = 0
        self._unsaid: list[Packet] = []
        self._whole = True
        """Is the guest what the primary's log said, to its end?"""
        assert replica.standby is not None, "only a node that was started with --incoming follows"
        self._standby = replica.standby
        self._standby.clear()
        self._machine.cpu.flush()
        self._rehearsal = Rehearsal(replica, self._standby)
        self._frames = {
            net.name: StandbyFrames(net, card.mac)
            for net, card in zip(replica.nets, replica.machine.config.nets, strict=True)
        }
        self._life = Life.WAIT
        self._translation = Translation(replica.nets)
        self._follower = Follower(replica, companion, self._frames, violated)
        self._runner = Runner(replica, companion, self._frames, self._translation, violated)

    @property
    def has_departed(self) -> bool:
        """An epoch that is sealed and waits to be installed repairs it."""
        if self._stage is not None:
            return False
        follows, runs = self._life is Life.FOLLOW, self._life is Life.RUN
        return (follows and self._follower.has_departed) or (runs and self._runner.has_ended)

    # What colo.secondary asks

    def stand_still(self) -> None:
        if self._life is not Life.WAIT:
            self.replica.guest.freeze()
            self.replica.guest.call(lambda: None)

    def open_stage(self, epoch: int) -> Stage:
        kind = Stage if epoch else FirstStage
        self._opened = kind(self._machine, self._standby.image, epoch)
        return self._opened

    def sealed(self, epoch: int) -> None:
        if epoch == 0:
            for frames in self._frames.values():
                frames.forget()
        self._stage = self._opened
        self._unsaid = self._stage.held
        self.has_sealed, self.epoch = True, epoch

    async def install(self) -> None:
        assert self._stage is not None
        self._failover.begin_loading()
        try:
            await self._rehearsal.finish()
            if self._stage.page_count <= INLINE_PAGES_MAX:
                self._install()
            else:
                await asyncio.to_thread(self._install)
            if self._life is not Life.WAIT:
                await asyncio.wrap_future(self.replica.guest.submit(self._begin_to_live))
                self.replica.guest.start()
                self.replica.guest.thaw()
        finally:
            self._failover.end_loading()
        self._forget_committed_inputs()
        if self._life is Life.WAIT:
            self._await_inputs()

    def _await_inputs(self) -> None:
        for frames in self._frames.values():
            frames.collect()
            frames.committed()
        for _, packet in self._inputs:  # of a cut after which nothing came by the companion any more
            self._match_frame(packet)
        self._rehearse_if_due()

    def _begin_to_live(self) -> None:
        """In the guest's thread: be the primary's guest at the very instant of the cut."""
        self._machine.load_sections(self._state, NO_PAGES)
        if self._life is Life.FOLLOW:
            self._follower.begin(self.epoch)
        elif self._life is Life.RUN:
            self._runner.begin(self.epoch)

    def _stop_living(self) -> None:
        """What the guest did since the cut is taken back."""
        if self._life is Life.FOLLOW:
            self._follower.end()
        elif self._life is Life.RUN:
            self._runner.end()
        if self._life is not Life.WAIT:
            self._machine.cpu.invalidate_pages(self._standby.give_back())

    def _install(self) -> None:
        stage = self._stage
        assert stage is not None
        assert stage.vmstate is not None
        self._stop_living()
        self._life = stage.life
        self._translation.learn(stage.vmstate.translations)
        stage.install_pages()
        self._machine.cpu.invalidate_pages(stage.pages)
        self._state = stage.vmstate.sections
        if stage.vmstate.digest:
            self._verify(stage.vmstate.digest)
        self._stage = None

    def _verify(self, digest: bytes) -> None:
        """Is this machine, RAM and devices, what the primary was?"""
        ram = hashing.ram_digest(self._standby.image)
        components = {name: self._state[name] for name in self._machine.components}
        mine = hashing.state_digest(components, ram)
        if mine != digest:
            self.has_sealed = False  # a machine that is nobody's copy must not take over
            raise ProtocolViolation(
                f"epoch {self.epoch}: after installing, this machine is {mine.hex()}, the primary was"
                f" {digest.hex()}: pages or device state were lost on the way; report this"
            )
        self.replica.statistics.totals.verified += 1

    def keep(self, inputs: Inputs) -> None:
        """A primary whose rule has become *wait* mirrors before that life has begun here."""
        for port, payload in inputs.packets:
            if port not in self._machine.door.ports:
                raise ProtocolViolation(f"epoch {inputs.epoch}: an input for {port!r}, which is no port here")
            if port not in OWN_EVENTS:
                self._inputs.append((inputs.epoch, (port, payload)))
                self._inputs_bytes += len(payload)
        while len(self._inputs) > INPUTS_KEPT or self._inputs_bytes > INPUTS_BYTES_KEPT:
            self._forget_oldest_input()
        if self._life is not Life.WAIT:
            return  # the frames are the guest's thread's
        for frames in self._frames.values():
            frames.collect()
        for packet in inputs.packets:
            self._match_frame(packet)
        self._rehearse_if_due()

    def _match_frame(self, packet: Packet) -> None:
        """A frame that the primary's guest was given is no longer one that it may not have heard."""
        port, payload = packet
        if port in self._frames:
            self._frames[port].given(payload)

    def _rehearse_if_due(self) -> None:
        """When there is something to rehearse: the inputs that a survivor would have to answer."""
        if self._inputs and self._state and self._stage is None and self._rehearsal.is_due:
            self._rehearsal.begin(self._state, [packet for _, packet in self._inputs])

    def _forget_committed_inputs(self) -> None:
        while self._inputs and self._inputs[0][0] <= self.epoch:
            self._forget_oldest_input()

    def _forget_oldest_input(self) -> None:
        self._inputs_bytes -= len(self._inputs.popleft()[1][1])

    def released(self, epoch: int) -> None:
        if epoch == self.epoch:
            self._unsaid = []

    # The end of the pairing

    def take_over(self) -> None:
        """The sealed epoch is this machine now; say what may be unsaid, repeat the inputs, serve."""
        self._rehearsal.finish_now()
        self.replica.guest.call(self._become_primary)
        self.replica.guest.thaw()
        self.replica.guest.start()

    def _become_primary(self) -> None:
        machine, replica = self._machine, self.replica
        self._be_current()
        unheard = {name: frames.take() for name, frames in self._frames.items()}
        replica.unmute()
        for card, net in zip(machine.config.nets, replica.nets, strict=True):
            announce(net, card.mac)
        self._say_again()
        for _, (name, payload) in self._inputs:
            machine.door.enter(name, replica.to_guest(name, payload))
        for name, frames in unheard.items():
            for frame in frames:
                machine.door.enter(name, replica.to_guest(name, frame))
        facts = {
            "epoch": self.epoch,
            "inputs_repeated": len(self._inputs),
            "frames_unheard": sum(map(len, unheard.values())),
            "rehearsals": self._rehearsal.count,
            "log_words": self._follower.words,
            "same": self._whole,
        }
        replica.report("took-over", facts)

    def _be_current(self) -> None:
        """As far as anything the world may have heard depends on."""
        fresh = self._stage is not None
        if fresh:
            self._install()
        self._forget_committed_inputs()
        if fresh or self._life is Life.WAIT:
            self._begin_to_live()
        if self._life is Life.FOLLOW:
            self._whole = self._follower.drain()
            self._follower.end()
            self._unsaid += self._follower.unspoken()
        elif self._life is Life.RUN:
            self._runner.drain()
            self._runner.end()
            self._unsaid += self._runner.repeated()
        self._translation.take_over(self._machine.clock.now_ns / 1e6)

    def _say_again(self) -> None:
        """What the last epoch held, when the primary may have died before it was said."""
        for port_name, payload in self._unsaid:
            self.replica.say(port_name, payload)

    def halt(self) -> None:
        self.replica.mute()
        self.stand_still()

    def shut_down(self) -> None:
        """The guest ended, and its last words were the primary's to say."""
        self.halt()
