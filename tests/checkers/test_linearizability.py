"""The search agrees with the definition, says where a history went wrong, and knows its limit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.checkers import History, Outcome, RedisList, Register, linearizable
from colo.checkers.history import HistoryError, Returned
from colo.checkers.models import Counter, Set
from tests.checkers.histories import MODELS, by_definition, served, shortest_bad_prefix, small_histories


@given(st.sampled_from([*MODELS]).flatmap(lambda kind: st.tuples(st.just(kind), small_histories(kind))))
def test_the_search_is_the_definition(drawn: tuple[str, History]) -> None:
    kind, history = drawn
    verdict = linearizable(history, MODELS[kind])
    assert verdict.ok == by_definition(history, MODELS[kind]), verdict
    assert verdict.evidence == tuple(map(history.line, shortest_bad_prefix(history, MODELS[kind])))


@pytest.mark.parametrize("kind", MODELS)
def test_a_correct_object_is_never_accused(kind: str) -> None:
    for seed in range(25):
        verdict = linearizable(served(kind, seed), MODELS[kind])
        assert verdict.ok, f"seed {seed}: {verdict}"


@pytest.mark.parametrize("kind", MODELS)
def test_an_answer_that_no_state_gives_is_found(kind: str) -> None:
    for seed in range(25):
        history = served(kind, seed)
        returns = [at for at, event in enumerate(history.events) if isinstance(event, Returned)]
        at = returns[seed % len(returns)]
        event = history.events[at]
        assert isinstance(event, Returned)
        history.events[at] = Returned(event.operation, "never said by anybody", event.at_ns)
        verdict = linearizable(history, MODELS[kind])
        assert verdict.outcome is Outcome.WRONG
        assert len(verdict.evidence) == at + 1, f"seed {seed}: {verdict}"


def story(*lines: str, key: str = "") -> History:
    """``a set x`` asks, ``a = OK`` is answered: one client a letter, values words or numbers."""
    history, open_by = History(), {}
    for at, line in enumerate(lines):
        client, word, *rest = line.split()
        values = [int(each) if each.lstrip("-").isdigit() else each for each in rest]
        if word == "=":
            answer: Any = tuple(values) if len(values) > 1 else (values[0] if values else None)
            history.returned(open_by.pop(client), answer, at_ns=at)
        else:
            open_by[client] = history.invoke(client, word, *values, at_ns=at, key=key)
    return history


PLANTED = {
    "a stale read": (Register(), ["a set x", "a = OK", "b get", "b = x", "c get", "c ="]),
    "a read that goes back": (
        Register(), ["a set x", "a = OK", "b set y", "c get", "c = y", "c get", "c = x", "b = OK"],
    ),
    "a write that was lost": (Register(), ["a set x", "a = OK", "a get", "a ="]),
    "an increment done twice": (Counter(), ["a incr", "a = 1", "b get", "b = 2"]),
    "two clients told the same count": (Counter(), ["a incr", "b incr", "a = 1", "b = 1"]),
    "an increment that was taken back": (Counter(), ["a incr", "a = 1", "b incr", "b = 1"]),
    "a member that came back": (Set(), ["a sadd x", "a = 1", "a srem x", "a = 1", "b sismember x", "b = 1"]),
    "one item popped twice": (RedisList(), ["a rpush x", "a = 1", "b lpop", "c lpop", "b = x", "c = x"]),
    "an order turned round": (
        RedisList(), ["a rpush x", "a = 1", "a rpush y", "a = 2", "b lrange 0 -1", "b = y x"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found_at_its_last_event(name: str) -> None:
    model, lines = PLANTED[name]
    last = 7 if name == "a read that goes back" else len(lines)
    verdict = linearizable(story(*lines), model)
    assert verdict.outcome is Outcome.WRONG
    assert len(verdict.evidence) == last


def test_the_reason_names_what_would_have_been_right() -> None:
    verdict = linearizable(story("a incr", "b incr", "a = 1", "b = 1", key="hits"), Counter())
    assert verdict.reason.endswith("ends with b incr('hits') -> 1; right there would have been 2")
    assert str(verdict).splitlines()[-1].endswith("b incr('hits') -> 1")


def test_a_wrong_answer_is_blamed_rather_than_who_noticed() -> None:
    """``get`` is right if the open ``incr`` was done; it is ``incr``'s own answer that fits nothing."""
    verdict = linearizable(story("a incr", "b get", "b = 1", "a = 7"), Counter())
    assert verdict.reason.endswith("ends with a incr() -> 7; right there would have been 1")


def test_an_unknown_outcome_may_come_late_or_never() -> None:
    late = story("a set x", "b get", "b =", "b get", "b = x", "b get", "b = x")
    assert linearizable(late, Register()).ok
    back = story("a set x", "b get", "b = x", "b get", "b =")
    assert not linearizable(back, Register()).ok


def test_what_failed_had_no_effect() -> None:
    history = story("b get", "b =")
    operation = history.invoke("a", "set", "x", at_ns=10)
    history.failed(operation, at_ns=11)
    assert linearizable(history, Register()).ok
    operation = history.invoke("b", "get", at_ns=12)
    history.returned(operation, "x", at_ns=13)
    assert not linearizable(history, Register()).ok


def test_what_failed_later_explains_nothing_before() -> None:
    """``set`` is open when ``get`` returns; that it failed is known when the history is judged."""
    history = story("b get")
    operation = history.invoke("a", "set", "x", at_ns=1)
    history.returned(0, "x", at_ns=2)
    history.failed(operation, at_ns=3)
    verdict = linearizable(history, Register())
    assert verdict.reason.endswith("ends with b get() -> 'x'; right there would have been None")
    assert len(verdict.evidence) == 3


def test_each_key_is_an_object() -> None:
    history = History()
    for at, (key, value) in enumerate([("k", "1"), ("l", "2"), ("k", "1"), ("l", "1")]):
        action = ("set", value) if at < 2 else ("get",)
        operation = history.invoke("a", *action, at_ns=at, key=key)
        history.returned(operation, "OK" if at < 2 else value, at_ns=at)
    verdict = linearizable(history, Register())
    assert "key 'l'" in verdict.reason
    assert len(verdict.evidence) == 4, "the other key's events are not in the way"


def test_a_limit_is_not_a_verdict() -> None:
    history = History()
    for number in range(12):
        history.invoke(f"w{number}", "set", f"v{number}", at_ns=0)
    asked = history.invoke("r", "get", at_ns=1)
    history.returned(asked, "v0", at_ns=2)
    for number in range(12):
        history.returned(number, "OK", at_ns=3)
    verdict = linearizable(history, Register(), limit=5)
    assert verdict.outcome is Outcome.UNKNOWN
    assert not verdict.ok
    assert "raise the limit" in verdict.reason
    assert linearizable(history, Register()).ok


def test_many_lost_answers_are_no_explosion() -> None:
    """A client that asks again and again: sixty increments of which nobody knows, and one who reads."""
    history = History()
    for number in range(60):
        history.invoke(f"w{number}", "incr", at_ns=number)
    for at, seen in enumerate((3, 17, 17, 60)):
        operation = history.invoke("r", "get", at_ns=100 + at)
        history.returned(operation, seen, at_ns=100 + at)
    assert linearizable(history, Counter(), limit=1000).ok
    operation = history.invoke("r", "get", at_ns=200)
    history.returned(operation, 61, at_ns=200)
    assert linearizable(history, Counter(), limit=1000).outcome is Outcome.WRONG


def test_a_long_history_is_read_once() -> None:
    history = served("register", 1, clients=6, operations=3000, lost=0.01)
    assert linearizable(history, Register(), limit=200_000).ok


def test_an_action_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(HistoryError, match=r"a counter has no action get\('x',\)"):
        linearizable(story("a get x", "a = 1"), Counter())
