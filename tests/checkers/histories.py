"""Histories to judge: made by a correct object, spoiled on purpose, or drawn at random.

Beside them the oracle: linearizability as its definition says it, by trying every order of every subset.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from colo.checkers.history import Event, Failed, History, Invoked, Returned
from colo.checkers.models import Counter, Model, RedisList, Register, Set

MODELS: dict[str, Model] = {model.name: model for model in (Register(), Counter(), Set(), RedisList())}
CALLS: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "register": [
        ("get", ()), ("set", ("a",)), ("set", ("b",)), ("cas", ("a", "b")), ("getset", ("c",)),
        ("setnx", ("d",)), ("del", ()),
    ],
    "counter": [("get", ()), ("incr", ()), ("decr", ()), ("incrby", (3,)), ("set", (0,))],
    "set": [
        ("sadd", ("x",)), ("sadd", ("y", "x")), ("srem", ("x",)), ("sismember", ("x",)), ("smembers", ()),
        ("scard", ()), ("del", ()),
    ],
    "list": [
        ("rpush", ("x",)), ("lpush", ("y", "z")), ("lpop", ()), ("rpop", ()), ("llen", ()),
        ("lrange", (0, -1)), ("lindex", (0,)), ("del", ()),
    ],
}  # fmt: skip


def served(kind: str, seed: int, *, clients: int = 4, operations: int = 30, lost: float = 0.1) -> History:
    """What clients see of a correct object: each operation takes effect at one instant while it is open.

    With probability ``lost`` its answer is, and one such operation may take effect long after.
    """
    rng = random.Random(f"{seed} served {kind}")
    model, history = MODELS[kind], History()
    state: Any = model.initial()
    effects: list[list[Any]] = []  # [operation or None when done, call, answer], open or late
    open_by: dict[str, list[Any]] = {}
    renamed = dict.fromkeys(range(clients), 0)
    while history.events == [] or open_by or len(history.events) < 2 * operations:
        number = rng.randrange(clients)
        client = f"c{number}.{renamed[number]}"
        now_ns = len(history.events) * 1000
        waiting = [effect for effect in effects if effect[0] is not None]
        if waiting and rng.random() < 0.6:
            effect = rng.choice(waiting)
            state, effect[2] = model.apply(state, *effect[1])
            effect[0] = None
        elif client not in open_by and len(history.events) < 2 * operations:
            call = rng.choice(CALLS[kind])
            operation = history.invoke(client, call[0], *call[1], at_ns=now_ns)
            open_by[client] = [operation, effect := [operation, call, None]]
            effects.append(effect)
        elif client in open_by and open_by[client][1][0] is None:
            operation, effect = open_by.pop(client)
            if rng.random() < lost:
                renamed[number] += 1
            else:
                history.returned(operation, effect[2], at_ns=now_ns)
        elif client in open_by and rng.random() < lost:
            del open_by[client]  # it may still take effect
            renamed[number] += 1
    return history


@st.composite
def small_histories(draw: st.DrawFn, kind: str) -> History:
    """Up to seven operations with answers that may be right, and often are not."""
    model, history = MODELS[kind], History()
    open_by: dict[int, int] = {}
    state: Any = model.initial()
    for step in range(draw(st.integers(1, 14))):
        client = draw(st.integers(0, 2))
        if client in open_by:
            operation = open_by.pop(client)
            asked = history.operation(operation)
            state, answer = model.apply(state, asked.action, asked.arguments)
            wrong = draw(st.sampled_from([answer, answer, answer, None, 0, 1, 2, "a", "b", ()]))
            if draw(st.integers(0, 5)) == 0:
                history.failed(operation, at_ns=step)
            else:
                history.returned(operation, wrong, at_ns=step)
        elif len(history.events) < 12:
            call = draw(st.sampled_from(CALLS[kind]))
            open_by[client] = history.invoke(f"c{client}", call[0], *call[1], at_ns=step)
    return history


def by_definition(history: History, model: Model, count: int | None = None) -> bool:
    """Does an order of the first ``count`` events exist?  Exponential, and hard to get wrong."""
    events = history.events[:count]
    void = {event.operation for event in history.events if isinstance(event, Failed)}
    asked = [e for e in events if isinstance(e, Invoked) and e.operation not in void]
    ends = {e.operation: at for at, e in enumerate(events) if isinstance(e, Returned)}
    starts = {e.operation: at for at, e in enumerate(events) if isinstance(e, Invoked)}
    results = {e.operation: e.result for e in events if isinstance(e, Returned)}

    def possible(left: list[Invoked], state: Any) -> bool:
        if not any(each.operation in results for each in left):
            return True
        for one in left:
            if any(ends.get(other.operation, 99) < starts[one.operation] for other in left):
                continue  # something that must come first is still to be placed
            after, answer = model.apply(state, one.action, one.arguments)
            fits = one.operation not in results or answer == model.heard(one.action, results[one.operation])
            if fits and possible([each for each in left if each is not one], after):
                return True
        return False

    return possible(asked, model.initial())


def shortest_bad_prefix(history: History, model: Model) -> tuple[Event, ...]:
    """Empty when there is none."""
    for count in range(1, len(history.events) + 1):
        if not by_definition(history, model, count):
            return tuple(history.events[:count])
    return ()
