"""Rows: written at once, whole or not at all, the same digest in any order, readable by others."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import msgspec
import pytest

from colo.campaign import results, table
from colo.campaign.injection import Happened
from colo.campaign.results import Results, Row
from colo.campaign.trial import Report
from colo.campaign.wire import Done, Numbered
from colo.errors import ColoError
from colo.faults import text
from colo.faults.model import Outcome
from tests.campaign.subjects import UNUSED, alone, flip

TRIAL = alone(flip(5, UNUSED))


def made(
    number: int, outcome: Outcome | None = Outcome.MASKED, worker: str = "a:1", wall_ms: float = 1.5
) -> Row:
    report = Report(
        outcome=outcome,
        why="" if outcome is None else "because",
        happened=(Happened(7, 0x1000, "0x1 -> 0x2"),),
        failure="" if outcome is not None else "the host was slow",
        wall_ms=wall_ms,
    )
    return results.row(Numbered(number, TRIAL), Done(number, report, worker))


def test_a_row_has_all_that_is_needed_to_do_it_again() -> None:
    row = made(3)
    assert text.from_json(row.faults) == TRIAL
    assert (row.trial, row.seed, row.injected, row.injected_ns, row.changed) == (3, 1, 1, 7, "0x1 -> 0x2")


def test_rows_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    with Results(path) as first:
        for number in (2, 0):
            first.add(made(number))
    with Results(path) as again:
        assert [row.trial for row in again.in_order()] == [0, 2]
        assert again.digest == first.digest


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "trials.jsonl"
    with Results(path) as whole:
        whole.add(made(0))
        whole.add(made(1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(results.read(path)) == [(0, "")]
    with Results(path) as again:
        assert list(again.rows) == [(0, "")]
        again.add(made(1))
    assert path.read_bytes().count(b"\n") == 2
    assert results.digest(results.read(path).values()) == whole.digest


def test_a_line_of_another_build_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"trial": 1}\n')
    with pytest.raises(ColoError, match=r"line 1 is not a trial of this build.*another directory"):
        Results(path)


def test_two_campaigns_are_not_at_one_file(tmp_path: Path) -> None:
    with Results(tmp_path / "trials.jsonl"), pytest.raises(ColoError, match="another campaign is at work"):
        Results(tmp_path / "trials.jsonl")


def test_a_trial_counts_once(tmp_path: Path) -> None:
    with Results(tmp_path / "trials.jsonl") as rows:
        rows.add(made(0))
        rows.add(made(0, worker="b:2"))
    assert (tmp_path / "trials.jsonl").read_bytes().count(b"\n") == 1


def test_the_digest_is_of_what_happened_and_not_of_the_host() -> None:
    one, other = [made(0), made(1)], [made(0, worker="b:2", wall_ms=99), made(1)]
    assert results.digest(one) == results.digest(other)
    assert results.digest(one) != results.digest([made(0, Outcome.SDC), made(1)])


def test_parquet_has_every_column_and_row(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [made(0), msgspec.structs.replace(made(1, None), seed=(1 << 64) - 1, injected_ns=None)]
    path = results.export(rows, tmp_path, {"digest": "d"})
    read = parquet.read_table(path)
    assert read.to_pylist() == msgspec.to_builtins(rows)
    assert read.schema.metadata[b"digest"] == b"d"


def test_without_pyarrow_it_is_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = results.export([made(0)], tmp_path, {})
    with path.open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert (path.name, read["trial"], read["outcome"]) == ("results.csv", "0", "masked")


def test_the_table_counts_and_says_what_is_missing() -> None:
    rows = [made(0), made(1), made(2, Outcome.SDC), made(3, None)]
    assert table.counts(rows) == {
        "masked": 2, "detected": 0, "failed-over": 0, "crash": 0, "hang": 0, "sdc": 1
    }  # fmt: skip
    shown = "\n".join(table.lines(rows))
    assert "66.67%" in shown
    assert "1 trials have no outcome: the host was slow" in shown


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_wilsons(count: int, total: int, low: float, high: float) -> None:
    assert table.wilson(count, total) == pytest.approx((low, high), abs=5e-5)
