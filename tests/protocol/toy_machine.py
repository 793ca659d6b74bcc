"""A node's machine in the simulated world, and the two halves that the protocol calls on it.

:class:`ToyPrimary` and :class:`ToySecondary` are for the toy what :mod:`colo.node.leading` and
:mod:`colo.node.following` are for a real machine, with the same order of effects: the shadow and differences
against it, pages staged apart, inputs mirrored beside the epochs.  Output is held by the real
:class:`colo.filters.hold.OutputHold`.  What takes host time in the real ones is an await here, where the
world may intervene; installing takes several, so that a node can be caught in the middle of it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from colo.errors import PeerLost, ProtocolViolation
from colo.failover import Failover, FailoverStatus
from colo.filters.hold import OutputHold
from colo.messages import HELD_MAX, Inputs, Packet, RamPages, VmstateSize
from colo.policy import Facts, Periodic
from colo.primary import Batches
from tests.protocol.network import Until, always
from tests.protocol.toy_guest import CONSOLE, PAGE_BYTES, Guest

HELD_SOFT, HELD_HARD = 10, 24
"""Words: over the first a checkpoint is asked for, at the second the guest waits."""
PAGES_A_BATCH = 3
PAGES_A_MOVE = 2
"""Installed between two awaits."""
ZERO_PAGE = bytes(PAGE_BYTES)
_PLACE = struct.Struct("<I")
_ENTRY = struct.Struct(f"<H{PAGE_BYTES}s")

Said = tuple[int, bytes]
"""A word and its place in its guest's history."""
Image = tuple[list[bytes], bytes]
"""RAM and registers at one instant."""


class Witness(Protocol):
    """Who looks on."""

    def captured(self, machine: ToyMachine, generation: int, epoch: int, image: Image) -> None: ...
    def installed(self, machine: ToyMachine, generation: int, epoch: int, image: Image) -> None: ...
    def noted(self, machine: ToyMachine, what: str, detail: object = "") -> None: ...


class ToyMachine:
    """What of a node outlives a pairing: its guest, and the hold between that and the world."""

    def __init__(
        self, name: str, guest: Guest, hear: Callable[[ToyMachine, Said], None], now: Callable[[], int]
    ) -> None:
        self.name, self.guest, self.now = name, guest, now
        self.running = self.frozen = self.halted = False
        self.hold = OutputHold(now_ns=lambda: 0)
        self.hold.connect(CONSOLE, self._speak)
        self.mirror: list[tuple[int, Packet]] | None = None
        """Inputs that the secondary is to be told of."""
        self.input_epoch = 0
        self._hear = hear

    @property
    def can_run(self) -> bool:
        if not self.running or self.frozen or self.halted or self.guest.registers.ended:
            return False
        return not self.hold.active or self.hold.held_frames < HELD_HARD

    def run(self) -> None:
        place = self.guest.registers.said
        word = self.guest.run()
        if word is None:
            return
        said = _PLACE.pack(place) + word
        if self.hold.active:
            self.hold.hold(CONSOLE, said)
        else:
            self._speak(said)

    def give(self, port: str, payload: bytes) -> None:
        """An input, with its epoch told at this instant, as the guest thread does."""
        self.guest.give(port, payload)
        if self.mirror is not None:
            self.mirror.append((self.input_epoch, (port, payload)))

    def say_again(self, held: list[Packet]) -> None:
        for _, said in held:
            self._speak(said)

    def _speak(self, said: bytes) -> None:
        """To the world; the node may die at it."""
        self._hear(self, (_PLACE.unpack_from(said)[0], said[_PLACE.size :]))

    def image(self) -> Image:
        return list(self.guest.ram), self.guest.save()


def _difference(old: bytes, new: bytes) -> bytes:
    bits = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    return bits.to_bytes(PAGE_BYTES, "little")


class ToyCapture:
    """A :class:`colo.primary.Capture`."""

    def __init__(self, half: ToyPrimary, epoch: int, pages: dict[int, bytes], pages_before: int) -> None:
        self._half, self._epoch, self._pages = half, epoch, pages
        self._sent = pages_before
        self._registers = half.machine.guest.save()
        half.machine.hold.cut(epoch)

    def batches(self) -> Batches:
        for count, data in self._half.encoded(self._pages):
            self._sent += count
            yield count, data

    def vmstate(self) -> VmstateSize:
        held = self._half.machine.hold.taken(self._epoch, HELD_MAX)
        return VmstateSize(self._epoch, b"", self._sent, {"registers": self._registers}, held)


class ToyPrimary:
    """A :class:`colo.failover.SurvivingPrimary`."""

    def __init__(
        self,
        machine: ToyMachine,
        generation: int,
        failover: Failover,
        witness: Witness,
        rounds: int,
        rule: Periodic,
    ) -> None:
        """``rounds`` live rounds are made; ``rule`` counts steps of the world as milliseconds."""
        self.pair, self.node, self.generation = "pair", machine.name, generation
        self.machine, self.failover, self.witness, self.rule = machine, failover, witness, rule
        self.has_promised = False
        self.epoch = -1
        self._rounds, self._pages_sent = rounds, 0
        self._shadow: dict[int, bytes] = {}
        self._fresh = set(range(len(machine.guest.ram)))
        self._cut_at = machine.now()

    async def due(self) -> str | None:
        await Until("due", self._is_due)
        if self.failover.status is not FailoverStatus.NONE:
            raise PeerLost(self.failover.reason)
        return None if self.machine.guest.registers.ended else "due"

    def _is_due(self) -> bool:
        if self.failover.status is not FailoverStatus.NONE or self.machine.guest.registers.ended:
            return True
        held = self.machine.hold.held_frames
        since = float(self.machine.now() - self._cut_at)
        return self.rule.decide(Facts(since, held, held >= HELD_SOFT)).reason is not None

    def live_round(self) -> Batches | None:
        if self._rounds == 0:
            return None
        self._rounds -= 1
        return self._live(self._take())

    def _live(self, pages: dict[int, bytes]) -> Batches:
        for count, data in self.encoded(pages):
            self._pages_sent += count
            yield count, data

    def _take(self) -> dict[int, bytes]:
        """Copies of the pages that may have changed since the last time."""
        guest = self.machine.guest
        taken, self._fresh = self._fresh | guest.dirty, set()
        guest.dirty.clear()
        return {page: guest.ram[page] for page in sorted(taken)}

    def encoded(self, pages: dict[int, bytes]) -> Batches:
        """What differs from the shadow, which is then what the secondary will have."""
        changed = [page for page in pages if pages[page] != self._shadow.get(page, ZERO_PAGE)]
        for at in range(0, len(changed), PAGES_A_BATCH):
            batch = changed[at : at + PAGES_A_BATCH]
            data = bytearray()
            for page in batch:
                data += _ENTRY.pack(page, _difference(self._shadow.get(page, ZERO_PAGE), pages[page]))
                self._shadow[page] = pages[page]
            yield len(batch), bytes(data)

    def capture(self, epoch: int) -> ToyCapture:
        machine = self.machine
        self.witness.captured(machine, self.generation, epoch, machine.image())
        if epoch == 0:
            machine.hold.begin()
            machine.mirror = []
        captured = ToyCapture(self, epoch, self._take(), self._pages_sent if epoch == 0 else 0)
        machine.input_epoch = epoch + 1
        self._cut_at = machine.now()
        return captured

    def commit(self, epoch: int) -> None:
        self.witness.noted(self.machine, "commits", epoch)
        self.machine.hold.release(epoch)
        self.epoch = epoch

    def promised(self) -> None:
        self.has_promised = True

    def loaded(self, epoch: int) -> None:
        self.witness.noted(self.machine, "is protected up to", epoch)

    def ended(self) -> str:
        return "guest-shutdown"

    def freeze(self) -> None:
        self.machine.frozen = True
        self.machine.mirror = None

    def go_alone(self) -> None:
        self.machine.hold.end()
        self.machine.frozen = False
        self.witness.noted(self.machine, "goes alone")

    def halt(self) -> None:
        self.machine.halted = True
        self.machine.hold.drop_all()
        self.witness.noted(self.machine, "is halted")


class ToyStage:
    """A :class:`colo.secondary.Staging` over installed RAM."""

    def __init__(self, ram: list[bytes], epoch: int) -> None:
        self.epoch = epoch
        self.pages: dict[int, bytes] = {}
        self.vmstate: VmstateSize | None = None
        self._ram, self._received = ram, 0

    def add(self, pages: RamPages) -> None:
        for page, change in _ENTRY.iter_unpack(pages.data):
            old = self.pages.get(page)
            self.write(page, _difference(self._ram[page] if old is None else old, change))
        self._received += pages.count

    def write(self, page: int, data: bytes) -> None:
        self.pages[page] = data

    def seal(self, vmstate: VmstateSize) -> None:
        if vmstate.pages != self._received:
            raise ProtocolViolation(f"{self._received} pages came, {vmstate.pages} were sent")
        self.vmstate = vmstate


class ToySecondary:
    """A :class:`colo.failover.SurvivingSecondary`."""

    def __init__(self, machine: ToyMachine, generation: int, failover: Failover, witness: Witness) -> None:
        self.pair, self.node, self.generation = "pair", machine.name, generation
        self.machine, self.failover, self.witness = machine, failover, witness
        self.has_sealed = False
        self.epoch = -1
        """The last one sealed."""
        self.stage: ToyStage | None = None
        """Sealed, and not wholly installed."""
        self.unsaid: list[Packet] = []
        self.inputs: list[tuple[int, Packet]] = []
        self.opened = self.new_stage(0)

    def stand_still(self) -> None:
        assert not self.machine.running

    def new_stage(self, epoch: int) -> ToyStage:
        return ToyStage(self.machine.guest.ram, epoch)

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
        finally:
            self.failover.end_loading()
        self.stage = None
        self.forget_committed_inputs()

    def installing(self, stage: ToyStage) -> Iterator[None]:
        """Page after page, then the registers."""
        guest, pages = self.machine.guest, sorted(stage.pages)
        assert stage.vmstate is not None
        for at in range(0, len(pages), PAGES_A_MOVE):
            yield
            for page in pages[at : at + PAGES_A_MOVE]:
                guest.ram[page] = stage.pages[page]
        yield
        guest.load(stage.vmstate.sections["registers"])
        self.witness.installed(self.machine, self.generation, stage.epoch, self.machine.image())

    def keep(self, inputs: Inputs) -> None:
        self.inputs += [(inputs.epoch, packet) for packet in inputs.packets]

    def forget_committed_inputs(self) -> None:
        self.inputs = [kept for kept in self.inputs if kept[0] > self.epoch]

    def released(self, epoch: int) -> None:
        if epoch == self.epoch:
            self.unsaid = []

    def take_over(self) -> None:
        if self.stage is not None:
            deque(self.installing(self.stage), maxlen=0)
        self.forget_committed_inputs()
        self.witness.noted(self.machine, "takes over from", self.epoch)
        self.machine.say_again(self.unsaid)
        for _, (port, payload) in self.inputs:
            self.machine.give(port, payload)
        self.machine.running = True

    def halt(self) -> None:
        self.machine.halted = True
        self.witness.noted(self.machine, "is halted")


Half = ToyPrimary | ToySecondary
