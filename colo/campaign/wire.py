"""What a campaign and its workers say to each other: a length, then that many bytes of MessagePack.

A worker is a process of its own (``python -m colo.campaign.worker``), because a process that forks machines
has one thread and no event loop.  It is told a job once, then trials; it says a result for each.  The same
bytes travel through Dask, so a worker is the same program wherever it runs.
"""

from __future__ import annotations

import os
import struct

import msgspec

from colo.campaign.golden import GoldenRun
from colo.campaign.scenery import WorldRun
from colo.campaign.trial import Report
from colo.errors import ColoError
from colo.faults.model import Trial

LENGTH = struct.Struct("<I")
FRAME_MAX = 256 << 20
"""Bytes of one message; the largest is a golden run with its output."""

Key = tuple[int, str]
"""Of a trial: its number, and the policy of its world."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to know before its first trial."""

    golden: GoldenRun | WorldRun
    wall_limit_s: float


class Numbered(msgspec.Struct, frozen=True, array_like=True):
    """A trial and its number in the campaign."""

    number: int
    trial: Trial
    policy: str = ""
    """In a world with this policy; of a machine alone, none."""

    @property
    def key(self) -> Key:
        return self.number, self.policy

    @property
    def name(self) -> str:
        """As behind the ``#`` of a replay."""
        return f"{self.number}/{self.policy}" if self.policy else str(self.number)


class Done(msgspec.Struct, frozen=True, array_like=True):
    """A trial's result."""

    number: int
    report: Report
    worker: str
    policy: str = ""

    @property
    def key(self) -> Key:
        return self.number, self.policy


class Refused(msgspec.Struct, frozen=True):
    """The job cannot be done by this worker, nor by another one of this build."""

    reason: str


class Channel:
    """Messages through two descriptors."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write

    def send(self, message: msgspec.Struct) -> None:
        data = msgspec.msgpack.encode(message)
        rest = LENGTH.pack(len(data)) + data
        while rest:
            rest = rest[os.write(self.write, rest) :]

    def receive(self) -> bytes | None:
        """The next message; None when the other end has gone, even in the middle of one."""
        head = self._exactly(LENGTH.size)
        if head is None:
            return None
        (size,) = LENGTH.unpack(head)
        if size > FRAME_MAX:
            raise ColoError(f"campaign: a message of {size} bytes; at most {FRAME_MAX} are expected")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            piece = os.read(self.read, size - len(data))
            if not piece:
                return None
            data += piece
        return bytes(data)
