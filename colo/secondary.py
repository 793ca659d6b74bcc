"""The secondary's half of replication.  Read beside :mod:`colo.primary`.

Pages go to a stage, never to guest RAM, until the epoch is whole: a primary that dies in the middle
leaves this machine as the last commit made it (QEMU calls the stage its RAM cache).  Sealing checks
everything that could be refused, so that installing cannot fail.

Beside the epochs come the inputs that the primary's guest was given since.  They are no part of a
committed state; a survivor gives them to its guest again, so that a client whose request was on its
way when the primary died need not find out by a time-out.
"""

from __future__ import annotations

from typing import Protocol

from colo.errors import ProtocolViolation
from colo.life import Life
from colo.messages import (
    CheckpointReady,
    CheckpointReply,
    CheckpointRequest,
    GuestShutdown,
    Inputs,
    Message,
    RamPages,
    Released,
    VmstateLoaded,
    VmstateReceived,
    VmstateSend,
    VmstateSize,
)
from colo.peer import Peer, brief


class Staging(Protocol):
    """An epoch that is being received (:class:`colo.node.stage.Stage`)."""

    life: Life
    """What the guest is to do once it is installed."""

    def add(self, pages: RamPages) -> None:
        """Stage pages; ProtocolViolation when they are not what they say."""

    def seal(self, vmstate: VmstateSize) -> None:
        """The epoch is whole and could be installed; ProtocolViolation when it could not."""


class SecondaryVm(Protocol):
    """What the secondary's half needs of a machine."""

    def stand_still(self) -> None:
        """The guest does not run from here on, and is what it is until the next epoch is installed."""

    def open_stage(self, epoch: int) -> Staging:
        """An empty stage, over what is installed."""

    def sealed(self, epoch: int) -> None:
        """The epoch is a promise now: a take-over installs it first."""

    async def install(self) -> None:
        """Make the sealed epoch this machine's state, forget the stage, and let the guest live as it says."""

    def keep(self, inputs: Inputs) -> None:
        """Remember what the primary's guest was given."""

    def released(self, epoch: int) -> None:
        """The world has heard what the epoch held."""


async def follow(vm: SecondaryVm, peer: Peer) -> str:
    """Take part in every checkpoint until the guest ends; returns why it ended."""
    epoch = 0
    while True:
        stage = vm.open_stage(epoch)
        shutdown = await _begin(vm, peer, stage, epoch)
        if shutdown is not None:
            return shutdown
        await _receive(vm, peer, stage, epoch)
        vm.sealed(epoch)
        await peer.send(VmstateReceived(epoch))  # THE COMMIT POINT, seen from here
        await vm.install()
        await peer.send(VmstateLoaded(epoch))
        if epoch == 0:
            await peer.send(CheckpointReady())
        epoch += 1


async def _begin(vm: SecondaryVm, peer: Peer, stage: Staging, epoch: int) -> str | None:
    """Up to the primary's request; live rounds of the initial synchronisation come before it."""
    while True:
        match await _receive_word(vm, peer):
            case RamPages(epoch=0) as pages if epoch == 0:
                stage.add(pages)
            case CheckpointRequest(epoch=asked) if asked == epoch:
                vm.stand_still()
                await peer.send(CheckpointReply(epoch))
                return None
            case GuestShutdown(epoch=last, reason=reason) if last == epoch - 1:
                return reason
            case other:
                raise ProtocolViolation(f"before checkpoint {epoch}, the peer sent {brief(other)}")


async def _receive(vm: SecondaryVm, peer: Peer, stage: Staging, epoch: int) -> None:
    """From the primary's pause to a sealed stage."""
    begun = False
    while True:
        match await _receive_word(vm, peer):
            case VmstateSend(epoch=sent, life=life) if sent == epoch and not begun:
                stage.life, begun = life, True
            case RamPages(epoch=sent) as pages if sent == epoch and begun:
                stage.add(pages)
            case VmstateSize(epoch=sent) as vmstate if sent == epoch and begun:
                stage.seal(vmstate)
                return
            case other:
                raise ProtocolViolation(f"in checkpoint {epoch}, the peer sent {brief(other)}")


async def _receive_word(vm: SecondaryVm, peer: Peer) -> Message:
    """The next message of the transaction; what comes beside it is put where it belongs."""
    while True:
        match await peer.receive():
            case Inputs() as inputs:
                vm.keep(inputs)
            case Released(epoch=epoch):
                vm.released(epoch)
            case message:
                return message
