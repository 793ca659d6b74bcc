"""``kill -9`` of a node under load: how long clients hear nothing, and whose connection survives.

The silence of a connection is the longest gap between two of its answers, of those gaps that end after the
kill and begin within a second of it; the usual time between answers is part of it.  A connection has
survived if it is answered when all is over, and every answer that it ever had was right.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from colo.errors import ColoError
from colo.experiment import loadgen
from colo.experiment.loadgen import Records
from colo.experiment.outcome import Faults
from colo.experiment.subject import Protected
from colo.experiment.workloads import Workload

AROUND_S = 1.0
"""A gap that begins later has another cause: protection is being restored."""
AFTER_S = 1.0
"""A connection that is not answered in the last second has not survived."""
MOMENTS_S = (0.2, 1.2)
"""After the first answers; evenly at random, so on any phase of a checkpoint."""
LOAD_LIMIT_S = 300.0


class Kill(msgspec.Struct, frozen=True):
    """One kill, and what its clients saw."""

    victim: str
    connections: int
    survived: int
    silences_ms: list[float]
    """Of the connections that survived."""
    usual_ms: float | None
    """The median time between two answers on one connection before."""
    restored_s: float | None
    """From the kill until the pair was protected again; None: it never was."""
    faults: Faults
    error: str | None = None

    @property
    def silence_ms(self) -> float | None:
        return max(self.silences_ms, default=None)


async def kill(
    subject: Protected,
    workload: Workload,
    connections: int,
    victim: str,
    chance: random.Random,
    scratch: Path,
) -> Kill:
    """Kill the ``victim`` at a moment that ``chance`` chooses; returns when the pair is one again."""
    await subject.until(lambda pair: pair.is_protected)
    failovers = subject.failovers
    raw = scratch / "answers"
    network = subject.network
    words = loadgen.command(workload, network.guest_address, connections, LOAD_LIMIT_S, raw)
    error: str | None = None
    restored_s: float | None = None
    async with loadgen.Load(network.command(words), raw) as load:
        begun_s = time.monotonic()
        await asyncio.sleep(chance.uniform(*MOMENTS_S))
        killed_s = subject.kill(victim)
        try:
            await subject.until(lambda pair: pair.failovers > failovers and pair.is_protected)
            restored_s = time.monotonic() - killed_s
        except ColoError as exc:
            error = str(exc)
        await asyncio.sleep(AFTER_S)
        end_s = time.monotonic()
        records, faults = await load.end()
    seen = survivors(records, connections, killed_s, end_s)
    return Kill(
        victim=victim,
        connections=connections,
        survived=len(seen),
        silences_ms=[round(each, 3) for each in seen],
        usual_ms=usual(records, connections, begun_s, killed_s),
        restored_s=None if restored_s is None else round(restored_s, 3),
        faults=faults,
        error=error,
    )


def survivors(records: Records, connections: int, killed_s: float, end_s: float) -> list[float]:
    """Of each connection that survived: its silence, in ms."""
    found = []
    for number in range(connections):
        mine = records[records["connection"] == number]
        times_s = mine["at_ns"] / 1e9
        if len(mine) and times_s[-1] >= end_s - AFTER_S and not mine["verdict"].any():
            found.append(silence(times_s, killed_s, killed_s + AROUND_S))
    return found


def silence(times_s: npt.NDArray[np.float64] | Sequence[float], begin_s: float, end_s: float) -> float:
    """Milliseconds of the longest gap that ends after ``begin_s`` and begins before ``end_s``."""
    times = np.asarray(times_s)
    gaps = np.diff(times)[(times[1:] > begin_s) & (times[:-1] < end_s)]
    return float(gaps.max()) * 1e3 if len(gaps) else 0.0


def usual(records: Records, connections: int, begin_s: float, end_s: float) -> float | None:
    """The median time between two answers on one connection, in ms."""
    gaps = []
    for number in range(connections):
        times_s = records["at_ns"][records["connection"] == number] / 1e9
        gaps.append(np.diff(times_s[(times_s >= begin_s) & (times_s < end_s)]))
    together = np.concatenate(gaps)
    return round(float(np.median(together)) * 1e3, 3) if len(together) else None
