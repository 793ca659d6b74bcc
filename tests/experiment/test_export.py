"""What is written is what was measured, in every format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colo.experiment import export, optional
from colo.experiment.experiment import Found, Plan
from colo.experiment.results import Row, blank
from tests.experiment.rows import BARE, ECHO, OFTEN, measured, row
from vmm.errors import ConfigError

CONDITIONS = {"cpu": "two of them", "load": "0.10"}


def rows() -> list[Row]:
    failed = blank(OFTEN, "echo", 1, failure='he said "no",\nand left')
    return [
        row(BARE, measured(2000, [0.25]), 1),
        row(OFTEN, measured(80, [21.0], epochs=2, bytes=2048.0), 1),
        failed,
    ]


def revived(flat: dict[str, Any]) -> Row:
    """A row from its plain values."""
    made = {name: value for name, value in flat.items() if value not in ("", None)}
    made |= {name: json.loads(made[name]) for name in ("causes", "counters")}
    return msgspec.convert({**dict.fromkeys(("policy", "interval_ms")), **made}, Row, strict=False)


def test_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    export.write_csv(path, rows())
    with path.open(newline="", encoding="utf-8") as file:
        assert [revived(each) for each in csv.DictReader(file)] == rows()


def test_csv_of_nothing_has_its_head(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    export.write_csv(path, [])
    assert path.read_text().strip().split(",") == list(export.columns())


def test_parquet_comes_back_as_it_was(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason=f"no pyarrow: {optional.EXTRA}")
    path = tmp_path / "rows.parquet"
    export.write_parquet(path, rows(), CONDITIONS)
    found = parquet.read_table(path)
    assert [revived(each) for each in found.to_pylist()] == rows()
    assert json.loads(found.schema.metadata[b"conditions"]) == CONDITIONS
    assert str(found.schema.field("answers").type) == "int64"
    assert str(found.schema.field("share").type) == "double"


def test_every_column_has_a_plain_type() -> None:
    kinds = export.columns()
    assert (kinds["round"], kinds["share"], kinds["policy"], kinds["causes"]) == (int, float, str, str)
    assert list(kinds) == list(export.flat(rows()[0]))


def test_the_document_has_everything() -> None:
    plan = Plan("kv", [ECHO], [BARE, OFTEN], Path("x"), rounds=1)
    found = Found()
    for configuration, number, epochs in ((OFTEN, 80, 2), (BARE, 2000, 0)):
        seen = measured(number, [1.0], epochs=epochs)
        found.add(row(configuration, seen, 1), seen)
    document = json.loads(json.dumps(export.document(found, plan, CONDITIONS)))
    assert document["conditions"] == CONDITIONS
    assert document["method"]["configurations"] == ["unprotected", "periodic 20 ms"]
    assert [each["row"]["configuration"] for each in document["table"]] == ["unprotected", "periodic 20 ms"]
    assert [each["share"] for each in document["rows"]] == [0.04, 1.0]


def test_a_library_that_is_missing_is_named_with_what_brings_it() -> None:
    with pytest.raises(
        ConfigError, match=r"a plot needs nosuchlibrary .*pip install 'colo-vmm\[experiment\]'"
    ):
        optional.load("nosuchlibrary.figure", "a plot")
