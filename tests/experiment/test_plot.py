"""A picture is made of whatever there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.experiment import optional, plot, results
from colo.experiment.failover import Kill
from colo.experiment.outcome import Faults
from colo.experiment.results import Line
from tests.experiment.rows import BARE, BULK, INC, OFTEN, measured, row

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("matplotlib", reason=f"no matplotlib: {optional.EXTRA}")


def loads() -> list[Line]:
    rows = [
        row(each, measured(count, [1.0, 2.0, 9.0]), number, workload)
        for number in (1, 2)
        for workload in (INC, BULK)
        for each, count in ((BARE, 900), (OFTEN, 100 * number))
    ]
    return results.lines(results.with_shares(rows), {}, {})


def kills() -> list[Line]:
    made = results.killed(OFTEN, INC, 4, [Kill("primary", 4, 4, [1.0, 2.0, 3.0, 9.0], 5.0, 1.0, Faults())])
    assert made is not None
    return results.lines([made], {}, {})


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plot{suffix}"
    plot.write(path, [*loads(), *kills()], "a title")
    assert path.read_bytes().startswith(SIGNATURES[suffix])


@pytest.mark.parametrize(
    ("lines", "said"),
    [(loads()[:1], "inc"), (kills(), "silence after kill"), ([], "a title")],
    ids=["a load", "kills", "nothing"],
)
def test_whatever_there_is(tmp_path: Path, lines: list[Line], said: str) -> None:
    path = tmp_path / "plot.svg"
    plot.write(path, lines, "a title")
    assert f"<!-- {said}" in path.read_text()  # letters are drawn; what they say is a comment
