"""The words of the protocol, one class each.  Names are QEMU's ``COLOMessage`` where it has one.

::

    primary                                   secondary
       │  Hello ───────────────────────────────▶  │   build, layout, engine, configuration
       │  ◀─────────────────── Welcome | Refusal  │
       │  RamPages(0) … live rounds ───────────▶  │   initial synchronisation: epoch 0
       │                                          │
       │  CheckpointRequest(n) ────────────────▶  │
       │  ◀──────────────────  CheckpointReply(n) │
       │  [pause: scan, copy, device state]       │
       │  VmstateSend(n), RamPages(n) … ───────▶  │   staged
       │  VmstateSize(n): device state ────────▶  │   sealed
       │  ◀───────────────── VmstateReceived(n)   │   THE COMMIT POINT
       │  [held output goes]                      │
       │  Released(n) ─────────────────────────▶  │   installed
       │  ◀─────────────────── VmstateLoaded(n)   │   epoch 0: CheckpointReady follows
       │                                          │
       │  Inputs(n+1) … at any time ───────────▶  │   what the guest was given since

Every message fits one frame (:mod:`colo.transport.wire`); every length in it has a limit.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta

BATCH_MAX = 4 << 20
"""Bytes of encoded pages in one message: what the receiver must hold before it can look at it."""
VMSTATE_MAX = 64 << 20
"""Bytes of device state: copy-on-write disks are part of it."""
HELD_MAX = 256 << 10
"""Bytes of held output that travel with an epoch, so that a survivor can say them again."""
HELD_PACKETS_MAX = 4096
SECTIONS_MAX = 64
"""Components of a machine, and disks that keep their changes in memory."""
INPUTS_MAX = 512
"""Inputs in one message."""
INPUT_BYTES_MAX = 1 << 17
CONFIG_MAX = 64 << 10
TEXT_MAX = 4096

Epoch = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Token = Annotated[bytes, Meta(max_length=16)]
Payload = Annotated[bytes, Meta(max_length=INPUT_BYTES_MAX)]
Packet = tuple[Annotated[str, Meta(max_length=64)], Payload]
"""A port of the machine ("net0", "com1") and what passed there."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every word."""


class Channel(Enum):
    """What a connection between two nodes is for."""

    PROTOCOL = "protocol"
    HEARTBEAT = "heartbeat"


class Hello(Message, frozen=True, tag="hello"):
    """P→S  who I am, and everything in which we must be alike."""

    channel: Channel
    pair: Text
    generation: Epoch
    protocol: Text
    """Digest of the messages' layout (``colo.transport.wire``)."""
    build: Text
    layout: Text
    engine: Text
    config: Annotated[bytes, Meta(max_length=CONFIG_MAX)]
    """A packed vmm.config.PcConfig."""
    interval_ms: Epoch
    """Of my heartbeats."""
    token: Token = b""
    """On the heartbeat channel: what the Welcome of its protocol channel said."""


class Welcome(Message, frozen=True, tag="welcome"):
    """S→P  we are alike."""

    interval_ms: Epoch
    token: Token
    """What the heartbeat channel of this pair has to show: the two connections belong together."""


class Refusal(Message, frozen=True, tag="refused"):
    """S→P  we are not, because; the connection closes."""

    reason: Text


class CheckpointReady(Message, frozen=True, tag="checkpoint-ready"):
    """S→P  the initial synchronisation is installed: checkpoints may begin."""


class CheckpointRequest(Message, frozen=True, tag="checkpoint-request"):
    """P→S  a checkpoint begins."""

    epoch: Epoch


class CheckpointReply(Message, frozen=True, tag="checkpoint-reply"):
    """S→P  my guest does not run; my stage is empty."""

    epoch: Epoch


class VmstateSend(Message, frozen=True, tag="vmstate-send"):
    """P→S  my guest was stopped; what follows is its state at that instant."""

    epoch: Epoch


class RamPages(Message, frozen=True, tag="ram-pages"):
    """P→S  pages that changed (:mod:`colo.pages.delta` has their form)."""

    epoch: Epoch
    count: Epoch
    data: Annotated[bytes, Meta(max_length=BATCH_MAX)]


class VmstateSize(Message, frozen=True, tag="vmstate-size"):
    """P→S  the device state, whose size seals the epoch, and output that waits for its commit."""

    epoch: Epoch
    digest: Annotated[bytes, Meta(max_length=64)]
    """Of the whole machine at that instant when verification is on, else empty."""
    pages: Epoch
    """How many pages the epoch's RamPages held in all."""
    sections: Annotated[
        dict[Text, Annotated[bytes, Meta(max_length=VMSTATE_MAX)]], Meta(max_length=SECTIONS_MAX)
    ]
    held: Annotated[list[Packet], Meta(max_length=HELD_PACKETS_MAX)]


class VmstateReceived(Message, frozen=True, tag="vmstate-received"):
    """S→P  the epoch is whole and sealed here: I can survive you.  (COMMIT)"""

    epoch: Epoch


class Released(Message, frozen=True, tag="released"):
    """P→S  the world has heard what the epoch held: a survivor need not say it again."""

    epoch: Epoch


class VmstateLoaded(Message, frozen=True, tag="vmstate-loaded"):
    """S→P  installed."""

    epoch: Epoch


class Inputs(Message, frozen=True, tag="inputs"):
    """P→S  what my guest was given in this epoch; a survivor gives it to its own guest."""

    epoch: Epoch
    packets: Annotated[list[Packet], Meta(max_length=INPUTS_MAX)]


class GuestShutdown(Message, frozen=True, tag="guest-shutdown"):
    """P→S  the guest switched itself off in this committed epoch: there is nothing to take over."""

    epoch: Epoch
    reason: Text


class Dissolve(Message, frozen=True, tag="dissolve"):
    """Either way: the pair ends in good order (the node was told to quit, or to go on alone)."""

    reason: Text


class Beat(Message, frozen=True, tag="beat"):
    """Either way, on the heartbeat channel."""

    count: Epoch


Word = (
    Hello
    | Welcome
    | Refusal
    | CheckpointReady
    | CheckpointRequest
    | CheckpointReply
    | VmstateSend
    | RamPages
    | VmstateSize
    | VmstateReceived
    | Released
    | VmstateLoaded
    | Inputs
    | GuestShutdown
    | Dissolve
    | Beat
)
"""Everything that may stand in a frame."""
