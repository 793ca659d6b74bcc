"""A node of a pair in the world: a process with a machine, and the real code of both roles around it.

What :mod:`colo.node.process` and :mod:`colo.node.node` put together for a host is put together here for the
world: machine, filtered card, held console, output hold, replica, and the pairing of a role.  Not here: QMP
and listeners; a person's commands are the world's calls.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from colo.arbiter import Arbiter
from colo.errors import ColoError
from colo.failover import Ending
from colo.filters import FilteredNet, OutputHold
from colo.filters.console import HeldConsole
from colo.messages import Message
from colo.node.guest_thread import GuestThread
from colo.node.leading import Settings
from colo.node.pairing import PrimaryPairing, SecondaryPairing
from colo.node.replica import Replica
from colo.node.standby_ram import StandbyRam
from colo.peer import brief
from colo.policy import Policy
from colo.sim.agenda import Agenda
from colo.sim.companion import SimCompanion
from colo.sim.guest import SimGuest
from colo.sim.image import Image
from colo.sim.network import Card
from colo.sim.process import Process
from colo.sim.wire import Lane
from vmm.backends.net import NetBackend
from vmm.machine import Ended, Machine
from vmm.ram import Ram

if TYPE_CHECKING:
    from colo.sim.connection import SimConnection

Tell = Callable[[str, str, str], None]
"""Who, what, detail."""
QUIET = ("record",)
"""Facts of an event that hold what a host measured."""


class Ear:
    """A console that only listens; what is typed is given to the machine's door."""

    pending_output = False

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        return None

    def write(self, data: bytes) -> None:
        self._hear(bytes(data))

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing is open."""


class SimNode(Process):
    """One node; ``incoming``: it stands by for a primary."""

    def __init__(
        self,
        name: str,
        pair: str,
        image: Image,
        agenda: Agenda,
        tell: Tell,
        failed: Callable[[BaseException], None],
        *,
        incoming: bool,
    ) -> None:
        super().__init__(name, agenda, failed)
        self.image = image
        self.segment = ""
        """The switch that it is on."""
        self._tell = tell
        self.ending: Ending | None = None
        self.halted = False
        self.ended: Ended | None = None
        self.pairing: PrimaryPairing | SecondaryPairing | None = None
        self.connection: SimConnection | None = None
        self.changed: Callable[[str, dict[str, Any]], None] = lambda event, facts: None
        """Told of every event of this node, after the log."""
        self.overheard: Callable[[bytes], object] = lambda data: None
        """Told what the guest says on its console, held or not."""
        self._companions: dict[int, SimCompanion] = {}
        self._opened = ExitStack()
        self.cards: list[Card] = []
        self._console = bytearray()
        self.replica = self._assemble(pair, image, incoming)

    def _assemble(self, pair: str, image: Image, incoming: bool) -> Replica:
        agenda = self.agenda
        hold = OutputHold(
            lambda: self._from_guest(True), lambda: self._from_guest(False), lambda: agenda.now_ns
        )
        console = HeldConsole(Ear(self._heard), hold, muted=incoming)
        nets: list[FilteredNet] = []
        standby: list[StandbyRam] = []

        def wrap(number: int, backend: NetBackend) -> NetBackend:
            card = Card(lambda: self.guest.news(), lambda: self.alive)
            self.cards.append(card)
            nets.append(
                FilteredNet(card, f"net{number}", now_ns=lambda: self.machine.clock.now_ns, muted=incoming)
            )
            return nets[-1]

        def stand_by(ram_mib: int) -> Ram:
            standby.append(StandbyRam(ram_mib))
            return standby[0].ram

        self.machine: Machine = self._opened.enter_context(
            image.launch([console, Ear(self._overhear)], wrap, stand_by if incoming else None)
        ).machine
        self.guest = SimGuest(
            self.machine, self._guest_ended, lambda: agenda.now_ns, self._look_at, self._readable
        )
        for card, port in zip(self.cards, self.machine.nets, strict=True):
            self.guest.listen(card.fileno(), port)
        agenda.guests.append(self.guest)
        if incoming:
            self.guest.freeze()
        return Replica(
            guest=cast(GuestThread, self.guest),
            nets=nets,
            consoles=[console],
            hold=hold,
            pair=pair,
            node=self.name,
            generation=0,
            report=self._report,
            standby=standby[0] if incoming else None,
            now_s=lambda: agenda.now_ns / 1e9,
        )

    # What others see

    @property
    def serves(self) -> bool:
        """Its guest speaks to the world, as far as it knows."""
        return self.alive and not self.stopped and not self.halted and not self.replica.consoles[0].muted

    @property
    def is_protected(self) -> bool:
        """Another node holds an epoch of this one's."""
        return isinstance(self.pairing, PrimaryPairing) and self.pairing.in_colo

    @property
    def console(self) -> str:
        """What the world heard on the console."""
        return self._console.decode("utf-8", "replace")

    # What it tells

    def _report(self, event: str, facts: dict[str, Any]) -> None:
        if not self.alive:
            return
        if event == "epoch":
            record = facts["record"]
            detail = f"{record.epoch} {record.reason}: {record.pages_sent} pages, {record.held_packets} held"
        else:
            detail = " ".join(f"{key}={value}" for key, value in facts.items() if key not in QUIET)
        self._tell(self.name, event, detail)
        self.changed(event, facts)

    def _overhear(self, data: bytes) -> None:
        if self.alive:
            self.overheard(data)

    def _heard(self, data: bytes) -> None:
        if not self.alive:
            return
        self._console += data
        self._tell(self.name, "console", repr(data)[1:])

    def spoke(self, what: str, message: Message) -> None:
        """A word of the protocol or of the companion."""
        if self.alive:
            self._tell(self.name, what, brief(message))
            self.changed(type(message).__name__, {"word": what})

    # The guest's thread

    def _look_at(self, at_ns: int) -> None:
        self.agenda.at(at_ns, self.guest.look)

    def _readable(self, descriptor: int) -> bool:
        if descriptor >= 0:
            return any(card.waiting for card in self.cards if card.fileno() == descriptor)
        companion = self._companions.get(descriptor)
        return companion is not None and companion.readable

    def _from_guest(self, too_much: bool) -> None:
        def tell() -> None:
            if isinstance(self.pairing, PrimaryPairing):
                self.pairing.vm.output_held(too_much)

        self.act(tell)

    def _guest_ended(self, ended: Ended) -> None:
        self.act(lambda: self._note_end(ended))

    def _note_end(self, ended: Ended) -> None:
        self.ended = ended
        self._report("guest-ended", {"how": ended.value})
        if isinstance(self.pairing, PrimaryPairing):
            self.pairing.vm.guest_ended(ended.value)

    def new_companion(self, out: Lane, unix: bool) -> SimCompanion:
        """This node's end of a connection that is being made."""
        descriptor = -2 - len(self._companions)
        made = SimCompanion(
            descriptor,
            self,
            out,
            unix=unix,
            arrived=self.guest.news,
            spoke=lambda message: self.spoke("tells", message),
        )
        self._companions[descriptor] = made
        self.guest.listen(descriptor)
        return made

    # Roles

    def lead(self, connection: SimConnection, arbiter: Arbiter, policy: Policy, settings: Settings) -> None:
        """Have this node's machine protected by the node at the other end."""
        self.connection = connection
        self.undertake(self._lead(connection, arbiter, policy, settings))

    async def _lead(
        self, connection: SimConnection, arbiter: Arbiter, policy: Policy, settings: Settings
    ) -> None:
        pairing = PrimaryPairing(
            self.replica,
            connection,
            arbiter,
            policy,
            settings,
            lambda: self._report("protected", {}),
            compress=False,
        )
        ending = await self._pairing(pairing, pairing.run())
        if ending is not Ending.SHUTDOWN and pairing.vm.has_promised:
            self.replica.generation += 1

    def stand_by(self, connection: SimConnection, arbiter: Arbiter, generation: int) -> None:
        """Follow the node at the other end."""
        self.connection = connection
        self.replica.generation = generation
        self.undertake(self._stand_by(connection, arbiter))

    async def _stand_by(self, connection: SimConnection, arbiter: Arbiter) -> None:
        pairing = SecondaryPairing(self.replica, connection, arbiter)
        ending = await self._pairing(pairing, pairing.run())
        if ending in (Ending.ALONE, Ending.LOST):
            self.replica.generation += 1

    async def _pairing(
        self, pairing: PrimaryPairing | SecondaryPairing, run: Coroutine[Any, Any, Ending]
    ) -> Ending:
        self.pairing, self.ending = pairing, None
        ending = await run
        self.pairing, self.ending = None, ending
        self.halted = ending is Ending.LOST
        self._report("pairing-ended", {"ending": ending.value, "reason": pairing.failover.reason})
        return ending

    def request(self, reason: str) -> None:
        """A checkpoint is wanted now."""
        if not isinstance(self.pairing, PrimaryPairing):
            raise ColoError(f"{self.name} leads no pair: only a primary makes checkpoints")
        pairing = self.pairing
        self.act(lambda: pairing.vm.request(reason))

    # Life

    def pause(self) -> None:
        super().pause()
        self.guest.stopped = True

    def resume(self) -> None:
        super().resume()
        self.guest.stopped = False
        self.guest.news()
        if self.connection is not None:
            self.connection.ends[1].go_on()

    def die(self, silently: bool = False) -> None:
        """``silently``: its host with it, so that no kernel tells the other node."""
        if not self.alive:
            return
        if self.connection is not None:
            self.connection.die(silently)
        super().die()
        self.guest.dead = True
        self.guest.interrupt(self.agenda.now_ns)

    def after_fork(self) -> None:
        """In a child of ``os.fork()``: nothing of this machine is the parent's any more."""
        for card in self.cards:
            card.after_fork()
        self.machine.after_fork()
        if self.replica.standby is not None:
            self.replica.standby.after_fork()
        if isinstance(self.pairing, PrimaryPairing):
            self.pairing.vm.changes.source.after_fork()

    def bury(self) -> None:
        super().bury()
        if self.guest in self.agenda.guests:
            self.agenda.guests.remove(self.guest)
        self._opened.close()
