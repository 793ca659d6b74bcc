"""The primary's half of replication.  Read beside :mod:`colo.secondary`.

Remus's scheme under COLO's protocol (Cully et al., "Remus", NSDI 2008, section 3; QEMU's
``migration/colo.c`` for the words): the guest runs, what it says is held; at a checkpoint it stops
just long enough to copy what it changed, runs on, and what it had said goes out when the secondary
holds that copy whole.

The pause is inside ``vm.capture``.  Encoding and sending come after it and overlap the next epoch,
whose output is held apart.  One epoch is in flight at a time: a slow link makes epochs longer, never
memory larger.

What a policy lets out before the commit, while the secondary's guest follows or runs, is no part of this:
``captured.life`` tells the secondary which it is, and :mod:`colo.node.early` has the rules.

Nothing here handles a lost peer: ``PeerLost`` ends these functions, and :mod:`colo.failover` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from colo.life import Life
from colo.messages import (
    CheckpointReady,
    CheckpointReply,
    CheckpointRequest,
    GuestShutdown,
    RamPages,
    Released,
    VmstateLoaded,
    VmstateReceived,
    VmstateSend,
    VmstateSize,
)
from colo.peer import Peer, expect

Batches = Iterator[tuple[int, bytes]]
"""Pages that changed, encoded: how many, and their bytes.  None at all: nothing to send for a while."""


class Capture(Protocol):
    """A machine as it was at one instant, against what the secondary has."""

    life: Life
    """What the secondary's guest is to do from that instant on."""

    def batches(self) -> Batches:
        """What changed.  The secondary is taken to have it once it was yielded."""

    def vmstate(self) -> VmstateSize:
        """Device state, output that waits for the commit, and the number of pages yielded."""


class PrimaryVm(Protocol):
    """What the primary's half needs of a machine."""

    async def due(self) -> str | None:
        """Wait until the policy wants a checkpoint; the reason, or None when the guest has ended.

        PeerLost when the peer was lost, or a failover was asked for, meanwhile.
        """

    def live_round(self) -> Batches | None:
        """While the guest runs: pages changed since the last round; None when the rest fits a pause."""

    def capture(self, epoch: int) -> Capture:
        """The pause: stop the guest, copy, let it run; what it says from here on is the next epoch's."""

    def commit(self, epoch: int) -> None:
        """The secondary can survive us up to here: what the epoch held may go.

        PeerLost when this node was stopped for so long that the peer may have gone on without it.
        """

    def promised(self) -> None:
        """From here on the secondary may hold a whole epoch: it may take over."""

    def loaded(self, epoch: int) -> None:
        """The secondary installed the epoch."""

    def ended(self) -> str:
        """Why the guest ended, in the words of QEMU's SHUTDOWN event."""


async def synchronise(vm: PrimaryVm, peer: Peer) -> None:
    """Live pre-copy, then epoch 0: the pair is in COLO state when this returns."""
    while (batches := vm.live_round()) is not None:
        await _send_pages(peer, 0, batches)
    await checkpoint(vm, peer, 0)
    await expect(peer, CheckpointReady)


async def checkpoint(vm: PrimaryVm, peer: Peer, epoch: int) -> None:
    """Make the secondary an exact copy of this instant, then let our output go."""
    await peer.send(CheckpointRequest(epoch))
    await expect(peer, CheckpointReply, epoch)
    captured = vm.capture(epoch)
    await peer.send(VmstateSend(epoch, captured.life))
    await _send_pages(peer, epoch, captured.batches())
    vm.promised()
    await peer.send(captured.vmstate())
    await expect(peer, VmstateReceived, epoch)
    vm.commit(epoch)  # THE COMMIT POINT: the secondary has it all, so the world may hear of it
    await peer.send(Released(epoch))
    await expect(peer, VmstateLoaded, epoch)
    vm.loaded(epoch)


async def protect(vm: PrimaryVm, peer: Peer, epoch: int = 0) -> None:
    """Checkpoint after checkpoint, until the guest ends.  ``epoch`` is the last one committed."""
    while await vm.due() is not None:
        epoch += 1
        await checkpoint(vm, peer, epoch)
    epoch += 1
    await checkpoint(vm, peer, epoch)  # its last words, and that it ended
    await peer.send(GuestShutdown(epoch, vm.ended()))


async def _send_pages(peer: Peer, epoch: int, batches: Batches) -> None:
    for count, data in batches:
        if count:
            await peer.send(RamPages(epoch, count, data))
        else:
            await peer.turn()
