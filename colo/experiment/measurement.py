"""One load on one subject: what the client saw, and what the subject counted in the same time.

A load runs a while before anything counts, and what counts is the time between two looks at the subject's
counters.  With our own client the load goes on beyond both looks, so that answers, checkpoints and bytes
are those of the same seconds; a client of others brings its own beginning and end.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo.experiment import foreign, loadgen
from colo.experiment.outcome import Outcome
from colo.experiment.subject import Counters, Subject
from colo.experiment.workloads import Workload

GAUGE = re.compile(r"^held-|-(?:mean|max|lag-ms)$")
"""Statistics that say how something is, and not how often: they do not grow."""
SPARE_S = 30.0
"""A load is ended by us; this much later it ends by itself, when we are gone."""


@dataclass(frozen=True)
class Look:
    """The counters of a moment."""

    at_s: float
    counters: Counters
    failovers: int


@dataclass(frozen=True)
class Measured:
    """What was seen from both sides."""

    outcome: Outcome
    seconds: float
    """Between the two looks."""
    counters: Counters
    """By how much each grew."""
    checkpoints: list[dict[str, Any]]
    failovers: int
    """Which nobody asked for: then the figures are those of a pair that was not always one."""


async def measure(
    subject: Subject, workload: Workload, connections: int, warm_s: float, seconds: float, scratch: Path
) -> Measured:
    """``scratch`` is a directory for files of the client.  Unusable if nothing comes of it."""
    if workload.client == "loadgen":
        return await _with_ours(subject, workload, connections, warm_s, seconds, scratch)
    return await _with_theirs(subject, workload, connections, warm_s, seconds)


async def _with_ours(
    subject: Subject, workload: Workload, connections: int, warm_s: float, seconds: float, scratch: Path
) -> Measured:
    raw = scratch / "answers"
    network = subject.network
    words = loadgen.command(workload, network.guest_address, connections, warm_s + seconds + SPARE_S, raw)
    async with loadgen.Load(network.command(words), raw) as load:
        await asyncio.sleep(warm_s)
        before = await look(subject)
        await asyncio.sleep(seconds)
        after = await look(subject)
        records, faults = await load.end()
    return _measured(subject, loadgen.between(records, before.at_s, after.at_s, faults), before, after)


async def _with_theirs(
    subject: Subject, workload: Workload, connections: int, warm_s: float, seconds: float
) -> Measured:
    network = subject.network
    client = foreign.Foreign(workload, network.guest_address, connections)
    for _ in range(client.warm_ups):
        client.settle(client.read(await foreign.run(network.command(client.command(warm_s)), warm_s)))
    before = await look(subject)
    said = await foreign.run(network.command(client.command(seconds)), seconds)
    after = await look(subject)
    return _measured(subject, client.read(said), before, after)


async def look(subject: Subject) -> Look:
    counters = await subject.counters()
    return Look(time.monotonic(), counters, subject.failovers)


def _measured(subject: Subject, outcome: Outcome, before: Look, after: Look) -> Measured:
    grown = {
        name: value - before.counters.get(name, 0.0)
        for name, value in after.counters.items()
        if not GAUGE.search(name)
    }
    checkpoints = subject.checkpoints(before.at_s, after.at_s)
    failovers = after.failovers - before.failovers
    return Measured(outcome, after.at_s - before.at_s, grown, checkpoints, failovers)
