"""The primary's half on a toy machine: what :mod:`colo.node.leading` is for a real one, effect by effect.

The rules of early release are the real ones: :class:`colo.node.early.Waiting`,
:class:`colo.node.logged.Logged`, :class:`colo.node.compared.Compared`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from colo.errors import PeerLost
from colo.failover import Failover, FailoverStatus
from colo.filters import protect, unprotect
from colo.life import Life
from colo.messages import HELD_MAX, Packet, VmstateSize
from colo.node.compared import Compared
from colo.node.early import Early, Waiting
from colo.node.leading import STALL_S
from colo.node.logged import Logged
from colo.policy import Facts, Policy
from colo.primary import Batches
from tests.protocol.companions import ToyCompanion
from tests.protocol.host import HostTime
from tests.protocol.network import Until
from tests.protocol.toy_machine import HELD_SOFT, Image, ToyMachine
from tests.protocol.toy_pages import encoded


class Witness(Protocol):
    """Who looks on."""

    def captured(self, machine: ToyMachine, generation: int, epoch: int, image: Image) -> None: ...
    def installed(self, machine: ToyMachine, generation: int, epoch: int, image: Image) -> None: ...
    def noted(self, machine: ToyMachine, what: str, detail: object = "") -> None: ...


class ToyMirror:
    """A :class:`colo.node.input_mirror.InputMirror`; the world takes what waits along."""

    def __init__(self) -> None:
        self.epoch = 0
        self.waiting: list[tuple[int, Packet]] = []

    def hear(self, port: str, payload: bytes) -> None:
        self.waiting.append((self.epoch, (port, payload)))


@dataclass
class Around:
    """What of a pairing is around a half: its state of failover, the companion, and who looks on."""

    failover: Failover
    companion: ToyCompanion
    witness: Witness
    time: HostTime
    rounds: int = 0
    """Live rounds before the first epoch."""
    meanwhile: Callable[[], None] = lambda: None
    """Where no await stands and other nodes go on all the same."""


class ToyCapture:
    """A :class:`colo.primary.Capture`."""

    def __init__(self, half: ToyPrimary, epoch: int, pages_before: int) -> None:
        self._half, self._epoch, self._sent = half, epoch, pages_before
        self.life = Life.WAIT
        self.pages: dict[int, bytes] = {}
        self.registers = b""

    def batches(self) -> Batches:
        for count, data in self._half.encoded(self.pages):
            self._sent += count
            yield count, data

    def vmstate(self) -> VmstateSize:
        held = self._half.machine.hold.taken(self._epoch, HELD_MAX)
        return VmstateSize(self._epoch, b"", self._sent, {"registers": self.registers}, held)


class ToyPrimary:
    """A :class:`colo.failover.SurvivingPrimary`."""

    logged_kind: type[Logged] = Logged
    compared_kind: type[Compared] = Compared

    def __init__(self, machine: ToyMachine, generation: int, around: Around, policy: Policy) -> None:
        """``policy`` takes steps of the world for milliseconds."""
        self.pair, self.node, self.generation = "pair", machine.name, generation
        self.machine, self.failover, self.witness = machine, around.failover, around.witness
        self.policy = policy
        self.has_promised = False
        self.epoch = -1
        self.mirror = ToyMirror()
        self.companion = around.companion
        self._time = around.time
        self._rounds, self._pages_sent = around.rounds, 0
        self._shadow: dict[int, bytes] = {}
        self._fresh = set(range(len(machine.guest.ram)))
        self._cut_at, self._cut_epoch = self._time.now, -1
        self._requested: str | None = None
        self._lost: str | None = None
        self.stalled = False
        """The log was not followed for so long that the connection is to be closed."""
        self.rules = self.new_rules()
        self.early = self.rules[Life.WAIT]

    def new_rules(self) -> dict[Life, Early]:
        replica, companion, mirror = self._anything(self.machine.replica, self.companion, self.mirror)
        return {
            Life.WAIT: Waiting(replica, mirror),
            Life.FOLLOW: self.logged_kind(replica, companion, self._note_divergence),
            Life.RUN: self.compared_kind(replica, companion, lambda: "strict", self._note_difference),
        }

    @staticmethod
    def _anything(*things: Any) -> Iterable[Any]:
        """Stand-ins, for whoever asks for the real ones."""
        return things

    # Events

    def _note_divergence(self, facts: dict[str, object]) -> None:
        self.witness.noted(self.machine, "hears of a divergence:", facts["what"])
        if facts["epoch"] == self._cut_epoch:
            self.request("divergence")

    def _note_difference(self, told: tuple[int, str]) -> None:
        epoch, cause = told
        if epoch == self._cut_epoch:
            self.request(cause)

    def request(self, reason: str) -> None:
        self._requested = self._requested or reason

    def lose(self, reason: str) -> None:
        self._lost = self._lost or reason

    # What colo.primary asks

    async def due(self) -> str | None:
        await Until("due", self._is_due)
        if self.failover.status is not FailoverStatus.NONE:
            raise PeerLost(self.failover.reason)
        if self._lost is not None:
            raise PeerLost(self._lost)
        self._requested = None
        return None if self.machine.guest.registers.ended else "due"

    def _is_due(self) -> bool:
        if self.failover.status is not FailoverStatus.NONE or self._lost is not None:
            return True
        if self.machine.guest.registers.ended:
            return True
        held = self.machine.hold.held_frames
        facts = Facts(float(self._time.now - self._cut_at), held, held >= HELD_SOFT, self._requested)
        return self.policy.decide(facts).reason is not None

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
        return encoded(pages, self._shadow)

    def capture(self, epoch: int) -> ToyCapture:
        captured = ToyCapture(self, epoch, self._pages_sent if epoch == 0 else 0)
        self.machine.thread.call(lambda: self._pause(captured, epoch))
        return captured

    def _pause(self, captured: ToyCapture, epoch: int) -> None:
        machine = self.machine
        self.witness.captured(machine, self.generation, epoch, machine.image())
        captured.pages, captured.registers = self._take(), machine.guest.save()
        if epoch == 0:
            protect(machine.replica.nets, machine.hold)
        machine.hold.cut(epoch)
        captured.life = self.policy.life
        self._begin_rule(captured.life, epoch)
        self._cut_at, self._cut_epoch = self._time.now, epoch

    def _begin_rule(self, life: Life, epoch: int) -> None:
        rule = self.rules[life]
        if rule is not self.early:
            self.early.end()
            self.machine.hold.gate = None
            self.early = rule
        rule.begin(epoch)

    def commit(self, epoch: int) -> None:
        self.witness.noted(self.machine, "commits", epoch)
        self.machine.hold.release(epoch)
        if self.early.life is not Life.WAIT:
            self.machine.thread.submit(self.early.open)
        self.epoch = epoch

    def promised(self) -> None:
        self.has_promised = True

    def loaded(self, epoch: int) -> None:
        self.witness.noted(self.machine, "is protected up to", epoch)

    def ended(self) -> str:
        return "guest-shutdown"

    def tick(self) -> None:
        """Every now and then: have the rule look at what waits."""
        if self._lost is not None:
            return
        if isinstance(self.early, Compared) and self.early.waits:
            self.machine.thread.submit(self.early.tick)
        if isinstance(self.early, Logged) and self.early.lag_s > STALL_S:
            self.witness.noted(self.machine, "gives its secondary up")
            self.stalled = True

    # The end of the pairing

    def freeze(self) -> None:
        self.machine.thread.freeze()
        self.machine.thread.call(self.early.end)
        self.mirror.waiting.clear()

    def go_alone(self) -> None:
        self.machine.thread.call(self._hold_nothing)
        self.machine.thread.thaw()
        self.witness.noted(self.machine, "goes alone")

    def _hold_nothing(self) -> None:
        self.machine.hold.end()
        unprotect(self.machine.replica.nets)

    def shut_down(self) -> None:
        """The guest ended and the secondary knows."""
        self.machine.thread.call(self._hold_nothing)

    def halt(self) -> None:
        machine = self.machine
        machine.replica.mute()
        machine.halted = True
        machine.hold.gate = None
        machine.hold.drop_all()
        self.witness.noted(machine, "is halted")
