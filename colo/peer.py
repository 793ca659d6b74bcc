"""The other side, as the protocol sees it.  Sockets (:mod:`colo.transport.link`) and simulations both fit.

The protocol awaits this and nothing else: every place where the world can intervene is an ``await``.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from colo.errors import ProtocolViolation
from colo.messages import Message

M = TypeVar("M", bound=Message)


class Peer(Protocol):
    """One connection to the other node; PeerLost from either call when it is gone, for good."""

    async def send(self, message: Message) -> None:
        """Hand over; returns when the link took it, which holds back a sender that is too fast."""

    async def turn(self) -> None:
        """There is nothing to send: let others run."""

    async def receive(self) -> Message:
        """The next message, in the order in which they were sent."""

    def close(self, reason: str = "closed here") -> None:
        """Shut the connection down, so that nothing blocks on it, on either side."""


async def expect(peer: Peer, kind: type[M], epoch: int | None = None) -> M:
    """The next message, which must be of this kind and epoch; ProtocolViolation otherwise."""
    message = await peer.receive()
    if not isinstance(message, kind) or epoch not in (None, getattr(message, "epoch", None)):
        wanted = kind.__name__ if epoch is None else f"{kind.__name__}({epoch})"
        raise ProtocolViolation(f"expected {wanted}, the peer sent {brief(message)}")
    return message


def brief(message: Message) -> str:
    """A message in a few words, without its payload."""
    epoch = getattr(message, "epoch", None)
    return type(message).__name__ + ("" if epoch is None else f"({epoch})")
