"""Wrong orders, planted one at a time: the simulator must see each of them.

A simulator that never fails proves nothing.  Each plant is a mistake that somebody could make in
:mod:`colo.primary`, :mod:`colo.secondary`, :mod:`colo.failover` or in a machine's halves, and names the rule
that has to catch it within a number of seeds that CI can afford.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from colo import failover, primary, secondary
from colo.arbiter import ManualArbiter
from colo.errors import ArbiterError, PeerLost, ProtocolViolation
from colo.failover import Ending, Failover, FailoverStatus
from colo.messages import (
    CheckpointReady,
    CheckpointReply,
    CheckpointRequest,
    Released,
    VmstateLoaded,
    VmstateReceived,
    VmstateSend,
)
from colo.peer import Peer, expect
from tests.protocol.faults import Fault
from tests.protocol.network import Until, always
from tests.protocol.nodes import BRIEF, Parts, parts
from tests.protocol.simulator import Failure, Simulator
from tests.protocol.toy_pages import ToyStage
from tests.protocol.toy_primary import ToyPrimary
from tests.protocol.toy_secondary import ToySecondary

SEEDS = 1200
"""A plant that is not seen in so many random worlds is not seen."""

Patch = Callable[[pytest.MonkeyPatch], Parts]


# In the primary's half


def _checkpoint(order: str) -> Callable[[Any, Peer, int], Any]:
    """:func:`colo.primary.checkpoint`, word for word, but for one thing."""

    async def checkpoint(vm: Any, peer: Peer, epoch: int) -> None:
        await peer.send(CheckpointRequest(epoch))
        await expect(peer, CheckpointReply, epoch)
        captured = vm.capture(epoch)
        if order == "release before the pages":
            vm.commit(epoch)
        await peer.send(VmstateSend(epoch, captured.life))
        await primary._send_pages(peer, epoch, captured.batches())
        if order != "promise after sending":
            vm.promised()
        await peer.send(captured.vmstate())
        vm.promised()
        if order == "release before the seal":
            vm.commit(epoch)
        await expect(peer, VmstateReceived, epoch)
        if order == "released before the release":
            await peer.send(Released(epoch))
        vm.commit(epoch)
        if order != "released before the release":
            await peer.send(Released(epoch))
        await expect(peer, VmstateLoaded, epoch)
        vm.loaded(epoch)

    return checkpoint


def _primary_order(order: str) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> Parts:
        monkeypatch.setattr(primary, "checkpoint", _checkpoint(order))
        return Parts()

    return patch


class SendsWhatIsNow(ToyPrimary):
    """Pages are read while the guest runs on, not in the pause."""

    def encoded(self, pages: dict[int, bytes]) -> primary.Batches:
        ram = self.machine.guest.ram
        return super().encoded({page: ram[page] for page in pages})


class ReleasesTheNextEpoch(ToyPrimary):
    """The hold is not cut: a commit releases what was said after the capture."""

    def commit(self, epoch: int) -> None:
        super().commit(epoch)
        self.machine.hold.end()
        self.machine.hold.begin()


# In the secondary's half


async def _ready_before_seal(vm: Any, peer: Peer) -> str:
    """:func:`colo.secondary.follow`, but an epoch is acknowledged before it is sealed and promised."""
    epoch = 0
    while True:
        stage = vm.open_stage(epoch)
        shutdown = await secondary._begin(vm, peer, stage, epoch)
        if shutdown is not None:
            return shutdown
        await secondary._receive(vm, peer, stage, epoch)
        await peer.send(VmstateReceived(epoch))
        vm.sealed(epoch)
        await vm.install()
        await peer.send(VmstateLoaded(epoch))
        if epoch == 0:
            await peer.send(CheckpointReady())
        epoch += 1


def _acknowledges_first(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(failover, "follow", _ready_before_seal)
    return Parts()


class InstallsBeforeSeal(ToySecondary):
    """Pages go straight into RAM."""

    def new_stage(self, epoch: int) -> ToyStage:
        ram = self.machine.guest.ram

        class Through(ToyStage):
            def write(self, page: int, data: bytes) -> None:
                super().write(page, data)
                ram[page] = data

        return Through(self.image, epoch)


class TakesOverUnsealed(ToySecondary):
    """What was staged is installed, whole or not."""

    def take_over(self) -> None:
        for page, data in self.opened.pages.items():
            self.machine.guest.ram[page] = data
        super().take_over()


class KeepsTheStage(ToySecondary):
    """A stage that was installed is not forgotten, so a take-over installs it over later epochs."""

    def sealed(self, epoch: int) -> None:
        kept = self.stage
        super().sealed(epoch)
        self.stage = kept or self.stage

    async def install(self) -> None:
        kept, self.stage = self.stage, self.opened
        await super().install()
        self.stage = kept


class RepeatsCommittedInputs(ToySecondary):
    """Inputs that are part of the sealed epoch are given to the guest once more."""

    def forget_committed_inputs(self) -> None:
        return


class ForgetsItSealed(ToySecondary):
    """Between two epochs, as if an open stage could take the promise back."""

    def open_stage(self, epoch: int) -> ToyStage:
        self.has_sealed = False
        return super().open_stage(epoch)


class SaysNothingAgain(ToySecondary):
    """What the sealed epoch held is taken for said."""

    def sealed(self, epoch: int) -> None:
        super().sealed(epoch)
        self.unsaid = []


class BreaksOffInstalling(ToySecondary):
    """A failover does not wait for the end of an install."""

    async def install(self) -> None:
        stage, self.stage = self.stage, None
        assert stage is not None
        for _ in self.installing(stage):
            await Until("install", always)
            if self.failover.status is not FailoverStatus.NONE:
                raise PeerLost("while installing")
        self.forget_committed_inputs()


# In the failover


async def _thaws_on_error(vm: Any, peer: Peer, arbiter: Any, state: Failover, waiter: Any) -> Ending:
    """:func:`colo.failover.lead`, but the guest runs and speaks while the arbiter is asked."""
    state.guard(peer)
    try:
        await primary.synchronise(vm, peer)
        await primary.protect(vm, peer)
        return Ending.SHUTDOWN
    except (PeerLost, ProtocolViolation) as exc:
        reason = str(exc)
    state.begin(reason)
    peer.close()
    vm.go_alone()
    if not vm.has_promised or await failover._wins(vm, arbiter, waiter):
        state.complete()
        return Ending.ALONE
    vm.halt()
    state.complete()
    return Ending.LOST


def _thaws(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(failover, "lead", _thaws_on_error)
    return Parts()


def _answers(verdict: bool, when_asked: bool) -> Patch:
    """Nobody asks the arbiter, or no answer is taken for one."""

    async def wins(vm: Any, arbiter: Any, waiter: Any) -> bool:
        if not when_asked:
            return verdict
        try:
            return bool(await arbiter.claim(vm.pair, vm.generation + 1, vm.node))
        except ArbiterError:
            return verdict

    def patch(monkeypatch: pytest.MonkeyPatch) -> Parts:
        monkeypatch.setattr(failover, "_wins", wins)
        return Parts()

    return patch


async def _stands_for_nothing(vm: Any, peer: Peer, arbiter: Any, state: Failover, waiter: Any) -> Ending:
    """:func:`colo.failover.stand_by`, but a secondary that never held a whole epoch asks, too."""
    state.guard(peer)
    try:
        await secondary.follow(vm, peer)
        return Ending.SHUTDOWN
    except (PeerLost, ProtocolViolation) as exc:
        state.begin(str(exc))
    peer.close()
    won = await failover._wins(vm, arbiter, waiter)
    (vm.take_over if won else vm.halt)()
    state.complete()
    return Ending.ALONE if won else Ending.LOST


def _stands(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(failover, "stand_by", _stands_for_nothing)
    return Parts()


class GoesOnAnyway(ToyPrimary):
    """A loser's guest runs on."""

    def halt(self) -> None:
        self.go_alone()


def _guards_late(monkeypatch: pytest.MonkeyPatch) -> Parts:
    def guard(self: Failover, peer: Peer) -> None:
        self._peer = peer

    monkeypatch.setattr(Failover, "guard", guard)
    return Parts()


def _halves(half: type[ToyPrimary] | type[ToySecondary]) -> Patch:
    if issubclass(half, ToyPrimary):
        return lambda monkeypatch: Parts(primary=half)
    return lambda monkeypatch: Parts(secondary=half)


ONE_SPEAKER, ONE_HISTORY, ONCE = "one speaker", "one history", "executed once"
EQUAL, WHOLE = "both machines are equal", "the guest is whole"
SERVES, SILENT, NEVER_SEALED = "somebody serves", "silent until it has won", "who never sealed never serves"

PLANTS: dict[str, tuple[Patch, set[str]]] = {
    "release before the pages": (_primary_order("release before the pages"), {ONE_HISTORY}),
    "release before VmstateReceived": (_primary_order("release before the seal"), {ONE_HISTORY}),
    "Released before the release": (_primary_order("released before the release"), {ONE_HISTORY}),
    "promised after VmstateSize": (_primary_order("promise after sending"), {ONE_SPEAKER, ONE_HISTORY}),
    "pages as they are now": (_halves(SendsWhatIsNow), {EQUAL}),
    "the hold is not cut": (_halves(ReleasesTheNextEpoch), {ONE_HISTORY}),
    "VmstateReceived before the promise": (_acknowledges_first, {ONE_HISTORY, SERVES}),
    "install before seal": (_halves(InstallsBeforeSeal), {WHOLE}),
    "take-over from an unsealed stage": (_halves(TakesOverUnsealed), {WHOLE}),
    "the stage is kept": (_halves(KeepsTheStage), {EQUAL, ONE_HISTORY, WHOLE}),
    "committed inputs again": (_halves(RepeatsCommittedInputs), {ONCE}),
    "has_sealed is cleared": (_halves(ForgetsItSealed), {SERVES}),
    "nothing is said again": (_halves(SaysNothingAgain), {ONE_HISTORY}),
    "install is broken off": (_halves(BreaksOffInstalling), {ONE_HISTORY, WHOLE}),
    "a secondary with nothing asks, too": (_stands, {NEVER_SEALED, ONE_SPEAKER}),
    "a loser goes on": (_halves(GoesOnAnyway), {ONE_SPEAKER, ONE_HISTORY}),
    "thaw before winning": (_thaws, {SILENT, ONE_SPEAKER}),
    "nobody asks the arbiter": (_answers(True, when_asked=False), {ONE_SPEAKER, SILENT}),
    "no answer taken for yes": (_answers(True, when_asked=True), {ONE_SPEAKER, SILENT}),
    "no answer taken for no": (_answers(False, when_asked=True), {SERVES}),
}


def failures(made: Parts, arbiter: str = "memory") -> Iterator[Failure]:
    """Random worlds with these parts, as far as they end in a violation."""
    simulator = Simulator(made, arbiter)
    for seed in range(SEEDS):
        try:
            simulator.random(seed)
        except Failure as failure:
            yield failure


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, rules = PLANTS[name]
    failure = next(failures(patch(monkeypatch)), None)
    assert failure is not None, f"{name}: the simulator is blind to it"
    print(f"{name}: seed {failure.seed}, step {failure.violation.step}: {failure.violation.rule}")
    assert failure.violation.rule in rules, failure


def test_a_request_before_the_guard_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in the first steps of a pairing, so they are all tried."""
    _guards_late(monkeypatch)
    with pytest.raises(Failure) as caught:
        Simulator(parts("periodic", **BRIEF)).exhaustive(0, (Fault.SUSPECT,))
    assert caught.value.violation.rule == SERVES, caught.value


def test_a_word_about_an_earlier_peer_that_is_not_forgotten_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person gave a synchronisation up; the next pairing's arbiter must not take that for its answer."""
    monkeypatch.setattr(ManualArbiter, "forget", lambda self: None)
    failure = next(failures(Parts(), "manual"), None)
    assert failure is not None
    assert failure.violation.rule == "a person decides", failure
