"""One trial again: found by its number in a campaign's directory, or written in a file.

``DIR#17`` is trial 17.  Where every trial was run under several policies, ``DIR#17/lockstep`` is the one in
that world; what one policy's world is called may be left out.  A trial in a file is run under ``--policy``.

A trial's child is forked from a walker that is on the golden run's way; a replay goes the whole way by
itself, in one process.  Both execute the same guest from the same state, so the replay comes to the same
report, and says so when it does not.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from colo.campaign import kinds, planned, results
from colo.campaign.campaign import GOLDEN, TRIALS
from colo.campaign.kinds import Run
from colo.campaign.results import Row
from colo.campaign.trial import Report
from colo.campaign.wire import Done, Numbered
from colo.errors import ColoError
from colo.faults import text
from colo.faults.model import Trial

SEPARATOR, WORLD = "#", "/"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A trial, its golden run, and what the campaign found."""

    name: str
    golden: Run
    trial: Trial
    policy: str = ""
    """Of its world."""
    row: Row | None = None

    @property
    def leaves_ns(self) -> int:
        """Until then it is the golden run."""
        return kinds.leaves_ns(self.trial, self.golden)

    def departures(self, report: Report) -> list[str]:
        """Where a replay's report is not the campaign's."""
        if self.row is None or not self.row.outcome:
            return []
        asked = Numbered(self.row.trial, self.trial, self.policy)
        again = results.row(asked, Done(self.row.trial, report, "", self.policy))
        names = ("outcome", "why", "difference", "injected", "injected_ns", "changed", "ended_ns", "digest")
        return [
            f"{name}: {getattr(again, name)!r}, the campaign has {getattr(self.row, name)!r}"
            for name in names
            if getattr(again, name) != getattr(self.row, name)
        ]

    def tell(self, departures: list[str]) -> None:
        """For people: whether the replay came to what the campaign found."""
        if departures:
            print("the replay is not what the campaign found; is this the build that it was made with?")
            print("\n".join(f"  {each}" for each in departures))
        elif self.row is not None:
            print("as in the campaign")


def find(target: str, campaign: Path | None, policy: str = "") -> Wanted:
    """``DIR#N``, ``DIR#N/POLICY``, or a trial's file with the campaign that it is compared with."""
    directory, separator, rest = target.rpartition(SEPARATOR)
    number, slash, named = rest.partition(WORLD)
    if separator and number.isdecimal():
        if slash and policy not in ("", named):
            raise ColoError(f"{target}: found --policy {policy}, too: expected one of the two")
        return _numbered(Path(directory), int(number), named or policy, target)
    if campaign is None:
        raise ColoError(
            f"trial {target}: a trial in a file says nothing of its guest: expected --campaign DIR, too;"
            f" or name one of a campaign, DIR{SEPARATOR}NUMBER"
        )
    run = kinds.load(_directory(campaign) / GOLDEN)
    policy = _policy(run, policy, "--policy ", target)
    return Wanted(name=target, golden=run, trial=planned.trial(Path(target)), policy=policy)


def _policy(run: Run, policy: str, how: str, name: str) -> str:
    """One of the campaign's; it need not be said where there is one only."""
    known = kinds.policies(run)
    if policy in known:
        return policy
    if not policy and len(known) == 1:
        return known[0]
    if known == ("",):
        raise ColoError(f"{name}: found policy {policy}, expected none: a machine alone has no policy")
    found = f"policy {policy}" if policy else "no policy"
    expected = ", ".join(f"{how}{each}" for each in known)
    raise ColoError(f"{name}: found {found}, expected one of the campaign's: {expected}")


def _numbered(path: Path, number: int, policy: str, name: str) -> Wanted:
    directory = _directory(path)
    run = kinds.load(directory / GOLDEN)
    policy = _policy(run, policy, f"{SEPARATOR}{number}{WORLD}", name)
    rows = {row.trial: row for row in results.read(directory / TRIALS).values() if row.policy == policy}
    row = rows.get(number)
    if row is None:
        known = f"0 to {max(rows)}" if rows else "none yet"
        raise ColoError(f"{name}: no trial {number} in {directory / TRIALS}: expected one of {known}")
    return Wanted(name=name, golden=run, trial=text.from_json(row.faults), policy=policy, row=row)


def _directory(path: Path) -> Path:
    """Of a campaign; one of its files will do."""
    directory = path if path.is_dir() else path.parent
    if not (directory / GOLDEN).exists():
        raise ColoError(
            f"{path}: no campaign is there: expected a directory with {GOLDEN} (colo campaign --out)"
        )
    return directory
