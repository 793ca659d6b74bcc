"""The outcome table: how many trials came to what, with the uncertainty of the shares.

Shares of a random sample have an error; a table without it invites conclusions that the trials do not bear.
The interval is Wilson's (E. B. Wilson, *Probable Inference*, JASA 22, 1927) at 95 %, which is right for small
counts and for shares near 0 and 1, where the usual one is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from colo.campaign.results import Row
from colo.faults.model import Outcome

Z_95 = 1.959964
"""Of the standard normal distribution, for two sides of 2.5 %."""
WHYS_MAX = 3
"""Reasons that the table shows of one outcome."""


def wilson(count: int, total: int) -> tuple[float, float]:
    """The interval of a share, at 95 %."""
    if total == 0:
        return 0.0, 1.0
    share, square = count / total, Z_95 * Z_95
    middle = share + square / (2 * total)
    half = Z_95 * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    whole = 1 + square / total
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """By outcome, in the order from harmless to worst; those that did not occur are there, too."""
    found = Counter(row.outcome for row in rows if row.outcome)
    return {outcome.value: found[outcome.value] for outcome in Outcome}


def lines(rows: Sequence[Row]) -> list[str]:
    """For people."""
    told = [row for row in rows if row.outcome]
    shown = [f"{'outcome':<12} {'trials':>7} {'share':>8}   95 % interval      most often"]
    for outcome, count in counts(rows).items():
        share = 100 * count / len(told) if told else 0.0
        low, high = wilson(count, len(told))
        whys = Counter(row.why for row in told if row.outcome == outcome).most_common(WHYS_MAX)
        said = ", ".join(f"{why} ({times})" for why, times in whys)
        interval = f"{100 * low:>5.2f} - {100 * high:<5.2f} %"
        shown.append(f"{outcome:<12} {count:>7} {share:>7.2f}%   {interval}    {said}".rstrip())
    return shown + _notes(rows)


def _notes(rows: Sequence[Row]) -> list[str]:
    latent = sum(row.latent for row in rows)
    without = [row for row in rows if row.outcome and not row.injected]
    missed = sum(not row.changed for row in without)
    failed = Counter(row.failure for row in rows if row.failure)
    notes = []
    if latent:
        notes.append(f"{latent} of the masked trials are latent: the error is still in the machine's state")
    if missed:
        notes.append(f"{missed} trials had no injection: what they wait for did not happen")
    if len(without) > missed:
        first = next(row.changed for row in without if row.changed)
        why = first.removeprefix("nothing: ")
        notes.append(f"{len(without) - missed} trials found nothing to change, such as: {why}")
    notes += [f"{count} trials have no outcome: {why}" for why, count in failed.most_common()]
    return notes
