"""The secondary's end of the log: what its guest is to be given, and what it has to say.

Fits :attr:`vmm.inputs.Door.replayer`.  Words come one after another; the guest may run to the frontier of
the last.  What a guest says is compared as it says it: it may have said more than the log covers, because a
block that the primary was in the middle of was executed to its end, but nothing else and nothing less.

Departed is raised into the run loop at the first difference; the follower then stands still, and a
checkpoint repairs it.
"""

from __future__ import annotations

import zlib
from collections import deque

from colo.errors import Departed, ProtocolViolation
from colo.messages import Log, LoggedInput, Packet
from vmm.clock import NEVER_NS

AHEAD_MAX = 4096
"""Outputs that one block can make beyond what the log covers, and far more."""
UNSPOKEN_BYTES = 4 << 20
"""Of what was said and may not have been heard; the oldest goes, as on a network."""


class LogReader:
    """The log of one epoch, as far as it came.  For the guest's thread."""

    def __init__(self, epoch: int, now_ns: int, ports: list[str]) -> None:
        self.epoch = epoch
        self.frontier_ns = now_ns
        self.words = 0
        self._ports = frozenset(ports)
        self._inputs: deque[LoggedInput] = deque()
        self._expected: deque[int] = deque()
        """Outputs that the log has and the guest has not made."""
        self._ahead: deque[int] = deque()
        """Outputs that the guest made and the log does not have yet."""
        self._unspoken: dict[str, deque[bytes]] = {}
        self._spoken: dict[str, int] = {}
        self._kept_bytes = 0

    def take(self, word: Log) -> None:
        """The next word; ProtocolViolation when it cannot follow on the one before."""
        if word.frontier_ns < self.frontier_ns or word.frontier_ns >= NEVER_NS:
            raise ProtocolViolation(f"a log up to {word.frontier_ns} ns after {self.frontier_ns} ns")
        last = self._inputs[-1][0] if self._inputs else self.frontier_ns
        for ns, port, _ in word.inputs:
            if not last <= ns <= word.frontier_ns:
                raise ProtocolViolation(f"an input at {ns} ns between {last} and {word.frontier_ns} ns")
            if port.removesuffix("?") not in self._ports:
                raise ProtocolViolation(f"an input for {port!r}, which is no port here")
            last = ns
        self.words += 1
        self._inputs.extend(word.inputs)
        self.frontier_ns = word.frontier_ns
        for checksum in word.outputs:
            self._expect(checksum)
        for port, count in word.spoken.items():
            self._heard(port, count)

    def _expect(self, checksum: int) -> None:
        if not self._ahead:
            self._expected.append(checksum)
        elif (made := self._ahead.popleft()) != checksum:
            raise Departed(f"it said {made:#010x} before {self.frontier_ns} ns, the log has {checksum:#010x}")

    def reached(self) -> None:
        """The guest stands at the frontier: Departed when it did not say all that the log has."""
        if self._expected:
            missing = len(self._expected)
            raise Departed(f"at {self.frontier_ns} ns it had not said {missing} of the log's outputs")

    # The door's replayer

    @property
    def next_input_ns(self) -> int:
        return self._inputs[0][0] if self._inputs else NEVER_NS

    @property
    def next_mark_ns(self) -> int:
        return NEVER_NS

    def due(self, now_ns: int) -> list[tuple[str, bytes]]:
        """The inputs stamped ``now_ns``; Departed when one should have come earlier."""
        found = []
        while self._inputs and self._inputs[0][0] <= now_ns:
            ns, port, payload = self._inputs.popleft()
            if ns < now_ns:
                raise Departed(f"an input of {ns} ns for {port} found the guest at {now_ns} ns already")
            found.append((port, payload))
        return found

    def check_output(self, ns: int, port: str, payload: bytes) -> None:
        """The guest said something."""
        made = zlib.crc32(payload)
        if not self._expected:
            self._ahead.append(made)
            if len(self._ahead) > AHEAD_MAX:
                raise Departed(f"at {ns} ns it says more and more on {port} of which the log has nothing")
        elif (expected := self._expected.popleft()) != made:
            raise Departed(
                f"at {ns} ns {len(payload)} bytes on {port} have the checksum {made:#010x}, the log has"
                f" {expected:#010x}"
            )

    def check_mark(self, ns: int, state_hash: bytes) -> None:
        """There are none in here: marks have a word of their own (:mod:`colo.lockstep.marks`)."""

    # What the world may not have heard

    def said(self, port: str, data: bytes) -> None:
        """What would have gone out, in the pieces in which a survivor would say it."""
        self._unspoken.setdefault(port, deque()).append(bytes(data))
        self._kept_bytes += len(data)
        while self._kept_bytes > UNSPOKEN_BYTES:
            self._forget(max(self._unspoken, key=lambda name: len(self._unspoken[name])))

    def _heard(self, port: str, count: int) -> None:
        """Of ``port``, the first ``count`` bytes of the epoch were heard."""
        pieces = self._unspoken.get(port)
        while pieces and self._spoken.get(port, 0) + len(pieces[0]) <= count:
            self._forget(port)

    def _forget(self, port: str) -> None:
        size = len(self._unspoken[port].popleft())
        self._spoken[port] = self._spoken.get(port, 0) + size
        self._kept_bytes -= size

    def unspoken(self) -> list[Packet]:
        """What the primary may have died before it said; a piece of which a part was heard comes whole."""
        return [(port, data) for port, pieces in self._unspoken.items() for data in pieces]
