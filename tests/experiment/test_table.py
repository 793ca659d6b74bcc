"""The table for people."""

from __future__ import annotations

from colo.experiment import results
from colo.experiment.failover import Kill
from colo.experiment.outcome import Faults
from colo.experiment.table import digits, share, table
from tests.experiment.rows import BARE, BULK, ECHO, INC, OFTEN, measured, row

SHOWN = """\
echo: 64 bytes there and back, each time others; 1 connection
                answers  share   p50   p90   p99  p99.9   max  checkpoints  pause  longest  state  faults
                     /s      %    ms    ms    ms     ms    ms           /s     ms       ms  KiB/s
unprotected       1,000    100  0.25  0.25  0.25   0.25  0.25                                           0
periodic 20 ms     40.0    4.0  21.0  21.0  21.0   21.0  21.0         1.00   1.50     2.00   1.00       0
  periodic 20 ms: checkpoints: 1 held output, 1 period

bulk-out: answers of 100 kB, the guest sends; 1 connection
             answers  data  share   p50   p90   p99  p99.9   max  faults
                  /s  MB/s      %    ms    ms    ms     ms    ms
unprotected     10.0  1.00    100  3.00  3.00  3.00   3.00  3.00       0"""


def text(*rows: results.Row) -> str:
    return table(results.lines(results.with_shares(rows), {}, {}), [ECHO, INC, BULK])


def test_a_line_a_configuration_and_a_block_a_load() -> None:
    shown = text(
        row(BARE, measured(2000, [0.25]), 1),
        row(OFTEN, measured(80, [21.0], epochs=2, bytes=2048.0), 1),
        row(BARE, measured(20, [3.0]), 1, BULK),
    )
    assert shown == SHOWN


def test_faults_are_named_and_failures_told() -> None:
    bad = row(OFTEN, measured(80, [21.0], epochs=1), 1)
    bad.wrong, bad.stuck, bad.failovers = 2, 1, 1
    shown = text(bad, results.blank(BARE, "echo", 1, failure="the guest ended"))
    assert "2 wrong, 1 stuck" in shown
    assert "1 failover(s) that nobody caused" in shown
    assert "unprotected: FAILED: the guest ended" in shown
    assert "\nunprotected  " not in shown


def test_a_block_of_failures_only_has_no_columns() -> None:
    shown = text(results.blank(BARE, "echo", 1, failure="no network"))
    assert shown.splitlines()[1:] == ["  unprotected: FAILED: no network"]


def test_kills_have_columns_of_their_own() -> None:
    kills = [Kill("primary", 4, 3, [10.0, 20.0, 30.0], 5.0, None, Faults(resets=1))]
    found = results.killed(OFTEN, INC, 4, kills)
    assert found is not None
    shown = text(found)
    assert "inc, primary killed; 4 connections" in shown
    assert "3 of 4" in shown
    assert "1 resets" in shown
    assert "1 time(s) not protected again" in shown


def test_a_share_shows_how_far_rounds_were_apart() -> None:
    rows = [row(BARE, measured(1000, [1.0]), number) for number in (1, 2)]
    rows += [row(OFTEN, measured(count, [1.0]), number) for number, count in ((1, 30), (2, 50))]
    bare, often = results.lines(results.with_shares(rows), {}, {})
    assert share(often) == "4.0 (3.0-5.0)"
    assert share(bare) == "100"


def test_three_digits() -> None:
    assert [digits(each) for each in (None, 0.0, 1.234, 12.34, 1234.5)] == [
        "",
        "0.00",
        "1.23",
        "12.3",
        "1,234",
    ]
