"""Are two machines in the same state: everything that a guest could notice, device by device, page by page?

What is compared is what is saved (``vmm/state.py``): the processor, every chip, all of RAM.  The comparison
is :mod:`vmm.compare`'s; this gives it a verdict, and reads snapshot files, too: of two runs on two hosts.

Of a machine with disks the machine itself is needed, as a snapshot file does not hold their images.  Not
compared: what is not the guest's, such as the pace of a machine and where its cards lead.
"""

from __future__ import annotations

from pathlib import Path

from colo.checkers.verdict import Verdict, right, wrong
from vmm.api import Pc
from vmm.machine import Machine
from vmm.machine import resume as resume_machine
from vmm.snapshot import Snapshot

JUDGE = "equal states"

Saved = Pc | Machine | Snapshot | Path | str
"""A machine, or one that was saved."""


def equal(left: Saved, right_side: Saved) -> Verdict:
    """WRONG with every field, register and page that differs, long runs cut short."""
    with _Opened(left) as one, _Opened(right_side) as other:
        if one.digest == other.digest:
            return right(JUDGE, f"both are {one.digest[:16]}")
        found = one.differences(other)
        reason = f"{one.digest[:16]} and {other.digest[:16]} differ in {len(found)} places or more"
        return wrong(JUDGE, reason, tuple(found))


class _Opened:
    """The machine of a :data:`Saved`; one that was made for the comparison is closed after it."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._opened: list[Snapshot | Machine] = []

    def __enter__(self) -> Machine:
        match self._saved:
            case Pc():
                return self._saved.machine
            case Machine():
                return self._saved
            case Snapshot():
                snapshot = self._saved
            case _:
                snapshot = Snapshot.open(self._saved)
                self._opened.append(snapshot)
        machine = resume_machine(snapshot)
        self._opened.append(machine)
        return machine

    def __exit__(self, *_: object) -> None:
        for each in reversed(self._opened):
            each.close()
