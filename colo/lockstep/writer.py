"""The primary's end of the log: what its guest was given and what it said, since the cut.

Fits :attr:`vmm.inputs.Door.recorder`.  Everything is called by the guest's thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from colo.messages import INPUTS_MAX, OUTPUTS_MAX, Log, LoggedInput

WORD_BYTES = 256 << 10
"""Inputs of one word, in bytes; a single larger one has a word of its own."""


class LogWriter:
    """Inputs and outputs of one epoch, not yet in any word."""

    __slots__ = ("_inputs", "_outputs", "epoch", "frontier_ns")

    def __init__(self) -> None:
        self.epoch = -1
        self.frontier_ns = 0
        """What the last word said."""
        self._inputs: list[LoggedInput] = []
        self._outputs: list[int] = []

    def begin(self, epoch: int, now_ns: int) -> None:
        """A cut: what happened before it is part of the state."""
        self.epoch, self.frontier_ns = epoch, now_ns
        self._inputs.clear()
        self._outputs.clear()

    # The door's recorder

    def input(self, ns: int, port: str, payload: bytes) -> None:
        self._inputs.append((ns, port, payload))

    def output(self, ns: int, port: str, payload: bytes) -> None:
        self._outputs.append(zlib.crc32(payload))

    def mark(self, ns: int, state_hash: bytes) -> None:
        """Marks have a word of their own (:mod:`colo.lockstep.marks`)."""

    # Words

    @property
    def has_news(self) -> bool:
        """Something happened beside the passing of time."""
        return bool(self._inputs or self._outputs)

    def take(self, now_ns: int, spoken: Mapping[str, int]) -> list[Log]:
        """All that happened, up to virtual ``now_ns``, as words; one at least."""
        words = []
        while len(self._inputs) > INPUTS_MAX or _bytes_of(self._inputs) > WORD_BYTES:
            some = self._some_inputs()
            words.append(Log(self.epoch, some[-1][0], some, [], dict(spoken)))
        # Only a guest that stands at the frontier has said all of them.
        first, *rest = _pieces(self._outputs)
        words.append(Log(self.epoch, now_ns, self._inputs, first, dict(spoken)))
        words += [Log(self.epoch, now_ns, [], outputs, dict(spoken)) for outputs in rest]
        self._inputs, self._outputs = [], []
        self.frontier_ns = now_ns
        return words

    def _some_inputs(self) -> list[LoggedInput]:
        """As many of the oldest as fit a word."""
        count = size = 0
        for _, _, payload in self._inputs[:INPUTS_MAX]:
            size += len(payload)
            if count and size > WORD_BYTES:
                break
            count += 1
        some, self._inputs = self._inputs[:count], self._inputs[count:]
        self.frontier_ns = some[-1][0]
        return some


def _pieces(outputs: list[int]) -> list[list[int]]:
    """For one word each; one at least."""
    return [outputs[at : at + OUTPUTS_MAX] for at in range(0, max(len(outputs), 1), OUTPUTS_MAX)]


def _bytes_of(inputs: list[LoggedInput]) -> int:
    return sum(len(payload) for _, _, payload in inputs) if len(inputs) > 1 else 0
