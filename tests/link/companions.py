"""What tests of companions say and hear."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from colo.errors import PeerLost
from colo.messages import Message, Said
from colo.transport.companion import Companion
from colo.transport.frames import FrameSocket
from tests.link.support import until


def said(number: int, size: int = 100) -> Said:
    return Said(number, [("net0", bytes([number % 256]) * size)])


@dataclass
class Bare:
    """A companion, the bare other end of its socket, and what ``on_lost`` was told."""

    companion: Companion
    theirs: socket.socket
    losses: list[str] = field(default_factory=list)


@contextmanager
def bare() -> Iterator[Bare]:
    ours, theirs = socket.socketpair()
    losses: list[str] = []
    companion = Companion(FrameSocket(ours), losses.append)
    try:
        yield Bare(companion, theirs, losses)
    finally:
        companion.close()
        theirs.close()


async def hear(companion: Companion, count: int) -> list[Message]:
    heard: list[Message] = []

    def enough() -> bool:
        while len(heard) < count and (message := companion.receive()) is not None:
            heard.append(message)
        return len(heard) == count

    await until(enough)
    return heard


async def end(companion: Companion) -> tuple[list[Message], str]:
    """Everything that still comes, and why no more does."""
    heard: list[Message] = []

    def over() -> str:
        try:
            while (message := companion.receive()) is not None:
                heard.append(message)
        except PeerLost as exc:
            return str(exc)
        return ""

    await until(over)
    return heard, over()


def fill(companion: Companion, size: int = 5000) -> list[Message]:
    """Words until the kernel takes no more."""
    words: list[Message] = []
    taken = True
    while taken:
        words.append(said(len(words), size))
        taken = companion.send(words[-1])
    return words
