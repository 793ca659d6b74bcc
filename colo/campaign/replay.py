"""One trial again: found by its number in a campaign's directory, or written in a file.

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

SEPARATOR = "#"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A trial, its golden run, and what the campaign found."""

    name: str
    golden: Run
    trial: Trial
    row: Row | None = None

    @property
    def leaves_ns(self) -> int:
        """Until then it is the golden run."""
        return kinds.leaves_ns(self.trial, self.golden)

    def departures(self, report: Report) -> list[str]:
        """Where a replay's report is not the campaign's."""
        if self.row is None or not self.row.outcome:
            return []
        asked = Numbered(self.row.trial, self.trial)
        again = results.row(asked, Done(self.row.trial, report, ""))
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


def find(target: str, campaign: Path | None) -> Wanted:
    """``DIR#N``, or a trial's file with the campaign whose golden run it is compared with."""
    directory, separator, number = target.rpartition(SEPARATOR)
    if separator and number.isdecimal():
        return _numbered(Path(directory), int(number), target)
    if campaign is None:
        raise ColoError(
            f"trial {target}: a trial in a file says nothing of its guest: expected --campaign DIR, too;"
            f" or name one of a campaign, DIR{SEPARATOR}NUMBER"
        )
    run = kinds.load(_directory(campaign) / GOLDEN)
    return Wanted(name=target, golden=run, trial=planned.trial(Path(target)))


def _numbered(path: Path, number: int, name: str) -> Wanted:
    directory = _directory(path)
    rows = results.read(directory / TRIALS)
    row = rows.get(number)
    if row is None:
        known = f"0 to {max(rows)}" if rows else "none yet"
        raise ColoError(f"{name}: no trial {number} in {directory / TRIALS}: expected one of {known}")
    run = kinds.load(directory / GOLDEN)
    return Wanted(name=name, golden=run, trial=text.from_json(row.faults), row=row)


def _directory(path: Path) -> Path:
    """Of a campaign; one of its files will do."""
    directory = path if path.is_dir() else path.parent
    if not (directory / GOLDEN).exists():
        raise ColoError(
            f"{path}: no campaign is there: expected a directory with {GOLDEN} (colo campaign --out)"
        )
    return directory
