"""What each card of a machine is plugged into: opened from words, with its capture, wrapped.

From the inside out a card's back end is what its word names (:mod:`vmm.backends.net`), without the
virtio-net header where the card knows none, then a capture, then whatever ``wrap`` puts around it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmm.backends import net
from vmm.backends.net import NetBackend
from vmm.backends.pcap import PcapTap
from vmm.backends.tap import Tap
from vmm.backends.whole_frames import WholeFrames
from vmm.config import EPOCH_2026_S, PcConfig
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.launch import LaunchOptions

Wrap = Callable[[int, NetBackend], NetBackend]
"""What is put around the back end of card 0, 1, ...; closing it closes what it wraps, once or again."""

UNPLUGGED_WORD = net.UNPLUGGED[0]
"""The back end of a card that nobody said anything about."""


def plugged(
    options: LaunchOptions,
    known: PcConfig | None,
    clock: Callable[[], int],
    wrap: Wrap,
    opened: ExitStack,
) -> list[NetBackend]:
    """The back end of every card, which ``opened`` will close; ``known`` is a board already decided."""
    specs = list(options.nets)
    if known is not None:
        if len(specs) > len(known.nets):
            raise ConfigError(f"network cards: {len(specs)} given, the machine has {len(known.nets)}")
        specs += [UNPLUGGED_WORD] * (len(known.nets) - len(specs))
    if len(options.pcaps) > len(specs):
        raise ConfigError(
            f"{len(options.pcaps)} captures for {len(specs)} network cards: add net, or leave one out"
        )
    epoch_s = known.epoch_s if known else EPOCH_2026_S if options.epoch_s is None else options.epoch_s
    cards: list[NetBackend] = []
    for number, spec in enumerate(specs):
        backend = net.parse(spec)
        opened.callback(backend.close)
        if known is not None and isinstance(backend, Tap) and not known.nets[number].offloads:
            backend = WholeFrames(backend)
        if number < len(options.pcaps):
            backend = PcapTap(backend, options.pcaps[number], clock, epoch_s)
            opened.callback(backend.close)
        backend = wrap(number, backend)
        opened.callback(backend.close)
        cards.append(backend)
    return cards
