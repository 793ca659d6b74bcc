"""What a killed or fenced sender counted as held is what the survivor receives: real processes, real signals.

unix(7) and shutdown(2) do not say so in so many words; these are the runs on which it rests.
"""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colo.errors import PeerLost
from colo.messages import Channel, Message
from colo.transport import address
from colo.transport.companion import Companion
from colo.transport.frames import FrameSocket
from tests.link.support import LIMIT_S
from tests.link.talking import COUNT, word

ROOT = Path(__file__).resolve().parents[2]
TALKING = Path(__file__).with_name("talking.py")
ROUNDS = 400
KILLS = 8
SMALL = 1
"""SO_SNDBUF: as little as the kernel allows."""


@dataclass
class Talker:
    process: subprocess.Popen[bytes]
    control: socket.socket
    memory: int

    def begin(self, small: bool) -> Companion:
        """The listening end of a connection on which it talks from now on."""
        ours, theirs = socket.socketpair()
        with theirs:
            address.tune(theirs, Channel.COMPANION)
            if small:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            socket.send_fds(self.control, [b"x"], [theirs.fileno()])
        return Companion(FrameSocket(ours), lambda reason: None)

    @property
    def held(self) -> int:
        """Words that it counts as held."""
        return int(COUNT.unpack(os.pread(self.memory, COUNT.size, 0))[0])

    def begun(self) -> int:
        """When it cannot talk any more."""
        return int(COUNT.unpack(self.control.recv(COUNT.size, socket.MSG_WAITALL))[0])


@contextmanager
def talker() -> Iterator[Talker]:
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("held")
    os.ftruncate(memory, COUNT.size)
    ours.settimeout(LIMIT_S)
    with (
        ours,
        subprocess.Popen(
            [sys.executable, str(TALKING), str(theirs.fileno()), str(memory)],
            pass_fds=[theirs.fileno(), memory],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        theirs.close()
        try:
            yield Talker(process, ours, memory)
        finally:
            process.kill()
            os.close(memory)


def hear(companion: Companion, count: int, heard: list[Message]) -> None:
    """``count`` words more."""
    count += len(heard)
    while len(heard) < count:
        message = companion.receive()
        if message is None:
            assert select.select([companion], [], [], LIMIT_S)[0]
        else:
            heard.append(message)


def hear_the_rest(companion: Companion, heard: list[Message]) -> str:
    """To the end, which is here already: nothing is waited for."""
    try:
        while (message := companion.receive()) is not None:
            heard.append(message)
    except PeerLost as exc:
        return str(exc)
    raise AssertionError("it might say more")


def test_what_a_fenced_sender_counted_as_held_is_received() -> None:
    """The sender lives, and learns at its next word that it is alone; where it stands is up to chance."""
    chance = random.Random(1)
    behind = torn = ahead = 0
    with talker() as talking:
        for number in range(ROUNDS):
            companion = talking.begin(small=number % 2 == 0)
            heard: list[Message] = []
            hear(companion, chance.choice((1, 3, 20, 200)), heard)
            for _ in range(chance.randrange(3000)):
                continue  # a moment, of any length
            companion.shut()
            at_shut = len(heard)
            reason = hear_the_rest(companion, heard)
            begun, held = talking.begun(), talking.held
            assert heard == [word(index) for index in range(len(heard))]
            assert held <= len(heard) <= begun
            assert reason in ("shut here", "shut here in the middle of a frame")
            behind += len(heard) > at_shut
            torn += reason != "shut here"
            ahead += begun > held + 1
    assert behind > ROUNDS // 4, "words were on their way when it was shut"
    assert torn, "a word was taken in part only"
    assert ahead, "it had said more than the kernel took"


def test_what_a_killed_sender_counted_as_held_is_received() -> None:
    chance = random.Random(2)
    counted = 0
    for number in range(KILLS):
        with talker() as talking:
            companion = talking.begin(small=number % 2 == 0)
            heard: list[Message] = []
            hear(companion, chance.choice((1, 20, 200)), heard)
            talking.process.kill()
            talking.process.wait(LIMIT_S)
            assert talking.process.returncode == -9
            hear_the_rest(companion, heard)
            assert heard == [word(index) for index in range(len(heard))]
            assert len(heard) >= talking.held
            counted += talking.held
    assert counted
