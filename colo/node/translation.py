"""The rewriters of a node's cards: what its clients know, in the numbers of its guest.

A secondary whose guest runs has one for each card (:mod:`colo.rewrite`), and keeps it as a survivor for as
long as a connection needs it.  A survivor that is protected again hands its differences on with every epoch;
its secondary starts from them.
"""

from __future__ import annotations

import msgspec

from colo.errors import ProtocolViolation
from colo.filters import FilteredNet
from colo.rewrite import rewriter
from colo.rewrite.rewriter import Rewriter, Settings

_decoder = msgspec.msgpack.Decoder(list[rewriter.Translation])


class Translation:
    """Of all cards of a node, in one pairing."""

    def __init__(self, nets: list[FilteredNet]) -> None:
        self._nets = nets
        self._rewriters = {net.name: Rewriter(Settings(vnet=net.offloads)) for net in nets}
        self._given: dict[str, list[rewriter.Translation]] = {}

    def learn(self, given: dict[str, bytes]) -> None:
        """What the primary's guest has to be translated by, as of the epoch that is being installed."""
        try:
            self._given = {port: _decoder.decode(data) for port, data in given.items()}
        except msgspec.MsgspecError as exc:
            raise ProtocolViolation(f"translations of connections: {exc}") from None

    def begin(self) -> None:
        """The guest is the epoch's: its connections have the primary's numbers."""
        for net in self._nets:
            self._rewriters[net.name].reset(self._given.get(net.name, ()))
            net.translate = self._rewriters[net.name]

    def once_more(self, port: str, frame: bytes) -> bytes:
        """A frame that was shown to clients before, as it is to be said again."""
        rewriter = self._rewriters.get(port)
        return frame if rewriter is None else rewriter.once_more(frame)

    def take_over(self, now_ms: float) -> None:
        """Nobody else's numbers will be learned any more."""
        for net in self._nets:
            if net.translate is None and self._given.get(net.name):
                self._rewriters[net.name].reset(self._given[net.name])
                net.translate = self._rewriters[net.name]
            if net.translate is not None:
                self._rewriters[net.name].take_over(now_ms)


def packed(nets: list[FilteredNet], now_ms: float) -> dict[str, bytes]:
    """In the pause: what a secondary has to know.  A rewriter that no connection needs any more goes."""
    for net in nets:
        if isinstance(net.translate, Rewriter):
            net.translate.tick(now_ms)
            if not net.translate.active:
                net.translate = None
    return {
        net.name: msgspec.msgpack.encode(net.translate.translations())
        for net in nets
        if isinstance(net.translate, Rewriter)
    }
