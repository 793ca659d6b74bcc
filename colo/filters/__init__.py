"""Filters between a card and its back end, and what the pair does with them.

Follows QEMU's netfilter objects (``qapi/qom.json``, ``net/filter.c``) and patches 32 to 37 of COLO-Frame
v10.  The names of the two queues are seen from the *netdev*, the host's side, and so read the wrong way
round for whoever thinks of the guest:

    rx    what the netdev receives: frames **from the guest** to the back end
    tx    what the netdev transmits: frames from the back end **to the guest**
    all   both

A card's filters form one chain, from its head to its tail.  Frames to the guest pass it from the head to
the tail, frames from the guest from the tail to the head: the head is next to the back end and the tail
next to the card, whichever way a frame travels.

    guest  ──rx──▶  tail … head  ──▶  back end
    guest  ◀──────  tail … head  ◀──tx──  back end

A new filter goes to the tail, to the head, or (``position=id=X``) behind X, or with ``insert=before``
before it.  ``status=off`` takes a filter out of the way and leaves it in its place.

    buffer   :mod:`colo.filters.buffer`   interval=0: until a commit (:mod:`colo.filters.hold`)
    mirror   :mod:`colo.filters.mirror`   a copy of each frame to a stream socket
    dump     :mod:`colo.filters.dump`     each frame in a capture file

:mod:`colo.filters.chain` has the words and the order, :mod:`colo.filters.net` the back end that all this
hangs on.  Here stands what concerns all cards of a machine.

Elsewhere: ``filter-redirector`` (:mod:`colo.filters.diverted`), ``filter-rewriter`` (:mod:`colo.rewrite`).
Not modelled: ``filter-replay``; several queues a card;
``maxlen`` of a dump, which here never cuts a frame.  ``outdev`` is an address, since there are no
character devices that could be named.
"""

from __future__ import annotations

from collections.abc import Sequence

from colo.filters.chain import FilterSpec, Queue, parse, spec_of
from colo.filters.hold import OutputHold, Released
from colo.filters.net import FilteredNet
from vmm.backends.net import VNET_HEADER, NetBackend

__all__ = [
    "FilterSpec",
    "FilteredNet",
    "OutputHold",
    "Queue",
    "Released",
    "announce",
    "parse",
    "protect",
    "spec_of",
    "unprotect",
]

BROADCAST = b"\xff" * 6
ETH_P_RARP = 0x8035
ETHERNET_AND_IPV4 = bytes.fromhex("0001 0800 06 04")
REQUEST_REVERSE = 3
PADDED = 60
"""What an Ethernet frame has at least: some bridges drop what is shorter."""


def protect(nets: Sequence[FilteredNet], hold: OutputHold) -> None:
    """A pair forms: from here on the machine's output waits in ``hold``.

    For the guest's thread, while the guest runs or before.  A card that nobody gave a buffer with interval
    0 gets one, which has the id that QEMU gives it (patch 35).
    """
    for net in nets:
        if not net.holds_output:
            net.add(FilterSpec("buffer", f"{net.name}-filter-buffer.0", net.name, Queue.RX, auto=True), hold)
    hold.begin()


def unprotect(nets: Sequence[FilteredNet]) -> None:
    """The pair is dissolved and this node goes on: say what is held, in order (patches 36 and 37).

    For the guest's thread.  Buffers that ``protect`` added go; those that somebody else added stay, and let
    everything pass until the next pair forms.
    """
    for net in nets:
        net.end_hold()
    for net in nets:
        for each in net.filters:
            if each.spec.auto:
                net.remove(each.spec.id)


def announce(backend: NetBackend, mac: bytes) -> None:
    """Let switches and bridges learn that ``mac`` is here now.

    A RARP request for its own address (RFC 903), which no host answers and every bridge learns from: the
    frame of QEMU's ``announce_self``.  It goes past all filters, from any thread; not while muted.
    """
    assert len(mac) == 6, mac.hex()
    request = ETHERNET_AND_IPV4 + REQUEST_REVERSE.to_bytes(2, "big") + (mac + bytes(4)) * 2
    frame = (BROADCAST + mac + ETH_P_RARP.to_bytes(2, "big") + request).ljust(PADDED, b"\0")
    say = backend.say if isinstance(backend, FilteredNet) else backend.transmit
    say(bytes(VNET_HEADER) + frame if backend.offloads else frame)
