"""What is measured: a guest alone, or protected by a pair, on the same network, from the same snapshot.

Both are real ``colo node`` processes.  An unprotected guest is a node that nobody follows: nothing is held,
nothing is compared, nothing is sent; bridge, TAP and card are those of a pair.  A pair is what ``colo up``
makes (:class:`colo.pair.pair.Pair`).

What a subject counts is asked over QMP, the statistics of ``query-colo-status``; each checkpoint of a time is
read from the trace that the primary writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from colo.errors import ColoError
from colo.experiment.schedule import Configuration
from colo.network.host import Network
from colo.pair import runtime
from colo.pair.node import EXIT, PairNode
from colo.pair.pair import Pair, PairOptions

TAP = "tap-a"
PROTECTED_WITHIN_S = 120.0
Counters = dict[str, float]


class Subject(Protocol):
    """A guest that can be asked."""

    @property
    def network(self) -> Network: ...

    @property
    def failovers(self) -> int:
        """So far."""

    async def __aenter__(self) -> Subject: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def counters(self) -> Counters:
        """What the node that serves has counted since it started; empty for a guest alone."""

    def checkpoints(self, begin_s: float, end_s: float) -> list[dict[str, Any]]:
        """Those committed from one moment to another, as the trace has them."""


class Alone:
    """An unprotected guest."""

    failovers = 0

    def __init__(self, guest: str, snapshot: Path) -> None:
        self._guest, self._snapshot = guest, snapshot
        self._name = f"alone-{os.getpid()}"
        self._record, self._home = runtime.create(self._name, guest)
        self.network = Network(f"colo-{self._name}")
        self._node = PairNode("n0", (), self._home, self._hear)
        self._ended: str | None = None

    def _hear(self, node: PairNode, event: str, facts: dict[str, Any]) -> None:
        if event in (EXIT, "SHUTDOWN"):
            self._ended = f"{event} {facts}"

    async def __aenter__(self) -> Alone:
        try:
            self.network.start()
            self._node.command = self._command()
            await self._node.start()
            self._write_record()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    def _write_record(self) -> None:
        """So that ``colo stop`` finds the node if we are killed."""
        self._node.role = "alone"
        record = self._record
        runtime.write(runtime.Pair(record.name, record.guest, record.supervisor, [self._node.record()]))

    def _command(self) -> list[str]:
        network, node = self.network, self._node
        words = ["node", self._guest, "--load", str(self._snapshot), "--net", network.nic(TAP)]
        words += ["--pair", self._name, "--name", node.name, "--qmp", str(node.qmp)]
        words += ["--console", str(self._home / "n0.console"), "--netns", str(network.namespace)]
        return words if network.user_namespace is None else [*words, "--userns", network.user_namespace]

    async def __aexit__(self, *_: object) -> None:
        await self._node.stop()
        self.network.close()
        runtime.remove(self._record)

    async def counters(self) -> Counters:
        if self._ended is not None:
            raise ColoError(f"the unprotected guest ended: {self._ended}: {self._node.last_words()}")
        return {}

    def checkpoints(self, begin_s: float, end_s: float) -> list[dict[str, Any]]:
        return []


class Protected:
    """A guest with a pair around it."""

    def __init__(self, guest: str, configuration: Configuration, words: Sequence[str], traces: Path) -> None:
        """``words`` are more words for both nodes."""
        self._traces = traces
        options = PairOptions(
            guest=guest,
            name=f"compare-{os.getpid()}",
            node_words=(*configuration.words, *words),
            trace=traces,
        )
        self.pair = Pair(options, self._say)
        self.said: list[tuple[float, str, dict[str, Any]]] = []
        """What the supervisor said, and when."""

    def _say(self, event: str, facts: dict[str, Any]) -> None:
        self.said.append((time.monotonic(), event, facts))

    @property
    def network(self) -> Network:
        found = self.pair.network
        assert isinstance(found, Network)
        return found

    @property
    def failovers(self) -> int:
        return self.pair.state.failovers

    async def __aenter__(self) -> Protected:
        await self.pair.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pair.stop()

    async def counters(self) -> Counters:
        primary = self.pair.state.primary
        if self.pair.failure is not None or primary is None:
            raise ColoError(f"the pair has failed: {self.pair.failure}")
        status = await primary.execute("query-colo-status")
        return {name: float(value) for name, value in status["x-node"]["statistics"].items()}

    def checkpoints(self, begin_s: float, end_s: float) -> list[dict[str, Any]]:
        primary = self.pair.state.primary
        lines = [] if primary is None else lines_of(self._traces / f"{primary.name}.jsonl")
        return [each for each in lines if each["event"] == "epoch" and begin_s <= each["monotonic_s"] < end_s]

    # Failures

    async def until(self, happened: Callable[[Protected], bool]) -> None:
        """Wait for a state of the pair; ColoError when it does not come."""
        await self.pair.until(lambda _: happened(self), PROTECTED_WITHIN_S)

    @property
    def is_protected(self) -> bool:
        return self.pair.state.protected

    def kill(self, role: str) -> float:
        """``kill -9``, and when."""
        state = self.pair.state
        node = state.primary if role == "primary" else state.secondary
        if node is None or not node.alive:
            raise ColoError(f"there is no {role} to be killed")
        node.kill()
        return time.monotonic()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace that are whole: the last one may be on its way."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def subject(
    guest: str, configuration: Configuration, snapshot: Path, words: Sequence[str], traces: Path
) -> Subject:
    """The guest as ``configuration`` runs it.  ``traces`` is an empty directory."""
    if configuration.policy is None:
        return Alone(guest, snapshot)
    return Protected(guest, configuration, words, traces)
