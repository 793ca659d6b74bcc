"""Running a test's body again: with fewer and smaller faults, until no smaller trial fails in the same way.

A test is run again with all its fixtures made anew, as plug-ins do that repeat flaky tests; what a module or
session keeps for several tests is not.  A run *fails in the same way* when the same exception comes from the
same line: a smaller trial that fails otherwise would explain something else.

The search is :func:`colo.faults.shrink.shrink`.  It is given up when the test does not fail with its own
faults again: something in it depends on more than its seed, and the text says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from colo.testing.failure import Run, explain_shrunk

if TYPE_CHECKING:
    from colo.faults.model import Trial

TRIAL: pytest.StashKey[Trial] = pytest.StashKey()
"""The trial that a run is to have in place of its own."""


def way(report: pytest.TestReport) -> str:
    """How a run failed; nothing when it did not."""
    if report.when != "call" or not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return "failed"
    kind = str(crash.message).partition(":")[0].partition("\n")[0]
    return f"{crash.path}:{crash.lineno}: {kind}"


def shrink(item: pytest.Item, run: Run, failed: pytest.TestReport, runs_max: int) -> str:
    """The text about the smallest trial."""
    from colo.faults import shrink as search
    from colo.faults.errors import FaultError

    wanted = way(failed)

    def fails(trial: Trial) -> bool:
        return any(way(report) == wanted for report in _reports(item, trial))

    try:
        shrunk = search.shrink(run.trial, fails, runs_max)
    except FaultError:
        return (
            "the same faults did not fail in the same way again: something besides the seed decides;"
            " look for times, threads and randomness of the host in the test"
        )
    return explain_shrunk(run, shrunk)


def _reports(item: pytest.Item, trial: Trial) -> list[pytest.TestReport]:
    """Those of one more run; nobody else hears of it."""
    item.stash[TRIAL] = trial
    try:
        return runtestprotocol(item, log=False, nextitem=None)
    finally:
        del item.stash[TRIAL]
