"""How loads become rows, and the rounds of one a line."""

from __future__ import annotations

import numpy as np
import pytest

from colo.experiment import results
from colo.experiment.failover import Kill
from colo.experiment.measurement import GAUGE
from colo.experiment.outcome import Faults
from colo.experiment.results import Row, with_shares
from tests.experiment.rows import BARE, BULK, INC, OFTEN, measured, row


def test_a_share_is_of_the_same_round() -> None:
    rows = [
        row(BARE, measured(1000, [1.0]), 1),
        row(OFTEN, measured(100, [20.0]), 1),
        row(OFTEN, measured(50, [20.0]), 2),
        row(BARE, measured(100, [1.0]), 2),
        row(OFTEN, measured(50, [20.0]), 3),
    ]
    assert [each.share for each in with_shares(rows)] == [1.0, 0.1, 0.5, 1.0, None]
    line = results.together(rows[1:3], [], [])
    assert (line.row.share, line.share_low, line.share_high) == (pytest.approx(0.3), 0.1, 0.5)


def test_another_load_is_another_whole() -> None:
    rows = [row(BARE, measured(1000, [1.0]), 1), row(OFTEN, measured(100, [1.0]), 1, INC)]
    assert with_shares(rows)[1].share is None


def test_what_protection_cost() -> None:
    found = row(OFTEN, measured(10, [1.0], epochs=4, bytes=4096.0), 1)
    assert (found.checkpoints, found.checkpoints_per_s) == (4, 2.0)
    assert found.causes == {"period": 3, "held output": 1}
    assert (found.pause_median_ms, found.pause_max_ms) == (2.5, 4.0)
    assert (found.state_bytes, found.state_kib_per_s) == (4096, 2.0)
    assert found.link_bytes is found.held_median_ms is found.waited_mean_ms is None


def test_an_unprotected_guest_has_no_checkpoints() -> None:
    found = row(BARE, measured(10, [1.0]), 1)
    assert found.checkpoints is found.state_bytes is found.pause_median_ms is None


def test_what_only_some_nodes_count() -> None:
    counters = {"link-bytes": 8192.0, "waited": 4.0, "waited-ms": 10.0}
    found = measured(10, [1.0], epochs=2, **counters)
    found.checkpoints[0]["held_age_ms"], found.checkpoints[1]["held_age_ms"] = 5.0, 7.0
    shown = row(OFTEN, found, 1)
    assert (shown.link_bytes, shown.link_kib_per_s) == (8192, 4.0)
    assert (shown.held_median_ms, shown.held_max_ms, shown.waited_mean_ms) == (6.0, 7.0, 2.5)


def test_what_does_not_grow_is_no_count() -> None:
    names = ["held-frames", "held-age-ms", "waited-ms-mean", "waited-ms-max", "log-lag-ms"]
    assert all(map(GAUGE.search, names))
    assert not any(map(GAUGE.search, ["bytes", "pause-ms", "waited-ms", "because-held output"]))


def test_data_are_counted_where_they_are_of_interest() -> None:
    assert row(BARE, measured(100, [1.0]), 1, BULK).mb_per_s == pytest.approx(5.0)
    assert row(BARE, measured(100, [1.0]), 1).mb_per_s is None


def test_latencies_of_a_line_are_those_of_all_answers() -> None:
    few, many = [100.0], [float(each) for each in range(1, 100)]
    rows = [row(BARE, measured(1, few), 1), row(BARE, measured(99, many), 2)]
    samples = [np.array([round(each * 1e6) for each in some], np.uint64) for some in (few, many)]
    line = results.together(rows, samples, [])
    assert (line.row.p50_ms, line.row.p99_ms, line.row.max_ms) == (50.0, 99.0, 100.0)
    assert line.row.answers == 100
    assert line.row.answers_per_s == pytest.approx((0.5 + 49.5) / 2)


def test_without_samples_they_are_medians_and_the_longest() -> None:
    rows = [row(BARE, measured(1, [each]), number) for number, each in enumerate((1.0, 9.0, 2.0), 1)]
    line = results.together(rows, [], [])
    assert (line.row.p50_ms, line.row.max_ms) == (2.0, 9.0)


def test_faults_and_causes_add_up() -> None:
    rows = [row(OFTEN, measured(1, [1.0], epochs=3), 1), row(OFTEN, measured(1, [1.0], epochs=2), 2)]
    rows[0].lost, rows[1].lost, rows[1].stuck = 1, 2, 1
    line = results.together(rows, [], [])
    assert line.row.causes == {"period": 3, "held output": 2}
    assert line.row.faults == Faults(lost=3, stuck=1)
    assert line.row.checkpoints == 5


def test_a_round_that_failed_does_not_spoil_the_others() -> None:
    good, failed = row(OFTEN, measured(10, [1.0]), 1), results.blank(OFTEN, "echo", 1, failure="no answer")
    line = results.together([good, failed], [], [])
    assert (line.rounds, line.row.answers, line.row.failure) == (1, 10, "no answer")
    assert results.together([failed], [], []).rounds == 0


def kill(silences: list[float], connections: int = 2, restored_s: float | None = 1.0) -> Kill:
    return Kill("primary", connections, len(silences), silences, 5.0, restored_s, Faults(resets=1))


def test_kills_become_a_row_in_which_nobody_is_forgotten() -> None:
    found = results.killed(OFTEN, INC, 2, [kill([10.0, 30.0]), kill([20.0]), kill([], restored_s=None)])
    assert found is not None
    assert (found.kills, found.survived, found.opened, found.unrestored) == (3, 3, 6, 1)
    assert (found.silence_median_ms, found.silence_max_ms, found.restored_median_s) == (20.0, 30.0, 1.0)
    assert found.resets == 3
    assert found.workload == "inc, primary killed"
    assert results.killed(OFTEN, INC, 2, []) is None


def test_silences_of_a_line_are_those_of_all_kills() -> None:
    kills = [kill([1.0, 2.0]), kill([9.0, 9.0])]
    rows = [found for each in kills if (found := results.killed(OFTEN, INC, 2, [each])) is not None]
    lines = results.lines(rows, {}, {rows[0].subject: kills})
    assert len(lines) == 1
    assert lines[0].row.silence_median_ms == 5.5
    assert lines[0].row.kills == 2


def test_the_order_of_lines_is_that_of_the_first_rows() -> None:
    rows: list[Row] = [row(each, measured(1, [1.0]), number) for number in (1, 2) for each in (OFTEN, BARE)]
    assert [line.row.configuration for line in results.lines(rows, {}, {})] == [
        "periodic 20 ms",
        "unprotected",
    ]
