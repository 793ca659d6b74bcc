"""A history is in order, one operation a client at a time, and the same after a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.checkers import History
from colo.checkers.history import HistoryError, plain
from tests.checkers.histories import MODELS, served

values = st.recursive(
    st.none() | st.integers(-(2**53), 2**53) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_what_is_plain_stays_plain_and_can_be_hashed(value: Any) -> None:
    once = plain(value)
    assert plain(once) == once
    hash(once)


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_gives_back_the_same_history(kind: str, tmp_path: Path) -> None:
    history = served(kind, 7)
    history.write(tmp_path / "history.jsonl")
    assert History.read(tmp_path / "history.jsonl").events == history.events


def test_members_of_a_set_have_one_order() -> None:
    assert plain({b"b", "a", 3}) == plain({3, "a", b"b"})


def test_a_client_has_one_operation_open() -> None:
    history = History()
    operation = history.invoke("a", "get", at_ns=1)
    with pytest.raises(HistoryError, match=r"client a asks for set\('x'\) while get\(\) is open"):
        history.invoke("a", "set", "x", at_ns=2)
    history.returned(operation, None, at_ns=3)
    with pytest.raises(HistoryError, match="operation 0 of client a ends, but is not open"):
        history.failed(operation, at_ns=4)
    with pytest.raises(HistoryError, match="operation 9 ends, but was never invoked"):
        history.returned(9, None, at_ns=5)
    assert len(history.events) == 2, "what was refused is not kept"


def test_time_does_not_go_back() -> None:
    history = History()
    history.invoke("a", "get", at_ns=5)
    history.invoke("b", "get", at_ns=5)
    with pytest.raises(HistoryError, match="an event at 4 ns after one at 5 ns"):
        history.invoke("c", "get", at_ns=4)


def test_what_no_history_can_hold_is_refused() -> None:
    with pytest.raises(HistoryError, match="expected text, bytes, a number"):
        History().invoke("a", "set", object(), at_ns=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", r"h:2: .*missing required field `event`"),
        ("not json", r"h:2: "),
        ('{"event":"returned","operation":4,"result":1,"at_ns":9}', "h:2: operation 4 ends, but was never"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    history = History()
    history.invoke("a", "get", at_ns=1)
    history.write(tmp_path / "h")
    with (tmp_path / "h").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(HistoryError, match=message):
        History.read(tmp_path / "h")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(HistoryError, match="nowhere: No such file"):
        History.read("nowhere")
