"""How long something takes, drawn from a distribution, the same on every host.

The sampling uses whole numbers and comparisons only.  ``random.gauss`` and ``expovariate`` call the C
library's ``log`` and ``cos``, whose last bit differs between libraries; a delay that differs by a
nanosecond is another trial.

===========  ==================================================================================
fixed        ``ns``
uniform      from ``ns - spread_ns`` to ``ns + spread_ns``
normal       mean ``ns``, standard deviation ``spread_ns``: the sum of twelve uniform numbers, less
             six (Irwin 1927, Hall 1927), so never further away than six deviations
exponential  mean ``ns``, by von Neumann's comparisons (*Various techniques used in connection with
             random digits*, 1951), cut at :data:`EXPONENTIAL_MAX` means
pareto       ``ns`` at least, with the tail P(d > x) = (ns / x)^2 that is cut at :data:`PARETO_MAX` times
             ``ns``: a few very late ones, as in a congested network
===========  ==================================================================================

A delay is never negative: what would be is 0.
"""

from __future__ import annotations

import math
import random
from typing import Annotated, Literal

import msgspec

from colo.faults.errors import FaultError
from colo.faults.fields import Whole, check

NS_MAX = (1 << 62) - 1
"""Virtual time is 63 bits; a sum of two still fits."""
EXPONENTIAL_MAX = 32
"""P(later) is 1e-14."""
PARETO_MAX = 1000
SCALE_BITS = 32
"""Resolution of a uniform number."""
DELAY_NS_MAX = 1 << 50
"""13 days: PARETO_MAX times that still fits."""

Distribution = Literal["fixed", "uniform", "normal", "exponential", "pareto"]


class Delay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution of delays, in virtual nanoseconds."""

    ns: Annotated[int, Whole(0, DELAY_NS_MAX, "virtual nanoseconds")]
    spread_ns: Annotated[int, Whole(0, DELAY_NS_MAX, "virtual nanoseconds")] = 0
    distribution: Distribution = "fixed"

    def __post_init__(self) -> None:
        check(self)
        if self.spread_ns and self.distribution not in ("uniform", "normal"):
            raise FaultError(
                ("spread_ns",),
                str(self.spread_ns),
                f"no spread_ns with the distribution {self.distribution!r}",
                'leave it out, or use "uniform" or "normal"',
            )

    def draw(self, source: random.Random) -> int:
        """One delay."""
        match self.distribution:
            case "fixed":
                return self.ns
            case "uniform":
                return max(0, self.ns + uniform(source, -self.spread_ns, self.spread_ns))
            case "normal":
                return max(0, self.ns + normal(source, self.spread_ns))
            case "exponential":
                return exponential(source, self.ns)
            case "pareto":
                return pareto(source, self.ns)


def uniform(source: random.Random, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return source.randint(low, high)


def normal(source: random.Random, deviation: int) -> int:
    """Mean 0."""
    total = sum(source.getrandbits(SCALE_BITS) for _ in range(12)) - (6 << SCALE_BITS)
    return deviation * total >> SCALE_BITS


def exponential(source: random.Random, mean: int) -> int:
    """The length of the falling run that a uniform number begins decides whether it is taken."""
    for whole in range(EXPONENTIAL_MAX):
        first = last = source.getrandbits(SCALE_BITS)
        length = 1
        while (number := source.getrandbits(SCALE_BITS)) < last:
            last = number
            length += 1
        if length % 2:
            return mean * ((whole << SCALE_BITS) + first) >> SCALE_BITS
    return mean * EXPONENTIAL_MAX


def pareto(source: random.Random, least: int) -> int:
    """The inverse of the distribution function, with an exact square root."""
    above_zero = source.getrandbits(SCALE_BITS) + 1
    root = math.isqrt(above_zero << SCALE_BITS)
    return min(least * PARETO_MAX, (least << SCALE_BITS) // root)
