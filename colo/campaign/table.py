"""The outcome table: how many trials came to what, with the uncertainty of the shares.

Shares of a random sample have an error; a table without it invites conclusions that the trials do not bear.
The interval is Wilson's (E. B. Wilson, *Probable Inference*, JASA 22, 1927) at 95 %, which is right for small
counts and for shares near 0 and 1, where the usual one is not.

Of trials that were run under several policies there are two tables: a column of outcomes for each policy, and
what became, under each of the others, of the trials that came to one outcome under the first.  The second one
is of pairs of trials with the same seed and faults.  A pair of machines comes to where faults are armed later
than a machine alone, so the guest may be elsewhere when the same fault comes: read numbers there, not single
trials.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from colo.campaign.results import Row
from colo.faults.model import Outcome

Z_95 = 1.959964
"""Of the standard normal distribution, for two sides of 2.5 %."""
COLUMN = 34
"""Width of one policy's."""
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


def report(rows: Sequence[Row], policies: Sequence[str]) -> list[str]:
    """For people: one policy's table, or those of several."""
    if len(policies) == 1:
        return lines(rows)
    by_policy = {policy: [row for row in rows if row.policy == policy] for policy in policies}
    shown = ["", *side_by_side(by_policy), "", *became(rows, policies)]
    for policy, mine in by_policy.items():
        shown += ["", f"policy {policy}", *(f"  {line}" for line in lines(mine))]
    return shown


def side_by_side(by_policy: Mapping[str, Sequence[Row]]) -> list[str]:
    """A line for each outcome, a column for each policy: trials, their share, and its interval."""
    told = {policy: [row for row in rows if row.outcome] for policy, rows in by_policy.items()}
    shown = [f"{'outcome':<12}" + "".join(f"{policy:>{COLUMN}}" for policy in told)]
    for outcome in Outcome:
        cells = []
        for rows in told.values():
            count = counts(rows)[outcome.value]
            low, high = wilson(count, len(rows))
            share = 100 * count / len(rows) if rows else 0.0
            cells.append(f"{count:>7} {share:>6.2f}% ({100 * low:.2f} - {100 * high:.2f})")
        shown.append(f"{outcome.value:<12}" + "".join(f"{cell:>{COLUMN}}" for cell in cells))
    return shown


def transitions(rows: Sequence[Row], policies: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """By outcome under the first policy and by each other policy, how many trials came to what."""
    first, *others = policies
    came = {(row.trial, row.policy): row.outcome for row in rows if row.outcome}
    found: dict[str, dict[str, Counter[str]]] = {}
    for (trial, policy), outcome in came.items():
        if policy in others and (trial, first) in came:
            by_policy = found.setdefault(came[trial, first], {each: Counter() for each in others})
            by_policy[policy][outcome] += 1
    order = [outcome.value for outcome in Outcome]
    return {
        before: {
            policy: {outcome: number[outcome] for outcome in order if number[outcome]}
            for policy, number in found[before].items()
        }
        for before in order
        if before in found
    }


def became(rows: Sequence[Row], policies: Sequence[str]) -> list[str]:
    """Transitions, for people."""
    first, *others = policies
    shown = [f"{'under ' + first:<20} {'then':<12} what became of them"]
    for before, by_policy in transitions(rows, policies).items():
        for policy in others:
            after = by_policy[policy]
            what = ", ".join(f"{count} {outcome}" for outcome, count in after.items())
            shown.append(f"{sum(after.values()):>7} {before:<12} {policy:<12} {what or 'not run yet'}")
    return shown


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
    late = sum(row.outcome == Outcome.DETECTED and bool(row.difference) for row in rows)
    without = [row for row in rows if row.outcome and not row.injected]
    missed = sum(not row.changed for row in without)
    failed = Counter(row.failure for row in rows if row.failure)
    notes = []
    if latent:
        notes.append(f"{latent} of the masked trials are latent: the error is still in the machine's state")
    if late:
        notes.append(f"{late} of the detected trials said something wrong, too: see their column difference")
    if missed:
        notes.append(f"{missed} trials had no injection: what they wait for did not happen")
    if len(without) > missed:
        first = next(row.changed for row in without if row.changed)
        why = first.removeprefix("nothing: ")
        notes.append(f"{len(without) - missed} trials found nothing to change, such as: {why}")
    notes += [f"{count} trials have no outcome: {why}" for why, count in failed.most_common()]
    return notes
