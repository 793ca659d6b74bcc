"""What a client saw of a load, whichever client it was: answers, latencies, and what was wrong.

Percentiles are of all answers: the smallest latency that so many per cent of them do not exceed, a value
that was measured and not one between two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from colo.errors import ColoError

PERCENTS = (50.0, 90.0, 99.0, 99.9)


class Unusable(ColoError):
    """A client said nothing that could be used, and what it said instead."""


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds; None: this client does not tell."""

    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    p99_9_ms: float | None = None
    max_ms: float | None = None

    @classmethod
    def of(cls, samples_ns: npt.NDArray[np.uint64]) -> Latency:
        if len(samples_ns) == 0:
            return cls()
        cuts = np.percentile(samples_ns, [*PERCENTS, 100.0], method="inverted_cdf")
        return cls(*(round(float(each) / 1e6, 4) for each in cuts))


class Faults(msgspec.Struct, frozen=True):
    """Answers that were not what they must be, and answers that there were none."""

    wrong: int = 0
    lost: int = 0
    repeated: int = 0
    errors: int = 0
    """Connections that could not be made, requests that could not be sent, error replies."""
    resets: int = 0
    stuck: int = 0

    @property
    def total(self) -> int:
        return sum(msgspec.structs.astuple(self))


@dataclass(frozen=True)
class Outcome:
    """One load."""

    answers: int
    seconds: float
    latency: Latency
    faults: Faults
    samples_ns: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Every latency, where the client tells."""

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds
