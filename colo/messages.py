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

Under a policy that lets output go before the commit, the guests' threads talk beside this, on a connection
of their own, the companion::

       │  Log(n) … ────────────────────────────▶  │   inputs and virtual time since cut n
       │  Mark(n) … ───────────────────────────▶  │   hashes of the state, to be compared
       │  ◀──────────────── Progress(n), Said(n)  │   how far the other guest is, what it said
       │  ◀──────────────────────── Diverged(n)   │   it is no longer the same

Every message fits one frame (:mod:`colo.transport.wire`); every length in it has a limit.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta

from colo.life import Life

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
INPUT_MAX = 1 << 20
"""Bytes of one: a paste at the console is the largest."""
OUTPUTS_MAX = 4096
"""Outputs that one Log covers."""
MARK_PAGES_MAX = 4096
"""Pages of RAM that one Mark covers."""
TRANSLATIONS_MAX = 2 << 20
"""Bytes, of one card: 16384 connections."""
CONFIG_MAX = 64 << 10
TEXT_MAX = 4096

Epoch = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Token = Annotated[bytes, Meta(max_length=16)]
Payload = Annotated[bytes, Meta(max_length=INPUT_BYTES_MAX)]
PortName = Annotated[str, Meta(max_length=64)]
LoggedInput = tuple[Epoch, PortName, Annotated[bytes, Meta(max_length=INPUT_MAX)]]
"""Virtual time, port, payload: an input exactly as :mod:`vmm.record` has it."""
Checksum = Annotated[int, Meta(ge=0, lt=1 << 32)]
Digest = Annotated[bytes, Meta(max_length=16)]
Packet = tuple[PortName, Payload]
"""A port of the machine ("net0", "com1") and what passed there."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every word."""


class Channel(Enum):
    """What a connection between two nodes is for."""

    PROTOCOL = "protocol"
    HEARTBEAT = "heartbeat"
    COMPANION = "companion"


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
    """On the other channels: what the Welcome of their protocol channel said."""


class Welcome(Message, frozen=True, tag="welcome"):
    """S→P  we are alike."""

    interval_ms: Epoch
    token: Token
    """What the other channels of this pair have to show: the connections belong together."""


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
    life: Life = Life.WAIT
    """What the secondary's guest is to do from that instant on."""


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
    translations: Annotated[
        dict[PortName, Annotated[bytes, Meta(max_length=TRANSLATIONS_MAX)]], Meta(max_length=SECTIONS_MAX)
    ] = {}
    """By card, what a survivor's clients know other numbers for (:mod:`colo.node.translation`)."""


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


class Log(Message, frozen=True, tag="log"):
    """P→S  what happened to my guest since the last one: the companion's word."""

    epoch: Epoch
    frontier_ns: Epoch
    """Virtual time that my guest has reached: until then it was given these inputs and no others."""
    inputs: Annotated[list[LoggedInput], Meta(max_length=INPUTS_MAX)]
    outputs: Annotated[list[Checksum], Meta(max_length=OUTPUTS_MAX)]
    """CRC-32 of each thing that it said, in order."""
    spoken: Annotated[dict[PortName, Epoch], Meta(max_length=SECTIONS_MAX)]
    """Bytes of it, by port, that the world had heard before this word."""


class Mark(Message, frozen=True, tag="mark"):
    """P→S  digests of my guest's state where the log stands, to be compared with yours."""

    epoch: Epoch
    ns: Epoch
    components: Annotated[dict[Text, Digest], Meta(max_length=SECTIONS_MAX)]
    first_page: Epoch
    pages: Annotated[bytes, Meta(max_length=MARK_PAGES_MAX * 16)]
    """Hashes of that many pages of RAM from ``first_page`` on, 16 bytes each (:mod:`vmm.hashing`)."""


class Progress(Message, frozen=True, tag="progress"):
    """S→P  how far I am with your log."""

    epoch: Epoch
    held: Epoch
    """Words of this epoch that I hold, whatever happens to you."""
    done: Epoch
    """Words of it that my guest has followed."""


class Said(Message, frozen=True, tag="said"):
    """S→P  what my guest said, for comparison with what yours says."""

    epoch: Epoch
    packets: Annotated[list[Packet], Meta(max_length=INPUTS_MAX)]


class Diverged(Message, frozen=True, tag="diverged"):
    """S→P  my guest is no longer the same as yours, and stands still until the next checkpoint."""

    epoch: Epoch
    ns: Epoch
    what: Text
    sections: Annotated[
        dict[Text, Annotated[bytes, Meta(max_length=VMSTATE_MAX)]], Meta(max_length=SECTIONS_MAX)
    ]
    """Its device state, for the difference to be named; empty when it is too much."""


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
    | Log
    | Mark
    | Progress
    | Said
    | Diverged
    | GuestShutdown
    | Dissolve
    | Beat
)
"""Everything that may stand in a frame."""

COMPANION_WORDS: frozenset[type[Message]] = frozenset({Log, Mark, Progress, Said, Diverged})
"""Everything that may be said on the companion channel."""
